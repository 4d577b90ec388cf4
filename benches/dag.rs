//! A whole pipeline in memory: JSON payloads are decoded, validated, enriched, scored and discarded.
//!
//! One iteration runs 100 batches of 8,192 messages (1,000 devices, 1% bad) through the engine's own
//! run loop: queues, acks and grouping included. Rows per second is the figure to compare.

#[path = "load/in_memory.rs"]
mod in_memory;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use in_memory::BATCH_ROWS;

/// Batches of one iteration.
const BATCHES: u64 = 100;

fn whole_dag(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let table = in_memory::devices(folder.path());
    let mut group = criterion.benchmark_group("dag");
    group.throughput(Throughput::Elements(BATCHES * BATCH_ROWS)).sample_size(10);
    for workers in [1, 2] {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(workers).enable_all().build().expect("a runtime");
        group.bench_function(format!("decode_validate_enrich_anomaly/{workers}_workers"), |bencher| {
            bencher.iter(|| in_memory::run(&runtime, &table, BATCHES, in_memory::ZSCORE));
        });
    }
    group.finish();
}

criterion_group!(benches, whole_dag);
criterion_main!(benches);
