//! Payloads to typed columns, by the declared schema.
//!
//! A message is decoded whole or not at all: what does not fit the schema leaves as one dead letter
//! with its payload, a reason and a sentence for a person, and its neighbours go on.

use arrow::record_batch::RecordBatch;
use pipeline_engine::position::Position;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::Outputs;
use schemars::JsonSchema;
use serde::Deserialize;

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
#[derive(Debug)]
pub struct Decoder {}

impl Decoder {
    /// A decoder into the columns of `schema`. Without one nothing is decoded and the rows are the
    /// messages themselves: `topic` (text, null if there is none), `payload` and `received_at`.
    ///
    /// `stage` is the source's name: dead letters carry it.
    pub fn new(schema: Option<&DeclaredSchema>, format: Format, stage: &str) -> Self {
        let _ = (schema, format, stage);
        unimplemented!()
    }

    /// The ports to declare: the main one, and `rejected` if there is a schema to break.
    pub fn outputs(&self) -> Outputs {
        unimplemented!()
    }

    /// Takes a message in. Never fails: it becomes a row, or a row for each object of an array, or
    /// one dead letter.
    pub fn push(&mut self, message: Message<'_>) {
        let _ = message;
        unimplemented!()
    }

    /// Rows and dead letters that wait to be taken.
    pub fn rows(&self) -> usize {
        unimplemented!()
    }

    /// Payload bytes pushed since the last [`Decoder::take`], roughly what the rows weigh.
    pub fn bytes(&self) -> usize {
        unimplemented!()
    }

    /// Everything decoded so far; the decoder starts over.
    pub fn take(&mut self) -> Decoded {
        unimplemented!()
    }
}
