//! A source as the one for MQTT is: what it receives goes into a spool, is acknowledged once it is
//! durable there, in order and by the connection that it came by, and is then read from there.
//!
//! Spool, positions and checkpoints are the real ones. What the broker sends again, since it did not
//! hear of our acknowledgement, is recognised by packet id and content.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::broker::{Connection, Delivery};
use super::invariants::Invariant;
use super::planted::Bug;
use super::trace::Event;
use super::world::{Row, World};
use crate::ack::Partition;
use crate::dead_letter::{self, DeadLetter, DeadLetters};
use crate::position::{Position, Span};
use crate::retry::Backoff;
use crate::run::tests::DOC;
use crate::spool::{Frame, Record, Replay, Spool, SpoolOptions, SpoolReader, SpoolWriter};
use crate::stage::*;
use crate::stats::now_us;

/// The spool's cursor: the next run reads on after it.
const CURSOR: &str = "pipeline";
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECEIPTS_TIMEOUT: Duration = Duration::from_secs(2);

/// The columns of readings, or others of that type.
pub(super) fn schema_of(columns: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|name| Field::new(*name, DataType::Int64, false)).collect::<Vec<_>>()))
}

pub(super) fn readings() -> SchemaRef {
    schema_of(&["number", "device", "at", "value"])
}

/// Rows as columns of that schema.
pub(super) fn batch_of(schema: &SchemaRef, rows: &[Row]) -> RecordBatch {
    let column = |index| Arc::new(Int64Array::from_iter_values(rows.iter().map(|row: &Row| row[index]))) as ArrayRef;
    let columns = (0..schema.fields().len()).map(column).collect();
    RecordBatch::try_new(schema.clone(), columns).expect("as many columns as the schema has")
}

#[derive(Default, Deserialize, JsonSchema)]
pub(super) struct Spooled {
    pub broker: usize,
    #[serde(skip)]
    pub dir: PathBuf,
    #[serde(skip)]
    pub world: Option<Arc<World>>,
}

impl SourceConfig for Spooled {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        let outputs = vec![(Port::MAIN, readings()), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSource { source: Box::new(self), outputs })
    }
}

#[async_trait]
impl Source for Spooled {
    fn is_resumable(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let world = self.world.clone().expect("given");
        let spool_failed = |error| StageError::permanent("the spool does not open").because(error);
        let (spool, writer, report) = Spool::open(&self.dir, options(&world), cx.storage()).map_err(spool_failed)?;
        world.trace.note(Event::SpoolOpened { durable: report.durable_lsn, next: report.next_lsn });
        if !report.is_sound() {
            world
                .violated(Invariant::SpoolIsSound, format!("nothing has damaged the spool, and it reports {report:?}"));
        }
        let cursors = spool.cursors();
        cursors.register(CURSOR);
        let (partition, after) = cx.resumable_partition("spool").await;
        let after_lsn = match after {
            Some(Position([0, 0, epoch, lsn])) if epoch == spool.epoch() => lsn,
            Some(after) => {
                let how = format!("the spool is of epoch {}, and the run goes on after {after}", spool.epoch());
                world.violated(Invariant::SpoolIsSound, how);
                0
            }
            None => 0,
        };
        let mut checkpointed = partition.checkpointed();
        let durable = spool.durable();
        let window = world.climate.receive_maximum as u64;
        let trimming = async {
            while checkpointed.changed().await.is_ok() {
                let Some(Position([.., lsn])) = *checkpointed.borrow_and_update() else { continue };
                world.trace.note(Event::Checkpointed { source: self.broker, lsn });
                world.checkpoint().await;
                // The tail stays, so that a restart knows what may come again.
                let tail = durable.borrow().saturating_sub(window);
                cursors.advance(CURSOR, lsn.min(tail));
            }
        };
        let intake = async {
            // What the broker may not know to be acknowledged: it has never more than its window out.
            let from_lsn = (report.durable_lsn + 1).saturating_sub(window).max(1);
            let known = tokio::select! {
                biased;
                () = cx.stop_requested() => return Ok(()),
                known = Known::of(&spool, from_lsn, report.durable_lsn) => known,
            };
            Intake { world: &world, broker: self.broker, cx: &cx, writer, durable: spool.durable(), known }.run().await
        };
        let mut reader = spool.reader(after_lsn + 1);
        let forward = Forward {
            world: &world,
            broker: self.broker,
            cx: &cx,
            partition: &partition,
            epoch: spool.epoch(),
            durable: spool.durable(),
            replayed_lsn: report.durable_lsn,
        };
        let work = async { tokio::try_join!(intake, forward.run(&mut reader)).map(|_| ()) };
        tokio::select! {
            biased;
            done = work => done,
            () = trimming => Err(StageError::bug("the partition is gone before its source")),
        }
    }
}

fn options(world: &World) -> SpoolOptions {
    let climate = &world.climate;
    SpoolOptions {
        segment_bytes: climate.segment_bytes,
        bytes_max: climate.spool_bytes_max,
        group_records_max: climate.group_records_max,
        group_linger: climate.group_linger,
        buffer_bytes_max: 800,
        free_space_min: 0,
        retain: climate.retain,
        cursor_interval: Duration::from_millis(500),
        planted: world.bug.and_then(Bug::of_spool),
        ..SpoolOptions::new("simulation", "source")
    }
}

/// The last record that was stored under each packet id, in this session.
#[derive(Default)]
struct Known {
    by_id: BTreeMap<u16, (Bytes, u64)>,
}

impl Known {
    /// Reads the end of what an earlier run has stored.
    async fn of(spool: &Spool, from_lsn: u64, to_lsn: u64) -> Self {
        let mut by_id = BTreeMap::new();
        let mut reader = spool.reader(from_lsn);
        let mut lsn = from_lsn - 1;
        while lsn < to_lsn {
            match reader.next().await {
                Ok(Some(Replay::Frame(frame))) => {
                    lsn = frame.last_lsn();
                    for (lsn, record) in (frame.first_lsn..).zip(&frame.records) {
                        by_id.insert(record.mark, (record.payload.clone(), lsn));
                    }
                }
                Ok(Some(Replay::Lost(lost))) => lsn = *lost.end(),
                Ok(None) => break,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
        Self { by_id }
    }
}

/// Receives, stores and acknowledges.
struct Intake<'a> {
    world: &'a Arc<World>,
    broker: usize,
    cx: &'a SourceContext,
    writer: SpoolWriter,
    durable: watch::Receiver<u64>,
    known: Known,
}

/// What one connection still owes the broker: packet ids in the order of arrival, each with the record
/// that must be durable first.
type Window = VecDeque<(u16, u64)>;

impl Intake<'_> {
    async fn run(mut self) -> Result<(), StageError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut window = Window::new();
        while !self.cx.is_stopping() {
            let Some(mut connection) = self.world.brokers[self.broker].connect(self.world) else {
                timeout(RECONNECT_MIN + backoff.next_wait(), self.cx.stop_requested()).await.ok();
                continue;
            };
            backoff.reset();
            if !self.world.has(Bug::StaleAck) {
                window.clear();
            }
            if !connection.session_present {
                // Ids start over: what has one of ours now is another message.
                self.known.by_id.clear();
            }
            self.serve(&mut connection, &mut window).await?;
            timeout(RECONNECT_MIN, self.cx.stop_requested()).await.ok();
        }
        // What can't become durable was not acknowledged either.
        self.writer.close().await.ok();
        Ok(())
    }

    /// Until the connection is lost or the source stops.
    async fn serve(&mut self, connection: &mut Connection, window: &mut Window) -> Result<(), StageError> {
        let mut waiting: Option<Delivery> = None;
        loop {
            if let Some(delivery) = waiting.take() {
                waiting = self.take_in(delivery, window)?;
            }
            tokio::select! {
                biased;
                () = self.cx.stop_requested() => {
                    self.writer.flush();
                    timeout(RECEIPTS_TIMEOUT, self.last_receipts(connection, window)).await.ok();
                    return Ok(());
                }
                _ = self.durable.changed() => self.acknowledge(connection, window).await,
                () = self.writer.room(), if waiting.is_some() => {}
                delivery = connection.receive(), if waiting.is_none() => match delivery {
                    Some(delivery) => {
                        self.world.step().await;
                        waiting = Some(delivery);
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// Stores a message, or gives it back if there is no room.
    fn take_in(&mut self, delivery: Delivery, window: &mut Window) -> Result<Option<Delivery>, StageError> {
        let Delivery { id, again, message } = &delivery;
        if window.iter().any(|(held, _)| held == id) {
            return Ok(None);
        }
        let known = self.known.by_id.get(id).filter(|(payload, _)| *again && *payload == message.payload);
        if let Some((_, lsn)) = known.filter(|_| !self.world.has(Bug::RedeliveryStoredTwice)) {
            self.world.trace.note(Event::Recognised { broker: self.broker, id: *id, lsn: *lsn });
            window.push_back((*id, *lsn));
            self.durable.mark_changed();
            return Ok(None);
        }
        let record = Record {
            received_at_us: now_us(),
            flags: u8::from(*again),
            mark: *id,
            topic: "readings".into(),
            payload: message.payload.clone(),
        };
        let lsn = self.writer.try_append(&record).map_err(|error| StageError::bug("no append").because(error))?;
        let Some(lsn) = lsn else { return Ok(Some(delivery)) };
        self.world.trace.note(Event::Spooled { broker: self.broker, number: message.number, lsn });
        self.known.by_id.insert(*id, (record.payload, lsn));
        window.push_back((*id, lsn));
        if window.len() * 2 >= self.world.climate.receive_maximum {
            self.writer.flush();
        }
        Ok(None)
    }

    /// Acknowledges what has become durable, in the order of arrival.
    async fn acknowledge(&mut self, connection: &Connection, window: &mut Window) {
        let durable = *self.durable.borrow_and_update();
        while let Some((id, _)) = window.pop_front_if(|(_, lsn)| *lsn <= durable) {
            connection.acknowledge(id);
            self.world.step().await;
        }
    }

    async fn last_receipts(&mut self, connection: &Connection, window: &mut Window) {
        self.acknowledge(connection, window).await;
        while !window.is_empty() && self.durable.changed().await.is_ok() {
            self.acknowledge(connection, window).await;
        }
    }
}

/// Reads the spool and sends what is in it on: frame by frame what an earlier run may have sent, since no
/// batch may straddle the end of one of theirs; together what is there behind that.
struct Forward<'a> {
    world: &'a World,
    broker: usize,
    cx: &'a SourceContext,
    partition: &'a Partition,
    epoch: u64,
    durable: watch::Receiver<u64>,
    replayed_lsn: u64,
}

/// A batch holds no more frames.
const FRAMES_MAX: usize = 3;

impl Forward<'_> {
    async fn run(self, reader: &mut SpoolReader) -> Result<(), StageError> {
        let mut frames: Vec<Frame> = Vec::new();
        loop {
            let replay = tokio::select! {
                biased;
                () = self.cx.stop_requested() => break,
                replay = reader.next() => replay,
            };
            match replay {
                Ok(Some(Replay::Frame(frame))) => {
                    let last_lsn = frame.last_lsn();
                    frames.push(frame);
                    let more_is_there = last_lsn > self.replayed_lsn && last_lsn < *self.durable.borrow();
                    if !more_is_there || frames.len() >= FRAMES_MAX {
                        self.send(std::mem::take(&mut frames)).await?;
                    }
                }
                Ok(Some(Replay::Lost(lost))) => {
                    self.world.violated(Invariant::SpoolIsSound, format!("it has lost the records {lost:?}"));
                }
                Ok(None) => break,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
        self.cx.drain(self.partition).await
    }

    async fn send(&self, frames: Vec<Frame>) -> Result<(), StageError> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let (first, last) = (first.first_lsn, last.last_lsn());
        self.world.trace.note(Event::Sent { source: self.broker, first, last });
        let records = frames.iter().flat_map(|frame| (frame.first_lsn..).zip(&frame.records));
        let received_at_us = records.clone().map(|(_, record)| record.received_at_us).next().unwrap_or_default();
        let mut rows = Vec::new();
        let mut letters = DeadLetters::default();
        for (lsn, record) in records {
            match decoded(&record.payload) {
                Some(row) => rows.push(row),
                None => letters.push(DeadLetter {
                    received_at_us: record.received_at_us,
                    stage: "source",
                    reason: "no_reading",
                    detail: None,
                    topic: None,
                    position: Some(&lsn.to_string()),
                    payload: &record.payload,
                }),
            }
        }
        let position = |lsn| Position([0, 0, self.epoch, lsn]);
        let ack = self.partition.open(Span::new(position(first), position(last)), received_at_us);
        self.world.step().await;
        let rows = batch_of(&readings(), &rows);
        if letters.is_empty() {
            return self.cx.send(Batch::new(rows, ack)).await;
        }
        let letters = Batch::new(letters.take(), ack.share());
        self.cx.send_by_ports([(Port::MAIN, Batch::new(rows, ack)), (Port::REJECTED, letters)]).await
    }
}

fn decoded(payload: &[u8]) -> Option<Row> {
    let words = std::str::from_utf8(payload).ok()?.split(' ');
    let row: Row = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    (row.len() == 4).then_some(row)
}
