//! Reads every shard of a Kinesis stream, parents before children, and goes on after a restart where every sink has come
//! to.
//!
//! The stream keeps the records, so none is spooled here. What is kept on disk is what bounds batches had
//! (`journal`): a batch is the unit of replay, and the stream itself knows none.
//!
//! ```text
//! ListShards ──▶ lineage ──startable──▶ shard reader ──▶ assembly ──▶ journal ──▶ sending ──▶ pipeline
//!                   ▲                   polling | fan-out              (bounds durable)          │
//!                   └──── shard ended ◀──────┘                             ◀── passed ◀── checkpoint
//! ```
//!
//! **Danger.** A stream forgets: what is not read within its retention (a day by default) is gone. The source's lag says
//! how near that is.

mod batches;
mod examine;
mod fan_out;
mod feed;
mod journal;
mod lag;
mod lineage;
mod polling;
mod reading;
mod resend;
mod retention;
mod roster;
mod sending;
mod shard;
mod workers;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::DateTime;
use pipeline_engine::dead_letter;
use pipeline_engine::dlq::Resender;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::spool::SpoolOptions;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSource, DiskBounds, Examination, Port, Source, SourceConfig, SourceContext,
    StageDoc, StageError,
};
use pipeline_engine::units::DurationText;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::decoder;
use crate::decode::{Decoder, Format, UnknownFields};
use crate::kinesis::{Stream, StreamKeys};
use polling::INTERVAL_MIN;
use reading::Reading;
use resend::Resend;
pub use workers::WorkersConfig;
use workers::{OfStream, SharedReading, Workers};

/// `type = "kinesis"` in a `[sources.NAME]` table.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KinesisSourceConfig {
    /// The name of the stream.
    stream: String,
    /// Where to begin when the stream is read for the first time: `"horizon"` (all that it still holds), `"latest"` (what
    /// comes from then on) or a time in RFC 3339, such as `"2026-01-31T12:00:00Z"` (what arrived from then on). Later runs
    /// go on where sinks have come to.
    #[serde(default)]
    start: StartAt,
    /// The region of the stream. Overrides AWS_REGION and that of the profile.
    region: Option<String>,
    /// The Kinesis API to use, if not that of AWS: `http://127.0.0.1:4567`. Overrides AWS_ENDPOINT_URL_KINESIS and
    /// AWS_ENDPOINT_URL.
    endpoint: Option<String>,
    /// Let `endpoint` be plain HTTP though it is not on this machine.
    #[serde(default)]
    allow_http: bool,
    /// A consumer of the stream, by name or ARN: its shards then push what arrives (enhanced fan-out), with 2 MB a second
    /// for this pipeline alone, at AWS's extra price. A name that is not registered yet is registered. Without it the
    /// shards are polled.
    fan_out: Option<String>,
    /// How long to leave a shard alone once all is read. Not below 200 ms: a shard answers five times a second, to all that
    /// poll it together.
    #[serde(default = "default_poll_interval")]
    poll_interval: DurationText,
    /// The most records to ask a shard for at once, 1 to 10,000.
    #[serde(default = "default_poll_records")]
    poll_records: i32,
    /// The schema that payloads are decoded by. The partition key counts as the topic. Without one the rows are the messages
    /// themselves: `topic`, `payload` and `received_at`.
    schema: Option<String>,
    /// What becomes of a field that no column of the schema asks for; a column with `rest = true` keeps it as JSON. All are
    /// counted as `unknown_fields`, and the first one of its name is told.
    unknown_fields: Option<UnknownFields>,
    /// How payloads are encoded.
    #[serde(default)]
    format: Format,
    /// The most rows that travel together.
    #[serde(default = "default_batch_rows")]
    batch_rows: u32,
    /// Several workers share the stream, by leases in DynamoDB: `{ application = "iot" }`. Without it this pipeline reads the
    /// stream alone, and needs no DynamoDB.
    workers: Option<WorkersConfig>,
    #[serde(skip)]
    environment: Option<BTreeMap<String, String>>,
}

fn default_poll_interval() -> DurationText {
    DurationText(std::time::Duration::from_millis(250))
}

/// What the service gives at most.
fn default_poll_records() -> i32 {
    10_000
}

fn default_batch_rows() -> u32 {
    8192
}

/// Where the first run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum StartAt {
    /// At the oldest record.
    #[default]
    Horizon,
    /// At what comes from then on.
    Latest,
    /// At what arrived then or later, microseconds since 1970.
    Time(i64),
}

impl<'de> Deserialize<'de> for StartAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StartVisitor)
    }
}

struct StartVisitor;

impl Visitor<'_> for StartVisitor {
    type Value = StartAt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"horizon\", \"latest\" or a time such as \"2026-01-31T12:00:00Z\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<StartAt, E> {
        match text {
            "horizon" => Ok(StartAt::Horizon),
            "latest" => Ok(StartAt::Latest),
            _ => match DateTime::parse_from_rfc3339(text) {
                Ok(time) => Ok(StartAt::Time(time.timestamp_micros())),
                Err(_) => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
            },
        }
    }
}

impl JsonSchema for StartAt {
    fn schema_name() -> Cow<'static, str> {
        "StartAt".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "default": "horizon" })
    }
}

impl KinesisSourceConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }
}

impl SourceConfig for KinesisSourceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "kinesis",
        summary: "Reads all shards of a Kinesis stream, through splits and merges, and goes on where sinks have come to.",
        ports: &[("rejected", "messages that do not fit the schema, and packed records that can't be taken apart")],
        failure: "Transient (stream away, throttled, an iterator or subscription that has expired): tried again after up to \
                  10 s, as often as it takes; throttling is counted as `throttled` and is no error. \
                  Disk full: nothing more is read until bounds of batches can be kept again. \
                  Permanent (no such stream, no access, no credentials, a place in the stream that it does not know): the \
                  run stops. \
                  Duplicates: none where sinks keep positions. A message's position is its shard, its sequence number and \
                  its place in a packed record, and batches have the same bounds when they are read again. What a producer \
                  sends twice is two messages: use a key of the payload, such as device and timestamp, as the sink's key. \
                  Where the data directory is lost, the stream is read anew from `start`. What passes the stream's \
                  retention before it is read is lost.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let of_stream = OfStream {
            region: self.region.as_ref(),
            allow_http: self.allow_http,
            environment: self.environment.as_ref(),
        };
        let workers = self.workers.map(|workers| workers.build(of_stream)).transpose()?;
        let stream = Stream::new(StreamKeys {
            stream: self.stream,
            region: self.region,
            endpoint: self.endpoint,
            allow_http: self.allow_http,
            environment: self.environment,
        })?;
        if self.batch_rows == 0 {
            return Err(BuildError::invalid("batch_rows", "a batch has at least one row"));
        }
        if !(1..=default_poll_records()).contains(&self.poll_records) {
            return Err(BuildError::invalid("poll_records", "a shard gives between 1 and 10,000 records at once"));
        }
        if self.poll_interval.0 < INTERVAL_MIN {
            return Err(BuildError::invalid("poll_interval", "a shard answers five times a second")
                .hint("Write \"200ms\" or more; `fan_out` is for less."));
        }
        if self.fan_out.as_ref().is_some_and(String::is_empty) {
            return Err(BuildError::invalid("fan_out", "a consumer has a name or an ARN"));
        }
        let schema = self.schema.as_deref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoder = decoder(cx, schema.as_deref(), self.format, self.unknown_fields)?;
        let mut outputs = decoder.outputs();
        if !outputs.iter().any(|(port, _)| *port == Port::REJECTED) {
            // Without a schema every message is a row; a packed record that can't be taken apart is none all the same.
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        let source = Kinesis {
            stage: cx.stage.clone(),
            stream,
            schema,
            format: self.format,
            start: self.start,
            fan_out: self.fan_out,
            poll_interval: self.poll_interval.0,
            poll_records: self.poll_records,
            decoder,
            batch_rows_max: self.batch_rows as usize,
            workers,
            dir: cx.state_dir(),
            journal: SpoolOptions::new(&cx.pipeline, &cx.stage),
        };
        Ok(BuiltSource { source: Box::new(source), outputs })
    }
}

/// The source, ready to run.
struct Kinesis {
    stage: String,
    stream: Stream,
    schema: Option<Arc<DeclaredSchema>>,
    format: Format,
    start: StartAt,
    fan_out: Option<String>,
    poll_interval: std::time::Duration,
    poll_records: i32,
    decoder: Decoder,
    batch_rows_max: usize,
    /// `None` where this run reads the stream alone.
    workers: Option<Workers>,
    dir: PathBuf,
    journal: SpoolOptions,
}

#[async_trait]
impl Source for Kinesis {
    async fn run(mut self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        if let Some(workers) = self.workers.take() {
            return match SharedReading::begin(*self, workers, cx).await? {
                Some(sharing) => sharing.run().await,
                None => Ok(()),
            };
        }
        match Reading::begin(*self, cx).await? {
            Some(reading) => reading.run().await,
            // Asked to stop before anything was read.
            None => Ok(()),
        }
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn is_shared(&self) -> bool {
        self.workers.is_some()
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        self.stream.connect().await?;
        let summary = self.stream.describe().await?;
        Ok(format!("stream \"{}\" is there, with {} open shards", self.stream.name(), summary.shards_open))
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }

    fn disk_bounds(&self) -> Option<DiskBounds> {
        self.workers.is_none().then_some(journal::DISK_BOUNDS)
    }

    fn resender(&self) -> Option<Box<dyn Resender>> {
        let (stream, schema) = (self.stream.clone(), self.schema.clone());
        Some(Box::new(Resend { stream, schema, format: self.format }))
    }
}

#[cfg(test)]
mod tests;
