//! Puts rows into a Kinesis stream: the way from an edge box to where streams are read.
//!
//! A group counts as stored once the stream has taken every record of it. What it does not take is put again, record by
//! record, and nothing of a key overtakes what came before it.

mod examine;
mod lanes;
mod packing;
mod records;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSink, Examination, Group, Grouping, Port, Sink, SinkConfig, StageDoc, StageError,
};
use pipeline_engine::{Backoff, Counter, dead_letter};
use schemars::JsonSchema;
use serde::Deserialize;

use super::same_rows::SameRows;
use crate::aws::fault;
use crate::kinesis::{Stream, StreamKeys};
use lanes::{Entry, Lanes, Request};
use records::Shape;

/// The longest wait before what a stream did not take is put again, while it takes others.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// `type = "kinesis"` in a `[sinks.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KinesisSinkConfig {
    /// The name of the stream.
    stream: String,
    /// The column whose value decides the shard: rows of one value stay in order. Rows with the columns `topic` and `payload`
    /// are put as they are, by default with the topic for a key; all others become JSON objects.
    partition_key: Option<String>,
    /// Pack rows together as the Kinesis Producer Library does, up to 50 KiB a record: far fewer and cheaper records, for
    /// readers that take them apart, as this program's source and AWS's own libraries do.
    #[serde(default)]
    aggregate: bool,
    /// The region of the stream. Overrides AWS_REGION and that of the profile.
    region: Option<String>,
    /// The Kinesis API to use, if not that of AWS: `http://127.0.0.1:4567`. Overrides AWS_ENDPOINT_URL_KINESIS and
    /// AWS_ENDPOINT_URL.
    endpoint: Option<String>,
    /// Let `endpoint` be plain HTTP though it is not on this machine.
    #[serde(default)]
    allow_http: bool,
    #[serde(skip)]
    environment: Option<BTreeMap<String, String>>,
}

impl KinesisSinkConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }
}

impl SinkConfig for KinesisSinkConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "kinesis",
        summary: "Puts rows into a Kinesis stream, in order for each partition key.",
        ports: &[("rejected", "rows that can't be a record: no key, no payload, beyond 1 MiB")],
        failure: "Transient (stream away or throttled): what was not taken is put again, record by record, until all is; \
                  what comes behind it of the same key waits, so that order is kept. \
                  Permanent (no such stream, no access, no credentials): the sink stops until a person has mended it. \
                  Duplicates: records of a request whose answer was lost are put again, at most 500; after a crash, the last \
                  group. Kinesis has no key for deduplication: the reader needs one in the payload, such as device and \
                  timestamp.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let stream = Stream::new(StreamKeys {
            stream: self.stream,
            region: self.region,
            endpoint: self.endpoint,
            allow_http: self.allow_http,
            environment: self.environment,
        })?;
        let sink = Kinesis {
            shape: Shape::of(input, self.partition_key.as_deref())?,
            packs: self.aggregate,
            stream,
            unfinished: None,
            records_put: cx.counter("records"),
            not_taken: cx.counter("records_not_taken"),
        };
        let outputs = vec![(Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSink { sink: Box::new(sink), grouping: Grouping::default(), outputs })
    }
}

/// The sink, ready to run.
struct Kinesis {
    stream: Stream,
    shape: Shape,
    packs: bool,
    /// What the stream does not have yet of the group that is being written. Kept so that the engine's next attempt puts only
    /// the rest.
    unfinished: Option<(SameRows, Lanes)>,
    records_put: Counter,
    not_taken: Counter,
}

#[async_trait]
impl Sink for Kinesis {
    async fn open(&mut self) -> Result<(), StageError> {
        self.stream.connect().await?;
        self.stream.describe().await.map(drop)
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        self.stream.connect().await?;
        let begun = self.unfinished.take().filter(|(rows, _)| rows.are_of(group));
        let mut lanes = match begun {
            Some((_, lanes)) => lanes,
            None => {
                let records = self.shape.records(group)?;
                if self.packs { Lanes::new(packing::packed(records)) } else { Lanes::new(packing::one_by_one(records)) }
            }
        };
        let outcome = self.put_all(&mut lanes).await;
        if outcome.is_err() {
            self.unfinished = Some((SameRows::of(group), lanes));
        }
        outcome
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        self.stream.connect().await?;
        let summary = self.stream.describe().await?;
        Ok(format!("stream \"{}\" is there, with {} open shards", self.stream.name(), summary.shards_open))
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }
}

impl Kinesis {
    /// Puts what is in the lanes. What it has not put is in them on an error.
    async fn put_all(&mut self, lanes: &mut Lanes) -> Result<(), StageError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), WAIT_MAX);
        while let Some(request) = lanes.next() {
            let answers = match self.put(&request).await {
                Ok(answers) => answers,
                Err(error) => {
                    lanes.settle(request, |_| false);
                    return Err(error);
                }
            };
            let count = request.entries().len();
            let refused = answers.iter().flatten().count();
            let told = answers.iter().flatten().next().cloned();
            lanes.settle(request, |index| answers[index].is_none());
            self.records_put.add((count - refused) as u64);
            self.not_taken.add(refused as u64);
            match told {
                None => backoff.reset(),
                // The engine waits and shows that it does.
                Some((code, message)) if refused == count => return Err(self.took_nothing(&code, &message)),
                Some(_) => tokio::time::sleep(backoff.next_wait()).await,
            }
        }
        Ok(())
    }

    /// Puts records together. Of each that was not taken code and message.
    async fn put(&self, request: &Request) -> Result<Vec<Option<(String, String)>>, StageError> {
        let entries = request.entries().map(entry).collect::<Result<Vec<_>, _>>()?;
        let count = entries.len();
        let asked = self.stream.client()?.put_records().stream_name(self.stream.name()).set_records(Some(entries));
        let answer = asked.send().await.map_err(|error| self.stream.failed(error, "written to"))?;
        let told = answer.records();
        if told.len() != count {
            let answered = told.len();
            return Err(StageError::transient(format!("the stream answered for {answered} of {count} records")));
        }
        let verdict = |code: &str, message: Option<&str>| (code.to_owned(), message.unwrap_or_default().to_owned());
        Ok(told.iter().map(|one| one.error_code().map(|code| verdict(code, one.error_message()))).collect())
    }

    fn took_nothing(&self, code: &str, message: &str) -> StageError {
        let stream = self.stream.name();
        let error = match fault::permanent_hint(code) {
            Some(hint) => StageError::permanent(format!("stream \"{stream}\" takes no records")).hint(hint),
            None => StageError::transient(format!("stream \"{stream}\" took no records")),
        };
        error.because(format!("{code}: {message}")).code(code)
    }
}

fn entry(entry: &Entry) -> Result<PutRecordsRequestEntry, StageError> {
    PutRecordsRequestEntry::builder()
        .data(Blob::new(entry.data.to_vec()))
        .partition_key(&entry.partition_key)
        .set_explicit_hash_key(entry.explicit_hash_key.clone())
        .build()
        .map_err(|error| StageError::bug("a record is incomplete").because(error))
}
