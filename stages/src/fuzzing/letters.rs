//! What `pipeline dlq replay` reads: refused rows of any content.
//!
//! An input is a byte that chooses schema and format, and the row.

use std::io;
use std::path::Path;

use pipeline_engine::fuzzing::Target;

/// The fuzz target.
pub const TARGET: Target = Target { name: "letters", check, seeds };

/// Makes a message of the row.
///
/// # Panics
/// The message can't be read by its own source: it is neither rows nor refused for what its values are.
#[cfg(feature = "mqtt")]
fn check(input: &[u8]) {
    use crate::decode::{Decoder, Format, Message, RowMessage};

    let Some((&choice, row)) = input.split_first() else { return };
    let format = [Format::Json, Format::Cbor, Format::MessagePack][usize::from(choice) % 3];
    // None of them: rows that are messages.
    let schema = (choice < 0xf0).then(|| super::schema(choice / 3));
    let Ok(message) = RowMessage::of(schema.as_deref(), format, row) else { return };
    let topic = message.topic(Some("fleet/d1/state"));
    let Some(schema) = schema else { return };
    let mut decoder = Decoder::new(Some(&schema), format, "fuzzed");
    let topic = topic.as_deref().unwrap_or("fleet/d1/state");
    let message = Message { topic: Some(topic), payload: &message.payload, received_at_us: 0, position: 1.into() };
    decoder.push(message);
    let decoded = decoder.take();
    assert_eq!(decoded.rows.num_rows() + decoded.rejected.num_rows(), 1, "a row is one message of one object");
    if decoded.rejected.num_rows() == 1 {
        use arrow::array::AsArray;
        let reasons = decoded.rejected.column_by_name("reason").expect("dead letters have it").clone();
        let reason = reasons.as_string::<i32>().value(0).to_owned();
        let broken = ["invalid_json", "invalid_cbor", "invalid_msgpack", "trailing_data", "empty", "not_an_object"];
        assert!(!broken.contains(&reason.as_str()), "the message is refused as {reason}");
    }
}

#[cfg(not(feature = "mqtt"))]
fn check(_: &[u8]) {}

/// The rows of the corpus.
fn seeds(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for path in pipeline_engine::fuzzing::files_below(&corpus.join("letters/rows"))? {
        let row = std::fs::read(path)?;
        seeds.extend([0, 3, 4, 0xff].map(|choice| [&[choice], row.as_slice()].concat()));
    }
    for row in [
        r#"{"i16":1,"f64":0.5,"t":"x","at":"2026-01-31T12:00:00Z","j":"[1]","x":"00ff"}"#,
        r#"{"device_id":"d","timestamp":"2026-01-31T12:00:00Z","temperature":1.5,"site":"d1","topic":"a/d1"}"#,
    ] {
        seeds.extend([0, 3, 1, 2].map(|choice| [&[choice], row.as_bytes()].concat()));
    }
    Ok(seeds)
}
