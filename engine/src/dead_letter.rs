//! The one shape of rows that were refused, whoever refused them.
//!
//! Every port named `rejected` has this schema, so that one sink can read them all: a decoder's bad
//! payloads, a validator's broken rules, a database's bad rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;

use crate::schema::timestamp_type;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("received_at", timestamp_type(), false),
        Field::new("stage", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, true),
        Field::new("topic", DataType::Utf8, true),
        Field::new("position", DataType::Utf8, true),
        Field::new("payload", DataType::Binary, false),
    ]))
});

/// `received_at`, `stage`, `reason` (a rule, an error class or an SQLSTATE), `detail` (text for a
/// person), `topic`, `position` and `payload` (the message as received, or the row as JSON).
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// Collects dead letters one by one.
#[derive(Debug, Default)]
pub struct DeadLetters {
    received_at: Vec<i64>,
    stage: Vec<String>,
    reason: Vec<String>,
    detail: Vec<Option<String>>,
    topic: Vec<Option<String>>,
    position: Vec<Option<String>>,
    payload: Vec<Vec<u8>>,
}

/// One refused message or row.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetter<'a> {
    /// Microseconds since 1970.
    pub received_at_us: i64,
    /// The stage that refused it.
    pub stage: &'a str,
    /// A word to group by: `invalid_json`, `range.temperature`, `23514`.
    pub reason: &'a str,
    /// A sentence for a person.
    pub detail: Option<&'a str>,
    /// The topic it came by, if known.
    pub topic: Option<&'a str>,
    /// The source's position, if known.
    pub position: Option<&'a str>,
    /// The message as received, or the row as JSON.
    pub payload: &'a [u8],
}

impl DeadLetters {
    /// Adds one.
    pub fn push(&mut self, letter: DeadLetter<'_>) {
        self.received_at.push(letter.received_at_us);
        self.stage.push(letter.stage.to_owned());
        self.reason.push(letter.reason.to_owned());
        self.detail.push(letter.detail.map(str::to_owned));
        self.topic.push(letter.topic.map(str::to_owned));
        self.position.push(letter.position.map(str::to_owned));
        self.payload.push(letter.payload.to_vec());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// All of them as rows of [`schema`]; none are left.
    pub fn take(&mut self) -> RecordBatch {
        let all = std::mem::take(self);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(all.received_at).with_timezone("UTC")),
            Arc::new(StringArray::from(all.stage)),
            Arc::new(StringArray::from(all.reason)),
            Arc::new(StringArray::from(all.detail)),
            Arc::new(StringArray::from(all.topic)),
            Arc::new(StringArray::from(all.position)),
            Arc::new(BinaryArray::from_iter_values(all.payload)),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are those of the schema")
    }
}

/// Dead letters for some rows of a batch, each with the row as JSON for its payload.
///
/// `refused` holds an index into `rows`, a reason and a detail for each; `received_at_us` is the
/// batch's own (see [`crate::ack::Ack::received_at_us`]).
///
/// # Errors
/// A column of a type that has no form in JSON.
pub fn of_rows(
    rows: &RecordBatch,
    refused: &[(u32, String, Option<String>)],
    stage: &str,
    received_at_us: i64,
    position: Option<&str>,
) -> Result<RecordBatch, ArrowError> {
    let mut letters = DeadLetters::default();
    if !refused.is_empty() {
        let indices = UInt32Array::from_iter_values(refused.iter().map(|(row, ..)| *row));
        let lines = json_lines(&take_record_batch(rows, &indices)?)?;
        for (line, (_, reason, detail)) in lines.split(|byte| *byte == b'\n').zip(refused) {
            letters.push(DeadLetter {
                received_at_us,
                stage,
                reason,
                detail: detail.as_deref(),
                topic: None,
                position,
                payload: line,
            });
        }
    }
    Ok(letters.take())
}

/// The same rows, their timestamps in a form that Arrow can write as text: it knows "UTC" only with
/// a time zone database, which we have no other use for, and "+00:00" without.
///
/// # Errors
/// None that occur: the columns are those of `rows`.
pub fn printable(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let is_utc = |kind: &DataType| *kind == timestamp_type();
    if !rows.columns().iter().any(|column| is_utc(column.data_type())) {
        return Ok(rows.clone());
    }
    let schema = rows.schema();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(rows.columns()) {
        match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(times) if is_utc(field.data_type()) => {
                let times = times.clone().with_timezone_utc();
                fields.push(field.as_ref().clone().with_data_type(times.data_type().clone()));
                columns.push(Arc::new(times) as ArrayRef);
            }
            _ => {
                fields.push(field.as_ref().clone());
                columns.push(column.clone());
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Rows as JSON, one object a line, a newline after each.
///
/// # Errors
/// A column of a type that has no form in JSON.
pub fn json_lines(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = LineDelimitedWriter::new(Vec::with_capacity(rows.num_rows() * 128));
    writer.write(&printable(rows)?)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_written_in_utc() {
        let mut letters = DeadLetters::default();
        letters.push(DeadLetter {
            received_at_us: 1_500_000,
            stage: "devices",
            reason: "invalid_json",
            detail: None,
            topic: None,
            position: None,
            payload: b"{",
        });
        let rows = letters.take();
        let line = String::from_utf8(json_lines(&rows).unwrap()).unwrap();
        assert!(line.contains(r#""received_at":"1970-01-01T00:00:01.500Z""#), "{line}");

        let again = of_rows(&rows, &[(0, "range.temperature".to_owned(), None)], "rules", 7, None).unwrap();
        assert_eq!(again.column_by_name("payload").unwrap().as_binary::<i32>().value(0), line.trim_end().as_bytes());
    }
}
