//! What a pipeline file says of the sink, and the sink that it builds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use parquet::basic::{Compression as Codec, ZstdLevel};
use pipeline_engine::spool::FsStorage;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSink, Grouping, SinkConfig, StageDoc};
use pipeline_engine::units::{DurationText, SizeText};
use pipeline_engine::{columns, schema};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Parquet;
use super::bucket::Bucket;
use super::destination::Destination;
use super::folder::Folder;
use super::format::{Encoder, Form, Packing};
use super::journal::Journal;
use super::layout::{Clock, Layout, LayoutText};
use super::store::Store;
use super::writer::Writer;
use crate::s3::{S3Settings, check_endpoint};

/// An object is one PUT, which S3 takes up to 5 GiB; the group and its files are in memory besides.
const ROLL_SIZE_MAX: u64 = 1 << 30;
const ROLL_AGE: DurationText = DurationText::secs(60);
const ROLL_SIZE: SizeText = SizeText(64 << 20);
/// What AWS allows (BufferingHints), and calls MBs.
const HINT_MIB: std::ops::RangeInclusive<u64> = 1..=128;
const HINT_SECONDS: std::ops::RangeInclusive<u64> = 0..=900;
/// A group must stay one that can be staged and created in a while: objects are created eight at a time.
const PARTITIONS_MAX: usize = 10_000;

/// `type = "parquet"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// Where files go: `s3://bucket/prefix`, or a folder such as `./data/lake`, `/var/lake` or
    /// `file:///var/lake`. Where several workers share the source, a bucket.
    url: String,
    /// The S3 API to use, if not that of AWS: `https://s3.example.com`. Overrides AWS_ENDPOINT_URL.
    endpoint: Option<String>,
    /// The region of the bucket. Overrides AWS_REGION.
    region: Option<String>,
    /// Also talks to an endpoint without TLS that is not on this machine.
    #[serde(default)]
    allow_http: bool,
    /// Whose day decides the folder: `received_at`, when the pipeline received the row, or
    /// `event_time`, the row's own time in `time_column`. By receipt, a group makes one file and
    /// yesterday's folder is final; by event time, queries find a day's events in its folder, and
    /// late rows make small files in old folders. If not given: `event_time` where there is a
    /// `time_column`, else `received_at`.
    partition_by: Option<PartitionBy>,
    /// The timestamp column for `event_time`. Rows without a time go to the folder
    /// `year=__HIVE_DEFAULT_PARTITION__/...`.
    time_column: Option<String>,
    /// Folders below `url` in Firehose's own language, ending with a slash: `raw/!{timestamp:yyyy/MM/dd/HH}/`, with
    /// `!{partitionKeyFromQuery:COLUMN}` (or `FromLambda`) for the value of a column and `!{firehose:random-string}`. Values
    /// are escaped as Hive does it. Times are those of `partition_by`. Without an expression, `yyyy/MM/dd/HH/` follows. If not
    /// given: `year=YYYY/month=MM/day=DD/`.
    prefix: Option<String>,
    /// Where rows lie that have no place below a `prefix` with columns, by `!{firehose:error-output-type}`: `key-too-long` or
    /// `partitions-exceeded`. In a sink that reads dead letters, where all of them lie, the type being their reason. If not
    /// given: `errors/!{firehose:error-output-type}/!{timestamp:yyyy/MM/dd/HH/}`.
    error_output_prefix: Option<String>,
    /// The time zone of folders, such as `Asia/Tokyo`. If not given: UTC.
    custom_time_zone: Option<String>,
    /// How many folders one group of rows may fill where columns name them; each gets a file of its own. At most 10,000.
    #[serde(default = "partitions_max")]
    partitions_max: usize,
    /// A file is written once its oldest row has waited this long. Only a matter of freshness: where a
    /// file ends is recorded before it is created, so a restart ends it at the same row. If not given: `1m`.
    roll_age: Option<DurationText>,
    /// A file is written once it holds this many rows.
    #[serde(default = "roll_rows")]
    roll_rows: usize,
    /// A file is written once its rows take this much memory as Arrow columns; at most 1 GiB. On
    /// disk the file takes less: readings with two decimals shrink to a tenth, full doubles to a third. If not given:
    /// `64MiB`.
    roll_size: Option<SizeText>,
    /// `roll_size` and `roll_age` by the names and in the ranges of AWS, in their place:
    /// `{ size_in_mbs = 128, interval_in_seconds = 300 }`.
    buffering_hints: Option<BufferingHints>,
    /// How rows are written: Parquet, or a JSON object on each line.
    #[serde(default)]
    format: Format,
    /// How files are packed. If not given: zstd for Parquet, gzip for JSON.
    compression: Option<Compression>,
    /// The level of zstd, 1 to 22 (1 if not given), or of gzip, 1 to 9 (6). Above 3, zstd's files shrink little and take much
    /// longer to write.
    #[serde(default)]
    compression_level: Option<i32>,
    #[serde(skip)]
    environment: Option<BTreeMap<String, String>>,
}

/// Whose day decides the folder of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PartitionBy {
    /// When the pipeline received it.
    ReceivedAt,
    /// The row's own time.
    EventTime,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Apache Parquet.
    #[default]
    Parquet,
    /// A JSON object on each line. Nulls are left out, times are RFC 3339 in UTC, bytes base64.
    Json,
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Compression {
    /// Small and fast.
    Zstd,
    /// Parquet for readers that know no zstd.
    Snappy,
    /// JSON lines for everybody.
    Gzip,
    /// As it is.
    None,
}

/// When a Firehose writes an object.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BufferingHints {
    /// SizeInMBs, 1 to 128: the rows as Arrow columns, in MiB.
    size_in_mbs: u64,
    /// IntervalInSeconds, 0 to 900: how long the oldest row waits.
    interval_in_seconds: u64,
}

fn partitions_max() -> usize {
    500
}

fn roll_rows() -> usize {
    1_000_000
}

impl ParquetConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }

    pub(super) fn form(&self) -> Result<Form, BuildError> {
        use {Compression as C, Format as F};
        let level = |levels: std::ops::RangeInclusive<i32>, of: &str, default| match self.compression_level {
            None => Ok(default),
            Some(level) if levels.contains(&level) => Ok(level),
            Some(_) => {
                let message = format!("the levels of {of} are {} to {}", levels.start(), levels.end());
                Err(BuildError::invalid("compression_level", message))
            }
        };
        let no_level = |form: Form| match self.compression_level {
            None => Ok(form),
            Some(_) => Err(BuildError::invalid("compression_level", "only zstd and gzip have levels")
                .hint("Remove the key, or write compression = \"zstd\".")),
        };
        match (self.format, self.compression) {
            (F::Parquet, None | Some(C::Zstd)) => {
                let level = ZstdLevel::try_new(level(1..=22, "zstd", 1)?);
                let level = level.map_err(|error| BuildError::invalid("compression_level", error.to_string()))?;
                Ok(Form::Parquet(Codec::ZSTD(level)))
            }
            (F::Parquet, Some(C::Snappy)) => no_level(Form::Parquet(Codec::SNAPPY)),
            (F::Parquet, Some(C::None)) => no_level(Form::Parquet(Codec::UNCOMPRESSED)),
            (F::Parquet, Some(C::Gzip)) => {
                Err(BuildError::invalid("compression", "Parquet is not packed as gzip here")
                    .hint("Write \"zstd\", which is smaller and faster, \"snappy\" or \"none\"; or format = \"json\"."))
            }
            (F::Json, None | Some(C::Gzip)) => Ok(Form::Json(Packing::Gzip(level(1..=9, "gzip", 6)?.unsigned_abs()))),
            (F::Json, Some(C::Zstd)) => Ok(Form::Json(Packing::Zstd(level(1..=22, "zstd", 1)?))),
            (F::Json, Some(C::None)) => no_level(Form::Json(Packing::None)),
            (F::Json, Some(C::Snappy)) => {
                Err(BuildError::invalid("compression", "lines are not packed as snappy here")
                    .hint("Write \"gzip\", \"zstd\" or \"none\"."))
            }
        }
    }

    fn layout(&self, input: &Schema) -> Result<Layout, BuildError> {
        if self.partitions_max == 0 || self.partitions_max > PARTITIONS_MAX {
            return Err(BuildError::invalid("partitions_max", format!("a group fills 1 to {PARTITIONS_MAX} folders")));
        }
        let text = LayoutText {
            prefix: self.prefix.as_deref(),
            error_prefix: self.error_output_prefix.as_deref(),
            time_zone: self.custom_time_zone.as_deref(),
            partitions_max: self.partitions_max,
        };
        Layout::new(text, self.clock(input)?, input)
    }

    fn clock(&self, input: &Schema) -> Result<Clock, BuildError> {
        match (self.partition_by, &self.time_column) {
            // Needs no column, and a device with a bad clock can't scatter files over the calendar.
            (None | Some(PartitionBy::ReceivedAt), None) => Ok(Clock::Receipt),
            (Some(PartitionBy::ReceivedAt), Some(_)) => {
                Err(BuildError::invalid("time_column", "nothing reads the time column")
                    .hint("Write partition_by = \"event_time\", or remove one of the two keys."))
            }
            (Some(PartitionBy::EventTime), None) => {
                Err(BuildError::invalid("partition_by", "no column is named for the event time")
                    .hint("Name it: time_column = \"...\"."))
            }
            (None | Some(PartitionBy::EventTime), Some(name)) => {
                let is_timestamp = |found: &_| *found == schema::timestamp_type();
                columns::find_typed(input, "time_column", name, "a timestamp", is_timestamp).map(Clock::Column)
            }
        }
    }

    fn grouping(&self) -> Result<Grouping, BuildError> {
        if self.roll_rows == 0 {
            return Err(BuildError::invalid("roll_rows", "a file holds one row at least"));
        }
        let (size, linger) = match self.buffering_hints {
            Some(hints) => self.hinted(hints)?,
            None => (self.roll_size.unwrap_or(ROLL_SIZE), self.roll_age.unwrap_or(ROLL_AGE).0),
        };
        if size.0 == 0 || size.0 > ROLL_SIZE_MAX {
            return Err(BuildError::invalid("roll_size", "a file is above zero and at most 1 GiB large")
                .hint("A file is kept in memory until it is complete, and goes out in one request."));
        }
        Ok(Grouping { rows_max: self.roll_rows, bytes_max: size.bytes(), linger })
    }

    fn hinted(&self, hints: BufferingHints) -> Result<(SizeText, Duration), BuildError> {
        let ours = [("roll_size", self.roll_size.is_some()), ("roll_age", self.roll_age.is_some())];
        if let Some((key, _)) = ours.into_iter().find(|(_, given)| *given) {
            return Err(BuildError::invalid(key, format!("\"{key}\" and \"buffering_hints\" say the same"))
                .hint("Write one of the two."));
        }
        let within = |key: &str, given: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&given) {
                return Ok(given);
            }
            let message = format!("AWS allows {} to {}", range.start(), range.end());
            Err(BuildError::invalid(format!("buffering_hints.{key}"), message)
                .hint("\"roll_size\" and \"roll_age\" have wider ranges."))
        };
        let mib = within("size_in_mbs", hints.size_in_mbs, HINT_MIB)?;
        let seconds = within("interval_in_seconds", hints.interval_in_seconds, HINT_SECONDS)?;
        Ok((SizeText(mib << 20), Duration::from_secs(seconds)))
    }

    fn store(self, owner: &str) -> Result<Box<dyn Store>, BuildError> {
        match Destination::parse(&self.url)? {
            Destination::Bucket { name, prefix } => {
                if let Some(endpoint) = &self.endpoint {
                    check_endpoint(endpoint, self.allow_http)
                        .map_err(|(text, hint)| BuildError::invalid("endpoint", text).hint(hint))?;
                }
                let settings = S3Settings {
                    bucket: name,
                    endpoint: self.endpoint,
                    region: self.region,
                    allow_http: self.allow_http,
                    environment: self.environment,
                };
                Ok(Box::new(Bucket::new(settings, prefix, owner)))
            }
            Destination::Folder(root) => {
                let given = [
                    ("endpoint", self.endpoint.is_some()),
                    ("region", self.region.is_some()),
                    ("allow_http", self.allow_http),
                ];
                if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                    return Err(BuildError::invalid(key, "a folder of this machine has no such setting")
                        .because_of("url")
                        .hint("Remove the key, or write url = \"s3://bucket/prefix\"."));
                }
                Ok(Box::new(Folder::new(root, owner.to_owned())))
            }
        }
    }
}

impl SinkConfig for ParquetConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "parquet",
        summary: "Lays rows down as Parquet files or JSON lines in folders, by day or as a prefix of Firehose's says, in an S3 \
                  bucket or on a local disk.",
        ports: &[],
        failure: "Store away, throttled or full disk (transient): the same group is tried again until it is stored, and \
                  finds the files that an earlier try has made. No bucket, no access, a damaged file under the same name, \
                  a disk that fails to sync (permanent): the sink stops storing until a person has mended it. \
                  Duplication window: none where the source can resume. The group's finished files are first kept in the \
                  sink's folder below the data directory, then created, then recorded there with their positions: after \
                  a crash the same files are created, or found, whatever the clock says by then. Several workers of one \
                  source keep them in the bucket instead, below _pipeline/, which must keep If-Match. Where that folder is \
                  lost, or the source can't resume: one group, that is up to roll_age, roll_rows or roll_size of rows. \
                  Deduplication key: the positions of its rows in the file's footer, or in the header of packed lines \
                  (pipeline.group; pipeline.source where the source can't resume); for rows, whatever identifies a reading, such as device and time.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let (layout, grouping) = (self.layout(input)?, self.grouping()?);
        let owner = format!("{}-{}-", plain(&cx.pipeline), plain(&cx.stage));
        let encoder = Encoder {
            pipeline: cx.pipeline.clone(),
            stage: cx.stage.clone(),
            schema: input.clone(),
            form: self.form()?,
        };
        let writer = Writer {
            store: self.store(&owner)?,
            encoder: Arc::new(encoder),
            layout: Arc::new(layout),
            owner,
            files: cx.counter("files"),
            bytes: cx.counter("file_bytes"),
        };
        let journal = Journal::new(Arc::new(FsStorage), cx.state_dir());
        let sink = Parquet { writer, journal, shared: None, made: VecDeque::new() };
        Ok(BuiltSink { sink: Box::new(sink), grouping, outputs: Vec::new() })
    }
}

/// A name as part of a key: other characters than letters, digits, `_` and `-` become `_`.
pub(super) fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
