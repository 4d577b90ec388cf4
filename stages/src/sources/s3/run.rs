//! A run of the source: objects are read several at a time, and leave one after the other.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use arrow::array::RecordBatch;
use object_store::ObjectStore;
use pipeline_engine::stage::{Batch, Port, Position, SourceContext, StageError};
use pipeline_engine::{Counter, Partition, Span, dead_letter};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::fetch::{self, Stopped};
use super::find::{Door, Listing, SharedLedger, connect};
use super::ledger::Entry;
use super::patience::Patience;
use super::place::Place;
use super::queue::{self, Keeping, Notifications};
use super::read::{self, Broken, Chunk, END, OWN_DISK, Read};
use super::{Reading, S3Source};
use crate::decode::{Decoded, Decoder};

/// The partition of the source: its name is part of what sinks record, so it stays.
const PARTITION: &str = "objects";
/// Objects that have been found and wait to be read: more than notifications are held for, so that none waits unhidden.
const OBJECTS_AHEAD: usize = 2_048;
/// Chunks of an object that wait for those before it.
const CHUNKS_AHEAD: usize = 1;

pub(super) async fn run(source: S3Source, cx: &SourceContext) -> Result<(), StageError> {
    let S3Source { stage, place, reading, decoders, poll, queue, state_dir } = source;
    let (ledger, mut pending) = SharedLedger::open(cx.storage(), &state_dir).await?;
    let (partition, after) = cx.resumable_partition(PARTITION).await;
    let after = Mark::of(after, ledger.epoch());
    if after.record == END {
        pending.retain(|entry| entry.number > after.number);
    } else {
        pending.retain(|entry| entry.number >= after.number);
    }
    let patience = Patience::new(cx, &stage);
    let Some(client) = connect(cx, &place, patience.clone()).await? else { return Ok(()) };
    let first = pending.first().map(|entry| entry.number);
    let (found, objects) = mpsc::channel(OBJECTS_AHEAD);
    let door = Arc::new(Door::new(patience.clone(), ledger.clone(), found.clone()));
    let listing =
        Listing { patience: patience.clone(), place: place.clone(), client: client.clone(), door: door.clone(), poll };
    let (asking, keeping) = match queue {
        None => (None, None),
        Some(queue) => {
            let Some(queue) = queue.connect(cx, patience.clone()).await? else { return Ok(()) };
            // What is before the first that is pending is stored; if none is, all are.
            let stored = first.map_or_else(|| ledger.count(), |first| first - 1);
            let (keeping, keeper) = queue::keeper(&stage, queue.clone(), stored);
            let counters = queue::Counters {
                notifications: cx.counter("notifications"),
                ignored: cx.counter("ignored_notifications"),
                unreadable: cx.counter("unreadable_notifications"),
            };
            let asking = Notifications {
                stage: stage.clone(),
                patience: patience.clone(),
                queue,
                place: place.clone(),
                store: client.clone(),
                door: door.clone(),
                counters,
            };
            (Some((asking, keeping)), Some(keeper))
        }
    };
    // Whoever finds objects has it now: when they are gone, no more will come.
    drop(door);
    let finish = CancellationToken::new();
    let keeping =
        keeping.map(|keeper| AbortOnDropHandle::new(tokio::spawn(keeper.run(partition.clone(), finish.clone()))));
    let finding = AbortOnDropHandle::new(tokio::spawn(find(pending, found, listing, asking)));
    let sending = Sending {
        cx,
        partition: &partition,
        epoch: ledger.epoch(),
        after,
        decoders,
        shared: Arc::new(Shared { stage: stage.clone(), patience, place, reading, client }),
        readers: VecDeque::new(),
        objects_read: cx.counter("objects"),
        objects_refused: cx.counter("refused_objects"),
        bytes_read: cx.counter("object_bytes"),
    };
    tokio::select! {
        sent = sending.run(objects, finding) => sent?,
        error = broken(cx, &partition) => return Err(error),
        never = note_done(cx, &partition, &ledger, &stage) => match never? {},
    }
    tokio::select! {
        drained = cx.drain(&partition) => drained?,
        never = note_done(cx, &partition, &ledger, &stage) => match never? {},
    }
    if let Some(keeping) = keeping {
        finish.cancel();
        keeping.await.map_err(|error| StageError::bug("keeping notifications panicked").because(error))?;
    }
    // Without checkpoints, what was stored last is noted now.
    let delivered = partition.progress().borrow().delivered;
    if !cx.takes_checkpoints()
        && let Some(number) = done(delivered)
    {
        ledger.mark_done(number, &stage).await?;
    }
    Ok(())
}

/// Hands over the objects of earlier runs, and then those that are found.
async fn find(
    pending: Vec<Entry>,
    found: mpsc::Sender<Entry>,
    listing: Listing,
    asking: Option<(Notifications, Keeping)>,
) -> Result<(), StageError> {
    for entry in pending {
        if found.send(entry).await.is_err() {
            return Ok(());
        }
    }
    drop(found);
    match asking {
        None => listing.run().await,
        // Beside a queue, a listing is for what its messages have missed.
        Some((asking, keeping)) if listing.poll.is_some() => {
            tokio::try_join!(asking.run(keeping), listing.run()).map(|((), ())| ())
        }
        Some((asking, keeping)) => asking.run(keeping).await,
    }
}

/// A place between records, by the numbers of an object and a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    number: u64,
    record: u64,
}

impl Mark {
    /// The place that a restart reads on after. What another ledger has numbered is behind us.
    fn of(after: Option<Position>, epoch: u64) -> Self {
        match after {
            Some(Position([0, of, number, record])) if of == epoch => Self { number, record },
            _ => Self { number: 0, record: END },
        }
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

/// Notes which objects are stored as a whole, so that no start reads them again.
async fn note_done(
    cx: &SourceContext,
    partition: &Partition,
    ledger: &SharedLedger,
    stage: &str,
) -> Result<Infallible, StageError> {
    let (mut checkpointed, mut progress) = (partition.checkpointed(), partition.progress());
    let (mut noted, mut last) = (0, 0);
    loop {
        let passed = if cx.takes_checkpoints() {
            checkpointed.changed().await.map(|()| *checkpointed.borrow_and_update())
        } else {
            progress.changed().await.map(|()| progress.borrow_and_update().delivered)
        };
        // The other end lives as long as the partition.
        let Ok(passed) = passed else { std::future::pending().await };
        let Some(number) = done(passed) else { continue };
        // Where the newest checkpoint can't be read, the run goes on from the one before it.
        let number = if cx.takes_checkpoints() { std::mem::replace(&mut last, number) } else { number };
        if number > noted {
            ledger.mark_done(number, stage).await?;
            noted = number;
        }
    }
}

/// The last object that is done as a whole at a position.
pub(super) fn done(position: Option<Position>) -> Option<u64> {
    match position {
        Some(Position([_, _, number, END])) => Some(number),
        Some(Position([_, _, number, _])) => number.checked_sub(1).filter(|number| *number > 0),
        None => None,
    }
}

/// What the readers share.
struct Shared {
    stage: String,
    patience: Patience,
    place: Place,
    reading: Reading,
    client: Arc<dyn ObjectStore>,
}

/// An object that is being read.
struct Reader {
    entry: Entry,
    chunks: mpsc::Receiver<Chunk>,
    fetching: AbortOnDropHandle<Result<(), Stopped>>,
    reading: tokio::task::JoinHandle<Read>,
}

struct Sending<'a> {
    cx: &'a SourceContext,
    partition: &'a Partition,
    epoch: u64,
    after: Mark,
    /// Of readers that are not at work.
    decoders: Vec<Decoder>,
    shared: Arc<Shared>,
    /// In the order of their numbers.
    readers: VecDeque<Reader>,
    objects_read: Counter,
    objects_refused: Counter,
    bytes_read: Counter,
}

impl Sending<'_> {
    /// Until there are no more objects, or the source is asked to stop.
    async fn run(
        mut self,
        mut objects: mpsc::Receiver<Entry>,
        finding: AbortOnDropHandle<Result<(), StageError>>,
    ) -> Result<(), StageError> {
        let mut more = true;
        while more || !self.readers.is_empty() {
            tokio::select! {
                biased;
                () = self.cx.stop_requested() => return Ok(()),
                entry = objects.recv(), if more && !self.decoders.is_empty() => match entry {
                    Some(entry) => self.start(entry)?,
                    None => more = false,
                },
                chunk = next_chunk(&mut self.readers) => match chunk {
                    Some(chunk) => self.send_chunk(chunk).await?,
                    None => self.finish().await?,
                },
            }
        }
        finding.await.unwrap_or_else(|error| Err(StageError::bug("finding objects panicked").because(error)))
    }

    fn start(&mut self, entry: Entry) -> Result<(), StageError> {
        let decoder =
            self.decoders.pop().ok_or_else(|| StageError::bug("more objects are read than there are decoders"))?;
        let after = if entry.number == self.after.number { self.after.record } else { 0 };
        let (parts, incoming) = fetch::channel(&entry.object);
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (shared, object) = (self.shared.clone(), entry.object.clone());
        let fetching =
            tokio::spawn(
                async move { fetch::fetch(&shared.client, &shared.place, &object, parts, &shared.patience).await },
            );
        let (shared, object) = (self.shared.clone(), entry.clone());
        let reading = tokio::task::spawn_blocking(move || {
            read::read(&object, incoming, &shared.reading, decoder, after, &sender)
        });
        self.readers.push_back(Reader { entry, chunks, fetching: AbortOnDropHandle::new(fetching), reading });
        Ok(())
    }

    fn position(&self, number: u64, record: u64) -> Position {
        Position([0, self.epoch, number, record])
    }

    async fn send_chunk(&mut self, chunk: Chunk) -> Result<(), StageError> {
        let Some(reader) = self.readers.front() else { return Ok(()) };
        let (number, received_at_us) = (reader.entry.number, reader.entry.object.modified_us);
        let span = Span::new(self.position(number, chunk.first), self.position(number, chunk.last));
        self.send(span, received_at_us, chunk.decoded).await
    }

    /// Sends rows and dead letters under one promise.
    async fn send(&self, span: Span, received_at_us: i64, decoded: Decoded) -> Result<(), StageError> {
        let Decoded { rows, rejected } = decoded;
        let ack = self.partition.open(span, received_at_us);
        let (rows, rejected) = Batch::new(rows.clone(), ack).split(rows, rejected);
        self.cx.send_by_ports([(Port::REJECTED, rejected), (Port::MAIN, rows)]).await
    }

    /// The first object has no more chunks: it is done, or not to be had.
    async fn finish(&mut self) -> Result<(), StageError> {
        let Some(Reader { entry, reading, fetching, .. }) = self.readers.pop_front() else { return Ok(()) };
        let mut read = reading.await.map_err(|error| StageError::bug("reading an object panicked").because(error))?;
        // A reader that gives up first needs no more parts.
        let fetched = if read.broken.as_ref().is_some_and(|broken| !broken.is_missing) {
            Ok(())
        } else {
            fetching.await.map_err(|error| StageError::bug("fetching an object panicked").because(error))?
        };
        let why = match fetched {
            Err(Stopped::Refused(error)) => return Err(error),
            Err(Stopped::Gone) => Some(Broken::missing("object_gone", "it is not there any more")),
            Err(Stopped::Changed) => Some(Broken::missing("object_changed", "it was written anew while it was read")),
            Ok(()) => read.broken.take(),
        };
        match why {
            None => {
                if read.records == 0 {
                    self.pass_over(&entry, &read).await?;
                }
                self.objects_read.increment();
                self.bytes_read.add(entry.object.bytes);
            }
            Some(why) if why.reason == OWN_DISK => {
                return Err(StageError::permanent("an object could not be kept on this disk while it is read")
                    .because(why.detail)
                    .hint("Make room in \"data_dir\", then start again: the object is read then, from where its rows end."));
            }
            Some(why) => self.refuse(&entry, &read, &why).await?,
        }
        self.decoders.push(read.decoder);
        Ok(())
    }

    /// An object without records is done once those before it are.
    async fn pass_over(&self, entry: &Entry, read: &Read) -> Result<(), StageError> {
        let span = Span::new(self.position(entry.number, 1), self.position(entry.number, END));
        let rows = RecordBatch::new_empty(read.decoder.outputs()[0].1.clone());
        let rejected = RecordBatch::new_empty(dead_letter::schema());
        self.send(span, entry.object.modified_us, Decoded { rows, rejected }).await
    }

    async fn refuse(&self, entry: &Entry, read: &Read, why: &Broken) -> Result<(), StageError> {
        let stage = &self.shared.stage;
        let url = format!("s3://{}/{}", self.shared.place.settings.bucket, entry.object.key);
        tracing::warn!(stage, object = url, reason = why.reason, "an object was not read to its end: {}", why.detail);
        self.objects_refused.increment();
        let first = read.records.saturating_add(1).max(1);
        let span = Span::new(self.position(entry.number, first), self.position(entry.number, END));
        let rejected = read::letter(stage, &url, entry, read, why).take();
        let rows = RecordBatch::new_empty(read.decoder.outputs()[0].1.clone());
        self.send(span, entry.object.modified_us, Decoded { rows, rejected }).await
    }
}

/// The next chunk of the first object; `None` where it has no more. Waits where nothing is read. Cancel safe.
async fn next_chunk(readers: &mut VecDeque<Reader>) -> Option<Chunk> {
    match readers.front_mut() {
        Some(reader) => reader.chunks.recv().await,
        None => std::future::pending().await,
    }
}
