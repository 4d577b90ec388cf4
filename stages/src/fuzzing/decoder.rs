//! The decoder: payloads of any content, among good neighbours.
//!
//! An input is a byte that chooses format and schema, and the payload.

use std::io;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::fuzzing::{Target, files_below};
use serde_json::json;

use crate::decode::{Decoder, Format, Message};

/// The fuzz target.
pub const TARGET: Target = Target { name: "decoder", check, seeds };

const FORMATS: [(Format, &str); 3] = [(Format::Json, "json"), (Format::Cbor, "cbor"), (Format::MessagePack, "msgpack")];
/// A detail is a sentence, not a dump.
const DETAIL_BYTES_MAX: usize = 600;

/// Decodes the payload between two good ones.
///
/// # Panics
/// It becomes anything but rows or one dead letter that holds it; a neighbour is lost; what came before makes a
/// difference.
fn check(input: &[u8]) {
    let Some((&choice, payload)) = input.split_first() else { return };
    let (format, _) = FORMATS[usize::from(choice) % FORMATS.len()];
    let schema = super::schema(choice / 3);
    let fresh = outcome(&mut Decoder::new(Some(&schema), format, "fuzzed"), format, payload);
    let mut seasoned = Decoder::new(Some(&schema), format, "fuzzed");
    for before in [b"\xc1\xa0".as_slice(), b"\xbf\xff", b"{", payload] {
        seasoned.push(message(before));
    }
    seasoned.take();
    let again = outcome(&mut seasoned, format, payload);
    assert_eq!(without_detail(&again), without_detail(&fresh), "what came before makes a difference");
    #[cfg(feature = "mqtt")]
    if let (Ok(rows), Format::Json) = (&fresh, format) {
        comes_back(&schema, rows);
    }
}

/// Rows, or the reason alone: of several mistakes in a payload another one may be told.
fn without_detail(outcome: &Result<String, String>) -> Result<&str, Option<&str>> {
    outcome.as_deref().map_err(|error| error.split(':').next())
}

fn message(payload: &[u8]) -> Message<'_> {
    Message { topic: Some("fleet/d1/state"), payload, received_at_us: 1_769_860_800_000_000, position: 1.into() }
}

/// The rows as JSON lines, or reason and detail.
fn outcome(decoder: &mut Decoder, format: Format, payload: &[u8]) -> Result<String, String> {
    let good = good(format);
    for payload in [&good, payload, &good] {
        decoder.push(message(payload));
    }
    let decoded = decoder.take();
    let (rows, letters) = (decoded.rows.num_rows(), decoded.rejected.num_rows());
    let told = told(&decoded.rows.slice(1, rows - 2));
    assert_eq!(self::told(&decoded.rows.slice(0, 1)), self::told(&decoded.rows.slice(rows - 1, 1)));
    if letters == 0 {
        assert!(rows > 2, "it is neither a row nor a dead letter");
        return Ok(told);
    }
    assert_eq!((letters, rows), (1, 2), "a refused message is one dead letter and leaves no rows");
    let column = |name: &str| decoded.rejected.column_by_name(name).expect("dead letters have it").clone();
    assert!(column("payload").as_binary::<i32>().value(0) == payload, "the dead letter holds it as it came");
    let (reason, detail) = (column("reason"), column("detail"));
    let (reason, detail) = (reason.as_string::<i32>().value(0), detail.as_string::<i32>().value(0));
    assert!(detail.len() <= DETAIL_BYTES_MAX, "a dump of {} bytes: {detail}", detail.len());
    assert!(!detail.contains(char::is_control), "it breaks the line: {detail:?}");
    Err(format!("{reason}: {detail}"))
}

fn told(rows: &RecordBatch) -> String {
    String::from_utf8(json_lines(rows).expect("every type has a form in JSON")).expect("JSON is UTF-8")
}

/// Good under every schema.
fn good(format: Format) -> Vec<u8> {
    let value = json!({ "device_id": "good", "id": 1, "i16": 1, "state": { "at": "2026-01-31T12:00:00Z" } });
    match format {
        Format::Json => serde_json::to_vec(&value).expect("JSON"),
        Format::Cbor => cbor4ii::serde::to_vec(Vec::new(), &value).expect("CBOR"),
        Format::MessagePack => rmp_serde::to_vec(&value).expect("MessagePack"),
    }
}

/// A message that is made of a row decodes to that row.
#[cfg(feature = "mqtt")]
fn comes_back(schema: &pipeline_engine::schema::DeclaredSchema, rows: &str) {
    use crate::decode::RowMessage;

    for row in rows.lines() {
        // Two columns that lie one inside the other have no message to come back from.
        let Ok(again) = RowMessage::of(Some(schema), Format::Json, row.as_bytes()) else { continue };
        let mut decoder = Decoder::new(Some(schema), Format::Json, "fuzzed");
        decoder.push(message(&again.payload));
        let decoded = decoder.take();
        let found = told(&decoded.rows);
        assert!(same(row, found.trim_end()), "{row} came back as {found}{}", told(&decoded.rejected));
    }
}

/// A json column holds a key that stands twice; what is made of it does not.
#[cfg(feature = "mqtt")]
fn same(row: &str, other: &str) -> bool {
    use serde_json::Value;

    let plain = |text: &str| {
        let mut row: Value = serde_json::from_str(text).ok()?;
        for column in ["j", "state", "rest"] {
            if let Some(Value::String(text)) = row.get(column) {
                row[column] = serde_json::from_str(text).ok()?;
            }
        }
        Some(row)
    };
    row == other || plain(row).zip(plain(other)).is_some_and(|(row, other)| same_value(&row, &other))
}

/// `2` and `2.0` are one number: a column of floats writes the latter.
#[cfg(feature = "mqtt")]
fn same_value(left: &serde_json::Value, right: &serde_json::Value) -> bool {
    use serde_json::Value;

    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_value(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, left)| right.get(key).is_some_and(|right| same_value(left, right)))
        }
        (left, right) => left == right,
    }
}

/// The payloads of the corpus, under each schema.
fn seeds(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for (number, (_, name)) in (0_u8..).zip(FORMATS) {
        for path in files_below(&corpus.join("payloads").join(name))? {
            let payload = std::fs::read(&path)?;
            // What is large for its own sake makes each of its mutations slow.
            if payload.len() > 10_000 {
                continue;
            }
            let schema = match path.to_string_lossy() {
                path if path.contains("/shared/") => 2,
                path if path.contains("/epochs_") => 3,
                path if path.contains("/topics/") || path.contains("/required/") => 1,
                _ => 0,
            };
            seeds.push([&[number + 3 * schema], payload.as_slice()].concat());
        }
    }
    Ok(seeds)
}
