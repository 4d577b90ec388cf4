//! Records of one shard by `SubscribeToShard`: pushed as they arrive, with 2 MB a second for this consumer alone.
//!
//! A subscription lasts five minutes and is then taken out anew behind the last event.

use std::time::Duration;

use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::{ConsumerStatus, SubscribeToShardEventStream};
use pipeline_engine::stage::StageError;
use tokio::time::Instant;

use super::feed::{Fetched, Start, Unfed, raw};
use crate::aws::fault;
use crate::kinesis::{Sequence, Stream};

/// A shard takes one subscription of a consumer in five seconds.
const SUBSCRIBE_INTERVAL: Duration = Duration::from_secs(5);
/// A subscription without any event for so long is dead: the service sends one every few seconds, also an empty one.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a consumer that is being made is looked at.
const CREATING_INTERVAL: Duration = Duration::from_secs(1);

/// Is pushed what comes to one shard.
#[derive(Debug)]
pub(super) struct FanOut {
    pub(super) stream: Stream,
    pub(super) consumer_arn: String,
    pub(super) shard: String,
    pub(super) start: Start,
    pub(super) subscription: Option<SubscribeToShardOutput>,
    /// The shard has granted a subscription at `start` or later.
    pub(super) has_begun: bool,
    pub(super) next_at: Instant,
}

impl FanOut {
    /// The next event.
    ///
    /// Cancel safe: an event that nobody has seen comes again, by the next subscription.
    pub(super) async fn next(&mut self) -> Result<Fetched, Unfed> {
        if self.subscription.is_none() {
            tokio::time::sleep_until(self.next_at).await;
            self.subscription = Some(self.subscribe().await?);
            self.has_begun = true;
        }
        let Some(subscription) = &mut self.subscription else { return Err(Unfed::Stale) };
        let event = match tokio::time::timeout(SILENCE_MAX, subscription.event_stream.recv()).await {
            Ok(Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)))) => event,
            // Of a kind that is not known: the next may be.
            Ok(Ok(Some(_))) => return Ok(Fetched::default()),
            Ok(Ok(None)) | Err(_) => {
                self.subscription = None;
                return Err(Unfed::Stale);
            }
            Ok(Err(error)) => {
                self.subscription = None;
                return Err(match fault::code_of(&error) {
                    Some(code) if fault::is_throttled(code) => Unfed::Throttled,
                    Some("ResourceInUseException") | None => Unfed::Stale,
                    _ => Unfed::Failed(self.stream.failed(error, "read")),
                });
            }
        };
        let continuation = event.continuation_sequence_number();
        // There is nowhere to go on once a closed shard is read to its end.
        let is_end = continuation.is_empty() || !event.child_shards().is_empty();
        if let Ok(sequence) = continuation.parse::<Sequence>() {
            self.start = Start::At(sequence);
        }
        let behind_ms = u64::try_from(event.millis_behind_latest()).ok();
        let records = raw(event.records).map_err(Unfed::Failed)?;
        Ok(Fetched { records, behind_ms, is_end })
    }

    async fn subscribe(&mut self) -> Result<SubscribeToShardOutput, Unfed> {
        self.next_at = Instant::now() + SUBSCRIBE_INTERVAL;
        let client = self.stream.client().map_err(Unfed::Failed)?;
        let request = client
            .subscribe_to_shard()
            .consumer_arn(&self.consumer_arn)
            .shard_id(&self.shard)
            .starting_position(self.start.position().map_err(Unfed::Failed)?);
        request.send().await.map_err(|error| match fault::code_of(&error) {
            Some("ResourceNotFoundException") => Unfed::Gone,
            // The last subscription is not forgotten yet.
            Some("ResourceInUseException") => Unfed::Throttled,
            Some(code) if fault::is_throttled(code) => Unfed::Throttled,
            _ => Unfed::Failed(self.stream.failed(error, "read")),
        })
    }
}

/// The ARN of a consumer by its name, which is registered if it isn't there; an ARN is taken as it is.
///
/// # Errors
/// As for [`Stream::failed`].
pub(super) async fn consumer(stream: &Stream, stream_arn: &str, name: &str) -> Result<String, StageError> {
    if name.starts_with("arn:") {
        return Ok(name.to_owned());
    }
    let client = stream.client()?;
    let registered = client.register_stream_consumer().stream_arn(stream_arn).consumer_name(name).send().await;
    match registered {
        Ok(_) => tracing::info!(consumer = name, stream = stream.name(), "the consumer was registered"),
        Err(error) if fault::code_of(&error) == Some("ResourceInUseException") => {}
        Err(error) => return Err(stream.failed(error, "given a consumer")),
    }
    loop {
        let asked = client.describe_stream_consumer().stream_arn(stream_arn).consumer_name(name).send().await;
        let answer = asked.map_err(|error| stream.failed(error, "asked for its consumer"))?;
        let found = answer.consumer_description();
        if let Some(found) = found.filter(|found| *found.consumer_status() == ConsumerStatus::Active) {
            return Ok(found.consumer_arn().to_owned());
        }
        tokio::time::sleep(CREATING_INTERVAL).await;
    }
}
