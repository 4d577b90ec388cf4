//! Rows as messages.

use arrow::array::{Array, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use pipeline_engine::columns;
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{BuildError, StageError};

use crate::mqtt_client::check_topic;

/// One message to publish.
pub(super) struct Outgoing {
    pub(super) topic: String,
    pub(super) payload: Bytes,
}

/// How rows of one schema become messages.
#[derive(Debug)]
pub(super) enum Shape {
    /// The columns `topic` and `payload` are the message; the configured topic, if there is one, stands
    /// in for a null.
    AsTheyAre { topic: usize, payload: usize, otherwise: Option<String> },
    /// Each row is a JSON object.
    Json { topic: String },
}

/// Bytes of a packet besides topic and payload, generously.
const PACKET_OVERHEAD_BYTES: usize = 16;

impl Shape {
    /// Decides by the input's columns.
    pub(super) fn of(input: &Schema, topic: Option<String>) -> Result<Self, BuildError> {
        if let Some(topic) = &topic {
            check_topic(topic).map_err(|mistake| BuildError::invalid("topic", mistake))?;
        }
        let both = input.index_of("topic").is_ok() && input.index_of("payload").is_ok();
        if both {
            let text = |kind: &DataType| *kind == DataType::Utf8;
            let bytes = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::Binary);
            return Ok(Self::AsTheyAre {
                topic: columns::find_typed(input, "inputs", "topic", "text", text)?,
                payload: columns::find_typed(input, "inputs", "payload", "text or binary", bytes)?,
                otherwise: topic,
            });
        }
        match topic {
            Some(topic) => Ok(Self::Json { topic }),
            None => Err(BuildError::invalid("topic", "there is no topic to publish to")
                .hint("Set `topic`, or read an input with the columns \"topic\" and \"payload\".")),
        }
    }

    /// The messages of some rows, in order. All or none: a row that can't be a message is a data error,
    /// found before anything is published.
    pub(super) fn messages(&self, rows: &RecordBatch, packet_bytes_max: u32) -> Result<Vec<Outgoing>, StageError> {
        let messages = match self {
            Self::AsTheyAre { topic, payload, otherwise } => {
                as_they_are(rows.column(*topic).as_string(), rows.column(*payload), otherwise.as_deref())?
            }
            Self::Json { topic } => as_json(rows, topic)?,
        };
        let room = packet_bytes_max as usize;
        match messages.iter().find(|message| message.topic.len() + message.payload.len() + PACKET_OVERHEAD_BYTES > room)
        {
            None => Ok(messages),
            Some(large) => Err(StageError::data(format!(
                "a message of {} bytes for \"{}\" is larger than the {room} bytes that the broker takes",
                large.payload.len(),
                large.topic
            ))
            .code("packet_too_large")),
        }
    }
}

fn as_they_are(
    topics: &StringArray,
    payloads: &dyn Array,
    otherwise: Option<&str>,
) -> Result<Vec<Outgoing>, StageError> {
    let mut messages = Vec::with_capacity(topics.len());
    for row in 0..topics.len() {
        let topic = if topics.is_valid(row) { Some(topics.value(row)) } else { otherwise };
        let Some(topic) = topic else {
            return Err(StageError::data("a row has no topic to be published to").code("no_topic"));
        };
        check_topic(topic).map_err(|mistake| StageError::data(mistake).code("topic_invalid"))?;
        if payloads.is_null(row) {
            return Err(StageError::data("a row has no payload to publish").code("no_payload"));
        }
        messages.push(Outgoing { topic: topic.to_owned(), payload: payload(payloads, row) });
    }
    Ok(messages)
}

fn payload(payloads: &dyn Array, row: usize) -> Bytes {
    match payloads.as_any().downcast_ref::<BinaryArray>() {
        Some(binary) => Bytes::copy_from_slice(binary.value(row)),
        None => Bytes::copy_from_slice(payloads.as_string::<i32>().value(row).as_bytes()),
    }
}

fn as_json(rows: &RecordBatch, topic: &str) -> Result<Vec<Outgoing>, StageError> {
    let lines = Bytes::from(json_lines(rows)?);
    let mut messages = Vec::with_capacity(rows.num_rows());
    let mut from = 0;
    // JSON text holds no bare newline, so each one ends a row.
    for (at, _) in lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        messages.push(Outgoing { topic: topic.to_owned(), payload: lines.slice(from..at) });
        from = at + 1;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use pipeline_engine::stage::Fault;

    use super::*;

    fn rows(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    fn text(values: Vec<Option<&str>>) -> ArrayRef {
        Arc::new(StringArray::from(values))
    }

    #[test]
    fn topic_and_payload_are_published_as_they_are() {
        let payload: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\x00\x01", b"two"]));
        let rows = rows(vec![("payload", payload), ("topic", text(vec![Some("a/1"), None]))]);
        let shape = Shape::of(&rows.schema(), Some("else".to_owned())).unwrap();
        let messages = shape.messages(&rows, u32::MAX).unwrap();
        let got: Vec<_> = messages.iter().map(|message| (message.topic.as_str(), &message.payload[..])).collect();
        assert_eq!(got, [("a/1", &b"\x00\x01"[..]), ("else", b"two")]);
    }

    #[test]
    fn any_other_row_is_a_json_object() {
        let rows = rows(vec![("n", Arc::new(Int64Array::from(vec![1, 2]))), ("text", text(vec![Some("a\nb"), None]))]);
        assert_eq!(Shape::of(&rows.schema(), None).unwrap_err().key, "topic");
        let shape = Shape::of(&rows.schema(), Some("out".to_owned())).unwrap();
        let messages = shape.messages(&rows, u32::MAX).unwrap();
        let got: Vec<_> = messages.iter().map(|message| (message.topic.as_str(), &message.payload[..])).collect();
        assert_eq!(got, [("out", &br#"{"n":1,"text":"a\nb"}"#[..]), ("out", br#"{"n":2}"#)]);
    }

    #[test]
    fn a_row_that_is_no_message_is_found_before_any_is_published() {
        let shape = |rows: &RecordBatch| Shape::of(&rows.schema(), None).unwrap();
        for (topic, payload, code) in [
            (None, Some("x"), "no_topic"),
            (Some("a/#"), Some("x"), "topic_invalid"),
            (Some("a"), None, "no_payload"),
            (Some("a"), Some("a payload of 27 bytes is it"), "packet_too_large"),
        ] {
            let rows = rows(vec![("topic", text(vec![Some("a"), topic])), ("payload", text(vec![Some("x"), payload]))]);
            let error = shape(&rows).messages(&rows, 40).err().expect(code);
            assert_eq!((error.fault(), error.outside_code()), (Fault::Data, Some(code)));
        }
    }
}
