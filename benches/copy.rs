//! Arrow columns to the bytes of a binary COPY: telemetry of 1,000 devices, five columns.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_stages::sinks::timescaledb::SqlType;
use pipeline_stages::sinks::timescaledb::copy::Chunks;

const ROWS: u32 = 10_000;
const TYPES: [SqlType; 5] = [SqlType::Text, SqlType::Timestamptz, SqlType::Float8, SqlType::Float8, SqlType::Int8];

fn telemetry() -> RecordBatch {
    let rows = 0..i64::from(ROWS);
    let device = rows.clone().map(|row| format!("device-{:04}", row % 1000)).collect::<Vec<_>>();
    let time = rows.clone().map(|row| 1_767_225_600_000_000 + row * 1000).collect::<Vec<_>>();
    // One reading in fifty has no temperature.
    let temperature = rows.clone().map(|row| (row % 50 != 0).then(|| 15.0 + (row % 200) as f64 / 10.0));
    let humidity = rows.clone().map(|row| 30.0 + (row % 500) as f64 / 10.0);
    let columns: [(&str, ArrayRef); 5] = [
        ("device_id", Arc::new(StringArray::from(device))),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(time).with_timezone("UTC"))),
        ("temperature", Arc::new(temperature.collect::<Float64Array>())),
        ("humidity", Arc::new(Float64Array::from_iter_values(humidity))),
        ("seq", Arc::new(Int64Array::from_iter_values(rows))),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

fn encode(criterion: &mut Criterion) {
    let rows = telemetry();
    let arrival: Vec<u32> = (0..ROWS).collect();
    let mut by_device = arrival.clone();
    by_device.sort_by_key(|row| row % 1000);
    let mut group = criterion.benchmark_group("copy");
    group.throughput(Throughput::Elements(u64::from(ROWS)));
    for (name, order) in [("in_order_of_arrival", &arrival), ("sorted_by_key", &by_device)] {
        group.bench_function(name, |bench| {
            bench.iter(|| Chunks::new(black_box(&rows), &TYPES, order).map(|chunk| chunk.len()).sum::<usize>());
        });
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
