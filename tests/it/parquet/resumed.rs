//! A source that can resume, and runs that end midway: the next one finishes what was staged.

use std::path::Path;
use std::sync::atomic::Ordering;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::{Advance, Batch, Fault, Group, Sink, SinkConfig};
use pipeline_engine::{Partition, Position, Span, testing};
use pipeline_stages::sinks::parquet::ParquetConfig;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::{Value, json};

use super::old_store::{Condition, OldStore};
use super::{DAY_US, HOUR_US, Relay, block_on, lake_keys, readings};
use crate::services;

/// A sink whose state outlives it.
fn resuming(keys: Value, data: &Path) -> Box<dyn Sink> {
    let config: ParquetConfig = serde_json::from_value(keys).expect("a valid configuration");
    let cx = testing::build_context("lake", "").with_data_dir(data);
    let built = config.environment(services::s3().environment()).build(&readings(None, 0).schema(), &cx);
    built.expect("a valid configuration").sink
}

/// Opens it as the engine does: again and again, while an earlier one lets go of its lock.
async fn open(sink: &mut dyn Sink) {
    while let Err(error) = sink.open().await {
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        tokio::task::yield_now().await;
    }
}

/// Rows of positions `from + 1` to `to`: an hour each, so that most groups touch two days.
fn positions(from: u64, to: u64) -> Group {
    let partition = Partition::new("shard-1");
    let batch = |position: u64| {
        let rows = readings(Some(DAY_US + position as i64 * 6 * HOUR_US), 5);
        Batch::new(rows, partition.open(Span::new(position, position), DAY_US + position as i64))
    };
    let (input, partition_name) = ("valid".to_owned(), "shard-1".to_owned());
    let from_position = (from > 0).then(|| Position::from(from));
    let advance = Advance { input, partition: partition_name, from: from_position, to: to.into(), tenure: None };
    Group::advancing((from + 1..=to).map(batch).collect(), vec![advance])
}

async fn committed(sink: &mut dyn Sink) -> u64 {
    let committed = sink.committed().await.expect("it is open");
    committed.first().map_or(0, |committed| committed.position.0[3])
}

/// Each position's five rows, sorted: by time, then by number.
async fn stored_rows(bucket: &str) -> Vec<(i64, i64)> {
    let mut rows = rows_in(&services::read_parquet(bucket, "lake").await);
    rows.sort_unstable();
    rows
}

fn rows_of(positions: &Group) -> Vec<(i64, i64)> {
    let batches: Vec<_> = positions.batches().iter().map(|batch| batch.rows.clone()).collect();
    let mut rows = rows_in(&batches);
    rows.sort_unstable();
    rows
}

fn rows_in(batches: &[RecordBatch]) -> Vec<(i64, i64)> {
    let rows = batches.iter().flat_map(|batch| {
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        times.into_iter().zip(batch.column(3).as_primitive::<Int64Type>().values().to_vec())
    });
    rows.collect()
}

#[test]
fn a_run_that_ends_with_a_reply_outstanding_is_finished_by_the_next() {
    let (bucket, data) = (services::bucket(), tempfile::TempDir::new().expect("a folder"));
    block_on(async {
        let relay = Relay::start(&services::s3().endpoint).await;
        let keys = |endpoint: &str| json!({ "url": format!("s3://{bucket}/lake"), "time_column": "timestamp", "endpoint": endpoint });
        let mut first = resuming(keys(&relay.url), data.path());
        first.open().await.expect("the store is there");
        relay.loses_replies.store(true, Ordering::SeqCst);
        let error = first.write(&positions(0, 6)).await.expect_err("nobody answered");
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        drop(first);

        let mut second = resuming(keys(&services::s3().endpoint), data.path());
        open(&mut *second).await;
        assert_eq!(committed(&mut *second).await, 6);
        // Other boundaries than an uninterrupted run would have had.
        second.write(&positions(6, 7)).await.expect("it goes on");
        assert_eq!(stored_rows(&bucket).await, rows_of(&positions(0, 7)));
    });
}

#[test]
fn a_store_that_is_away_until_the_next_run_gets_what_the_first_had_staged() {
    let (bucket, data) = (services::bucket(), tempfile::TempDir::new().expect("a folder"));
    block_on(async {
        let keys = |endpoint: &str| json!({ "url": format!("s3://{bucket}/lake"), "time_column": "timestamp", "endpoint": endpoint });
        let away = OldStore::start(Condition::Kept).await;
        let mut first = resuming(keys(&away.url), data.path());
        first.open().await.expect("the store is there");
        away.fail();
        first.write(&positions(0, 6)).await.expect_err("it is away");
        assert!(away.paths().is_empty());
        drop(first);
        let mut second = resuming(keys(&services::s3().endpoint), data.path());
        open(&mut *second).await;
        assert_eq!(stored_rows(&bucket).await, rows_of(&positions(0, 6)), "before anything is read");
        assert_eq!(committed(&mut *second).await, 6);
    });
}

/// The process is not killed here, but all that it holds is dropped wherever it is: its connections,
/// its lock, its half-written files.
#[test]
fn runs_that_end_at_any_moment_leave_each_row_in_exactly_one_object() {
    const LAST: u64 = 60;
    let (bucket, data) = (services::bucket(), tempfile::TempDir::new().expect("a folder"));
    let seed = rand::random();
    println!("seed {seed}");
    let mut chance = Pcg64Mcg::seed_from_u64(seed);
    block_on(async {
        let mut rounds = 0;
        loop {
            let (mut sink, mut sizes) = (resuming(lake_keys(&bucket), data.path()), Pcg64Mcg::seed_from_u64(rounds));
            let run = async {
                open(&mut *sink).await;
                let mut done = committed(&mut *sink).await;
                while done < LAST {
                    let to = (done + sizes.random_range(1..6)).min(LAST);
                    sink.write(&positions(done, to)).await.expect("the store is there");
                    done = to;
                }
            };
            // Longer each time, so that it ends on a slow machine too.
            let patience = std::time::Duration::from_micros(chance.random_range(0..30_000) + rounds * 2_000);
            rounds += 1;
            if tokio::time::timeout(patience, run).await.is_ok() {
                break;
            }
        }
        println!("{rounds} runs");
        assert_eq!(stored_rows(&bucket).await, rows_of(&positions(0, LAST)), "seed {seed}, {rounds} runs");
    });
}
