//! Results held against independent implementations: pandas and numpy, shapely.

mod as_of;
mod geofence;

mod compute;
mod thin;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, Port, TransformConfig};
use pipeline_stages::transforms::downsample::{DownsampleConfig, LATE};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::services::python;

const SECOND: i64 = 1_000_000;

/// A row: its device, its time in microseconds, and a value that may be missing.
type Row = (&'static str, i64, Option<f64>);

/// Rows of four devices, some of them late, twice, out of order or without a value.
fn stream(seed: u64, count: usize) -> Vec<Row> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut time_us = 1_769_860_800 * SECOND;
    let mut rows: Vec<Row> = Vec::with_capacity(count);
    while rows.len() < count {
        time_us += rng.random_range(0..6 * SECOND);
        let back = if rng.random_bool(0.15) { rng.random_range(0..180) * SECOND } else { 0 };
        let device = ["press-1", "press-2", "oven", "pump"][rng.random_range(0..4)];
        let value =
            (!rng.random_bool(0.05)).then(|| 1e3 + rng.random_range(-1.0..1.0) * 10_f64.powi(rng.random_range(-6..3)));
        rows.push((device, time_us - back, value));
        if rng.random_bool(0.05) {
            rows.push((device, time_us - back, value.map(|value| value + 1.0)));
        }
    }
    rows
}

fn batch(rows: &[Row]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1)).with_timezone("UTC");
    RecordBatch::try_from_iter_with_nullable([
        ("device_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef, true),
        ("timestamp", Arc::new(times) as ArrayRef, true),
        ("temperature", Arc::new(rows.iter().map(|row| row.2).collect::<Float64Array>()) as ArrayRef, true),
    ])
    .unwrap()
}

const AGGREGATES: &str = r#"
[aggregates]
readings = "count()"
values = "count(temperature)"
sum = "sum(temperature)"
mean = "mean(temperature)"
stddev = "stddev(temperature)"
min = "min(temperature)"
max = "max(temperature)"
first = "first(temperature)"
last = "last(temperature)"
p05 = "percentile(temperature, 5)"
p50 = "median(temperature)"
p99 = "percentile(temperature, 99)"
step = "time_weighted_mean(temperature)"
line = "time_weighted_mean(temperature, line)"
"#;

/// The windows of a stream and how many rows were late. The stage is ended and restored between any two batches.
fn windows(text: &str, rows: &[Row]) -> (Vec<Value>, usize) {
    let build = || {
        let config: DownsampleConfig = toml::from_str(text).unwrap();
        config.build(&batch(&[]).schema(), &BuildContext::detached("windows", Default::default())).unwrap().transform
    };
    let mut transform = build();
    let mut out = Emitter::default();
    for part in rows.chunks(37) {
        transform.apply(Batch::detached(batch(part)), &mut out).unwrap();
        let snapshot = transform.snapshot().unwrap();
        transform = build();
        transform.restore(&snapshot).unwrap();
    }
    transform.finish(&mut out).unwrap();
    let (mut told, mut late) = (Vec::new(), 0);
    for (port, batch) in out.take() {
        match port {
            LATE => late += batch.rows.num_rows(),
            Port::MAIN => told.extend(values(&batch.rows)),
            other => panic!("no such port: {other:?}"),
        }
    }
    (told, late)
}

/// Rows with their times as numbers.
fn values(rows: &RecordBatch) -> Vec<Value> {
    let lines = String::from_utf8(json_lines(rows).unwrap()).unwrap();
    let with_numbers = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for column in ["window_start", "window_end"] {
            let text = row[column].as_str().unwrap();
            row[column] = pipeline_engine::time::parse_us(text, 0).unwrap().into();
        }
        row
    };
    lines.lines().map(with_numbers).collect()
}

fn lines(rows: impl Iterator<Item = Value>) -> String {
    rows.map(|row| format!("{row}\n")).collect()
}

/// Whether an oracle agrees with what is in these files, by name and content, and what it says. It is told their
/// names, and runs where they are.
fn ask(oracle: &str, files: &[(&str, String)]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    ask_in(folder.path(), oracle, &names)
}

/// The same of files that are in a folder already.
fn ask_in(folder: &Path, oracle: &str, files: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle").join(oracle);
    let output = Command::new(python()).arg(script).args(files).current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// Fails where the oracle does not agree.
fn agrees(oracle: &str, files: &[&str], folder: &Path, what: &str) {
    let (agrees, said) = ask_in(folder, oracle, files);
    assert!(agrees, "{what}: {said}");
}

#[test]
fn windows_are_those_of_pandas() {
    let shapes = [
        ("window = \"1m\"", json!({ "size": 60 * SECOND, "every": 60 * SECOND })),
        ("window = \"1m\"\nevery = \"25s\"", json!({ "size": 60 * SECOND, "every": 25 * SECOND })),
        ("session_gap = \"20s\"", json!({ "gap": 20 * SECOND })),
    ];
    for (number, (shape, mut config)) in shapes.into_iter().enumerate() {
        // Silent devices wait: the oracle knows nothing of them.
        let text = format!("{shape}\nallowed_lateness = \"30s\"\nidle_timeout = \"1000d\"\n{AGGREGATES}");
        for seed in 0..2 {
            let rows = stream(seed * 3 + number as u64, 800);
            let (ours, late) = windows(&text, &rows);
            config["late"] = late.into();
            config["lateness"] = (30 * SECOND).into();
            let input = rows.iter().map(
                |(device, time_us, value)| json!({ "device_id": device, "timestamp": time_us, "temperature": value }),
            );
            let files = [
                ("rows.jsonl", lines(input)),
                ("ours.jsonl", lines(ours.into_iter())),
                ("config.json", config.to_string()),
            ];
            let (agrees, said) = ask("downsample.py", &files);
            assert!(agrees, "{shape}, seed {seed}: {said}");
        }
    }
}
