//! Readings of a fleet, as text and as columns: 1,000 devices in turns, 115 bytes a message, one in a hundred bad, one in
//! fifty late.

use std::sync::Arc;

use arrow::array::RecordBatch;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::testing::build_context;
use pipeline_stages::decode::{Decoder, Format, Message};
use pipeline_stages::sinks::timescaledb::SqlType;

pub const DEVICES: u64 = 1_000;
/// One message in so many has its temperature in quotes, and is refused.
pub const ONE_BAD_IN: u64 = 100;
const FIRST_MS: u64 = 1_769_860_800_000;

/// What the messages are decoded into, as a pipeline file says it.
pub const SCHEMA: &str = r#"
[schema.telemetry]
device_id   = { type = "text", required = true }
timestamp   = { type = "timestamp", required = true }
temperature = "float64"
humidity    = "float64"
seq         = "int64"
"#;

/// The same columns in the database.
pub const TYPES: [SqlType; 5] = [SqlType::Text, SqlType::Timestamptz, SqlType::Float8, SqlType::Float8, SqlType::Int8];

/// The table that both sides of a comparison fill.
pub fn create_table(name: &str) -> String {
    format!(
        "DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (device_id text NOT NULL, timestamp timestamptz NOT NULL, \
         temperature double precision, humidity double precision, seq bigint, UNIQUE NULLS NOT DISTINCT (device_id, timestamp, seq))"
    )
}

/// One message, a millisecond after the one before.
pub fn message(number: u64) -> String {
    let late_ms = if number % 50 == 7 { 30_000 } else { 0 };
    message_of(number, DEVICES, FIRST_MS + number - late_ms)
}

/// One message of a fleet of so many devices, of this time: milliseconds since 1970.
pub fn message_of(number: u64, devices: u64, at_ms: u64) -> String {
    let device = number * 7919 % devices;
    let time = chrono::DateTime::from_timestamp_millis(at_ms as i64).expect("a time of this century");
    let time = time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let noise = scattered(number);
    let temperature = 15.0 + (noise % 1301) as f64 / 100.0;
    let humidity = 30.0 + (noise / 1301 % 437) as f64 / 10.0;
    let quote = if number % ONE_BAD_IN == ONE_BAD_IN - 1 { "\"" } else { "" };
    format!(
        "{{\"device_id\":\"device-{device:04}\",\"timestamp\":\"{time}\",\"temperature\":{quote}{temperature:.2}{quote},\
         \"humidity\":{humidity:.1},\"seq\":{number}}}"
    )
}

/// A number that looks random and is the same in every run: the finalizer of SplitMix64 (Steele, Lea, Flood 2014). What
/// repeats itself would be compressed to nothing.
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// How many of the first so many messages are good.
pub fn good(messages: u64) -> u64 {
    messages - messages / ONE_BAD_IN
}

fn declared() -> Arc<DeclaredSchema> {
    build_context("load", SCHEMA).schema("schema", "telemetry").expect("it is declared above")
}

/// The decoder that the sources use.
pub fn decoder() -> Decoder {
    Decoder::new(Some(&*declared()), Format::Json, "load")
}

/// Decodes messages into columns: those that are good.
pub fn decode<'m>(decoder: &mut Decoder, messages: impl Iterator<Item = &'m [u8]>) -> RecordBatch {
    for (position, payload) in (0_u64..).zip(messages) {
        decoder.push(Message { topic: None, payload, received_at_us: 0, position: position.into() });
    }
    decoder.take().rows
}

/// The first so many messages as columns, in batches of this many messages.
pub fn batches(messages: u64, rows: u64) -> Vec<RecordBatch> {
    let mut decoder = decoder();
    let batch = |start: u64| {
        let text: Vec<String> = (start..(start + rows).min(messages)).map(message).collect();
        decode(&mut decoder, text.iter().map(String::as_bytes))
    };
    (0..messages).step_by(rows as usize).map(batch).collect()
}
