//! What the ledger of positions costs the TimescaleDB sink: groups with and without it, in turns, into a
//! table each. Needs a database, `TEST_DATABASE_URL`, and leaves nothing there.
//!
//! Prints medians and their ratio, not criterion's estimates: only taken in turns do the two see the same
//! machine and tables of the same size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{Advance, Batch, Group, Sink, SinkConfig};
use pipeline_engine::{Position, testing};
use pipeline_stages::sinks::timescaledb::TimescaleDbConfig;

const ROUNDS: u64 = 200;
const DEVICES: u64 = 1_000;

fn main() {
    let Ok(url) = std::env::var("TEST_DATABASE_URL") else {
        println!("timescaledb: skipped, TEST_DATABASE_URL is not set");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the database");
        tokio::spawn(connection);
        for rows in [100, 1_000, 10_000] {
            let schema = format!("bench_{:08x}", rand::random::<u32>());
            client.batch_execute(&format!("CREATE SCHEMA {schema}")).await.expect("a right to create");
            compare(&url, &schema, rows).await;
            let drop = format!("SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE");
            client.batch_execute(&drop).await.expect("it is ours");
        }
    });
}

async fn compare(url: &str, schema: &str, rows: u64) {
    let (mut without, mut with) = (sink(url, schema, "without").await, sink(url, schema, "with").await);
    with.committed().await.expect("a ledger");
    let (mut times_without, mut times_with) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let advance = Advance {
            input: "valid".into(),
            partition: "telemetry/1".into(),
            from: (round > 1).then(|| Position::from(round - 1)),
            to: round.into(),
            tenure: None,
        };
        let group = |advances| Group::advancing(vec![readings(round, rows)], advances);
        let (plain, ledgered) = (group(Vec::new()), group(vec![advance]));
        // Each comes first as often as the other.
        if round.is_multiple_of(2) {
            times_without.push(time(&mut *without, &plain).await);
            times_with.push(time(&mut *with, &ledgered).await);
        } else {
            times_with.push(time(&mut *with, &ledgered).await);
            times_without.push(time(&mut *without, &plain).await);
        }
    }
    let (without, with) = (median(times_without), median(times_with));
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("groups of {rows:>6} rows: without the ledger {without:>9.2?}, with it {with:>9.2?}, ratio {ratio:.3}");
}

async fn sink(url: &str, schema: &str, name: &str) -> Box<dyn Sink> {
    let text = format!("url = \"{url}\"\ntable = \"{schema}.{name}\"\ncreate = true");
    let config: TimescaleDbConfig = toml::from_str(&text).expect("a valid configuration");
    let context = testing::build_context(name, "");
    let mut sink = config.build(&columns(), &context).expect("a sink").sink;
    sink.open().await.expect("the database is there");
    sink
}

async fn time(sink: &mut dyn Sink, group: &Group) -> Duration {
    let started = Instant::now();
    sink.write(group).await.expect("the database is there");
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float64, true),
    ]))
}

/// Readings of all devices in turn, a second apart; none twice.
fn readings(round: u64, rows: u64) -> Batch {
    let numbers = || (round * rows..(round + 1) * rows).map(|number| (number % DEVICES, number / DEVICES));
    let at_us = |second: u64| 1_767_225_600_000_000 + i64::try_from(second).expect("a small number") * 1_000_000;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(numbers().map(|(device, _)| Some(format!("device-{device:04}"))).collect::<StringArray>()),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(numbers().map(|(_, second)| at_us(second)))
                .with_timezone("UTC"),
        ),
        Arc::new(numbers().map(|(device, second)| Some((device + second) as f64)).collect::<Float64Array>()),
        Arc::new(numbers().map(|(device, _)| Some(device as f64)).collect::<Float64Array>()),
    ];
    Batch::detached(RecordBatch::try_new(self::columns(), columns).expect("columns of one length"))
}
