//! The running simulator: from the simulated clock to batches.
//!
//! A full pipeline makes it wait, and then it lags: messages keep the time at which they should have
//! been sent, and the counter `behind_ms` tells by how much at most (5 to 10 is the granularity of the
//! sending). Nothing is skipped.

use std::path::PathBuf;

use async_trait::async_trait;
use pipeline_engine::stage::{Batch, Port, Source, SourceContext, StageError};
use pipeline_engine::{Counter, Partition, Position, Span, now_us};

use super::fleet::{Fleet, FleetSettings, Outgoing};
use super::pace::Pacer;
use super::replay::{Replay, ReplaySettings};
use super::truth::{Kind, Planted, Truth};
use crate::decode::{Decoded, Decoder, Message};

/// The most rows of a batch: about 1 MiB, generated in 3 ms and decoded in 9.
pub(super) const ROWS_MAX: usize = 8_192;
/// The most bytes of a batch, for replays of long rows.
const BYTES_MAX: usize = 8 << 20;

/// What the configuration says, ready to run.
pub(super) struct Simulator {
    pub(super) origin: Origin,
    /// How fast the simulated clock runs; `None` if nothing waits for it.
    pub(super) speed: Option<f64>,
    pub(super) truth: Option<PathBuf>,
    pub(super) decoder: Decoder,
}

/// Where messages come from.
pub(super) enum Origin {
    /// A fleet, and when it starts if that is not now.
    Fleet(FleetSettings, Option<i64>),
    Replay(ReplaySettings),
}

#[async_trait]
impl Source for Simulator {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        // The name is new in every run: message 1 of this one is not message 1 of the last.
        let partition = cx.partition(format!("run-{}", now_us()));
        let mut sender = Sender {
            feed: Feed::open(&self.origin)?,
            decoder: self.decoder,
            truth: self.truth.as_deref().map(Truth::create).transpose()?,
            counters: Planting::new(&cx),
            position: 0,
        };
        let sent = sender.send_all(&cx, &partition, self.speed).await;
        // Also after an error: what came before it is delivered.
        let drained = cx.drain(&partition).await;
        sent?;
        if let Some(truth) = &mut sender.truth {
            truth.flush()?;
        }
        drained
    }
}

/// What the messages come from, opened.
enum Feed {
    Fleet(Box<Fleet>),
    Replay(Box<Replay>),
}

impl Feed {
    fn open(origin: &Origin) -> Result<Self, StageError> {
        match origin {
            Origin::Fleet(settings, start_us) => {
                Ok(Self::Fleet(Box::new(Fleet::new(settings, start_us.unwrap_or_else(now_us)))))
            }
            Origin::Replay(settings) => Replay::open(settings).map(|replay| Self::Replay(Box::new(replay))),
        }
    }

    fn due_us(&self) -> Option<i64> {
        match self {
            Self::Fleet(fleet) => fleet.due_us(),
            Self::Replay(replay) => replay.due_us(),
        }
    }

    /// The next message; `None` where the turn of a device gives none now.
    fn next(&mut self) -> Result<Option<Outgoing<'_>>, StageError> {
        match self {
            Self::Fleet(fleet) => Ok(fleet.next()),
            Self::Replay(replay) => replay.next(),
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Fleet(fleet) => fleet.stop(),
            Self::Replay(replay) => replay.stop(),
        }
    }
}

struct Sender {
    feed: Feed,
    decoder: Decoder,
    truth: Option<Truth>,
    counters: Planting,
    /// Number of the last message made.
    position: u64,
}

impl Sender {
    /// Sends until the feed ends or a stop is asked for. What is held back is then sent at once.
    async fn send_all(
        &mut self,
        cx: &SourceContext,
        partition: &Partition,
        speed: Option<f64>,
    ) -> Result<(), StageError> {
        let Some(first_us) = self.feed.due_us() else { return Ok(()) };
        let pacer = Pacer::start(first_us, speed);
        let behind_ms = cx.counter("behind_ms");
        while let Some(due_us) = self.feed.due_us() {
            if cx.is_stopping() {
                self.feed.stop();
                self.send_due(cx, partition, i64::MAX, speed.is_some()).await?;
                continue;
            }
            raise(&behind_ms, pacer.behind(due_us).as_millis() as u64);
            self.send_due(cx, partition, pacer.due_by_us(), speed.is_some()).await?;
            let Some(next_us) = self.feed.due_us() else { break };
            match pacer.sleep(next_us) {
                // More is due already: the batch was full.
                Some(_) if next_us <= pacer.due_by_us() => tokio::task::yield_now().await,
                Some(sleep) => {
                    if let Some(truth) = &mut self.truth {
                        truth.flush()?;
                    }
                    tokio::select! {
                        () = cx.stop_requested() => {}
                        () = tokio::time::sleep(sleep) => {}
                    }
                }
                None => tokio::task::yield_now().await,
            }
        }
        Ok(())
    }

    /// Sends one batch of what is due; an error comes after the messages before it.
    async fn send_due(
        &mut self,
        cx: &SourceContext,
        partition: &Partition,
        due_by_us: i64,
        is_paced: bool,
    ) -> Result<(), StageError> {
        let first = self.position + 1;
        let now_us = now_us();
        let outcome = {
            let _making = cx.working();
            self.fill(due_by_us, is_paced.then_some(now_us))
        };
        if self.position >= first {
            let Decoded { rows, rejected } = self.decoder.take();
            let ack = partition.open(Span::new(first, self.position), now_us);
            let share = ack.share();
            cx.send(Batch::new(rows, ack)).await?;
            // Empty ones are settled by leaving.
            cx.send_to(Port::REJECTED, Batch::new(rejected, share)).await?;
        }
        outcome
    }

    /// Decodes what is due, up to a batch.
    ///
    /// Without `received_at_us` messages are received when they are sent, by the simulated clock: so
    /// a run without pace gives the same rows every time.
    fn fill(&mut self, due_by_us: i64, received_at_us: Option<i64>) -> Result<(), StageError> {
        let first = self.position;
        while (self.position - first) < ROWS_MAX as u64 && self.decoder.bytes() < BYTES_MAX {
            if self.feed.due_us().is_none_or(|due_us| due_us > due_by_us) {
                break;
            }
            let Some(message) = self.feed.next()? else { continue };
            self.position += 1;
            if let Some(planted) = &message.planted {
                self.counters.count(planted);
                if let Some(truth) = &mut self.truth {
                    truth.write(planted)?;
                }
            }
            self.decoder.push(Message {
                topic: Some(message.topic),
                payload: message.payload,
                received_at_us: received_at_us.unwrap_or(message.sent_at_us),
                position: Position::from(self.position),
            });
        }
        Ok(())
    }
}

/// Counts of what was planted.
struct Planting {
    anomalies: Counter,
    bad: Counter,
    late: Counter,
    duplicates: Counter,
}

impl Planting {
    fn new(cx: &SourceContext) -> Self {
        Self {
            anomalies: cx.counter("planted_anomalies"),
            bad: cx.counter("planted_bad"),
            late: cx.counter("planted_late"),
            duplicates: cx.counter("planted_duplicates"),
        }
    }

    fn count(&self, planted: &Planted<'_>) {
        match planted.kind {
            Kind::Anomaly { .. } => self.anomalies.increment(),
            Kind::Bad => self.bad.increment(),
            Kind::Late => self.late.increment(),
            Kind::Duplicate => self.duplicates.increment(),
        }
    }
}

/// Makes a counter that only its owner changes at least `value`.
fn raise(counter: &Counter, value: u64) {
    counter.add(value.saturating_sub(counter.get()));
}
