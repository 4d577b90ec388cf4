//! A decoded row made a message again, so that it can be sent back to where it came from.
//!
//! The decoder makes the same row of it: each value lies where the schema looks for it, in the form that
//! the column's format demands. Columns that the schema does not know are left out. What came with
//! the message and not in its payload (topic, time of receipt) is not put into it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pipeline_engine::schema::{Column, ColumnType, DeclaredSchema, Origin, TimestampFormat};
use serde_json::{Map, Number, Value};

use super::{Format, timestamp};

/// A message that decodes to a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowMessage {
    /// The topic it came by, if a column of the row holds it.
    pub(crate) topic: Option<String>,
    /// Segments that the topic must have, by their number from 1.
    pub(crate) segments: Vec<(usize, String)>,
    /// The payload, in the source's format.
    pub(crate) payload: Vec<u8>,
}

impl RowMessage {
    /// From a row as JSON, as a dead letter has it. Without a schema the row is a message already.
    ///
    /// # Errors
    /// Why no message can be made of it, as the rest of a sentence that begins with the letter.
    pub(crate) fn of(schema: Option<&DeclaredSchema>, format: Format, row: &[u8]) -> Result<Self, String> {
        let Ok(row) = serde_json::from_slice::<Map<String, Value>>(row) else {
            return Err("is not a row as JSON".to_owned());
        };
        let Some(schema) = schema else {
            let payload = row.get("payload").and_then(Value::as_str).and_then(unhex);
            let payload = payload.ok_or("has no column \"payload\" with the message")?;
            return Ok(Self { topic: text(&row, "topic"), segments: Vec::new(), payload });
        };
        let (mut topic, mut segments, mut message) = (None, Vec::new(), Map::new());
        for column in &schema.columns {
            // A null is left out of a row's JSON.
            let Some(value) = row.get(&column.name).filter(|value| !value.is_null()) else { continue };
            match &column.origin {
                Origin::Field(path) => put(&mut message, path, in_message(column, value, format)?)?,
                Origin::Topic => topic = text(&row, &column.name),
                Origin::TopicSegment(number) => {
                    segments.extend(text(&row, &column.name).map(|segment| (*number, segment)));
                }
                Origin::ReceivedAt => {}
                Origin::Rest => match in_message(column, value, format)? {
                    Value::Object(fields) => merge(&mut message, fields)?,
                    _ => return Err(format!("has a value for \"{}\" that is no object", column.name)),
                },
            }
        }
        let message = Value::Object(message);
        let encoded = match format {
            Format::Json => serde_json::to_vec(&message).map_err(|error| error.to_string()),
            Format::Cbor => cbor4ii::serde::to_vec(Vec::new(), &message).map_err(|error| error.to_string()),
            Format::MessagePack => rmp_serde::to_vec(&message).map_err(|error| error.to_string()),
        };
        let payload = encoded.map_err(|error| format!("can't be encoded: {error}"))?;
        Ok(Self { topic, segments, payload })
    }

    /// The topic to publish it to. `otherwise`: where to, if the row does not know.
    ///
    /// # Errors
    /// As for [`RowMessage::of`].
    pub(crate) fn topic(&self, otherwise: Option<&str>) -> Result<String, String> {
        let Some(topic) = self.topic.as_deref().or(otherwise) else {
            return Err("is a row that does not know its topic: name one with --to".to_owned());
        };
        for (number, wanted) in &self.segments {
            if topic.split('/').nth(number - 1) != Some(wanted) {
                return Err(format!(
                    "has values that come from its topic, and level {number} of \"{topic}\" would give it another one"
                ));
            }
        }
        Ok(topic.to_owned())
    }
}

fn text(row: &Map<String, Value>, name: &str) -> Option<String> {
    row.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// The value as the decoder wants it for this column.
fn in_message(column: &Column, value: &Value, format: Format) -> Result<Value, String> {
    let broken = || format!("has a value for \"{}\" that is no {}", column.name, column.kind);
    match (column.kind, value) {
        (ColumnType::Json, Value::String(text)) => serde_json::from_str(text).map_err(|_| broken()),
        (ColumnType::Binary, Value::String(_)) if format != Format::Json => {
            Err(format!("has bytes in \"{}\", which only JSON can hold as text", column.name))
        }
        (ColumnType::Binary, Value::String(text)) => Ok(STANDARD.encode(unhex(text).ok_or_else(broken)?).into()),
        (ColumnType::Timestamp, Value::String(text)) => {
            let micros = timestamp::parse(text.as_bytes()).map_err(|_| broken())?;
            Ok(match column.format {
                TimestampFormat::Auto | TimestampFormat::Rfc3339 => value.clone(),
                TimestampFormat::UnixUs => micros.into(),
                TimestampFormat::UnixNs => micros.checked_mul(1_000).ok_or_else(broken)?.into(),
                TimestampFormat::UnixMs => units(micros, 1_000).ok_or_else(broken)?,
                TimestampFormat::UnixS => units(micros, 1_000_000).ok_or_else(broken)?,
            })
        }
        _ => Ok(value.clone()),
    }
}

/// Whole units as a whole number, so that nothing is rounded that need not be.
fn units(micros: i64, unit_us: i64) -> Option<Value> {
    if micros % unit_us == 0 {
        return Some((micros / unit_us).into());
    }
    Number::from_f64(micros as f64 / unit_us as f64).map(Value::Number)
}

fn put(message: &mut Map<String, Value>, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [key] => {
            message.insert(key.clone(), value);
            Ok(())
        }
        [key, rest @ ..] => {
            let inner = message.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            let inner =
                inner.as_object_mut().ok_or_else(|| format!("has a value where \"{key}\" must be an object"))?;
            put(inner, rest, value)
        }
    }
}

/// Puts fields beside those that are there, also inside objects.
fn merge(message: &mut Map<String, Value>, fields: Map<String, Value>) -> Result<(), String> {
    for (key, value) in fields {
        match (message.get_mut(&key), value) {
            (None, value) => drop(message.insert(key, value)),
            (Some(Value::Object(there)), Value::Object(more)) => merge(there, more)?,
            (Some(_), _) => return Err(format!("has two values for the field \"{key}\"")),
        }
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    // The numbers' own parser would take a sign as well.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(pair).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::record_batch::RecordBatch;
    use pipeline_engine::dead_letter::json_lines;
    use pipeline_engine::testing::build_context;

    use super::*;
    use crate::decode::{Decoder, Message};

    fn schema(columns: &str) -> Arc<DeclaredSchema> {
        build_context("source", &format!("[schema.t]\n{columns}")).schema("schema", "t").unwrap()
    }

    fn rows(schema: Option<&DeclaredSchema>, format: Format, topic: &str, payload: &[u8]) -> RecordBatch {
        let mut decoder = Decoder::new(schema, format, "source");
        let message = Message { topic: Some(topic), payload, received_at_us: 7, position: 1_u64.into() };
        decoder.push(message);
        let decoded = decoder.take();
        assert_eq!(decoded.rejected.num_rows(), 0, "{:?}", decoded.rejected);
        decoded.rows
    }

    /// Decodes a message, makes a message of its row, and decodes that.
    fn there_and_back(columns: &str, format: Format, topic: &str, payload: &[u8]) -> RowMessage {
        let schema = schema(columns);
        let first = rows(Some(&schema), format, topic, payload);
        let message = RowMessage::of(Some(&schema), format, &json_lines(&first).unwrap()).unwrap();
        let second = rows(Some(&schema), format, topic, &message.payload);
        assert_eq!(first, second, "{}", String::from_utf8_lossy(&message.payload));
        message
    }

    const COLUMNS: &str = "
        id = \"text\"\nsmall = \"int16\"\nlarge = \"int64\"\nhalf = \"float32\"\nwhole = \"float64\"\non = \"bool\"\n
        missing = \"text\"\nany = \"json\"\nquoted = \"json\"\nat = \"timestamp\"\n
        nested = { type = \"float64\", path = \"state.reported.temp\" }\n
        beside = { type = \"text\", path = \"state.reported.unit\" }\n
        s = { type = \"timestamp\", format = \"unix_s\" }\nms = { type = \"timestamp\", format = \"unix_ms\" }\n
        us = { type = \"timestamp\", format = \"unix_us\" }\nns = { type = \"timestamp\", format = \"unix_ns\" }\n";

    fn payload() -> Value {
        serde_json::json!({
            "id": "a\"b", "small": -7, "large": 9_007_199_254_740_993_i64, "half": 0.1, "whole": 5.0, "on": true,
            "any": { "x": [1, null] }, "quoted": "text", "at": "2026-01-31T12:00:00.000001+01:00", "ignored": 1,
            "state": { "reported": { "temp": 20.25, "unit": "C" } },
            "s": 1_769_860_800.25, "ms": 1_769_860_800_123_i64, "us": 1_769_860_800_123_456_i64,
            "ns": 1_769_860_800_123_456_000_i64,
        })
    }

    #[test]
    fn a_message_of_a_row_decodes_to_the_row() {
        let binary = "raw = \"binary\"\n";
        let mut json = payload();
        json["raw"] = "/wA=".into();
        let json = serde_json::to_vec(&json).unwrap();
        let message = there_and_back(&format!("{COLUMNS}{binary}"), Format::Json, "t", &json);
        assert_eq!((message.topic, message.segments), (None, Vec::new()));
        there_and_back(COLUMNS, Format::Cbor, "t", &cbor4ii::serde::to_vec(Vec::new(), &payload()).unwrap());
        there_and_back(COLUMNS, Format::MessagePack, "t", &rmp_serde::to_vec(&payload()).unwrap());
    }

    #[test]
    fn what_no_column_asks_for_comes_back_to_its_place() {
        let columns = "n = \"int64\"\nrest = { type = \"json\", rest = true }\n
                       temp = { type = \"float64\", path = \"state.temp\" }\n";
        let payload = br#"{"a":{"b":1},"n":1,"state":{"fan":"on","temp":2.5}}"#;
        let message = there_and_back(columns, Format::Json, "t", payload);
        let (found, sent): (Value, Value) =
            (serde_json::from_slice(&message.payload).unwrap(), serde_json::from_slice(payload).unwrap());
        assert_eq!(found, sent);
        let schema = schema(columns);
        let twice = RowMessage::of(Some(&schema), Format::Json, br#"{"n":1,"rest":"{\"n\":2}"}"#);
        assert_eq!(twice.unwrap_err(), "has two values for the field \"n\"");
    }

    #[test]
    fn what_came_with_the_message_is_asked_of_the_topic() {
        let columns = "n = \"int64\"\ndevice = { type = \"text\", topic_segment = 2 }\n
                       arrived = { type = \"timestamp\", message = \"received_at\" }\n";
        let message = there_and_back(columns, Format::Json, "iot/d7/x", b"{\"n\":1}");
        assert_eq!(message.payload, b"{\"n\":1}");
        assert_eq!(message.topic(Some("other/d7")).as_deref(), Ok("other/d7"));
        assert!(message.topic(Some("iot/d8/x")).unwrap_err().contains("level 2 of \"iot/d8/x\""));
        assert!(message.topic(None).unwrap_err().contains("name one with --to"));
        let columns = format!("{columns}topic = {{ type = \"text\", message = \"topic\" }}\n");
        let message = there_and_back(&columns, Format::Json, "iot/d7/x", b"{\"n\":1}");
        assert_eq!(message.topic(Some("other")).as_deref(), Ok("iot/d7/x"));
    }

    #[test]
    fn columns_that_a_later_stage_has_added_are_left_out() {
        let schema = schema("n = \"int64\"\n");
        let message = RowMessage::of(Some(&schema), Format::Json, b"{\"n\":1,\"site\":\"north\"}").unwrap();
        assert_eq!(message.payload, b"{\"n\":1}");
    }

    #[test]
    fn a_row_of_messages_is_the_message_it_holds() {
        let first = rows(None, Format::Json, "t/1", b"\xff\x00");
        let message = RowMessage::of(None, Format::Json, &json_lines(&first).unwrap()).unwrap();
        assert_eq!((message.topic(None).as_deref(), &message.payload[..]), (Ok("t/1"), &b"\xff\x00"[..]));
    }

    #[test]
    fn what_makes_no_message_says_why() {
        let why = |columns: &str, format, row: &[u8]| RowMessage::of(Some(&schema(columns)), format, row).unwrap_err();
        assert_eq!(why("n = \"int64\"", Format::Json, b"{"), "is not a row as JSON");
        let bytes = why("raw = \"binary\"", Format::Cbor, b"{\"raw\":\"ff\"}");
        assert_eq!(bytes, "has bytes in \"raw\", which only JSON can hold as text");
        let odd = why("raw = \"binary\"", Format::Json, b"{\"raw\":\"xyz\"}");
        assert_eq!(odd, "has a value for \"raw\" that is no binary");
    }
}
