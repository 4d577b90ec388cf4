//! Rules of the decoder, each with the word it refuses with.

mod corpus;
mod drift;
mod formats;
#[cfg(feature = "mqtt")]
mod letters;
mod ordered;
mod rules;

use arrow::array::{AsArray, RecordBatch};
use pipeline_engine::testing::build_context;

use super::*;

const RECEIVED_US: i64 = 1_769_860_800_000_000; // 2026-01-31T12:00:00Z

/// A schema written as in a pipeline file.
fn schema(columns: &str) -> Arc<DeclaredSchema> {
    build_context("s", &format!("[schema.t]\n{columns}")).schema("schema", "t").unwrap()
}

fn message(payload: &[u8], position: u64) -> Message<'_> {
    Message { topic: Some("fleet/d7/state"), payload, received_at_us: RECEIVED_US, position: position.into() }
}

/// Decodes the payloads, in this order and as one batch.
fn decode<P: AsRef<[u8]>>(columns: &str, format: Format, payloads: &[P]) -> Decoded {
    let mut decoder = Decoder::new(Some(&schema(columns)), format, "devices");
    for (position, payload) in (1..).zip(payloads) {
        decoder.push(message(payload.as_ref(), position));
    }
    decoder.take()
}

/// Rows as JSON lines: what a person would compare.
fn lines(rows: &RecordBatch) -> String {
    String::from_utf8(dead_letter::json_lines(rows).unwrap()).unwrap()
}

/// `reason: detail` of each dead letter.
fn refusals(rejected: &RecordBatch) -> Vec<String> {
    let text = |name: &str| rejected.column_by_name(name).unwrap().as_string::<i32>().clone();
    let (reasons, details) = (text("reason"), text("detail"));
    (0..rejected.num_rows()).map(|row| format!("{}: {}", reasons.value(row), details.value(row))).collect()
}

/// The only outcome of a JSON payload: its row as JSON, or `reason: detail`.
fn outcome(columns: &str, payload: &str) -> String {
    let decoded = decode(columns, Format::Json, &[payload]);
    match refusals(&decoded.rejected).as_slice() {
        [] => lines(&decoded.rows).trim_end().to_owned(),
        [refusal] => {
            assert_eq!(decoded.rows.num_rows(), 0, "a refused message leaves no rows");
            refusal.clone()
        }
        more => panic!("one message, {} dead letters", more.len()),
    }
}
