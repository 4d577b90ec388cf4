//! Values of one or several columns as one key: bytes that are equal for equal values only.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array,
    Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildError, StageError};
use pipeline_engine::{columns, far_end};

use super::snapshot::Fingerprint;

/// The columns that make a key.
pub(super) struct KeyColumns {
    columns: Vec<(usize, String, DataType)>,
}

/// The key's columns of one batch.
pub(super) struct Keys<'a>(Vec<KeyArray<'a>>);

enum KeyArray<'a> {
    Text(&'a StringArray),
    Binary(&'a BinaryArray),
    Bool(&'a BooleanArray),
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Time(&'a TimestampMicrosecondArray),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
}

/// Types that a key of any kind can have.
pub(super) fn is_hashable(kind: &DataType) -> bool {
    use DataType::{Binary, Boolean, Float32, Float64, Int16, Int32, Int64, Utf8};
    matches!(kind, Utf8 | Binary | Boolean | Int16 | Int32 | Int64 | Float32 | Float64) || *kind == timestamp_type()
}

/// Types that a key can have which names devices in what a transform tells: it is read back from the key.
pub(super) fn is_device(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::Int16 | DataType::Int32 | DataType::Int64)
}

impl KeyColumns {
    /// Finds the columns that the key `key` of the configuration names.
    ///
    /// # Errors
    /// None is named, one twice, or one that isn't there or has a type that is not accepted.
    pub(super) fn find(
        input: &Schema,
        names: &[String],
        wanted: &str,
        accepts: impl Fn(&DataType) -> bool,
    ) -> Result<Self, BuildError> {
        if names.is_empty() {
            return Err(BuildError::invalid("key", "a key has no columns").hint("Name at least one."));
        }
        let mut found: Vec<(usize, String, DataType)> = Vec::new();
        for name in names {
            let column = columns::find_typed(input, "key", name, wanted, &accepts)?;
            if found.iter().any(|(other, ..)| *other == column) {
                return Err(BuildError::invalid("key", format!("\"{name}\" is named twice")));
            }
            found.push((column, name.clone(), input.field(column).data_type().clone()));
        }
        Ok(Self { columns: found })
    }

    /// Names and types: under others, the same bytes are another key.
    pub(super) fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.columns.len() as u64);
        for (_, name, kind) in &self.columns {
            fingerprint.text(name);
            fingerprint.text(&kind.to_string());
        }
    }

    /// The columns of a schema that holds keys alone; none is null.
    pub(super) fn fields(&self) -> impl Iterator<Item = Field> + '_ {
        self.columns.iter().map(|(_, name, kind)| Field::new(name, kind.clone(), false))
    }

    /// The columns that [`Keys::encode`] made these keys of; text and whole numbers only.
    ///
    /// # Errors
    /// A key is of another type.
    pub(super) fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, StageError> {
        let mut keys: Vec<&[u8]> = keys.collect();
        let columns = self.columns.iter().map(|(_, name, kind)| -> Result<ArrayRef, StageError> {
            let mismatch = || StageError::bug(format!("a key that is remembered has no column {name} of type {kind}"));
            if *kind == DataType::Utf8 {
                let texts: Option<StringArray> = keys.iter_mut().map(|key| take_text(key).map(Some)).collect();
                return Ok(Arc::new(texts.ok_or_else(mismatch)?) as ArrayRef);
            }
            let numbers: Option<Int64Array> = keys.iter_mut().map(|key| take_number(key).map(Some)).collect();
            // No number is out of range: it came from a column of that type.
            Ok(cast(&numbers.ok_or_else(mismatch)?, kind)?)
        });
        columns.collect()
    }

    /// # Errors
    /// A column has another type than it was built for.
    pub(super) fn of<'a>(&self, rows: &'a RecordBatch) -> Result<Keys<'a>, StageError> {
        let arrays = self.columns.iter().map(|(column, ..)| {
            let array = rows.column(*column);
            Ok(match array.data_type() {
                DataType::Utf8 => KeyArray::Text(array.as_string()),
                DataType::Binary => KeyArray::Binary(array.as_binary()),
                DataType::Boolean => KeyArray::Bool(array.as_boolean()),
                DataType::Int16 => KeyArray::Int16(array.as_primitive()),
                DataType::Int32 => KeyArray::Int32(array.as_primitive()),
                DataType::Int64 => KeyArray::Int64(array.as_primitive()),
                DataType::Float32 => KeyArray::Float32(array.as_primitive()),
                DataType::Float64 => KeyArray::Float64(array.as_primitive()),
                kind if *kind == timestamp_type() => KeyArray::Time(array.as_primitive()),
                kind => return Err(StageError::bug(format!("a key of type {kind}, which its build does not accept"))),
            })
        });
        arrays.collect::<Result<_, _>>().map(Keys)
    }
}

impl Keys<'_> {
    /// Puts the key of a row in place of what is in `bytes`; false where a column is null.
    pub(super) fn encode(&self, row: usize, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        self.0.iter().all(|array| array.encode(row, bytes))
    }

    /// Whether the row is of a device that is none, but sent to see whether it arrives: see [`pipeline_engine::far_end`].
    pub(super) fn is_marked(&self, row: usize) -> bool {
        let is_marked = |array: &KeyArray<'_>| match array {
            KeyArray::Text(array) => array.is_valid(row) && far_end::is_marked(array.value(row)),
            _ => false,
        };
        self.0.iter().any(is_marked)
    }

    /// The same where a null is a value like any other, equal to itself alone. These are other keys than those of
    /// [`Keys::encode`].
    pub(super) fn encode_with_nulls(&self, row: usize, bytes: &mut Vec<u8>) {
        bytes.clear();
        for array in &self.0 {
            let mark = bytes.len();
            bytes.push(1);
            if !array.encode(row, bytes) {
                bytes[mark] = 0;
            }
        }
    }
}

impl KeyArray<'_> {
    fn encode(&self, row: usize, bytes: &mut Vec<u8>) -> bool {
        match self {
            Self::Text(array) if array.is_valid(row) => put_bytes(bytes, array.value(row).as_bytes()),
            Self::Binary(array) if array.is_valid(row) => put_bytes(bytes, array.value(row)),
            Self::Bool(array) if array.is_valid(row) => bytes.push(array.value(row).into()),
            Self::Int16(array) if array.is_valid(row) => put(bytes, array.value(row).into()),
            Self::Int32(array) if array.is_valid(row) => put(bytes, array.value(row).into()),
            Self::Int64(array) if array.is_valid(row) => put(bytes, array.value(row)),
            Self::Time(array) if array.is_valid(row) => put(bytes, array.value(row)),
            Self::Float32(array) if array.is_valid(row) => put_float(bytes, array.value(row).into()),
            Self::Float64(array) if array.is_valid(row) => put_float(bytes, array.value(row)),
            _ => return false,
        }
        true
    }
}

/// With its length before it, so that no two keys of several columns run into each other.
fn put_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    bytes.extend_from_slice(value);
}

fn put(bytes: &mut Vec<u8>, value: i64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn take_text<'a>(key: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = key.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *key = rest;
    std::str::from_utf8(text).ok()
}

fn take_number(key: &mut &[u8]) -> Option<i64> {
    let (number, rest) = key.split_first_chunk()?;
    *key = rest;
    Some(i64::from_le_bytes(*number))
}

/// The two zeros are one value, and so is whatever is not a number.
fn put_float(bytes: &mut Vec<u8>, value: f64) {
    let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
    bytes.extend_from_slice(&value.to_bits().to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of all rows of these columns.
    fn keys(columns: Vec<ArrayRef>) -> Vec<Option<Vec<u8>>> {
        let names: Vec<String> = (0..columns.len()).map(|index| format!("c{index}")).collect();
        let fields = names.iter().zip(&columns).map(|(name, array)| Field::new(name, array.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let found = KeyColumns::find(&schema, &names, "a value", is_hashable).unwrap();
        let keys = found.of(&rows).unwrap();
        let mut bytes = Vec::new();
        (0..rows.num_rows()).map(|row| keys.encode(row, &mut bytes).then(|| bytes.clone())).collect()
    }

    #[test]
    fn values_of_several_columns_do_not_run_into_each_other() {
        let left: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("ab"), Some(""), None]));
        let right: ArrayRef = Arc::new(StringArray::from(vec![Some("bc"), Some("c"), Some("abc"), Some("x")]));
        let found = keys(vec![left, right]);
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
        assert_eq!(found[3], None, "a null makes no key");
    }

    #[test]
    fn a_null_can_be_a_value_like_any_other() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("text", Arc::new(StringArray::from(vec![Some("a"), None, Some(""), None, None, Some("a")]))),
            ("number", Arc::new(Int64Array::from(vec![None, None, None, Some(0), None, None]))),
        ];
        let rows =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
                .unwrap();
        let names = ["text".to_owned(), "number".to_owned()];
        let found = KeyColumns::find(&rows.schema(), &names, "a value", is_hashable).unwrap();
        let keys = found.of(&rows).unwrap();
        let keys: Vec<Vec<u8>> = (0..rows.num_rows())
            .map(|row| {
                let mut bytes = vec![9];
                keys.encode_with_nulls(row, &mut bytes);
                bytes
            })
            .collect();
        assert!(keys[0] == keys[5] && keys[1] == keys[4]);
        let different: std::collections::HashSet<&Vec<u8>> = keys[..4].iter().collect();
        assert_eq!(different.len(), 4);
    }

    #[test]
    fn floats_are_equal_as_numbers_are() {
        let odd = f64::from_bits(f64::NAN.to_bits() | 1);
        let found = keys(vec![Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, odd, -f64::NAN, 1.5]))]);
        assert_eq!(found[0], found[1]);
        assert!(found[2] == found[3] && found[3] == found[4]);
        assert!(found[0] != found[2] && found[5] != found[0]);
    }

    #[test]
    fn text_and_whole_numbers_are_read_back_from_a_key() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["a", "", "üb"])),
            Arc::new(Int16Array::from(vec![i16::MIN, 0, i16::MAX])),
            Arc::new(Int32Array::from(vec![i32::MIN, 0, i32::MAX])),
            Arc::new(Int64Array::from(vec![i64::MIN, 0, i64::MAX])),
        ];
        let found: Vec<Vec<u8>> = keys(columns.clone()).into_iter().flatten().collect();
        let key = KeyColumns {
            columns: columns.iter().map(|array| (0, "c".to_owned(), array.data_type().clone())).collect(),
        };
        assert_eq!(&key.decode(found.iter().map(Vec::as_slice)).unwrap(), &columns);
        assert!(key.decode([&b"\x09"[..]].into_iter()).is_err());
    }

    #[test]
    fn every_type_of_a_schema_but_nothing_else_makes_a_key() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int16Array::from(vec![1, 2])),
            Arc::new(Int32Array::from(vec![1, 1])),
            Arc::new(Int64Array::from(vec![1, 1])),
            Arc::new(Float32Array::from(vec![1.0, 1.0])),
            Arc::new(BooleanArray::from(vec![true, true])),
            Arc::new(BinaryArray::from_vec(vec![b"x", b"x"])),
            Arc::new(TimestampMicrosecondArray::from(vec![1, 1]).with_timezone("UTC")),
        ];
        for column in &columns {
            let found = keys(vec![column.clone()]);
            assert!(found[0].is_some());
            assert_eq!(found[0] == found[1], *column.data_type() != DataType::Int16, "{}", column.data_type());
        }
        assert!(!is_hashable(&DataType::Date32));
    }
}
