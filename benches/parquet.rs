//! One file of a million readings, by the sink as it runs: encoded with zstd, hashed, written, linked;
//! and the same from a source that can resume, whose file is staged first and its position recorded.
//!
//! Written to memory (`/dev/shm`) where there is such a folder, so that it measures us and not a disk.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{Advance, Batch, Group, Sink, SinkConfig};
use pipeline_engine::testing;
use pipeline_stages::sinks::parquet::ParquetConfig;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

const BATCHES: i64 = 100;
const BATCH_ROWS: i64 = 10_000;
const ROWS: i64 = BATCHES * BATCH_ROWS;
const DEVICES: i64 = 1_000;

/// A fleet that reports in turns; values with two decimals around each device's own level, as sensors
/// send them.
fn readings() -> Vec<RecordBatch> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float64, true),
        Field::new("seq", DataType::Int64, true),
    ]));
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(42);
    let mut value = |level: f64| ((level + random.random_range(-2.0..2.0)) * 100.0_f64).round() / 100.0;
    let batch = |number: i64| {
        let rows = (number * BATCH_ROWS)..((number + 1) * BATCH_ROWS);
        let times = rows.clone().map(|row| 1_769_817_600_000_000 + row * 1_000);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("device-{:05}", row % DEVICES)))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            Arc::new(Float64Array::from_iter_values(rows.clone().map(|row| value(15.0 + (row % 11) as f64)))),
            Arc::new(Float64Array::from_iter_values(rows.clone().map(|row| value(40.0 + (row % 23) as f64)))),
            Arc::new(Int64Array::from_iter_values(rows.map(|row| row / DEVICES))),
        ];
        RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of the schema")
    };
    (0..BATCHES).map(batch).collect()
}

fn sink(folder: &Path, rows: &RecordBatch) -> Box<dyn Sink> {
    let config: ParquetConfig = serde_json::from_value(serde_json::json!({ "url": folder })).expect("valid keys");
    let cx = testing::build_context("lake", "").with_data_dir(folder.join(".data"));
    config.build(&rows.schema(), &cx).expect("a valid configuration").sink
}

fn write_files(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let batches = readings();
    let detached = || batches.iter().cloned().map(Batch::detached).collect();
    let group = Group::new(detached());
    let advance =
        Advance { input: "valid".into(), partition: "telemetry/1".into(), from: None, to: 1.into(), tenure: None };
    let resumable = Group::advancing(detached(), vec![advance]);
    let fresh = || {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a folder");
        let sink = sink(folder.path(), &batches[0]);
        (folder, sink)
    };

    let (folder, mut first) = fresh();
    runtime.block_on(first.write(&group)).expect("it is stored");
    println!("a file of {ROWS} rows takes {:.2} bytes a row", bytes_below(folder.path()) as f64 / ROWS as f64);

    let mut files = criterion.benchmark_group("parquet");
    files.sample_size(10).throughput(Throughput::Elements(ROWS as u64));
    for (name, group) in
        [("a million rows to one zstd file", &group), ("a million rows to one zstd file, staged first", &resumable)]
    {
        files.bench_function(name, |bencher| {
            let write = |(folder, mut sink): (TempDir, Box<dyn Sink>)| {
                runtime.block_on(sink.write(black_box(group))).expect("it is stored");
                folder
            };
            bencher.iter_batched(fresh, write, BatchSize::PerIteration);
        });
    }
    files.finish();
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { bytes_below(&entry.path()) } else { entry.metadata().expect("a file").len() }
            },
        )
        .sum()
}

criterion_group!(benches, write_files);
criterion_main!(benches);
