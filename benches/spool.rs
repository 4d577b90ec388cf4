//! What a group commit costs on the real disk: 1,000 messages of 115 bytes appended, written, synced
//! and reported durable. The figure is that of the disk under the temporary directory, and of what
//! else uses it: set `TMPDIR` to the disk that counts, and look at ratios.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_engine::spool::{FsStorage, Record, Spool, SpoolOptions};

const RECORDS: u64 = 1_000;
const PAYLOAD_BYTES: usize = 115;

fn commit_groups(criterion: &mut Criterion) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Deleted at once, so that a long run doesn't fill the disk.
    let options = SpoolOptions { retain: Duration::ZERO, ..SpoolOptions::new("bench", "mqtt") };
    let (spool, mut writer, _) =
        Spool::open(home.path(), options, Arc::new(FsStorage)).expect("an empty directory opens");
    let cursors = spool.cursors();
    let mut durable = spool.durable();
    let records: Vec<Record> = (0..RECORDS).map(record).collect();

    let mut group = criterion.benchmark_group("spool");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("append_and_commit_1000_of_115_bytes", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut last_lsn = 0;
                for record in &records {
                    last_lsn = writer.append(record).await.expect("the spool is open");
                }
                writer.flush();
                durable.wait_for(|lsn| *lsn >= last_lsn).await.expect("the spool lives");
                cursors.advance("sink", last_lsn);
            });
        });
    });
    group.finish();
}

fn record(number: u64) -> Record {
    let device = number % 1_000;
    let mut payload =
        format!("{{\"device_id\":\"device-{device:04}\",\"seq\":{number},\"temperature\":21.5").into_bytes();
    payload.resize(PAYLOAD_BYTES, b' ');
    Record {
        received_at_us: 0,
        flags: 0,
        mark: 0,
        topic: format!("devices/{device:04}/telemetry").into(),
        payload: payload.into(),
    }
}

criterion_group!(benches, commit_groups);
criterion_main!(benches);
