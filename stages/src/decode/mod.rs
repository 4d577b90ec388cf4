//! Payloads to typed columns, by the declared schema.
//!
//! A message is decoded whole or not at all: what does not fit the schema leaves as one dead letter
//! with its payload, a reason and a sentence for a person, and its neighbours go on. That holds for
//! an array as well: one bad element refuses the message, so that each message is either stored or
//! dead-lettered, and never both.
//!
//! # What fits
//!
//! | column | takes | refuses |
//! |---|---|---|
//! | int16, int32, int64 | whole numbers, also as `5.0` (below 2^53) | fractions, what the type can't hold |
//! | float32, float64 | any number; whole numbers become the nearest float | NaN, infinities, `1e400` |
//! | bool | `true` and `false` | 0 and 1 |
//! | text | text up to 64 KiB | U+0000, numbers |
//! | timestamp | RFC 3339 or a number, by the column's format; MessagePack's own; years 0001 to 9999 | dates without a time |
//! | json | anything, written anew as compact JSON of up to 1 MiB | U+0000, NaN |
//! | binary | base64 with or without padding in JSON, a byte string elsewhere, up to 1 MiB | |
//!
//! Numbers in text are text. Null and a missing key are the same, and refused where the column is
//! required. A key that leads to a column must not stand twice in one object. Fields that no column
//! asks for are counted and told once each; they are left out, kept by a column with `rest = true`, or refused, as `drift`
//! says. Arrays and objects may nest 32 deep; what is ignored in
//! CBOR may nest to 64. A CBOR tag is taken for the value it marks.

mod cbor;
mod column;
mod drift;
mod fault;
pub mod infer;
mod json_text;
#[cfg(any(feature = "mqtt", feature = "kinesis", feature = "http"))]
mod message;
mod msgpack;
mod ordered;
mod read;
mod rest;
mod table;
#[cfg(test)]
mod tests;
mod timestamp;
mod visit;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use pipeline_engine::Counter;
use pipeline_engine::dead_letter::{self, DeadLetter, DeadLetters};
use pipeline_engine::position::Position;
use pipeline_engine::schema::{DeclaredSchema, timestamp_type};
use pipeline_engine::stage::{Outputs, Port};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

use cbor::Plain;
use drift::Drift;
pub use drift::UnknownFields;
pub(crate) use fault::{Fault, Verdict, reason};
#[cfg(any(feature = "mqtt", feature = "kinesis", feature = "http"))]
pub(crate) use message::RowMessage;
pub use ordered::Ordered;
pub(crate) use ordered::width;
use table::{NodeId, Table};

/// How deep arrays and objects may nest. No device needs ten; parsers give up at 128 and above.
const DEPTH_MAX: usize = 32;
/// The longest text: an index entry of PostgreSQL ends far below, an MQTT topic exactly here.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// The longest JSON text and the longest byte string.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// How payloads are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Format {
    /// JSON text.
    #[default]
    #[serde(rename = "json")]
    Json,
    /// CBOR, RFC 8949.
    #[serde(rename = "cbor")]
    Cbor,
    /// MessagePack.
    #[serde(rename = "msgpack")]
    MessagePack,
}

/// What a broker delivers, or a line of a file.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The topic it was published to, if it has one.
    pub topic: Option<&'a str>,
    /// The bytes to decode.
    pub payload: &'a [u8],
    /// When it was received, microseconds since 1970.
    pub received_at_us: i64,
    /// Its place in the source's partition; named in a dead letter.
    pub position: Position,
}

/// Rows and dead letters since the last [`Decoder::take`]; either may be empty.
#[derive(Debug)]
pub struct Decoded {
    /// Rows of the main port.
    pub rows: RecordBatch,
    /// Dead letters, see [`pipeline_engine::dead_letter`].
    pub rejected: RecordBatch,
}

/// Turns messages into rows, a batch at a time.
///
/// A batch must be taken before its payloads amount to 2 GiB, the most that a column of text holds.
#[derive(Debug)]
pub struct Decoder {
    stage: String,
    format: Format,
    declared: Option<DeclaredSchema>,
    schema: SchemaRef,
    rows: Rows,
    letters: DeadLetters,
    bytes: usize,
    /// How dead letters name a position, and the partition that it is in.
    positions: Option<(String, PositionText)>,
}

/// The text of a position in a partition.
pub(crate) type PositionText = fn(&str, Position) -> String;

#[derive(Debug)]
enum Rows {
    Typed(Box<Table>, Plain),
    Raw(Box<RawRows>),
}

/// Messages as they came.
#[derive(Debug, Default)]
struct RawRows {
    topic: StringBuilder,
    payload: BinaryBuilder,
    received_at: TimestampMicrosecondBuilder,
    rows: usize,
}

impl Decoder {
    /// A decoder into the columns of `schema`. Without one nothing is decoded and the rows are the
    /// messages themselves: `topic` (text, null if there is none), `payload` and `received_at`.
    ///
    /// `stage` is the source's name: dead letters carry it.
    pub fn new(schema: Option<&DeclaredSchema>, format: Format, stage: &str) -> Self {
        let (rows, arrow) = match schema {
            Some(schema) => (Rows::Typed(Box::new(Table::new(schema)), Plain::default()), schema.arrow()),
            None => (Rows::Raw(Box::default()), raw_schema()),
        };
        let (stage, declared, letters) = (stage.to_owned(), schema.cloned(), DeadLetters::default());
        Self { stage, format, declared, schema: arrow, rows, letters, bytes: 0, positions: None }
    }

    /// Another decoder that makes the same of each message and holds none yet. What one of them has told of unknown fields
    /// the other doesn't tell again, and they count into one counter.
    pub(crate) fn twin(&self) -> Self {
        let mut twin = Self::new(self.declared.as_ref(), self.format, &self.stage);
        if let (Rows::Typed(table, _), Rows::Typed(original, _)) = (&mut twin.rows, &self.rows) {
            table.drift = original.drift.twin();
        }
        twin.positions.clone_from(&self.positions);
        twin
    }

    /// From here on messages are those of a partition, and dead letters name their positions so; before, and where it is
    /// never called, as one number.
    #[cfg(feature = "kinesis")]
    pub(crate) fn name_positions(&mut self, partition: &str, text: PositionText) {
        self.positions = Some((partition.to_owned(), text));
    }

    /// Says what becomes of fields that no column asks for, and where they are counted; by default they are left out.
    #[must_use]
    pub fn with_unknown_fields(mut self, policy: UnknownFields, count: Counter) -> Self {
        if let Rows::Typed(table, _) = &mut self.rows {
            table.drift = Drift::new(policy, count);
        }
        self
    }

    /// The ports to declare: the main one, and `rejected` if there is a schema to break.
    pub fn outputs(&self) -> Outputs {
        let mut outputs = vec![(Port::MAIN, self.schema.clone())];
        if matches!(self.rows, Rows::Typed(..)) {
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        outputs
    }

    /// Takes a message in. Never fails: it becomes a row, or a row for each object of an array, or
    /// one dead letter.
    #[inline]
    pub fn push(&mut self, message: Message<'_>) {
        self.bytes += message.payload.len();
        match &mut self.rows {
            Rows::Raw(raw) => raw.push(&message),
            Rows::Typed(table, plain) => {
                let rows = table.rows();
                if let Err(fault) = read::read(self.format, table, plain, &message) {
                    table.take_back(rows);
                    table.drift.tell_fault(&fault);
                    self.put_letter(&message, &fault);
                }
            }
        }
    }

    /// Rows and dead letters that wait to be taken.
    pub fn rows(&self) -> usize {
        let (rows, letters) = self.waiting();
        rows + letters
    }

    /// Rows and, apart from them, dead letters that wait to be taken.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let rows = match &self.rows {
            Rows::Typed(table, _) => table.rows(),
            Rows::Raw(raw) => raw.rows,
        };
        (rows, self.letters.len())
    }

    /// Payload bytes pushed since the last [`Decoder::take`], roughly what the rows weigh.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything decoded so far; the decoder starts over.
    pub fn take(&mut self) -> Decoded {
        self.bytes = 0;
        let (count, _) = self.waiting();
        let columns = match &mut self.rows {
            Rows::Typed(table, _) => {
                for news in table.drift.flush() {
                    tracing::warn!(stage = self.stage, "{news}");
                }
                table.take()
            }
            Rows::Raw(raw) => raw.take(),
        };
        // A schema without columns still has rows.
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .expect("columns and schema are made from the same declaration");
        Decoded { rows, rejected: self.letters.take() }
    }

    /// Refuses a message for a reason that its source has found.
    pub(crate) fn reject(&mut self, message: &Message<'_>, fault: &Fault) {
        self.bytes += message.payload.len();
        self.put_letter(message, fault);
    }

    fn put_letter(&mut self, message: &Message<'_>, fault: &Fault) {
        let position = match &self.positions {
            Some((partition, text)) => text(partition, message.position),
            None => message.position.to_string(),
        };
        self.letters.push(DeadLetter {
            received_at_us: message.received_at_us,
            stage: &self.stage,
            reason: fault.reason,
            detail: Some(&fault.detail),
            topic: message.topic,
            position: Some(&position),
            payload: message.payload,
        });
    }

    /// Which columns the fields of a CSV record belong to. A name in the header is a field's path, with
    /// dots between its keys.
    ///
    /// # Errors
    /// What is wrong with the header: a field that a required column needs is not there, or one that
    /// a column asks for is there twice.
    pub(crate) fn bind_header<'n>(&mut self, names: impl Iterator<Item = &'n str>) -> Result<Header, String> {
        let Rows::Typed(table, _) = &mut self.rows else { return Ok(Header::default()) };
        let (mut fields, mut unknown) = (Vec::new(), Vec::new());
        for name in names {
            let node = table.node_of(name);
            if node.is_none() {
                table.tell_unknown_in_header(name);
                unknown.push(name.to_owned());
            }
            fields.push(node);
        }
        if let Some(path) = table.first_missing(&fields) {
            return Err(format!("has no field \"{path}\", which a required column needs"));
        }
        let twice = fields.iter().enumerate().find(|(index, node)| node.is_some() && fields[..*index].contains(node));
        match twice {
            Some((index, _)) => Err(format!("has the name of field {} twice", index + 1)),
            None => Ok(Header { fields, unknown }),
        }
    }

    /// Takes in a record whose fields are text, all or nothing. An empty field is null.
    ///
    /// # Errors
    /// Why it is no row; it has left no trace, and the caller decides what becomes of it.
    pub(crate) fn push_record<'f>(
        &mut self,
        message: &Message<'_>,
        header: &Header,
        fields: impl ExactSizeIterator<Item = &'f [u8]>,
    ) -> Verdict {
        let Rows::Typed(table, _) = &mut self.rows else { return Ok(()) };
        let rows = table.rows();
        let verdict = read_record(table, message, header, fields);
        match &verdict {
            Ok(()) => self.bytes += message.payload.len(),
            Err(fault) => {
                table.take_back(rows);
                table.drift.tell_fault(fault);
            }
        }
        verdict
    }

    /// The time that the last row has in a column; `None` for a null or a column of another type.
    pub(crate) fn last_micros(&self, column: usize) -> Option<i64> {
        match &self.rows {
            Rows::Typed(table, _) => table.columns.get(column).and_then(column::Column::last_micros),
            Rows::Raw(_) => None,
        }
    }

    /// Columns of the main port that hold the time of receipt.
    pub(crate) fn received_at_columns(&self) -> Vec<usize> {
        match &self.rows {
            Rows::Typed(table, _) => table.received_at_columns(),
            Rows::Raw(_) => vec![2],
        }
    }
}

/// Which columns the fields of a record belong to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header {
    fields: Vec<Option<NodeId>>,
    /// The names of those that no column asks for, in their order.
    unknown: Vec<String>,
}

fn read_record<'f>(
    table: &mut Table,
    message: &Message<'_>,
    header: &Header,
    fields: impl ExactSizeIterator<Item = &'f [u8]>,
) -> Verdict {
    if fields.len() != header.fields.len() {
        let detail = format!("the header has {} fields, the record {}", header.fields.len(), fields.len());
        return Err(Fault::new(reason::INVALID_CSV, detail));
    }
    let mut unknown = header.unknown.iter();
    for (field, node) in fields.zip(&header.fields) {
        let Ok(text) = std::str::from_utf8(field) else {
            return Err(Fault::new(reason::INVALID_UTF8, "a field of the record is no UTF-8"));
        };
        let Some(node) = *node else {
            if let Some(name) = unknown.next().filter(|_| !text.is_empty()) {
                table.put_unknown_field(name, text)?;
            }
            continue;
        };
        if text.is_empty() {
            continue;
        }
        table.enter(node)?;
        for place in 0..table.columns_at(node).len() {
            let column = table.columns_at(node)[place];
            table.put_field(column, text)?;
        }
    }
    table.finish_row(message)
}

fn raw_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("topic", DataType::Utf8, true),
        Field::new("payload", DataType::Binary, false),
        Field::new("received_at", timestamp_type(), false),
    ]))
}

impl RawRows {
    fn push(&mut self, message: &Message<'_>) {
        self.topic.append_option(message.topic);
        self.payload.append_value(message.payload);
        self.received_at.append_value(message.received_at_us);
        self.rows += 1;
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        self.rows = 0;
        let received_at = self.received_at.finish().with_timezone("UTC");
        vec![Arc::new(self.topic.finish()), Arc::new(self.payload.finish()), Arc::new(received_at)]
    }
}
