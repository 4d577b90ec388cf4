//! Arrow columns to the bytes of binary `COPY`.
//!
//! Row by row, big endian, each value behind its length; see "Binary Format" of PostgreSQL's `COPY`.
//! Which column is of which type is settled once a batch, so that a cell costs a branch and a copy.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use bytes::{BufMut, Bytes, BytesMut};

use super::types::PgType;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// From 1970-01-01 to 2000-01-01, where PostgreSQL's time begins.
const EPOCH_US: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;
/// One `CopyData` message: large enough that its header and system call don't count, small enough to
/// overlap encoding, sending and the server's work.
const CHUNK_BYTES: usize = 128 << 10;

/// The rows of a batch at `order`, in that order, as chunks of one `COPY`.
pub fn encode(rows: &RecordBatch, types: &[PgColumn], order: &[u32]) -> Vec<Bytes> {
    let columns: Vec<Cells<'_>> =
        types.iter().map(|column| Cells::of(&rows.columns()[column.index], column.kind)).collect();
    let fields = i16::try_from(columns.len()).expect("PostgreSQL has at most 1,600 columns");
    let mut chunks = Vec::new();
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + 4096);
    chunk.put_slice(SIGNATURE);
    chunk.put_i32(0); // no flags
    chunk.put_i32(0); // no extension
    for &row in order {
        chunk.put_i16(fields);
        columns.iter().for_each(|cells| cells.put(row as usize, &mut chunk));
        if chunk.len() >= CHUNK_BYTES {
            chunks.push(chunk.split().freeze());
            chunk.reserve(CHUNK_BYTES + 4096);
        }
    }
    chunk.put_i16(-1); // no more rows
    chunks.push(chunk.freeze());
    chunks
}

/// A column to send: its index in the batch, and what it becomes.
#[derive(Debug, Clone, Copy)]
pub struct PgColumn {
    pub(super) index: usize,
    pub(super) kind: PgType,
}

impl PgColumn {
    /// The column at an index of a schema; `None` if its type has no counterpart.
    pub fn of(schema: &arrow::datatypes::Schema, index: usize) -> Option<Self> {
        PgType::of(schema.field(index)).map(|kind| Self { index, kind })
    }
}

/// One column, by its Rust type.
enum Cells<'a> {
    Bool(&'a BooleanArray),
    Int2(&'a Int16Array),
    Int4(&'a Int32Array),
    Int8(&'a Int64Array),
    Float4(&'a Float32Array),
    Float8(&'a Float64Array),
    Text(&'a StringArray),
    Jsonb(&'a StringArray),
    Timestamptz(&'a TimestampMicrosecondArray),
    Bytea(&'a BinaryArray),
    Date(&'a Date32Array),
}

impl<'a> Cells<'a> {
    /// The plan has checked the column's type, so the casts can't fail.
    fn of(column: &'a ArrayRef, kind: PgType) -> Self {
        match kind {
            PgType::Bool => Self::Bool(column.as_boolean()),
            PgType::Int2 => Self::Int2(column.as_primitive::<Int16Type>()),
            PgType::Int4 => Self::Int4(column.as_primitive::<Int32Type>()),
            PgType::Int8 => Self::Int8(column.as_primitive::<Int64Type>()),
            PgType::Float4 => Self::Float4(column.as_primitive::<Float32Type>()),
            PgType::Float8 => Self::Float8(column.as_primitive::<Float64Type>()),
            PgType::Text => Self::Text(column.as_string()),
            PgType::Jsonb => Self::Jsonb(column.as_string()),
            PgType::Timestamptz => Self::Timestamptz(column.as_primitive::<TimestampMicrosecondType>()),
            PgType::Bytea => Self::Bytea(column.as_binary()),
            PgType::Date => Self::Date(column.as_primitive::<Date32Type>()),
        }
    }

    fn put(&self, row: usize, out: &mut BytesMut) {
        match self {
            Self::Bool(column) => put_or_null(*column, row, out, |out| put_fixed(out, [u8::from(column.value(row))])),
            Self::Int2(column) => put_or_null(*column, row, out, |out| put_fixed(out, column.value(row).to_be_bytes())),
            Self::Int4(column) => put_or_null(*column, row, out, |out| put_fixed(out, column.value(row).to_be_bytes())),
            Self::Int8(column) => put_or_null(*column, row, out, |out| put_fixed(out, column.value(row).to_be_bytes())),
            Self::Float4(column) => {
                put_or_null(*column, row, out, |out| put_fixed(out, column.value(row).to_be_bytes()));
            }
            Self::Float8(column) => {
                put_or_null(*column, row, out, |out| put_fixed(out, column.value(row).to_be_bytes()));
            }
            Self::Timestamptz(column) => put_or_null(*column, row, out, |out| {
                // Saturates at PostgreSQL's "infinity" values instead of wrapping round.
                put_fixed(out, column.value(row).saturating_sub(EPOCH_US).to_be_bytes());
            }),
            Self::Date(column) => put_or_null(*column, row, out, |out| {
                put_fixed(out, column.value(row).saturating_sub(EPOCH_DAYS).to_be_bytes());
            }),
            Self::Text(column) => put_or_null(*column, row, out, |out| put_bytes(out, column.value(row).as_bytes())),
            Self::Bytea(column) => put_or_null(*column, row, out, |out| put_bytes(out, column.value(row))),
            Self::Jsonb(column) => put_or_null(*column, row, out, |out| {
                let text = column.value(row).as_bytes();
                out.put_i32(length(text.len() + 1));
                out.put_u8(1); // the version of jsonb's binary form
                out.put_slice(text);
            }),
        }
    }
}

fn put_or_null(column: &dyn Array, row: usize, out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
    if column.is_null(row) { out.put_i32(-1) } else { put(out) }
}

fn put_fixed<const N: usize>(out: &mut BytesMut, value: [u8; N]) {
    out.put_i32(N as i32);
    out.put_slice(&value);
}

fn put_bytes(out: &mut BytesMut, value: &[u8]) {
    out.put_i32(length(value.len()));
    out.put_slice(value);
}

/// A cell above 2 GiB can't exist: Arrow's own offsets are 32 bits.
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("an Arrow cell is below 2 GiB")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn rows_come_in_the_order_asked_for_with_nulls_as_such() {
        let schema = Schema::new(vec![Field::new("n", DataType::Int16, true), Field::new("t", DataType::Utf8, true)]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int16Array::from(vec![Some(1), None])), Arc::new(StringArray::from(vec![None, Some("é")]))];
        let rows = RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap();
        let types: Vec<PgColumn> = (0..2).map(|index| PgColumn::of(&schema, index).unwrap()).collect();
        let bytes = encode(&rows, &types, &[1, 0]).concat();
        let expected = [
            SIGNATURE,
            &[0; 8],
            &[0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0xc3, 0xa9],
            &[0, 2, 0, 0, 0, 2, 0, 1, 0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn a_long_copy_comes_in_chunks_that_join_to_the_same_bytes() {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50_000));
        let rows = RecordBatch::try_new(Arc::new(schema.clone()), vec![column]).unwrap();
        let order: Vec<u32> = (0..50_000).collect();
        let chunks = encode(&rows, &[PgColumn::of(&schema, 0).unwrap()], &order);
        assert!(chunks.len() > 5);
        // Header, 14 bytes a row (count, length, value), trailer.
        assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), 19 + 50_000 * 14 + 2);
    }
}
