//! CSV with a header: each row becomes a JSON object, with its number as `seq` if it has none.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::csv::{Reader, ReaderBuilder, reader::Format};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use pipeline_engine::columns;
use pipeline_engine::stage::StageError;

use super::super::payload::quoted;
use super::{DEVICE_ID, LINE_BYTES_MAX, Mistake, RowHead, TIMESTAMP, open, read_time};

/// The device's own counter of its readings.
const SEQ: &str = "seq";

/// Rows of a CSV file with a header, every field taken as text.
pub(super) struct CsvRows {
    reader: Reader<BufReader<File>>,
    batch: RecordBatch,
    row: usize,
    /// Data rows read before `batch`.
    rows_before: usize,
    /// `"name":` of each column.
    keys: Vec<String>,
    timestamp: usize,
    device_id_column: Option<usize>,
    /// The file counts its rows itself.
    has_seq: bool,
    device_id: String,
}

impl CsvRows {
    pub(super) fn open(path: &Path, device_id: &str) -> Result<Self, StageError> {
        let unreadable = |error: ArrowError| {
            StageError::permanent(format!("\"{}\" is not a CSV file with a header", path.display())).because(error)
        };
        let mut file = open(path)?;
        // The header is read by itself, so that the rest has one type whatever is in it, and the file
        // is opened once: it may be a pipe.
        let mut header = Vec::new();
        let read = Read::take(&mut file, LINE_BYTES_MAX as u64).read_until(b'\n', &mut header);
        read.map_err(|error| unreadable(error.into()))?;
        let format = Format::default().with_header(true);
        let (header, _) = format.infer_schema(header.as_slice(), Some(0)).map_err(unreadable)?;
        let names: Vec<&str> =
            header.fields().iter().map(|field| field.name().trim_start_matches('\u{feff}').trim()).collect();
        let text = |name: &&str| Field::new(*name, DataType::Utf8, true);
        let schema = Arc::new(Schema::new(names.iter().map(text).collect::<Vec<_>>()));
        let timestamp = columns::find(&schema, "", TIMESTAMP).map_err(|mistake| {
            StageError::permanent(format!("\"{}\" has no column \"{TIMESTAMP}\"", path.display()))
                .hint(mistake.hint.unwrap_or_default())
        })?;
        let keys = names.iter().map(|name| format!("{}:", quoted(name))).collect();
        let device_id_column = names.iter().position(|name| *name == DEVICE_ID);
        let has_seq = names.contains(&SEQ);
        let batch = RecordBatch::new_empty(schema.clone());
        let reader = ReaderBuilder::new(schema).with_batch_size(1024).build(file);
        let reader = reader.map_err(unreadable)?;
        let device_id = device_id.to_owned();
        Ok(Self { reader, batch, row: 0, rows_before: 0, keys, timestamp, device_id_column, has_seq, device_id })
    }

    pub(super) fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<RowHead<'_>>, Mistake> {
        while self.row == self.batch.num_rows() {
            self.rows_before += self.row;
            self.row = 0;
            match self.reader.next() {
                Some(Ok(batch)) => self.batch = batch,
                Some(Err(error)) => {
                    return Err(Mistake { place: format!("after row {}", self.rows_before), text: error.to_string() });
                }
                None => {
                    self.batch = self.batch.slice(0, 0);
                    return Ok(None);
                }
            }
        }
        let row = self.row;
        self.row += 1;
        let field = |column: usize| {
            let texts = self.batch.column(column).as_string::<i32>();
            if texts.is_null(row) { "" } else { texts.value(row).trim() }
        };
        let written = field(self.timestamp);
        let (time_us, timestamp) = read_time(written).ok_or_else(|| Mistake {
            place: format!("row {}", self.rows_before + row + 1),
            text: format!(
                "\"{written}\" is not a timestamp such as \"2026-01-31 12:00:00\" or \"2026-01-31T12:00:00Z\""
            ),
        })?;
        let own_id = self.device_id_column.map(&field).filter(|id| !id.is_empty());
        let device_id = own_id.unwrap_or(&self.device_id);
        payload.extend_from_slice(b"{\"device_id\":");
        payload.extend_from_slice(quoted(device_id).as_bytes());
        payload.extend_from_slice(b",\"timestamp\":\"");
        payload.extend_from_slice(timestamp.as_bytes());
        payload.push(b'"');
        for (column, key) in self.keys.iter().enumerate() {
            if column != self.timestamp && Some(column) != self.device_id_column {
                payload.push(b',');
                payload.extend_from_slice(key.as_bytes());
                push_value(payload, field(column));
            }
        }
        if !self.has_seq {
            // Real series have instants that come twice, an hour set back for one: the row's number
            // tells their readings apart, as the counter of a device does.
            payload.extend_from_slice(format!(",\"seq\":{}", self.rows_before + row + 1).as_bytes());
        }
        payload.push(b'}');
        let device_id = Cow::Owned(device_id.to_owned());
        Ok(Some(RowHead { time_us, device_id }))
    }
}

/// A field as JSON: a number, `true` or `false` as it is written, nothing as null, else a text.
fn push_value(payload: &mut Vec<u8>, field: &str) {
    match field {
        "" => payload.extend_from_slice(b"null"),
        "true" | "false" => payload.extend_from_slice(field.as_bytes()),
        _ if is_json_number(field.as_bytes()) => payload.extend_from_slice(field.as_bytes()),
        _ => payload.extend_from_slice(quoted(field).as_bytes()),
    }
}

/// Whether JSON writes a number like this: no plus, no leading zero, digits around the point.
fn is_json_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count, &text[count..])
    }
    let whole = text.strip_prefix(b"-").unwrap_or(text);
    let (count, mut rest) = digits(whole);
    if count == 0 || (count > 1 && whole[0] == b'0') {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (count, after) = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = after;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let (count, after) = digits(exponent);
        if count == 0 {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_json_calls_a_number_is_one() {
        for text in ["0", "-0", "10", "0.5", "1e5", "1E+05", "-1.00e-05"] {
            assert!(is_json_number(text.as_bytes()), "{text}");
        }
        for text in ["", "-", "+1", "01", ".5", "5.", "1e", "0x10", "1 ", "Infinity", "1.2.3"] {
            assert!(!is_json_number(text.as_bytes()), "{text}");
        }
    }
}
