//! From waiting messages to batches in the pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use pipeline_engine::stage::{Batch, Port, SourceContext, StageError};
use pipeline_engine::{Counter, Partition, Position, Span};
use tokio::time::Instant;

use super::waiting::{Message, Receiver};
use crate::decode::{self, Decoder};

/// A batch is sent once it holds this many bytes of payload.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Decodes messages into batches and sends them on.
pub(super) struct Forward {
    pub(super) stage: String,
    pub(super) decoder: Decoder,
    /// A batch is sent once it holds this many rows.
    pub(super) rows_max: usize,
    /// How long the first message of a batch may wait for more.
    pub(super) linger: Duration,
    /// Messages of connections before this one come again: see [`Resumed`].
    pub(super) resumed: Resumed,
    /// Counts messages left out because they come again.
    pub(super) skipped: Counter,
}

/// Set once the broker sends again, on a new connection, what earlier ones left unacknowledged. What
/// still waits from before would be stored twice.
#[derive(Debug, Clone, Default)]
pub(super) struct Resumed(Arc<ResumedSince>);

#[derive(Debug, Default)]
struct ResumedSince {
    generation: AtomicU64,
    at_us: AtomicI64,
}

/// A message that has waited longer is kept, at the risk of storing it twice: brokers forget (AWS IoT
/// after an hour), and then ours is the only copy.
const COMES_AGAIN_WITHIN: Duration = Duration::from_secs(600);

impl Resumed {
    /// From this generation on, the broker has the session of those before.
    pub(super) fn since(&self, generation: u64, now_us: i64) {
        self.0.at_us.store(now_us, Ordering::Relaxed);
        self.0.generation.store(generation, Ordering::Release);
    }

    fn comes_again(&self, message: &Message) -> bool {
        let older = message.ticket.generation < self.0.generation.load(Ordering::Acquire);
        let waited_us = self.0.at_us.load(Ordering::Relaxed) - message.received_at_us;
        message.ticket.owed && older && u128::try_from(waited_us).unwrap_or(0) < COMES_AGAIN_WITHIN.as_micros()
    }
}

/// The messages of one batch: a stretch of one connection.
struct Stretch {
    partition: Partition,
    first: u64,
    last: u64,
    received_at_us: i64,
}

impl Forward {
    /// Runs until the queue has ended. Gives the partitions that may hold open promises.
    pub(super) async fn run(
        &mut self,
        cx: &SourceContext,
        waiting: &mut Receiver,
    ) -> Result<Vec<Partition>, StageError> {
        let mut partitions: Vec<Partition> = Vec::new();
        let mut oversize = DeadLetters::default();
        let mut next = waiting.next().await;
        while let Some(first) = next.take() {
            let mut stretch = Stretch {
                partition: first.ticket.partition.clone(),
                first: first.ticket.number,
                last: first.ticket.number,
                received_at_us: first.received_at_us,
            };
            let generation = first.ticket.generation;
            let until = Instant::now() + self.linger;
            let mut message = Some(first);
            while let Some(taken) = message.take() {
                if taken.ticket.generation != generation {
                    next = Some(taken);
                    break;
                }
                stretch.last = taken.ticket.number;
                self.take_in(&taken, &mut oversize);
                let rows = self.decoder.rows() + oversize.len();
                if rows < self.rows_max && self.decoder.bytes() < BATCH_BYTES_MAX {
                    message = self.more(waiting, until).await;
                }
            }
            if partitions.last().is_none_or(|last| last.name() != stretch.partition.name()) {
                partitions.retain(|partition| !partition.progress().borrow().is_complete());
                partitions.push(stretch.partition.clone());
            }
            self.send(cx, stretch, &mut oversize).await?;
            if next.is_none() {
                next = waiting.next().await;
            }
        }
        Ok(partitions)
    }

    /// One more message for the batch, if one comes in time.
    async fn more(&self, waiting: &mut Receiver, until: Instant) -> Option<Message> {
        match waiting.try_next() {
            Some(message) => Some(message),
            None => tokio::time::timeout_at(until, waiting.next()).await.ok().flatten(),
        }
    }

    fn take_in(&mut self, message: &Message, oversize: &mut DeadLetters) {
        if self.resumed.comes_again(message) {
            self.skipped.increment();
            return;
        }
        let topic = String::from_utf8_lossy(&message.topic);
        let position = Position::from(message.ticket.number);
        if let Some(bytes) = message.oversize {
            oversize.push(DeadLetter {
                received_at_us: message.received_at_us,
                stage: &self.stage,
                reason: "oversize",
                detail: Some(&format!("a payload of {bytes} bytes; only its beginning is kept")),
                topic: Some(&topic),
                position: Some(&position.to_string()),
                payload: &message.payload,
            });
            return;
        }
        self.decoder.push(decode::Message {
            topic: Some(&topic),
            payload: &message.payload,
            received_at_us: message.received_at_us,
            position,
        });
    }

    /// Sends rows and dead letters under one promise: both must be where they belong before any of
    /// these messages is acknowledged.
    async fn send(
        &mut self,
        cx: &SourceContext,
        stretch: Stretch,
        oversize: &mut DeadLetters,
    ) -> Result<(), StageError> {
        let decoded = self.decoder.take();
        let rejected = joined(decoded.rejected, oversize)?;
        let span = Span::new(stretch.first, stretch.last);
        let ack = stretch.partition.open(span, stretch.received_at_us);
        let rows = decoded.rows.clone();
        let (rows, rejected) = Batch::new(decoded.rows, ack).split(rows, rejected);
        cx.send_to(Port::REJECTED, rejected).await?;
        cx.send(rows).await
    }
}

/// The decoder's dead letters and ours, which have the same columns.
fn joined(decoded: RecordBatch, oversize: &mut DeadLetters) -> Result<RecordBatch, StageError> {
    if oversize.is_empty() {
        return Ok(decoded);
    }
    let ours = oversize.take();
    if decoded.num_rows() == 0 {
        return Ok(ours);
    }
    Ok(concat_batches(&ours.schema(), [&decoded, &ours])?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::sources::mqtt::waiting::Ticket;

    #[test]
    fn only_what_the_broker_surely_sends_again_is_left_out() {
        let resumed = Resumed::default();
        let message = |generation, owed, received_at_us| Message {
            topic: Bytes::new(),
            payload: Bytes::new(),
            oversize: None,
            received_at_us,
            ticket: Ticket { partition: Partition::new("p"), generation, number: 1, owed },
        };
        let now_us = 3_600_000_000;
        assert!(!resumed.comes_again(&message(1, true, now_us)), "nothing was resumed yet");
        resumed.since(2, now_us);
        assert!(resumed.comes_again(&message(1, true, now_us - 1)));
        assert!(!resumed.comes_again(&message(1, false, now_us - 1)), "QoS 0 never comes again");
        assert!(!resumed.comes_again(&message(2, true, now_us)), "this connection's own");
        assert!(!resumed.comes_again(&message(1, true, 0)), "the broker may have forgotten it");
    }
}
