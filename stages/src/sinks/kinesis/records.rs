//! Rows as records: what is put, and by which key.

use arrow::array::{Array, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use pipeline_engine::columns;
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{BuildError, Group, Refused, StageError};

/// A record takes so much, with its key.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// A key takes so many characters.
const KEY_CHARS_MAX: usize = 256;

/// A record to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) key: String,
    pub(super) payload: Bytes,
}

/// How rows of one schema become records.
#[derive(Debug)]
pub(super) struct Shape {
    /// The column whose value is the partition key.
    key: usize,
    /// The column that is the payload; without one it is the row as a JSON object.
    payload: Option<usize>,
}

impl Shape {
    /// Decides by the input's columns: rows with `topic` and `payload` are messages already, which keep their payload and
    /// have the topic for a key.
    pub(super) fn of(input: &Schema, key: Option<&str>) -> Result<Self, BuildError> {
        let are_messages = input.index_of("topic").is_ok() && input.index_of("payload").is_ok();
        let key = match key {
            Some(key) => key,
            None if are_messages => "topic",
            None => {
                return Err(BuildError::invalid("partition_key", "no column is named that keeps records together")
                    .hint("Name the one that must stay in order, such as partition_key = \"device_id\"."));
            }
        };
        let is_key = |kind: &DataType| *kind == DataType::Utf8 || kind.is_integer();
        let key = columns::find_typed(input, "partition_key", key, "text or a whole number", is_key)?;
        let bytes = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::Binary);
        let payload = are_messages
            .then(|| columns::find_typed(input, "inputs", "payload", "text or binary", bytes))
            .transpose()?;
        Ok(Self { key, payload })
    }

    /// The records of a group, in order.
    ///
    /// # Errors
    /// [`StageError::refused`] with every row that can't be a record.
    pub(super) fn records(&self, group: &Group) -> Result<Vec<Outgoing>, StageError> {
        let mut records = Vec::with_capacity(group.rows());
        let mut refused = Vec::new();
        for (batch, rows) in group.batches().iter().map(|batch| &batch.rows).enumerate() {
            let keys = cast(rows.column(self.key), &DataType::Utf8)?;
            let keys: &StringArray = keys.as_string();
            let payloads = match self.payload {
                Some(column) => as_they_are(rows.column(column)),
                None => as_json(rows)?,
            };
            for (row, payload) in payloads.into_iter().enumerate() {
                let key = keys.is_valid(row).then(|| keys.value(row));
                match record(key, payload) {
                    Ok(record) => records.push(record),
                    Err((reason, detail)) => refused.push(Refused { batch, row, reason: reason.to_owned(), detail }),
                }
            }
        }
        if refused.is_empty() { Ok(records) } else { Err(StageError::refused(refused)) }
    }
}

fn record(key: Option<&str>, payload: Option<Bytes>) -> Result<Outgoing, (&'static str, String)> {
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return Err(("no_partition_key", "a row has no partition key".to_owned()));
    };
    let chars = key.chars().count();
    if chars > KEY_CHARS_MAX {
        return Err(("partition_key_too_long", format!("a partition key of {chars} characters; it may have 256")));
    }
    let Some(payload) = payload else { return Err(("no_payload", "a row has no payload".to_owned())) };
    let bytes = key.len() + payload.len();
    if bytes > RECORD_BYTES_MAX {
        return Err(("record_too_large", format!("a record of {bytes} bytes with its key; it may have 1 MiB")));
    }
    Ok(Outgoing { key: key.to_owned(), payload })
}

fn as_they_are(payloads: &dyn Array) -> Vec<Option<Bytes>> {
    let payload = |row| match payloads.as_any().downcast_ref::<BinaryArray>() {
        Some(binary) => Bytes::copy_from_slice(binary.value(row)),
        None => Bytes::copy_from_slice(payloads.as_string::<i32>().value(row).as_bytes()),
    };
    (0..payloads.len()).map(|row| payloads.is_valid(row).then(|| payload(row))).collect()
}

fn as_json(rows: &RecordBatch) -> Result<Vec<Option<Bytes>>, StageError> {
    let lines = Bytes::from(json_lines(rows)?);
    let mut payloads = Vec::with_capacity(rows.num_rows());
    let mut from = 0;
    // JSON text holds no bare newline, so each one ends a row.
    for (at, _) in lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        payloads.push(Some(lines.slice(from..at)));
        from = at + 1;
    }
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use pipeline_engine::stage::Batch;

    use super::*;

    fn rows(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    fn text(values: Vec<Option<&str>>) -> ArrayRef {
        Arc::new(StringArray::from(values))
    }

    fn records(rows: &RecordBatch, key: Option<&str>) -> Result<Vec<(String, String)>, StageError> {
        let shape = Shape::of(&rows.schema(), key).unwrap();
        let records = shape.records(&Group::new(vec![Batch::detached(rows.clone())]))?;
        let text = |record: Outgoing| (record.key, String::from_utf8(record.payload.to_vec()).unwrap());
        Ok(records.into_iter().map(text).collect())
    }

    #[test]
    fn a_message_keeps_its_payload_and_any_other_row_is_a_json_object() {
        let payload: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"one"]));
        let messages = rows(vec![("payload", payload), ("topic", text(vec![Some("iot/d1")]))]);
        assert_eq!(records(&messages, None).unwrap(), [("iot/d1".to_owned(), "one".to_owned())]);
        let readings = rows(vec![("n", Arc::new(Int64Array::from(vec![7]))), ("d", text(vec![Some("a")]))]);
        assert_eq!(records(&readings, Some("n")).unwrap(), [("7".to_owned(), r#"{"n":7,"d":"a"}"#.to_owned())]);
        assert_eq!(Shape::of(&readings.schema(), None).unwrap_err().key, "partition_key");
        assert_eq!(Shape::of(&readings.schema(), Some("no")).unwrap_err().key, "partition_key");
    }

    #[test]
    fn every_row_that_is_no_record_is_named_before_any_is_put() {
        let long = "x".repeat(KEY_CHARS_MAX + 1);
        let large = "x".repeat(RECORD_BYTES_MAX);
        let keys = text(vec![Some("a"), None, Some(""), Some(&long), Some("a"), Some("a")]);
        let payloads = text(vec![Some("x"), Some("x"), Some("x"), Some("x"), None, Some(&large)]);
        let error = records(&rows(vec![("topic", keys), ("payload", payloads)]), None).unwrap_err();
        let found: Vec<_> = error.refused_rows().iter().map(|refused| (refused.row, refused.reason.as_str())).collect();
        let expected = [
            (1, "no_partition_key"),
            (2, "no_partition_key"),
            (3, "partition_key_too_long"),
            (4, "no_payload"),
            (5, "record_too_large"),
        ];
        assert_eq!(found, expected);
    }
}
