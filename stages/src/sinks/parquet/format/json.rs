//! A JSON object on each line, as Firehose writes them and Athena reads them.
//!
//! A null is left out. Times are RFC 3339 in UTC, bytes are base64, columns of JSON are what they hold and not a text of it. NaN
//! and infinities have no form in JSON and become null.

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array,
    Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, NullableEncoder};
use arrow::json::{Encoder, EncoderFactory, EncoderOptions, WriterBuilder};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::DateTime;
use pipeline_engine::dead_letter::printable;
use pipeline_engine::schema::{is_json, timestamp_type};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Origin, Packing, Unreadable};
use crate::sinks::parquet::provenance::GROUP;

/// Rows that are read back at once.
const ROWS_AT_ONCE: usize = 8192;

/// One object with these rows, in this order. `entries` say where they came from.
///
/// # Errors
/// A column of a type that has no form in JSON.
pub(super) fn write(packing: Packing, batches: &[RecordBatch], entries: &[(&str, &str)]) -> Result<Bytes, Unreadable> {
    let note: Map<String, Value> = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    packing.pack(Value::Object(note).to_string().as_bytes(), |out: &mut dyn Write| {
        let builder = WriterBuilder::new().with_encoder_factory(Arc::new(AsReadBack));
        let mut writer = builder.build::<_, LineDelimited>(out);
        for rows in batches {
            writer.write(&printable(rows)?)?;
        }
        writer.finish().map_err(Unreadable::from)
    })
}

/// Where the rows of an object came from.
///
/// # Errors
/// What it says of that is damaged.
pub(super) fn origin(packing: Packing, content: &[u8]) -> Result<Origin, Unreadable> {
    let Some(note) = packing.note(content)? else { return Ok(Origin::Silent) };
    let entries: Map<String, Value> = serde_json::from_slice(&note)?;
    match entries.get(GROUP).and_then(Value::as_str) {
        Some(group) => Ok(Origin::Group(serde_json::from_str(group)?)),
        None => Ok(Origin::Unplaced),
    }
}

/// How many rows an object has.
///
/// # Errors
/// It is damaged.
pub(super) fn count(packing: Packing, content: &[u8]) -> Result<u64, Unreadable> {
    let mut lines = BufReader::new(packing.unpack(content)?);
    let mut rows = 0;
    while lines.skip_until(b'\n')? > 0 {
        rows += 1;
    }
    Ok(rows)
}

/// The rows of an object, by the schema that they were written with.
///
/// # Errors
/// It is damaged, or its lines are others' or of another schema.
pub(super) fn read(packing: Packing, content: &[u8], schema: &SchemaRef) -> Result<Vec<RecordBatch>, Unreadable> {
    let mut lines = BufReader::new(packing.unpack(content)?);
    let (mut batches, mut objects, mut line) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        line.clear();
        let is_end = lines.read_until(b'\n', &mut line)? == 0;
        if !is_end {
            objects.push(serde_json::from_slice::<Map<String, Value>>(&line)?);
        }
        if objects.len() == ROWS_AT_ONCE || (is_end && !objects.is_empty()) {
            let columns = schema.fields().iter().map(|field| column(field, &objects));
            batches.push(RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?);
            objects.clear();
        }
        if is_end {
            return Ok(batches);
        }
    }
}

fn column(field: &Field, objects: &[Map<String, Value>]) -> Result<ArrayRef, Unreadable> {
    let odd = |value: &Value| -> Unreadable {
        format!("\"{}\" holds {value}, which is no {}", field.name(), field.data_type()).into()
    };
    let values = || objects.iter().map(|object| object.get(field.name()).filter(|value| !value.is_null()));
    /// One value a row, each of them if it is of the type.
    fn all<'v, T>(
        values: impl Iterator<Item = Option<&'v Value>>,
        convert: impl Fn(&'v Value) -> Option<T>,
        odd: impl Fn(&Value) -> Unreadable,
    ) -> Result<Vec<Option<T>>, Unreadable> {
        values.map(|value| value.map(|value| convert(value).ok_or_else(|| odd(value))).transpose()).collect()
    }
    let whole = |value: &Value| value.as_i64();
    Ok(match field.data_type() {
        DataType::Utf8 if is_json(field) => {
            Arc::new(StringArray::from(all(values(), |value| Some(value.to_string()), odd)?))
        }
        DataType::Utf8 => Arc::new(StringArray::from(all(values(), Value::as_str, odd)?)),
        DataType::Boolean => Arc::new(BooleanArray::from(all(values(), Value::as_bool, odd)?)),
        DataType::Int16 => Arc::new(Int16Array::from(all(values(), |value| whole(value)?.try_into().ok(), odd)?)),
        DataType::Int32 => Arc::new(Int32Array::from(all(values(), |value| whole(value)?.try_into().ok(), odd)?)),
        DataType::Int64 => Arc::new(Int64Array::from(all(values(), whole, odd)?)),
        DataType::Float32 => Arc::new(Float32Array::from(all(values(), |value| Some(value.as_f64()? as f32), odd)?)),
        DataType::Float64 => Arc::new(Float64Array::from(all(values(), Value::as_f64, odd)?)),
        DataType::Binary => {
            let bytes = all(values(), |value| STANDARD.decode(value.as_str()?).ok(), odd)?;
            Arc::new(BinaryArray::from_iter(bytes))
        }
        kind if *kind == timestamp_type() => {
            let time = |value: &Value| Some(DateTime::parse_from_rfc3339(value.as_str()?).ok()?.timestamp_micros());
            Arc::new(TimestampMicrosecondArray::from(all(values(), time, odd)?).with_timezone("UTC"))
        }
        kind => return Err(format!("\"{}\" can't be read back: it is {kind}", field.name()).into()),
    })
}

/// Writes what our own decoders read back as it was: bytes as base64 and not as digits, JSON as it is.
#[derive(Debug)]
struct AsReadBack;

impl EncoderFactory for AsReadBack {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Base64(array.as_binary::<i32>())),
            DataType::Utf8 if is_json(field) => Box::new(Json(array.as_string::<i32>())),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Base64<'a>(&'a BinaryArray);

impl Encoder for Base64<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend(STANDARD.encode(self.0.value(row)).into_bytes());
        out.push(b'"');
    }
}

struct Json<'a>(&'a StringArray);

impl Encoder for Json<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let text = self.0.value(row);
        if serde_json::from_str::<IgnoredAny>(text).is_ok() {
            // Between values a newline means nothing, and in a text it is written otherwise.
            out.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        } else {
            // Of a stage that does not keep its word: a text, so that the line stays an object.
            out.extend(Value::from(text).to_string().into_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use pipeline_engine::schema::json_field;

    use super::*;

    fn every_type() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("time", timestamp_type(), true),
            Field::new("device.id", DataType::Utf8, true),
            Field::new("i16", DataType::Int16, true),
            Field::new("i32", DataType::Int32, true),
            Field::new("i64", DataType::Int64, true),
            Field::new("f32", DataType::Float32, true),
            Field::new("f64", DataType::Float64, true),
            Field::new("on", DataType::Boolean, true),
            Field::new("raw", DataType::Binary, true),
            json_field(Field::new("extra", DataType::Utf8, true)),
        ]);
        let times = [Some(1_700_000_000_000_001), None, Some(-1), Some(253_402_300_799_999_999)];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC")),
            Arc::new(StringArray::from(vec![Some("a\n\"b\" \u{2028}"), None, Some(""), Some("ü")])),
            Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(0), Some(i16::MAX)])),
            Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(0), Some(i32::MAX)])),
            Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(0), Some(i64::MAX)])),
            Arc::new(Float32Array::from(vec![Some(0.1), None, Some(-0.0), Some(f32::MAX)])),
            Arc::new(Float64Array::from(vec![Some(0.1), None, Some(1e300), Some(f64::MIN_POSITIVE)])),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)])),
            Arc::new(BinaryArray::from(vec![Some(&b"\xff\x00"[..]), None, Some(b""), Some(b"x")])),
            Arc::new(StringArray::from(vec![Some("{\"a\":[1,2.5]}"), None, Some("\"text\""), Some("7")])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn lines(rows: &RecordBatch) -> String {
        String::from_utf8(write(Packing::None, std::slice::from_ref(rows), &[]).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn every_type_reads_back_as_it_was_written() {
        let rows = every_type();
        for packing in [Packing::None, Packing::Gzip(6), Packing::Zstd(3)] {
            let content = write(packing, &[rows.slice(0, 1), rows.slice(1, 3)], &[]).unwrap();
            assert_eq!(read(packing, &content, &rows.schema()).unwrap(), std::slice::from_ref(&rows), "{packing:?}");
            assert_eq!(count(packing, &content).unwrap(), 4, "{packing:?}");
        }
    }

    #[test]
    fn a_row_is_an_object_on_a_line_of_its_own() {
        let text = lines(&every_type());
        let first = "{\"time\":\"2023-11-14T22:13:20.000001Z\",\"device.id\":\"a\\n\\\"b\\\" \u{2028}\",\"i16\":-32768,\
                     \"i32\":-2147483648,\"i64\":-9223372036854775808,\"f32\":0.1,\"f64\":0.1,\"on\":true,\"raw\":\"/wA=\",\
                     \"extra\":{\"a\":[1,2.5]}}";
        assert_eq!(text.lines().next(), Some(first));
        assert_eq!(text.lines().nth(1), Some("{}"));
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_column_of_json_breaks_no_line_whatever_it_holds() {
        let schema = Schema::new(vec![json_field(Field::new("extra", DataType::Utf8, true))]);
        let texts = StringArray::from(vec!["{\n\"a\":\r\n\"b\\nc\"}", "no JSON\n", "{\"a\":1} {\"b\":2}", ""]);
        let rows = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(texts)]).unwrap();
        let expected = [
            r#"{"extra":{ "a":  "b\nc"}}"#,
            r#"{"extra":"no JSON\n"}"#,
            r#"{"extra":"{\"a\":1} {\"b\":2}"}"#,
            r#"{"extra":""}"#,
        ];
        assert_eq!(lines(&rows).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn other_lines_than_ours_are_told_by_the_column() {
        let schema = every_type().schema();
        for (line, told) in [
            ("{\"i16\":70000}", "\"i16\" holds 70000, which is no Int16"),
            ("{\"on\":\"yes\"}", "\"on\" holds \"yes\", which is no Boolean"),
            ("{\"raw\":\"?\"}", "\"raw\" holds \"?\", which is no Binary"),
        ] {
            assert_eq!(read(Packing::None, line.as_bytes(), &schema).unwrap_err().to_string(), told);
        }
        assert!(read(Packing::None, b"[1]\n", &schema).is_err());
    }
}
