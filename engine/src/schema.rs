//! `[schema.NAME]`: the columns that payloads are decoded into, as the pipeline file declares them.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Marks a text column that holds JSON, so that a database stores it as such.
pub const KIND_KEY: &str = "pipeline.kind";
/// The value of [`KIND_KEY`] for JSON text.
pub const KIND_JSON: &str = "json";

/// The Arrow type of every timestamp on an edge: microseconds since 1970, in UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The types a column can have, by the words of the pipeline file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// UTF-8 text.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number of 16 bits.
    Int16,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number of 32 bits.
    Float32,
    /// A number of 64 bits.
    Float64,
    /// A point in time, kept to the microsecond.
    Timestamp,
    /// Any JSON value, kept as text.
    Json,
    /// Bytes: base64 text in JSON, a byte string in CBOR and MessagePack.
    Binary,
}

impl ColumnType {
    /// The Arrow type of such a column.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Text | Self::Json => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Timestamp => timestamp_type(),
            Self::Binary => DataType::Binary,
        }
    }
}

/// How a timestamp is written in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimestampFormat {
    /// RFC 3339 text, or a number whose size tells the unit: below 1e11 seconds, below 1e14
    /// milliseconds, below 1e17 microseconds, else nanoseconds.
    #[default]
    Auto,
    /// RFC 3339 text, such as `2026-01-31T12:00:00.5Z`; a space instead of `T` and a missing offset
    /// (taken as UTC) are accepted.
    Rfc3339,
    /// Seconds since 1970; fractions are kept.
    UnixS,
    /// Milliseconds since 1970.
    UnixMs,
    /// Microseconds since 1970.
    UnixUs,
    /// Nanoseconds since 1970; cut to the microsecond.
    UnixNs,
}

/// Where a column's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A field of the payload, by the keys that lead to it.
    Field(Vec<String>),
    /// A segment of the topic, the first being 1.
    TopicSegment(usize),
    /// The whole topic.
    Topic,
    /// When the message was received.
    ReceivedAt,
    /// The fields of the payload that no other column asks for, as one JSON object.
    Rest,
}

/// One column of a declared schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name on every edge and in every sink.
    pub name: String,
    /// Its type.
    pub kind: ColumnType,
    /// A message without a value for it is rejected.
    pub required: bool,
    /// How a timestamp is written; of no meaning for other types.
    pub format: TimestampFormat,
    /// Where the value comes from.
    pub origin: Origin,
}

/// A declared schema: columns in the order of the pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredSchema {
    /// The columns, in the order of the file.
    pub columns: Vec<Column>,
}

impl DeclaredSchema {
    /// The Arrow schema of decoded rows. Required columns are not nullable.
    pub fn arrow(&self) -> SchemaRef {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|column| {
                let field = Field::new(&column.name, column.kind.arrow(), !column.required);
                if column.kind == ColumnType::Json { json_field(field) } else { field }
            })
            .collect();
        Arc::new(Schema::new(fields))
    }
}

/// The same field, marked as JSON text.
pub fn json_field(field: Field) -> Field {
    field.with_metadata(std::collections::HashMap::from([(KIND_KEY.to_owned(), KIND_JSON.to_owned())]))
}

/// Whether a text column holds JSON.
pub fn is_json(field: &Field) -> bool {
    field.metadata().get(KIND_KEY).is_some_and(|kind| kind == KIND_JSON)
}

/// One column as written: `temperature = "float64"`, or a table with the details.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColumnText {
    /// The column's type.
    #[serde(rename = "type")]
    kind: ColumnType,
    /// A message without a value for this column is rejected.
    #[serde(default)]
    required: bool,
    /// How a timestamp is written in the payload.
    format: Option<TimestampFormat>,
    /// Where the value lies in the payload, if not under the column's name: `state.reported.temp`.
    path: Option<String>,
    /// The value is this segment of the topic, the first being 1.
    topic_segment: Option<usize>,
    /// The value comes with the message, not with its payload: `topic` or `received_at`.
    message: Option<MessagePart>,
    /// The value is an object with the fields of the payload that no other column asks for; null where there are none.
    #[serde(default)]
    rest: bool,
}

/// What a message has besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessagePart {
    /// The topic it was published to.
    Topic,
    /// When the pipeline received it.
    ReceivedAt,
}

/// A mistake in one column: the key that holds it (empty for the column as a whole) and the text.
pub(crate) type ColumnMistake = (&'static str, String);

impl ColumnText {
    pub(crate) fn of(kind: ColumnType) -> Self {
        Self { kind, required: false, format: None, path: None, topic_segment: None, message: None, rest: false }
    }

    pub(crate) fn column(self, name: &str) -> Result<Column, ColumnMistake> {
        let origins = [self.path.is_some(), self.topic_segment.is_some(), self.message.is_some(), self.rest];
        if origins.into_iter().filter(|given| *given).count() > 1 {
            return Err(("", "a column has one origin: path, topic_segment, message or rest".to_owned()));
        }
        if self.format.is_some() && self.kind != ColumnType::Timestamp {
            return Err(("format", "only a timestamp has a format".to_owned()));
        }
        let origin = if let Some(path) = self.path {
            let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
            if keys.iter().any(String::is_empty) {
                return Err(("path", format!("\"{path}\" is not a path of keys with dots between them")));
            }
            Origin::Field(keys)
        } else if let Some(segment) = self.topic_segment {
            if segment == 0 {
                return Err(("topic_segment", "the first segment of a topic is 1".to_owned()));
            }
            if self.kind != ColumnType::Text {
                return Err(("topic_segment", "a segment of a topic is text".to_owned()));
            }
            Origin::TopicSegment(segment)
        } else if self.rest {
            if self.kind != ColumnType::Json {
                return Err(("rest", "what no other column asks for is kept as json".to_owned()));
            }
            if self.required {
                return Err(("required", "a message may well have no field but those of the other columns".to_owned()));
            }
            Origin::Rest
        } else {
            match self.message {
                Some(MessagePart::Topic) if self.kind == ColumnType::Text => Origin::Topic,
                Some(MessagePart::Topic) => return Err(("message", "a topic is text".to_owned())),
                Some(MessagePart::ReceivedAt) if self.kind == ColumnType::Timestamp => Origin::ReceivedAt,
                Some(MessagePart::ReceivedAt) => {
                    return Err(("message", "the time of receipt is a timestamp".to_owned()));
                }
                None => Origin::Field(vec![name.to_owned()]),
            }
        };
        let format = self.format.unwrap_or_default();
        Ok(Column { name: name.to_owned(), kind: self.kind, required: self.required, format, origin })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Bool => "bool",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Timestamp => "timestamp",
            Self::Json => "json",
            Self::Binary => "binary",
        })
    }
}
