//! Reads one shard, from where the last run has come to until it ends.

use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::stage::{Fault, StageError};
use pipeline_engine::{Backoff, Partition, Span};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batches::{Assembled, Assembly};
use super::fan_out::FanOut;
use super::feed::{Fetched, Start, Unfed};
use super::lag::Lag;
use super::polling::{Place, Polling};
use super::roster::Origin;
use super::sending::Sending;
use crate::kinesis::Stream;

/// The longest wait after an error or while the stream asks for patience.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What all shards of a stream share.
pub(super) struct Shared {
    pub(super) stage: String,
    pub(super) stream: Stream,
    pub(super) consumer_arn: Option<String>,
    pub(super) sending: Sending,
    pub(super) lag: Lag,
}

/// One shard that is being read.
pub(super) struct ShardReader {
    pub(super) shared: Arc<Shared>,
    pub(super) id: String,
    pub(super) partition: Partition,
    pub(super) assembly: Assembly,
    pub(super) origin: Origin,
    /// An earlier run has begun at the latest.
    pub(super) latest_was_asked: bool,
    /// What arrived before this is not to be read, until something is.
    pub(super) earliest_us: Option<i64>,
    pub(super) polling: Polling,
    /// Cancelled when no more of it is to be read here.
    pub(super) stop: CancellationToken,
}

/// How the reading of a shard has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is closed, and everything in it is sent.
    Shard,
    /// It was stopped.
    Stopped,
}

/// An answer, and the room that it takes until it is sent.
type Answer = (Fetched, Option<OwnedSemaphorePermit>);

impl ShardReader {
    /// Runs until the shard ends or the reading of it is stopped.
    ///
    /// # Errors
    /// The stream needs a person, or a stage behind this one has ended.
    pub(super) async fn run(mut self) -> Result<(String, Ended), StageError> {
        let shared = self.shared.clone();
        let mut fan_out = shared.consumer_arn.clone().map(|consumer_arn| FanOut {
            stream: shared.stream.clone(),
            consumer_arn,
            shard: self.id.clone(),
            start: self.start(),
            subscription: None,
            has_begun: false,
            next_at: Instant::now(),
        });
        self.polling.place = Place::At(self.start());
        let mut backoff = Backoff::new(Duration::from_millis(200), WAIT_MAX);
        let mut outside = shared.sending.cx.outside();
        loop {
            let fetched = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok((self.id, Ended::Stopped)),
                fetched = next(&mut self.polling, &mut fan_out) => fetched,
            };
            let error = match fetched {
                Ok((fetched, room)) => {
                    backoff.reset();
                    outside.is_back();
                    self.latest_was_asked = true;
                    let ended = self.send_on(fetched).await?;
                    drop(room);
                    match ended {
                        Some(ended) => return Ok((self.id, ended)),
                        None => continue,
                    }
                }
                Err(unfed) => {
                    self.keep_latest(&mut fan_out);
                    unfed
                }
            };
            match error {
                Unfed::Stale => match &mut fan_out {
                    None => self.polling.place = Place::At(self.start()),
                    // The end of a shard need not be told to a subscriber; one answer shows it.
                    Some(fan_out) => {
                        self.polling.place = Place::At(self.start());
                        if let Ok((fetched, room)) = self.polling.next().await {
                            let ended = self.send_on(fetched).await?;
                            drop(room);
                            if let Some(ended) = ended {
                                return Ok((self.id, ended));
                            }
                            fan_out.start = self.start();
                        }
                        continue;
                    }
                },
                Unfed::Throttled => shared.sending.throttled.increment(),
                Unfed::Gone if self.is_gone().await? => {
                    let (stage, shard) = (&shared.stage, &self.id);
                    tracing::error!(stage, shard, "its records have passed their retention before they were all read");
                    shared.sending.expired_shards.increment();
                    self.send(Vec::new(), true).await?;
                    return Ok((self.id, Ended::Shard));
                }
                Unfed::Gone => {}
                Unfed::Failed(error) if error.fault() != Fault::Transient => return Err(error),
                Unfed::Failed(error) => {
                    let (stage, shard) = (&shared.stage, &self.id);
                    tracing::warn!(stage, shard, "{}; trying again", error.chain());
                    shared.sending.retries.increment();
                    outside.failed(&error);
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok((self.id, Ended::Stopped)),
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// Once the shard has granted a place at the latest, that is a moment: asked for anew, it would be a later one, and what
    /// has arrived in between would be skipped.
    fn keep_latest(&mut self, fan_out: &mut Option<FanOut>) {
        self.latest_was_asked |= self.polling.has_begun() || fan_out.as_ref().is_some_and(|fan_out| fan_out.has_begun);
        if let Some(fan_out) = fan_out.as_mut().filter(|fan_out| fan_out.has_begun && fan_out.start == Start::Latest) {
            fan_out.start = self.start();
        }
    }

    fn start(&mut self) -> Start {
        let start = Start::of(self.assembly.bound(), self.origin, self.latest_was_asked);
        self.earliest_us = start.earliest_us();
        start
    }

    /// Sends on what has come. Answers how the reading ends, if it does.
    async fn send_on(&mut self, fetched: Fetched) -> Result<Option<Ended>, StageError> {
        let Fetched { mut records, behind_ms, is_end } = fetched;
        if let Some(earliest_us) = self.earliest_us.filter(|_| self.assembly.bound().is_none()) {
            records.retain(|record| record.arrived_at_us >= earliest_us);
        }
        if let Some(behind_ms) = behind_ms {
            self.shared.lag.note(&self.id, behind_ms);
        }
        let assembled = self.assembly.take_in(records);
        if !self.send(assembled, is_end).await? {
            return Ok(Some(Ended::Stopped));
        }
        Ok(is_end.then_some(Ended::Shard))
    }

    /// Sends batches, and with `is_end` what was kept back. False if it is stopped meanwhile: what was not sent then comes
    /// again, in batches of the same bounds.
    async fn send(&mut self, mut assembled: Vec<Assembled>, is_end: bool) -> Result<bool, StageError> {
        if is_end {
            assembled.extend(self.assembly.finish());
        }
        let shared = &self.shared;
        let new: Vec<Span> = assembled.iter().filter(|batch| batch.is_new).map(|batch| batch.span).collect();
        if !new.is_empty() {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                recorded = shared.sending.record(&self.id, &new) => recorded?,
            }
        }
        for batch in assembled {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let _waiting = shared.lag.waits(&self.id);
            shared.sending.send(&self.id, &self.partition, batch).await?;
        }
        Ok(true)
    }

    /// Whether the stream lists the shard no more. It may only not know it yet.
    async fn is_gone(&self) -> Result<bool, StageError> {
        match self.shared.stream.shards().await {
            Ok(listed) => Ok(!listed.iter().any(|shard| shard.id == self.id)),
            Err(error) if error.fault() == Fault::Transient => Ok(false),
            Err(error) => Err(error),
        }
    }
}

async fn next(polling: &mut Polling, fan_out: &mut Option<FanOut>) -> Result<Answer, Unfed> {
    match fan_out {
        Some(fan_out) => fan_out.next().await.map(|fetched| (fetched, None)),
        None => polling.next().await.map(|(fetched, room)| (fetched, Some(room))),
    }
}
