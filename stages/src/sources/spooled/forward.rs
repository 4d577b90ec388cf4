//! From spooled records to batches in the pipeline.
//!
//! A batch is one or more whole frames of the spool. What earlier runs may have sent is read frame by
//! frame, so that no batch straddles the end of one of theirs; behind that, frames that are there already
//! travel together.

use std::ops::RangeInclusive;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use pipeline_engine::spool::{Frame, Record, Replay, Spool, SpoolError, SpoolReader};
use pipeline_engine::stage::{Batch, Port, SourceContext, StageError};
use pipeline_engine::{Backoff, IntakeStats, Partition, Position, Span, now_us};

use super::record::{OVERSIZE_REASON, oversize, topic};
use crate::decode::{self, Decoder};

/// The partition of a spooled source: its name is part of what sinks record, so it stays.
const PARTITION: &str = "spool";
/// The only cursor of a spool: one for all sinks, since a slow one's rows wait behind the transforms.
const CURSOR: &str = "checkpoint";
/// A batch is sent once it holds this many bytes of payload.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// The longest wait before a disk that can't be read is asked again.
const READ_RETRY_MAX: Duration = Duration::from_secs(5);

/// Decodes what is in the spool and sends it on, from where the last run has come to.
pub(crate) struct Forward {
    pub(crate) stage: String,
    pub(crate) decoder: Decoder,
    /// A batch is sent once it holds this many rows, though a frame is never parted.
    pub(crate) rows_max: usize,
    /// The last record that earlier runs have left.
    pub(crate) found_lsn: u64,
}

/// A place in the spool as sinks and checkpoints know it.
fn position(epoch: u64, lsn: u64) -> Position {
    Position([0, 0, epoch, lsn])
}

impl Forward {
    /// Runs until the spool's writer has closed it and everything in it is stored.
    ///
    /// # Errors
    /// A promise was broken, or a stage behind this one has ended.
    pub(crate) async fn run(self, cx: &SourceContext, spool: &Spool) -> Result<(), StageError> {
        let (partition, after) = cx.resumable_partition(PARTITION).await;
        let start = start(spool, after);
        let epoch = spool.epoch();
        let intake = cx.intake();
        intake.received.add(self.found_lsn.saturating_sub(start));
        intake.passed_to.set(start);
        let sending = Sending {
            cx,
            intake,
            spool,
            partition: &partition,
            replayed_lsn: self.found_lsn,
            reader: spool.reader(start + 1),
            letters: DeadLetters::default(),
            forward: self,
        };
        tokio::select! {
            ended = sending.run() => ended?,
            error = broken(cx, &partition) => return Err(error),
            never = trim(cx, spool, &partition, epoch) => match never {},
        }
        tokio::select! {
            drained = cx.drain(&partition) => drained,
            never = trim(cx, spool, &partition, epoch) => match never {},
        }
    }
}

/// The last record that need not be read again. The checkpoint says so; the spool's own cursor where
/// there is none.
fn start(spool: &Spool, after: Option<Position>) -> u64 {
    let cursors = spool.cursors();
    let cursor = cursors.register(CURSOR);
    match after {
        Some(Position([0, 0, epoch, lsn])) if epoch == spool.epoch() => {
            // A checkpoint that was put back, say with a backup of the directory, is older.
            cursors.rewind(CURSOR, lsn);
            cursors.advance(CURSOR, lsn);
            lsn
        }
        // The spool is a new one: whatever the checkpoint knew, this is behind it.
        _ => cursor,
    }
}

/// Resolves when rows are stored nowhere.
async fn broken(cx: &SourceContext, partition: &Partition) -> StageError {
    let mut progress = partition.progress();
    if progress.wait_for(|progress| progress.failed).await.is_err() {
        std::future::pending::<()>().await;
    }
    match cx.drain(partition).await {
        Err(error) => error,
        Ok(()) => StageError::bug("a promise was broken and kept"),
    }
}

/// Lets go of what no restart asks for again.
async fn trim(cx: &SourceContext, spool: &Spool, partition: &Partition, epoch: u64) -> std::convert::Infallible {
    let cursors = spool.cursors();
    let (mut checkpointed, mut progress) = (partition.checkpointed(), partition.progress());
    loop {
        let passed = if cx.takes_checkpoints() {
            checkpointed.changed().await.map(|()| *checkpointed.borrow_and_update())
        } else {
            progress.changed().await.map(|()| progress.borrow_and_update().delivered)
        };
        match passed {
            Ok(Some(Position([0, 0, passed_in, lsn]))) if passed_in == epoch => cursors.advance(CURSOR, lsn),
            Ok(_) => {}
            // The other end lives as long as the partition.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A run of [`Forward`].
struct Sending<'a> {
    cx: &'a SourceContext,
    intake: IntakeStats,
    spool: &'a Spool,
    partition: &'a Partition,
    /// Up to here earlier runs may have sent.
    replayed_lsn: u64,
    reader: SpoolReader,
    /// Of what is no payload to decode.
    letters: DeadLetters,
    forward: Forward,
}

/// The records behind one batch.
struct Stretch {
    lsns: RangeInclusive<u64>,
    records: u64,
    received_at_us: i64,
}

impl Sending<'_> {
    async fn run(mut self) -> Result<(), StageError> {
        while let Some(replay) = self.next().await? {
            let mut stretch = self.take_in(replay);
            while self.may_take_more(*stretch.lsns.end()) {
                let Some(replay) = self.next().await? else { break };
                let more = self.take_in(replay);
                stretch.lsns = *stretch.lsns.start()..=*more.lsns.end();
                stretch.records += more.records;
            }
            self.send(&stretch).await?;
        }
        Ok(())
    }

    /// What comes next, as soon as it is there. What can't be read now is tried again until it can, or
    /// until the reader calls it damaged.
    async fn next(&mut self) -> Result<Option<Replay>, StageError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), READ_RETRY_MAX);
        loop {
            match self.reader.next().await {
                Ok(replay) => return Ok(replay),
                Err(SpoolError::Closed) => return Ok(None),
                Err(error) => {
                    let wait = backoff.next_wait();
                    let (stage, ms) = (&self.forward.stage, wait.as_millis());
                    let error = StageError::transient("could not read the spool").because(error).chain();
                    tracing::warn!(stage, "{error}; trying again in {ms} ms");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Whether the next frame is there already, and may join what was read up to this one.
    fn may_take_more(&self, last_lsn: u64) -> bool {
        last_lsn > self.replayed_lsn
            && last_lsn < *self.spool.durable().borrow()
            && self.forward.decoder.rows() + self.letters.len() < self.forward.rows_max
            && self.forward.decoder.bytes() < BATCH_BYTES_MAX
    }

    fn take_in(&mut self, replay: Replay) -> Stretch {
        let _decoding = self.cx.working();
        match replay {
            Replay::Frame(frame) => self.take_in_frame(&frame),
            Replay::Lost(lsns) => self.take_in_lost(lsns),
        }
    }

    fn take_in_frame(&mut self, frame: &Frame) -> Stretch {
        for (lsn, record) in (frame.first_lsn..).zip(&frame.records) {
            let position = position(self.spool.epoch(), lsn);
            if let Some((bytes, beginning)) = oversize(record) {
                self.oversize(record, position, bytes, beginning);
            } else {
                self.forward.decoder.push(decode::Message {
                    topic: topic(record).as_deref(),
                    payload: &record.payload,
                    received_at_us: record.received_at_us,
                    position,
                });
            }
        }
        let received_at_us = frame.records.first().map_or_else(now_us, |record| record.received_at_us);
        Stretch { lsns: frame.first_lsn..=frame.last_lsn(), records: frame.records.len() as u64, received_at_us }
    }

    fn oversize(&mut self, record: &Record, position: Position, bytes: u64, beginning: &[u8]) {
        self.letters.push(DeadLetter {
            received_at_us: record.received_at_us,
            stage: &self.forward.stage,
            reason: OVERSIZE_REASON,
            detail: Some(&format!("a payload of {bytes} bytes; only its beginning is kept")),
            topic: topic(record).as_deref(),
            position: Some(&position.to_string()),
            payload: beginning,
        });
    }

    /// Records that were acknowledged and are gone: one dead letter says which, so that it is known where
    /// the others of this pipeline are.
    fn take_in_lost(&mut self, lsns: RangeInclusive<u64>) -> Stretch {
        let (first, last) = (*lsns.start(), *lsns.end());
        let (stage, records) = (&self.forward.stage, last - first + 1);
        tracing::error!(stage, first, last, "{records} records of the spool are damaged and lost");
        let received_at_us = now_us();
        self.letters.push(DeadLetter {
            received_at_us,
            stage,
            reason: "spool_damaged",
            detail: Some(&format!(
                "{records} received messages, numbers {first} to {last} of the spool, can't be read any more; what is left of them is in its folder \"quarantine\""
            )),
            topic: None,
            position: Some(&position(self.spool.epoch(), first).to_string()),
            payload: &[],
        });
        // Only the end: damage may reach from before what a sink has stored to behind it, and no batch goes
        // back there.
        Stretch { lsns: last..=last, records, received_at_us }
    }

    /// Sends rows and dead letters under one promise: both must be where they belong before the spool
    /// lets go of these records.
    async fn send(&mut self, stretch: &Stretch) -> Result<(), StageError> {
        let (decoded, rejected) = {
            let _decoding = self.cx.working();
            let decoded = self.forward.decoder.take();
            (decoded.rows, joined(decoded.rejected, &mut self.letters)?)
        };
        let place = |lsn| position(self.spool.epoch(), lsn);
        let span = Span::new(place(*stretch.lsns.start()), place(*stretch.lsns.end()));
        let ack = self.partition.open(span, stretch.received_at_us);
        let rows = decoded.clone();
        let (rows, rejected) = Batch::new(decoded, ack).split(rows, rejected);
        self.cx.send_by_ports([(Port::REJECTED, rejected), (Port::MAIN, rows)]).await?;
        self.intake.passed_on.add(stretch.records);
        self.intake.passed_to.set(*stretch.lsns.end());
        Ok(())
    }
}

/// The decoder's dead letters and ours, which have the same columns.
fn joined(decoded: RecordBatch, ours: &mut DeadLetters) -> Result<RecordBatch, StageError> {
    if ours.is_empty() {
        return Ok(decoded);
    }
    let ours = ours.take();
    if decoded.num_rows() == 0 {
        return Ok(ours);
    }
    Ok(concat_batches(&ours.schema(), [&decoded, &ours])?)
}
