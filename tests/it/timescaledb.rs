//! The sink `timescaledb` against real servers: what is stored, what is skipped, what is refused and
//! what an outage leaves behind. This file has what the tests of all its parts share.

mod access;
mod claims;
mod configuration;
mod cuts;
mod duplicates;
mod fence;
mod late;
mod ledger;
mod outages;
mod probe;
mod proxy;
mod refused;
mod resumed;
pub mod server;
mod stored;
mod tables;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::schema::{json_field, timestamp_type};
use pipeline_engine::stage::{Batch, BuildContext, BuildError, BuiltSink, Fault, Group, Port, SinkConfig, StageError};
use pipeline_engine::{dead_letter, testing};
use pipeline_stages::sinks::timescaledb::TimescaleDbConfig;
use tokio_postgres::{Client, NoTls};

use crate::services::{database_url, unique};

/// 2026-01-01T00:00:00Z.
const NEW_YEAR_US: i64 = 1_767_225_600_000_000;

fn telemetry_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("temperature", DataType::Float64, true),
    ]))
}

/// A batch of readings: device, seconds into 2026, temperature.
fn telemetry(rows: &[(&str, i64, f64)]) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>()),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| NEW_YEAR_US + row.1 * 1_000_000))
                .with_timezone("UTC"),
        ),
        Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Float64Array>()),
    ];
    Batch::detached(RecordBatch::try_new(telemetry_schema(), columns).unwrap())
}

/// So many readings of a hundred devices, none like another, the first at that second.
fn many(count: usize, first_second: i64) -> Batch {
    let devices: Vec<String> = (0..100).map(|device| format!("d{device:03}")).collect();
    let rows: Vec<_> = (0..count)
        .map(|row| (devices[row % 100].as_str(), first_second + i64::try_from(row / 100).unwrap(), (row % 50) as f64))
        .collect();
    telemetry(&rows)
}

fn group(batches: Vec<Batch>) -> Group {
    Group::new(batches)
}

/// What a sink refuses of a group: batch, row and reason.
fn refused(error: &StageError) -> Vec<(usize, usize, &str)> {
    error.refused_rows().iter().map(|row| (row.batch, row.row, row.reason.as_str())).collect()
}

/// A sink and what its test looks at.
struct UnderTest {
    sink: BuiltSink,
    context: BuildContext,
    table: String,
    client: Client,
}

fn build(config: &str, input: &SchemaRef, context: &BuildContext) -> Result<BuiltSink, BuildError> {
    let config: TimescaleDbConfig = toml::from_str(config).expect("a valid configuration");
    config.build(input, context)
}

/// A sink into a new table of the shared server, not opened yet.
async fn sink_with(settings: &str, input: &SchemaRef) -> UnderTest {
    sink_at(&database_url(), &database_url(), &unique("readings"), settings, input).await
}

async fn sink_at(url: &str, admin_url: &str, table: &str, settings: &str, input: &SchemaRef) -> UnderTest {
    let context = testing::build_context("db", "");
    sink_in(context, url, admin_url, table, settings, input).await
}

async fn sink_in(
    context: BuildContext,
    url: &str,
    admin_url: &str,
    table: &str,
    settings: &str,
    input: &SchemaRef,
) -> UnderTest {
    let config = format!("url = \"{url}\"\ntable = \"{table}\"\n{settings}");
    let sink = build(&config, input, &context).expect("a sink");
    UnderTest { sink, context, table: table.to_owned(), client: connect(admin_url).await }
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the test's own connection");
    tokio::spawn(connection);
    client
}

impl UnderTest {
    async fn open(&mut self) -> Result<(), StageError> {
        self.sink.sink.open().await
    }

    async fn write(&mut self, batches: Vec<Batch>) -> Result<(), StageError> {
        self.sink.sink.write(&group(batches)).await
    }

    /// Rows that were not stored because they were there, value for value.
    fn duplicates(&self) -> u64 {
        self.counter("duplicate_rows")
    }

    fn counter(&self, name: &'static str) -> u64 {
        self.context.counter(name).get()
    }

    async fn count(&self) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {}", self.table), &[]).await.unwrap().get(0)
    }

    /// Devices and temperatures.
    async fn readings(&self) -> String {
        let sql = "SELECT coalesce(string_agg(device_id || temperature, ' ' ORDER BY device_id, timestamp), '') FROM ";
        self.client.query_one(&format!("{sql}{}", self.table), &[]).await.unwrap().get(0)
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(&sql.replace("TABLE_NAME", &self.table)).await.expect("the test's own SQL");
    }

    /// Opens and expects a permanent refusal; returns all of its text.
    async fn refusal(&mut self) -> String {
        let error = self.open().await.expect_err("must be refused");
        assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
        error.chain()
    }
}
