//! From assembled batches to rows in the pipeline.

use pipeline_engine::stage::{Batch, Port, SourceContext, StageError};
use pipeline_engine::{Counter, IntakeStats, Partition, Position, Span};
use tokio::sync::Mutex;

use super::batches::Assembled;
use super::journal::Journal;
use crate::decode::{Decoder, Fault, Message, reason};
use crate::kinesis::Sequence;

/// The way into the pipeline that all shards share.
pub(super) struct Sending {
    pub(super) cx: SourceContext,
    /// `None` where workers share the stream: sinks tell then where batches have to end.
    pub(super) journal: Option<Journal>,
    /// One batch at a time.
    pub(super) decoder: Mutex<Decoder>,
    pub(super) intake: IntakeStats,
    pub(super) throttled: Counter,
    pub(super) retries: Counter,
    pub(super) expired_shards: Counter,
}

impl Sending {
    pub(super) fn new(cx: SourceContext, decoder: Decoder, journal: Option<Journal>) -> Self {
        Self {
            journal,
            decoder: Mutex::new(decoder),
            intake: cx.intake(),
            throttled: cx.counter("throttled"),
            retries: cx.counter("retries"),
            expired_shards: cx.counter("expired_shards"),
            cx,
        }
    }

    /// Decodes a batch and sends its rows and dead letters under one promise, and waits while the pipeline is full.
    ///
    /// # Errors
    /// A stage behind this one has ended.
    pub(super) async fn send(&self, shard: &str, partition: &Partition, batch: Assembled) -> Result<(), StageError> {
        let Assembled { messages, span, .. } = batch;
        let mut decoder = self.decoder.lock().await;
        let count = messages.len() as u64;
        self.intake.received.add(count);
        self.intake.taken_to.set(self.intake.received.get());
        let (rows, rejected) = {
            let _decoding = self.cx.working();
            decoder.name_positions(shard, place);
            for message in &messages {
                let decoded = Message {
                    topic: Some(&message.partition_key),
                    payload: &message.payload,
                    received_at_us: message.arrived_at_us,
                    position: message.position,
                };
                match &message.damage {
                    None => decoder.push(decoded),
                    Some(why) => decoder.reject(&decoded, &Fault::new(reason::AGGREGATE_DAMAGED, why.as_str())),
                }
            }
            let decoded = decoder.take();
            (decoded.rows, decoded.rejected)
        };
        let arrived_at_us = messages.iter().map(|message| message.arrived_at_us).min().unwrap_or_default();
        drop(messages);
        let ack = partition.open(span, arrived_at_us);
        let main = rows.clone();
        let (main, rejected) = Batch::new(rows, ack).split(main, rejected);
        self.cx.send_by_ports([(Port::REJECTED, rejected), (Port::MAIN, main)]).await?;
        self.intake.passed_on.add(count);
        self.intake.passed_to.set(self.intake.passed_on.get());
        Ok(())
    }

    /// Resolves when the source should stop reading. Cancel safe.
    pub(super) async fn stop_requested(&self) {
        self.cx.stop_requested().await;
    }

    /// Keeps the bounds of batches before they are sent.
    ///
    /// # Errors
    /// As for [`Journal::record`].
    pub(super) async fn record(&self, shard: &str, spans: &[Span]) -> Result<(), StageError> {
        match &self.journal {
            Some(journal) => journal.record(shard, spans).await,
            None => Ok(()),
        }
    }

    /// The journal of a source that has the stream to itself.
    pub(super) fn journal(&self) -> Result<&Journal, StageError> {
        self.journal.as_ref().ok_or_else(|| StageError::bug("a stream that workers share has no journal"))
    }
}

/// A position as dead letters tell it: the shard, the sequence number, and the place in a packed record.
fn place(shard: &str, position: Position) -> String {
    let (sequence, sub_sequence) = Sequence::of(position);
    format!("{shard}/{sequence}/{sub_sequence}")
}
