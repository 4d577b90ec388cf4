//! `type = "s3"` in a pipeline file.

use pipeline_engine::dead_letter;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSource, Port, SourceConfig, StageDoc};
use pipeline_engine::units::{DurationText, SizeText};
use schemars::JsonSchema;
use serde::Deserialize;

use super::place::{self, Place};
use super::queue::QueuePlace;
use super::{Reading, S3Source};
use crate::aws::{AwsSettings, Service, check_endpoint};
use crate::decode::{Format, UnknownFields};
use crate::s3::S3Settings;
use crate::sources::decoder;
use crate::sources::records::Compression;

/// `type = "s3"` in a `[sources.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3SourceConfig {
    /// Which objects to read: `s3://bucket/prefix`. The prefix is any beginning of their keys.
    url: String,
    /// The S3 API to use, if not that of AWS: `https://s3.example.com`. Overrides AWS_ENDPOINT_URL.
    endpoint: Option<String>,
    /// The region of the bucket. Overrides AWS_REGION.
    region: Option<String>,
    /// Also talks to an endpoint without TLS that is not on this machine.
    #[serde(default)]
    allow_http: bool,
    /// Leave out keys up to this one, in their order.
    start_after: Option<String>,
    /// How often to look for new objects. Without it, and without a `queue`, the source reads what is there and ends.
    poll: Option<DurationText>,
    /// The URL of an SQS queue that tells of new objects: `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`. It takes
    /// notifications of S3, also through SNS, and of EventBridge, and must be for this source alone. With it, the prefix is
    /// listed only if there is a `poll`, for what notifications have missed.
    queue: Option<String>,
    /// The SQS API to use, if not that of AWS. Overrides AWS_ENDPOINT_URL_SQS and AWS_ENDPOINT_URL.
    queue_endpoint: Option<String>,
    /// How the records of an object are written.
    format: ObjectFormat,
    /// How objects are compressed; not for Parquet. Without it the first bytes of each tell.
    compression: Option<Compression>,
    /// The schema to decode into. Without one the rows are the lines themselves: topic (the object's key), payload and
    /// received_at. CSV needs one.
    schema: Option<String>,
    /// What becomes of a field that no column of the schema asks for; a column with `rest = true` keeps it as JSON. All are
    /// counted as `unknown_fields`, and the first one of its name is told.
    unknown_fields: Option<UnknownFields>,
    /// How many objects are read at a time. Their rows leave one object after the other all the same.
    #[serde(default = "default_parallel")]
    parallel: u8,
    /// The longest line, or record of a CSV object. A longer one is a dead letter with its beginning.
    #[serde(default = "default_line_bytes_max")]
    line_bytes_max: SizeText,
    /// The most that an object may unpack to. One that goes beyond is refused there, as is one that grows beyond 256 MiB and
    /// 500 times its size.
    #[serde(default = "default_unpacked_max")]
    unpacked_max: SizeText,
    /// In place of the bucket.
    #[cfg(test)]
    #[serde(skip)]
    pub(super) store: Option<std::sync::Arc<dyn object_store::ObjectStore>>,
}

/// How the records of an object are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectFormat {
    /// A JSON object, or an array of them, on each line.
    Jsonl,
    /// Fields with commas between them; the first record names the fields.
    Csv,
    /// Parquet; a row is decoded as if it were JSON with the same fields.
    Parquet,
}

fn default_parallel() -> u8 {
    4
}

fn default_line_bytes_max() -> SizeText {
    SizeText(1 << 20)
}

/// Twenty times what a backfill's largest objects have.
fn default_unpacked_max() -> SizeText {
    SizeText(64 << 30)
}

/// Each takes some 40 MB at most.
const PARALLEL_MAX: u8 = 64;

impl SourceConfig for S3SourceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "s3",
        summary: "Reads the objects below a prefix of an S3 bucket, each once: JSON lines, CSV or Parquet, plain, gzip or zstd.",
        ports: &[(
            "rejected",
            "lines that do not fit the schema or are too long, and objects that can't be read to their end",
        )],
        failure: "Transient (store away, throttling): tried again after 0.1 to 30 s, as often as it takes, from the part of the \
                  object that was missing. Permanent (no credentials, access denied, no such bucket): the run stops. An object \
                  that is gone, changed, damaged or unpacks to more than `unpacked_max` is one dead letter (`object_gone`, \
                  `object_changed`, `object_damaged`, `object_too_large`), and what came before in it is stored. \
                  Duplicates: none; an object is known by key and ETag in a ledger below `data_dir`, and a run that goes on \
                  after a crash makes the same batches again. Where the ledger is lost all objects are new: use a key of the \
                  rows, such as device and timestamp, as the sink's key. The time of receipt is when the object was written.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let (bucket, prefix) = place::parse(&self.url)?;
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint, self.allow_http)
                .map_err(|(text, hint)| BuildError::invalid("endpoint", text).hint(hint))?;
        }
        if self.schema.is_none() && self.format == ObjectFormat::Csv {
            let hint = "Declare its columns as [schema.NAME] and name that here.";
            return Err(BuildError::invalid("schema", "a CSV object needs a schema").hint(hint));
        }
        if self.compression.is_some() && self.format == ObjectFormat::Parquet {
            return Err(BuildError::invalid("compression", "Parquet is compressed inside").hint("Remove the key."));
        }
        if self.line_bytes_max.0 == 0 {
            return Err(BuildError::invalid("line_bytes_max", "no line has zero bytes"));
        }
        if !(1..=PARALLEL_MAX).contains(&self.parallel) {
            return Err(BuildError::invalid(
                "parallel",
                format!("{} is not between 1 and {PARALLEL_MAX}", self.parallel),
            ));
        }
        if self.poll.is_some_and(|poll| poll.0.is_zero()) {
            return Err(
                BuildError::invalid("poll", "looking all the time finds nothing sooner").hint("Such as \"30s\".")
            );
        }
        let schema = self.schema.as_deref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoders = (0..self.parallel)
            .map(|_| decoder(cx, schema.as_deref(), Format::Json, self.unknown_fields))
            .collect::<Result<Vec<_>, _>>()?;
        let mut outputs = decoders[0].outputs();
        if outputs.iter().all(|(port, _)| *port != Port::REJECTED) {
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        let queue = self.queue_place()?;
        let settings = S3Settings {
            bucket,
            endpoint: self.endpoint,
            region: self.region,
            allow_http: self.allow_http,
            environment: None,
        };
        let source = S3Source {
            stage: cx.stage.clone(),
            place: Place {
                settings,
                prefix,
                start_after: self.start_after,
                #[cfg(test)]
                store: self.store,
            },
            reading: Reading {
                format: self.format,
                compression: self.compression,
                line_bytes_max: self.line_bytes_max.bytes(),
                unpacked_bytes_max: self.unpacked_max.0,
                schema,
                scratch_dir: cx.state_dir(),
            },
            decoders,
            poll: self.poll.map(|poll| poll.0),
            queue,
            state_dir: cx.state_dir(),
        };
        Ok(BuiltSource { source: Box::new(source), outputs })
    }
}

impl S3SourceConfig {
    fn queue_place(&self) -> Result<Option<QueuePlace>, BuildError> {
        let Some(url) = &self.queue else {
            return match self.queue_endpoint {
                Some(_) => Err(BuildError::invalid("queue_endpoint", "means nothing without a `queue`")),
                None => Ok(None),
            };
        };
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(BuildError::invalid("queue", format!("\"{url}\" is no URL of a queue"))
                .hint("As AWS names it: \"https://sqs.eu-central-1.amazonaws.com/123456789012/objects\"."));
        }
        for (key, endpoint) in [("queue", Some(url)), ("queue_endpoint", self.queue_endpoint.as_ref())] {
            if let Some(Err((text, hint))) = endpoint.map(|endpoint| check_endpoint(endpoint, self.allow_http)) {
                return Err(BuildError::invalid(key, text).hint(hint));
            }
        }
        let settings = AwsSettings {
            service: Service::Sqs,
            region: self.region.clone(),
            endpoint: self.queue_endpoint.clone(),
            allow_http: self.allow_http,
            environment: None,
        };
        Ok(Some(QueuePlace { url: url.clone(), settings }))
    }
}
