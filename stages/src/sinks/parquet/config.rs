//! What a pipeline file says of the sink, and the sink that it builds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use parquet::basic::{Compression as Codec, ZstdLevel};
use pipeline_engine::spool::FsStorage;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSink, Grouping, SinkConfig, StageDoc};
use pipeline_engine::units::{DurationText, SizeText};
use pipeline_engine::{columns, schema};
use schemars::JsonSchema;
use serde::Deserialize;

use super::bucket::Bucket;
use super::destination::Destination;
use super::encode::Encoder;
use super::folder::Folder;
use super::journal::Journal;
use super::store::Store;
use super::{Folders, Parquet};
use crate::s3::{S3Settings, check_endpoint};

/// An object is one PUT, which S3 takes up to 5 GiB; the group and its files are in memory besides.
const ROLL_SIZE_MAX: u64 = 1 << 30;

/// `type = "parquet"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// Where files go: `s3://bucket/prefix`, or a folder such as `./data/lake`, `/var/lake` or
    /// `file:///var/lake`.
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
    /// A file is written once its oldest row has waited this long. Only a matter of freshness: where a
    /// file ends is recorded before it is created, so a restart ends it at the same row.
    #[serde(default = "roll_age")]
    roll_age: DurationText,
    /// A file is written once it holds this many rows.
    #[serde(default = "roll_rows")]
    roll_rows: usize,
    /// A file is written once its rows take this much memory as Arrow columns; at most 1 GiB. On
    /// disk the file takes less: readings with two decimals shrink to a tenth, full doubles to a third.
    #[serde(default = "roll_size")]
    roll_size: SizeText,
    /// The codec of the files.
    #[serde(default = "zstd")]
    compression: Compression,
    /// The level of zstd, 1 to 22. Above 3, files shrink little and take much longer to write.
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

/// The codec of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Compression {
    /// Small and fast.
    Zstd,
    /// For readers that know no zstd.
    Snappy,
    /// As it is.
    None,
}

fn roll_age() -> DurationText {
    DurationText::secs(60)
}

fn roll_rows() -> usize {
    1_000_000
}

fn roll_size() -> SizeText {
    SizeText(64 << 20)
}

fn zstd() -> Compression {
    Compression::Zstd
}

impl ParquetConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }

    pub(super) fn codec(&self) -> Result<Codec, BuildError> {
        match (self.compression, self.compression_level) {
            (Compression::Zstd, level) => ZstdLevel::try_new(level.unwrap_or(1))
                .map(Codec::ZSTD)
                .map_err(|_| BuildError::invalid("compression_level", "the levels of zstd are 1 to 22")),
            (_, Some(_)) => Err(BuildError::invalid("compression_level", "only zstd has levels")
                .hint("Remove the key, or write compression = \"zstd\".")),
            (Compression::Snappy, None) => Ok(Codec::SNAPPY),
            (Compression::None, None) => Ok(Codec::UNCOMPRESSED),
        }
    }

    fn folders(&self, input: &Schema) -> Result<Folders, BuildError> {
        // A reader could not tell such a column from the folder's.
        if let Some(name) = ["year", "month", "day"].into_iter().find(|name| input.index_of(name).is_ok()) {
            return Err(BuildError::invalid("", format!("column \"{name}\" has the name of a folder"))
                .hint("Files lie in year=YYYY/month=MM/day=DD, which readers see as columns. Rename the column."));
        }
        match (self.partition_by, &self.time_column) {
            // Needs no column, and a device with a bad clock can't scatter files over the calendar.
            (None | Some(PartitionBy::ReceivedAt), None) => Ok(Folders::ByReceipt),
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
                columns::find_typed(input, "time_column", name, "a timestamp", is_timestamp).map(Folders::ByColumn)
            }
        }
    }

    fn grouping(&self) -> Result<Grouping, BuildError> {
        if self.roll_rows == 0 {
            return Err(BuildError::invalid("roll_rows", "a file holds one row at least"));
        }
        if self.roll_size.0 == 0 || self.roll_size.0 > ROLL_SIZE_MAX {
            return Err(BuildError::invalid("roll_size", "a file is above zero and at most 1 GiB large")
                .hint("A file is kept in memory until it is complete, and goes out in one request."));
        }
        Ok(Grouping { rows_max: self.roll_rows, bytes_max: self.roll_size.bytes(), linger: self.roll_age.0 })
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
        summary: "Lays rows down as Parquet files in folders by day, in an S3 bucket or on a local disk.",
        ports: &[],
        failure: "Store away, throttled or full disk (transient): the same group is tried again until it is stored, and \
                  finds the files that an earlier try has made. No bucket, no access, a damaged file under the same name, \
                  a disk that fails to sync (permanent): the sink stops storing until a person has mended it. \
                  Duplication window: none where the source can resume. The group's finished files are first kept in the \
                  sink's folder below the data directory, then created, then recorded there with their positions: after \
                  a crash the same files are created, or found, whatever the clock says by then. Where that folder is \
                  lost, or the source can't resume: one group, that is up to roll_age, roll_rows or roll_size of rows. \
                  Deduplication key: the positions of its rows in the file's footer (pipeline.group; pipeline.source \
                  where the source can't resume); for rows, whatever identifies a reading, such as device and time.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let (folders, grouping) = (self.folders(input)?, self.grouping()?);
        let owner = format!("{}-{}-", plain(&cx.pipeline), plain(&cx.stage));
        let encoder = Encoder {
            pipeline: cx.pipeline.clone(),
            stage: cx.stage.clone(),
            schema: input.clone(),
            compression: self.codec()?,
        };
        let sink = Parquet {
            store: self.store(&owner)?,
            encoder: Arc::new(encoder),
            folders,
            owner,
            journal: Journal::new(Arc::new(FsStorage), cx.state_dir()),
            made: VecDeque::new(),
            files: cx.counter("files"),
            bytes: cx.counter("file_bytes"),
        };
        Ok(BuiltSink { sink: Box::new(sink), grouping, outputs: Vec::new() })
    }
}

/// A name as part of a key: other characters than letters, digits, `_` and `-` become `_`.
pub(super) fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
