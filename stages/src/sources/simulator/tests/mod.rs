mod config;
mod fleet;
mod run;

use pipeline_engine::testing::{self, Outlet, build_context, deliver};
use serde_json::Value;

use super::fleet::Fleet;
use super::*;

const START: &str = "2026-01-31T12:00:00Z";
const START_US: i64 = 1_769_860_800_000_000;
const SCHEMA: &str = r#"
[schema.telemetry]
device_id = { type = "text", required = true }
timestamp = { type = "timestamp", required = true }
temperature = "float64"
humidity = "float64"
seq = "int64"
"#;

/// A deterministic run of so many messages.
fn config(count: u64) -> SimulatorConfig {
    SimulatorConfig {
        count: Some(count),
        start_time: Some(START.to_owned()),
        pace: Pace::Unpaced,
        ..SimulatorConfig::default()
    }
}

fn fleet(config: SimulatorConfig) -> Fleet {
    let topic = Topic::parse(&config.topic).unwrap();
    let duration_us = config.duration.map(|duration| micros(duration.0));
    Fleet::new(&config.fleet_settings(topic, duration_us).expect("valid settings"), START_US)
}

/// Message by message: when it was sent, its payload, and the word for what was planted.
fn messages(config: SimulatorConfig) -> Vec<(i64, Vec<u8>, Option<String>)> {
    let mut fleet = fleet(config);
    let mut all = Vec::new();
    while let Some(due_us) = fleet.due_us() {
        if let Some(message) = fleet.next() {
            assert_eq!(message.sent_at_us, due_us, "a message goes out when it was said to be due");
            let planted = message.planted.map(|planted| format!("{:?}", planted.kind));
            all.push((due_us, message.payload.to_vec(), planted));
        }
    }
    all
}

fn payloads(config: SimulatorConfig) -> Vec<Vec<u8>> {
    messages(config).into_iter().map(|(_, payload, _)| payload).collect()
}

fn json(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).expect("JSON")
}

fn of_device(payloads: &[Vec<u8>], id: &str) -> Vec<Vec<u8>> {
    payloads.iter().filter(|payload| json(payload)["device_id"] == id).cloned().collect()
}

fn time_us(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).expect("RFC 3339").timestamp_micros()
}

fn build(config: SimulatorConfig) -> Result<BuiltSource, BuildError> {
    config.build(&build_context("fleet", SCHEMA))
}

/// Runs a source to its end with somebody who reads and keeps promises; rows by batch, main and
/// rejected.
async fn run_to_end(config: SimulatorConfig) -> (Result<(), String>, Vec<Batches>, Outlet) {
    let source = build(config).expect("a valid configuration").source;
    let (cx, mut outlet) = testing::source(1_000_000);
    let run = tokio::spawn(source.run(cx));
    let mut main = Vec::new();
    while let Some(batch) = outlet.next().await {
        main.push(batch.rows.clone());
        deliver(batch);
    }
    let mut rejected = Vec::new();
    while let Some(batch) = outlet.next_rejected().await {
        rejected.push(batch.rows.clone());
        deliver(batch);
    }
    let outcome = run.await.expect("no panic").map_err(|error| error.chain());
    (outcome, vec![main, rejected], outlet)
}

type Batches = Vec<arrow::record_batch::RecordBatch>;

fn rows(batches: &Batches) -> usize {
    batches.iter().map(|batch| batch.num_rows()).sum()
}
