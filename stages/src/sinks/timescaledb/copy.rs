//! Arrow columns to the bytes of `COPY ... FROM STDIN BINARY`.
//!
//! Row by row and big endian, straight from the columns. The type of a column is looked at once a
//! batch, and no value is boxed or copied on the way. A value that PostgreSQL can't hold is written
//! so that the server refuses it: it never arrives as another value.

use arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array, Int32Array,
    Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::sql_type::SqlType;

/// Signature, no flags, no header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a row's count of fields.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// In place of a field's length.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// Large enough that the count of messages does not matter, small enough that the server is at work
/// on one while the next is made.
const CHUNK_BYTES: usize = 128 << 10;
/// PostgreSQL counts from 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_US: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The bytes of one COPY, in chunks of `CHUNK_BYTES` and a row at most.
pub struct Chunks<'a> {
    columns: Vec<Column<'a>>,
    order: &'a [u32],
    /// The next row to write, as an index into `order`; past its end once the trailer is out.
    next: usize,
    /// Grows to the size of the largest chunk so far, so that a chunk is allocated once.
    chunk_bytes: usize,
}

impl<'a> Chunks<'a> {
    /// The rows of a batch in this order. `types` has one entry a column.
    ///
    /// # Panics
    /// A column is not of its type, which the sink's configuration has checked; or an index is
    /// beyond the batch.
    pub fn new(rows: &'a RecordBatch, types: &[SqlType], order: &'a [u32]) -> Self {
        let columns = rows.columns().iter().zip(types).map(|(array, kind)| Column::new(array, *kind)).collect();
        Self { columns, order, next: 0, chunk_bytes: CHUNK_BYTES + 1024 }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.next > self.order.len() {
            return None;
        }
        let mut out = Vec::with_capacity(self.chunk_bytes);
        if self.next == 0 {
            out.extend_from_slice(HEADER);
        }
        let fields = i16::try_from(self.columns.len()).expect("PostgreSQL has at most 1,600 columns").to_be_bytes();
        while out.len() < CHUNK_BYTES && self.next < self.order.len() {
            let row = self.order[self.next] as usize;
            out.extend_from_slice(&fields);
            for column in &self.columns {
                column.write(row, &mut out);
            }
            self.next += 1;
        }
        if out.len() < CHUNK_BYTES {
            out.extend_from_slice(&TRAILER);
            self.next += 1;
        }
        self.chunk_bytes = self.chunk_bytes.max(out.len());
        Some(out.into())
    }
}

/// One column, its type resolved.
struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Text(&'a StringArray),
    Jsonb(&'a StringArray),
    Bool(&'a BooleanArray),
    Int2(&'a Int16Array),
    Int4(&'a Int32Array),
    Int8(&'a Int64Array),
    Float4(&'a Float32Array),
    Float8(&'a Float64Array),
    Timestamptz(&'a TimestampMicrosecondArray),
    Bytea(&'a BinaryArray),
    Date(&'a Date32Array),
}

impl<'a> Column<'a> {
    fn new(array: &'a dyn Array, kind: SqlType) -> Self {
        let values = match kind {
            SqlType::Text => Values::Text(array.as_string()),
            SqlType::Jsonb => Values::Jsonb(array.as_string()),
            SqlType::Bool => Values::Bool(array.as_boolean()),
            SqlType::Int2 => Values::Int2(array.as_primitive::<Int16Type>()),
            SqlType::Int4 => Values::Int4(array.as_primitive::<Int32Type>()),
            SqlType::Int8 => Values::Int8(array.as_primitive::<Int64Type>()),
            SqlType::Float4 => Values::Float4(array.as_primitive::<Float32Type>()),
            SqlType::Float8 => Values::Float8(array.as_primitive::<Float64Type>()),
            SqlType::Timestamptz => Values::Timestamptz(array.as_primitive::<TimestampMicrosecondType>()),
            SqlType::Bytea => Values::Bytea(array.as_binary()),
            SqlType::Date => Values::Date(array.as_primitive::<Date32Type>()),
        };
        Self { nulls: array.nulls(), values }
    }

    #[inline]
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            out.extend_from_slice(&NULL);
            return;
        }
        match self.values {
            Values::Text(array) => put_bytes(array.value(row).as_bytes(), out),
            Values::Jsonb(array) => put_jsonb(array.value(row), out),
            Values::Bool(array) => out.extend_from_slice(&[0, 0, 0, 1, u8::from(array.value(row))]),
            Values::Int2(array) => put::<2, 6>(array.value(row).to_be_bytes(), out),
            Values::Int4(array) => put::<4, 8>(array.value(row).to_be_bytes(), out),
            Values::Int8(array) => put::<8, 12>(array.value(row).to_be_bytes(), out),
            Values::Float4(array) => put::<4, 8>(array.value(row).to_be_bytes(), out),
            Values::Float8(array) => put::<8, 12>(array.value(row).to_be_bytes(), out),
            Values::Timestamptz(array) => put::<8, 12>(since_2000_us(array.value(row)).to_be_bytes(), out),
            Values::Bytea(array) => put_bytes(array.value(row), out),
            Values::Date(array) => put::<4, 8>(since_2000_days(array.value(row)).to_be_bytes(), out),
        }
    }
}

/// A field of `N` bytes behind its length, `CELL` bytes in all: one store and one check of room.
#[inline]
fn put<const N: usize, const CELL: usize>(value: [u8; N], out: &mut Vec<u8>) {
    let mut cell = [0; CELL];
    let (length, field) = cell.split_at_mut(4);
    length.copy_from_slice(&(N as i32).to_be_bytes());
    field.copy_from_slice(&value);
    out.extend_from_slice(&cell);
}

#[inline]
fn put_bytes(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length(value.len()));
    out.extend_from_slice(value);
}

fn put_jsonb(text: &str, out: &mut Vec<u8>) {
    /// Of the binary form of jsonb.
    const VERSION: u8 = 1;
    out.extend_from_slice(&length(text.len() + 1));
    out.push(VERSION);
    out.extend_from_slice(text.as_bytes());
}

fn length(bytes: usize) -> [u8; 4] {
    // A wrong length would shift every field behind it. The server refuses fields above 1 GiB.
    i32::try_from(bytes).expect("a value of an Arrow text or binary column is below 2 GiB").to_be_bytes()
}

/// The smallest and the largest number mean minus infinity and infinity to PostgreSQL. No time may
/// become one of them: those before its range are sent as a number it refuses (SQLSTATE 22008).
fn since_2000_us(since_1970_us: i64) -> i64 {
    since_1970_us.checked_sub(EPOCH_US).filter(|us| *us != i64::MIN).unwrap_or(i64::MIN + 1)
}

/// As [`since_2000_us`].
fn since_2000_days(since_1970_days: i32) -> i32 {
    since_1970_days.checked_sub(EPOCH_DAYS).filter(|days| *days != i32::MIN).unwrap_or(i32::MIN + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::ArrayRef;
    use proptest::prelude::*;

    use super::*;

    fn copy(columns: Vec<(SqlType, ArrayRef)>, order: &[u32]) -> Vec<u8> {
        let types: Vec<SqlType> = columns.iter().map(|(kind, _)| *kind).collect();
        let named = columns.into_iter().enumerate().map(|(index, (_, array))| (index.to_string(), array));
        let rows = RecordBatch::try_from_iter_with_nullable(named.map(|(name, array)| (name, array, true))).unwrap();
        Chunks::new(&rows, &types, order).flatten().collect()
    }

    /// Reads a COPY back: rows of fields, `None` for null. Panics where the framing is wrong.
    fn read(bytes: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
        let mut rest = bytes.strip_prefix(HEADER).expect("a header");
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            taken.to_vec()
        };
        let mut rows = Vec::new();
        loop {
            let fields = i16::from_be_bytes(take(2).try_into().unwrap());
            if fields == -1 {
                break;
            }
            let row = (0..fields).map(|_| {
                let length = i32::from_be_bytes(take(4).try_into().unwrap());
                (length >= 0).then(|| take(usize::try_from(length).unwrap()))
            });
            rows.push(row.collect());
        }
        assert!(rest.is_empty(), "{} bytes behind the trailer", rest.len());
        rows
    }

    #[test]
    fn a_copy_is_header_rows_in_the_given_order_and_trailer() {
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("ä"), None]));
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
        let bytes = copy(vec![(SqlType::Text, names), (SqlType::Bool, flags)], &[1, 0]);
        let mut expected = HEADER.to_vec();
        expected.extend([0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0]);
        expected.extend([0, 2, 0, 0, 0, 2, 0xc3, 0xa4, 0, 0, 0, 1, 1]);
        expected.extend([0xff, 0xff]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn no_time_becomes_infinity() {
        assert_eq!(since_2000_us(EPOCH_US), 0);
        assert_eq!(since_2000_days(0), -EPOCH_DAYS);
        for us in [i64::MIN, i64::MIN + EPOCH_US - 1, i64::MIN + EPOCH_US] {
            assert_eq!(since_2000_us(us), i64::MIN + 1, "{us}");
        }
        assert_eq!(since_2000_days(i32::MIN + EPOCH_DAYS), i32::MIN + 1);
        assert!(since_2000_us(i64::MAX) < i64::MAX);
    }

    #[test]
    fn rows_that_fill_a_chunk_to_the_byte_still_end_with_a_trailer() {
        // A row of one text field takes 6 bytes and the text.
        for length in CHUNK_BYTES - HEADER.len() - 6 - 3..=CHUNK_BYTES - HEADER.len() - 6 + 3 {
            let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(length)]));
            let rows = read(&copy(vec![(SqlType::Text, text)], &[0]));
            assert_eq!(rows.len(), 1, "{length}");
        }
        assert!(
            read(&copy(vec![(SqlType::Text, Arc::new(StringArray::from(vec!["unused"])) as ArrayRef)], &[])).is_empty()
        );
    }

    proptest! {
        /// Whatever the values, nulls and order: every field is found where its length says.
        #[test]
        fn framing_survives_any_rows(
            rows in prop::collection::vec(
                (any::<Option<String>>(), any::<Option<i64>>(), any::<Option<Vec<u8>>>(), any::<Option<i16>>()),
                0..200,
            ),
            reversed in any::<bool>(),
            long in 0..300_000_usize,
        ) {
            let long = "é".repeat(long / 2);
            let text = rows.iter().map(|row| row.0.as_deref()).chain([Some(long.as_str())]);
            let columns: Vec<(SqlType, ArrayRef)> = vec![
                (SqlType::Text, Arc::new(text.clone().collect::<StringArray>())),
                (SqlType::Jsonb, Arc::new(text.clone().collect::<StringArray>())),
                (SqlType::Int8, Arc::new(rows.iter().map(|row| row.1).chain([None]).collect::<Int64Array>())),
                (SqlType::Bytea, Arc::new(rows.iter().map(|row| row.2.as_deref()).chain([None]).collect::<BinaryArray>())),
                (SqlType::Int2, Arc::new(rows.iter().map(|row| row.3).chain([Some(7)]).collect::<Int16Array>())),
            ];
            let count = u32::try_from(rows.len() + 1).unwrap();
            let order: Vec<u32> = if reversed { (0..count).rev().collect() } else { (0..count).collect() };
            let mut found = read(&copy(columns, &order));
            if reversed {
                found.reverse();
            }
            let expected = text.zip(rows.iter().cloned().chain([(None, None, None, Some(7))])).map(|(text, row)| vec![
                text.map(|text| text.as_bytes().to_vec()),
                text.map(|text| [&[1], text.as_bytes()].concat()),
                row.1.map(|value| value.to_be_bytes().to_vec()),
                row.2,
                row.3.map(|value| value.to_be_bytes().to_vec()),
            ]);
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }
}
