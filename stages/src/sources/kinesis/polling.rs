//! Records of one shard by `GetRecords`: at most five times a second, which is what a shard answers to all that poll it
//! together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::feed::{Fetched, Start, Unfed, raw};
use crate::aws::fault;
use crate::kinesis::Stream;

/// A shard answers five times a second.
pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Polls one shard.
#[derive(Debug)]
pub(super) struct Polling {
    pub(super) stream: Stream,
    pub(super) shard: String,
    /// The most records of one answer.
    pub(super) records_max: i32,
    /// How long to leave the shard alone once everything is read.
    pub(super) idle: Duration,
    /// Answers of all shards that may be in memory at once.
    pub(super) answers: Arc<Semaphore>,
    pub(super) place: Place,
    pub(super) next_at: Instant,
}

/// Where the next records are.
#[derive(Debug)]
pub(super) enum Place {
    /// To be asked for.
    At(Start),
    /// Behind the last answer. Good for five minutes.
    Iterator(String),
    /// The shard has ended.
    End,
}

impl Polling {
    /// The next answer, as soon as it may be asked for, with the room that it takes in memory: dropped once it is sent on.
    ///
    /// Cancel safe: what an answer held that nobody has seen is asked for again.
    pub(super) async fn next(&mut self) -> Result<(Fetched, OwnedSemaphorePermit), Unfed> {
        tokio::time::sleep_until(self.next_at).await;
        let room = self.answers.clone().acquire_owned().await.map_err(|_| Unfed::Stale)?;
        let iterator = match &self.place {
            Place::Iterator(iterator) => iterator.clone(),
            Place::At(start) => self.iterator(*start).await?,
            Place::End => return Ok((Fetched { is_end: true, ..Fetched::default() }, room)),
        };
        self.next_at = Instant::now() + INTERVAL_MIN;
        let client = self.stream.client().map_err(Unfed::Failed)?;
        let asked = client.get_records().shard_iterator(&iterator).limit(self.records_max).send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                // It may have been made for this request alone.
                self.place = Place::Iterator(iterator);
                return Err(match fault::code_of(&error) {
                    Some("ExpiredIteratorException") => Unfed::Stale,
                    Some(code) if fault::is_throttled(code) => Unfed::Throttled,
                    _ => Unfed::Failed(self.stream.failed(error, "read")),
                });
            }
        };
        let is_end = answer.next_shard_iterator().is_none_or(str::is_empty);
        let behind_ms = answer.millis_behind_latest().and_then(|ms| u64::try_from(ms).ok());
        let records = raw(answer.records).map_err(Unfed::Failed)?;
        self.place = match answer.next_shard_iterator {
            Some(next) if !is_end => Place::Iterator(next),
            _ => Place::End,
        };
        let is_full = i32::try_from(records.len()) == Ok(self.records_max);
        if records.is_empty() || (behind_ms == Some(0) && !is_full) {
            self.next_at = Instant::now() + self.idle.max(INTERVAL_MIN);
        }
        Ok((Fetched { records, behind_ms, is_end }, room))
    }

    /// Whether the shard has given an iterator.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.place, Place::At(_))
    }

    async fn iterator(&self, start: Start) -> Result<String, Unfed> {
        let (kind, sequence, time) = start.parts();
        let client = self.stream.client().map_err(Unfed::Failed)?;
        let request = client
            .get_shard_iterator()
            .stream_name(self.stream.name())
            .shard_id(&self.shard)
            .shard_iterator_type(kind)
            .set_starting_sequence_number(sequence)
            .set_timestamp(time);
        match request.send().await {
            Ok(answer) => answer.shard_iterator.ok_or(Unfed::Stale),
            Err(error) => Err(match fault::code_of(&error) {
                Some("ResourceNotFoundException") => Unfed::Gone,
                Some(code) if fault::is_throttled(code) => Unfed::Throttled,
                Some("InvalidArgumentException") if matches!(start, Start::At(_)) => {
                    let error = self.stream.failed(error, "read");
                    Unfed::Failed(error.hint(
                        "The stream does not know the place where the last run came to: was it deleted and made anew? \
                         Then give the pipeline a new \"data_dir\", or the source a new name.",
                    ))
                }
                _ => Unfed::Failed(self.stream.failed(error, "read")),
            }),
        }
    }
}
