//! A stream: where it is, its client, and what its answers mean.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::DateTime;
use pipeline_engine::stage::{BuildError, StageError};

use crate::aws::fault::{self, ProvideErrorMetadata, SdkError};
use crate::aws::{AwsSettings, Service, check_endpoint};

/// A page of the list of shards: as many as the service gives at once.
const SHARDS_A_PAGE: i32 = 1000;

/// The keys of a stage that name a stream.
pub(crate) struct StreamKeys {
    pub(crate) stream: String,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) allow_http: bool,
    /// In place of the process's own variables.
    pub(crate) environment: Option<BTreeMap<String, String>>,
}

/// Whether a name may be a stream's.
///
/// # Errors
/// At the key `stream`.
pub(crate) fn check_stream(name: &str) -> Result<(), BuildError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if (1..=128).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let hint = match name.rsplit_once(":stream/") {
        Some((_, last)) if name.starts_with("arn:") => format!("Write its name alone: \"{last}\"."),
        _ => "A name has letters, digits, \"_\", \".\" and \"-\", and at most 128 of them.".to_owned(),
    };
    Err(BuildError::invalid("stream", format!("\"{name}\" is no name of a stream")).hint(hint))
}

/// A stream that a stage reads or writes. Clones share connections.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    name: String,
    settings: AwsSettings,
    client: Option<Client>,
}

/// What a stream says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) arn: String,
    /// Microseconds since 1970: another stream of the same name has another.
    pub(crate) created_at_us: i64,
    pub(crate) retention_hours: i64,
    /// `ACTIVE`, `UPDATING` and so on.
    pub(crate) status: String,
    pub(crate) shards_open: i64,
}

/// A shard, as the stream lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) id: String,
    /// Those that it has come from: one if it was split, two if they were merged.
    pub(crate) parents: Vec<String>,
    /// Nothing more comes to it.
    pub(crate) is_closed: bool,
    /// The first and the last of its hash keys, as decimal numbers.
    pub(crate) hash_keys: Option<(String, String)>,
}

impl Stream {
    /// Checks the keys; reaches nothing.
    ///
    /// # Errors
    /// The key that is wrong.
    pub(crate) fn new(keys: StreamKeys) -> Result<Self, BuildError> {
        check_stream(&keys.stream)?;
        if let Some(endpoint) = &keys.endpoint {
            check_endpoint(endpoint, keys.allow_http)
                .map_err(|(text, hint)| BuildError::invalid("endpoint", text).hint(hint))?;
        }
        let StreamKeys { stream, region, endpoint, allow_http, environment } = keys;
        let settings = AwsSettings { service: Service::Kinesis, region, endpoint, allow_http, environment };
        Ok(Self { name: stream, settings, client: None })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, for a person.
    pub(crate) fn place(&self) -> String {
        self.settings.place()
    }

    /// Makes the client, unless there is one.
    ///
    /// # Errors
    /// As for [`AwsSettings::connect`].
    pub(crate) async fn connect(&mut self) -> Result<(), StageError> {
        if self.client.is_none() {
            let config = self.settings.connect().await?;
            self.client = Some(Client::new(&config));
        }
        Ok(())
    }

    /// The client, once connected.
    ///
    /// # Errors
    /// Ours: it is not.
    pub(crate) fn client(&self) -> Result<&Client, StageError> {
        self.client.as_ref().ok_or_else(|| StageError::bug("a stream was asked before it was connected"))
    }

    /// Whose an error is. `verb` says what the stream was not.
    pub(crate) fn failed<E, R>(&self, error: SdkError<E, R>, verb: &str) -> StageError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let name = &self.name;
        let answer = error.message().unwrap_or("no message").to_owned();
        match fault::code_of(&error) {
            Some("ResourceNotFoundException") => {
                StageError::permanent(format!("there is no stream \"{name}\" at {}", self.place()))
                    .because(answer)
                    .hint("Create it, or correct \"stream\", \"region\" or \"endpoint\".")
                    .code("ResourceNotFoundException")
            }
            Some("InvalidArgumentException") => {
                StageError::permanent(format!("stream \"{name}\" can't be {verb} like this"))
                    .because(answer)
                    .code("InvalidArgumentException")
            }
            _ => fault::of(error, &format!("stream \"{name}\" was not {verb}")),
        }
    }

    /// What the stream says of itself.
    ///
    /// # Errors
    /// As for [`Stream::failed`].
    pub(crate) async fn describe(&self) -> Result<Summary, StageError> {
        let asked = self.client()?.describe_stream_summary().stream_name(&self.name).send().await;
        let answer = asked.map_err(|error| self.failed(error, "described"))?;
        let Some(summary) = answer.stream_description_summary() else {
            return Err(StageError::transient(format!("stream \"{}\" did not describe itself", self.name)));
        };
        Ok(Summary {
            arn: summary.stream_arn().to_owned(),
            created_at_us: micros(summary.stream_creation_timestamp()),
            retention_hours: summary.retention_period_hours().into(),
            status: summary.stream_status().as_str().to_owned(),
            shards_open: summary.open_shard_count().into(),
        })
    }

    /// Every shard that there is, also those that are closed and still hold records.
    ///
    /// # Errors
    /// As for [`Stream::failed`].
    pub(crate) async fn shards(&self) -> Result<Vec<Shard>, StageError> {
        let mut shards = Vec::new();
        let mut next: Option<String> = None;
        loop {
            // A page after the first is asked for by its token alone.
            let request = self.client()?.list_shards().max_results(SHARDS_A_PAGE);
            let request = match next.take() {
                Some(token) => request.next_token(token),
                None => request.stream_name(&self.name),
            };
            let page = request.send().await.map_err(|error| self.failed(error, "listed"))?;
            shards.extend(page.shards().iter().map(|shard| {
                Shard {
                    id: shard.shard_id().to_owned(),
                    parents: [shard.parent_shard_id(), shard.adjacent_parent_shard_id()]
                        .into_iter()
                        .flatten()
                        .map(str::to_owned)
                        .collect(),
                    is_closed: shard
                        .sequence_number_range()
                        .is_some_and(|range| range.ending_sequence_number().is_some()),
                    hash_keys: shard
                        .hash_key_range()
                        .map(|range| (range.starting_hash_key().to_owned(), range.ending_hash_key().to_owned())),
                }
            }));
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(shards);
            }
        }
    }
}

/// A time of the service, in microseconds since 1970.
pub(crate) fn micros(time: &DateTime) -> i64 {
    time.secs().saturating_mul(1_000_000).saturating_add(i64::from(time.subsec_nanos() / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_and_not_addressed() {
        check_stream("iot-readings_2.prod").unwrap();
        for name in ["", "a b", "a/b", &"x".repeat(129)] {
            assert!(check_stream(name).is_err(), "{name}");
        }
        let mistake = check_stream("arn:aws:kinesis:eu-west-1:123456789012:stream/readings").unwrap_err();
        assert_eq!(mistake.hint.as_deref(), Some("Write its name alone: \"readings\"."));
    }

    #[test]
    fn times_are_microseconds() {
        assert_eq!(micros(&DateTime::from_millis(1_700_000_000_123)), 1_700_000_000_123_000);
    }
}
