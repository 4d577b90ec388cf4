//! What bounds batches had, durable before any of them is sent: a spool of this source's own, with a record for each
//! batch, beside the roster of shards.
//!
//! A bound is let go of once everything up to it is stored in every sink, and the checkpoint before says so too: a
//! checkpoint that is damaged is replaced by that one. Where the disk has lost bounds, messages travel alone until what
//! arrives can't have been sent before ([`Recorded::alone_until_us`]).
//!
//! **Danger.** Where the folder is lost, the source is a new reader: it starts at `start`, under names of partitions that
//! no sink knows. What was stored already is then stored again, unless a key of the sink knows it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pipeline_engine::spool::{Record, RecoveryReport, Replay, Spool, SpoolError, SpoolOptions, SpoolWriter};
use pipeline_engine::stage::{DiskBounds, SourceContext, StageError};
use pipeline_engine::{Backoff, Position, Span, now_us};

use super::roster::{Entry, Origin, Roster, RosterFile};
use crate::kinesis::{Shard, Summary};

/// The only cursor of the spool.
const CURSOR: &str = "checkpoint";
/// The spool's folder in that of the source.
const FOLDER: &str = "batches";
/// A run that has just ended may still hold the lock for so many tenths of a second.
const LOCKED_ATTEMPTS: u32 = 20;
/// AWS refuses requests by a clock that is further off than this: what arrives so much later than an earlier run ended
/// can't have been sent by it, whatever the clocks.
const CLOCKS_APART_US: i64 = 5 * 60 * 1_000_000;
/// What bounds of batches may take on disk: ten million of them.
pub(super) const DISK_BOUNDS: DiskBounds = DiskBounds { bytes_max: 1 << 30, free_bytes_min: 64 << 20 };
/// Two positions.
const SPAN_BYTES: usize = 64;

/// The journal of a source, open.
pub(super) struct Journal {
    spool: Spool,
    writer: tokio::sync::Mutex<SpoolWriter>,
    file: RosterFile,
    state: Mutex<State>,
    alone_until_us: i64,
}

struct State {
    roster: Roster,
    /// Of each shard the batches whose bounds may be needed, the oldest first.
    bounds: BTreeMap<String, VecDeque<Bounds>>,
    roster_changed: bool,
    /// Bounds are being appended behind this lsn, and not among `bounds` yet.
    appending_after: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    lsn: u64,
    span: Span,
}

/// What is known of a shard from earlier runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) origin: Origin,
    /// Everything up to here is stored in every sink.
    pub(super) passed: Option<Position>,
    /// What may have been sent since, in order.
    pub(super) spans: Vec<Span>,
    /// Other bounds may have been lost for messages that arrived before this.
    pub(super) alone_until_us: i64,
}

impl Journal {
    /// Opens the journal in the folder of the source, for a stream; `None` if the source is asked to stop first. A disk
    /// without room is waited for.
    ///
    /// # Errors
    /// The folder can't be used, is another process's, or what is in it is another source's or damaged.
    pub(super) async fn open(
        cx: &SourceContext,
        dir: PathBuf,
        options: SpoolOptions,
        stream: &str,
        summary: &Summary,
    ) -> Result<Option<Self>, StageError> {
        let file = RosterFile { storage: cx.storage(), dir: dir.clone() };
        let loading = file.clone();
        let kept = off_the_runtime(move || loading.load()).await??;
        let options = SpoolOptions {
            segment_bytes: 4 << 20,
            bytes_max: DISK_BOUNDS.bytes_max,
            free_space_min: DISK_BOUNDS.free_bytes_min,
            retain: Duration::ZERO,
            group_linger: Duration::from_millis(2),
            ..options
        };
        let Some((spool, writer, report)) = open_spool(cx, &dir.join(FOLDER), &options).await? else { return Ok(None) };
        let roster = match kept {
            Some(roster) if roster.stream == stream && roster.stream_created_at_us == summary.created_at_us => roster,
            Some(other) => {
                let (was, created_at_us) = (other.stream, summary.created_at_us);
                tracing::warn!(stream, was, created_at_us, "another stream than the last run read: it is read anew");
                Roster::new(stream, created_at_us)
            }
            None => Roster::new(stream, summary.created_at_us),
        };
        let (bounds, is_whole) = read_back(&spool, report.durable_lsn, &roster.generation).await?;
        let alone_until_us = if is_whole && report.is_sound() { i64::MIN } else { now_us() + CLOCKS_APART_US };
        let state = Mutex::new(State { roster, bounds, roster_changed: true, appending_after: None });
        Ok(Some(Self { spool, writer: tokio::sync::Mutex::new(writer), file, state, alone_until_us }))
    }

    /// What sets the partitions of this data directory apart from those of any other.
    pub(super) fn generation(&self) -> String {
        self.lock().roster.generation.clone()
    }

    /// Whether nothing was ever read of the stream.
    pub(super) fn is_first(&self) -> bool {
        self.lock().roster.shards.is_empty()
    }

    /// Takes shards in that were not known, each with its origin, and forgets those that the stream has forgotten.
    /// Durable on return.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) async fn enrol(&self, listed: &[Shard], origin: impl Fn(&Shard) -> Origin) -> Result<(), StageError> {
        {
            let mut state = self.lock();
            let State { roster, bounds, roster_changed, .. } = &mut *state;
            let known = roster.shards.len();
            let is_listed = |id: &String| listed.iter().any(|shard| shard.id == *id);
            roster.shards.retain(|id, _| is_listed(id));
            bounds.retain(|id, _| is_listed(id));
            *roster_changed |= roster.shards.len() != known;
            for shard in listed {
                roster.shards.entry(shard.id.clone()).or_insert_with(|| {
                    *roster_changed = true;
                    Entry { origin: origin(shard), passed: None }
                });
            }
        }
        self.keep_roster().await
    }

    /// What is known of a shard that was enrolled.
    pub(super) fn recorded(&self, shard: &str) -> Option<Recorded> {
        let state = self.lock();
        let entry = state.roster.shards.get(shard)?;
        let bounds = state.bounds.get(shard).into_iter().flatten();
        Some(Recorded {
            origin: entry.origin,
            passed: entry.passed,
            spans: bounds.map(|bounds| bounds.span).collect(),
            alone_until_us: self.alone_until_us,
        })
    }

    /// Puts bounds of batches on record. Durable on return, and not before: a full disk is waited for.
    ///
    /// Cancel safe: what is on record of batches that are never sent is used all the same when they are read again.
    ///
    /// # Errors
    /// Ours: the journal is closed.
    pub(super) async fn record(&self, shard: &str, spans: &[Span]) -> Result<(), StageError> {
        let broken = |error| StageError::bug("the journal of batches took nothing").because(error);
        let mut last_lsn = 0;
        {
            let mut writer = self.writer.lock().await;
            let topic = Bytes::from(format!("{}/{shard}", self.generation()));
            self.lock().appending_after = Some(*self.spool.durable().borrow());
            for span in spans {
                let record = Record {
                    received_at_us: now_us(),
                    flags: 0,
                    mark: 0,
                    topic: topic.clone(),
                    payload: encode(*span),
                };
                last_lsn = writer.append(&record).await.map_err(broken)?;
                let bounds = Bounds { lsn: last_lsn, span: *span };
                self.lock().bounds.entry(shard.to_owned()).or_default().push_back(bounds);
            }
            self.lock().appending_after = None;
        }
        let mut durable = self.spool.durable();
        let reached = durable.wait_for(|lsn| *lsn >= last_lsn).await;
        reached.map(drop).map_err(|error| StageError::bug("the journal of batches has ended").because(error))
    }

    /// Everything of a shard up to this position is stored in every sink, and no restart asks for it again.
    pub(super) fn passed(&self, shard: &str, position: Position) {
        let mut state = self.lock();
        let State { roster, bounds, roster_changed, .. } = &mut *state;
        if let Some(entry) = roster.shards.get_mut(shard)
            && entry.passed < Some(position)
        {
            entry.passed = Some(position);
            *roster_changed = true;
            if let Some(bounds) = bounds.get_mut(shard) {
                while bounds.front().is_some_and(|oldest| oldest.span.last <= position) {
                    bounds.pop_front();
                }
            }
        }
    }

    /// Makes durable what has passed, and lets go of the bounds that nobody needs.
    ///
    /// # Errors
    /// The disk refuses; nothing is let go of then.
    pub(super) async fn settle(&self) -> Result<(), StageError> {
        if !self.lock().roster_changed {
            return Ok(());
        }
        // Before the roster is kept, and what is durable first of all, since more may come meanwhile.
        let done_with = {
            let durable = *self.spool.durable().borrow();
            let state = self.lock();
            let oldest = state.bounds.values().filter_map(|bounds| Some(bounds.front()?.lsn - 1)).min();
            durable.min(oldest.unwrap_or(durable)).min(state.appending_after.unwrap_or(durable))
        };
        self.keep_roster().await?;
        self.spool.cursors().advance(CURSOR, done_with);
        Ok(())
    }

    async fn keep_roster(&self) -> Result<(), StageError> {
        let roster = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.roster_changed) {
                return Ok(());
            }
            state.roster.clone()
        };
        let file = self.file.clone();
        let kept = off_the_runtime(move || file.keep(&roster)).await?;
        kept.map_err(|error| {
            self.lock().roster_changed = true;
            StageError::transient("could not keep the roster of shards").because(error)
        })
    }

    /// Waits for the disk and lets go of the folder.
    ///
    /// # Errors
    /// Ours: closing it panicked.
    pub(super) async fn close(self) -> Result<(), StageError> {
        off_the_runtime(move || drop(self)).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open_spool(
    cx: &SourceContext,
    dir: &std::path::Path,
    options: &SpoolOptions,
) -> Result<Option<(Spool, SpoolWriter, RecoveryReport)>, StageError> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut backoff = Backoff::default();
    let mut locked = 0;
    loop {
        let (place, settings, storage) = (dir.to_owned(), options.clone(), cx.storage());
        let wait = match off_the_runtime(move || Spool::open(&place, settings, storage)).await? {
            Ok(opened) => return Ok(Some(opened)),
            Err(SpoolError::Io { source, .. }) if matches!(source.kind(), StorageFull | QuotaExceeded) => {
                let wait = backoff.next_wait();
                tracing::warn!("the disk of \"{}\" is full; trying again in {} ms", dir.display(), wait.as_millis());
                wait
            }
            Err(SpoolError::Locked { .. }) if locked < LOCKED_ATTEMPTS => {
                locked += 1;
                Duration::from_millis(100)
            }
            Err(error) => {
                return Err(StageError::permanent("can't use the journal of batches").because(error).hint(
                    "Is this pipeline running already? Else set `data_dir` in [pipeline] to a folder on a local disk that \
                     this user may write to.",
                ));
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cx.stop_requested() => return Ok(None),
        }
    }
}

/// The bounds that may be needed, by shard, and whether none of them is lost.
async fn read_back(
    spool: &Spool,
    durable_lsn: u64,
    generation: &str,
) -> Result<(BTreeMap<String, VecDeque<Bounds>>, bool), StageError> {
    let mut bounds: BTreeMap<String, VecDeque<Bounds>> = BTreeMap::new();
    let mut is_whole = true;
    let mut at = spool.cursors().register(CURSOR);
    let mut reader = spool.reader(at + 1);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while at < durable_lsn {
        match reader.next().await {
            Ok(Some(Replay::Frame(frame))) => {
                at = frame.last_lsn();
                for (lsn, record) in (frame.first_lsn..).zip(&frame.records) {
                    match decode(record, generation) {
                        Some((shard, span)) => bounds.entry(shard).or_default().push_back(Bounds { lsn, span }),
                        // Of a stream that is read no more.
                        None => continue,
                    }
                }
            }
            Ok(Some(Replay::Lost(lsns))) => {
                tracing::error!("{lsns:?}: bounds of batches are lost; messages travel alone until they are passed");
                (at, is_whole) = (*lsns.end(), false);
            }
            Ok(None) => break,
            // At the tenth attempt it is taken for damaged.
            Err(error) => {
                tracing::warn!(%error, "the journal of batches can't be read; trying again");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
    Ok((bounds, is_whole))
}

fn encode(span: Span) -> Bytes {
    let words = span.first.0.into_iter().chain(span.last.0);
    words.flat_map(u64::to_be_bytes).collect::<Vec<u8>>().into()
}

fn decode(record: &Record, generation: &str) -> Option<(String, Span)> {
    let topic = std::str::from_utf8(&record.topic).ok()?;
    let shard = topic.strip_prefix(generation)?.strip_prefix('/')?;
    let bytes: &[u8; SPAN_BYTES] = record.payload.as_ref().try_into().ok()?;
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap_or_default()));
    let mut position = || Position(std::array::from_fn(|_| words.next().unwrap_or_default()));
    let (first, last) = (position(), position());
    (first <= last).then(|| (shard.to_owned(), Span::new(first, last)))
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|panic| StageError::bug("keeping the journal of batches panicked").because(panic))
}

#[cfg(test)]
mod tests;
