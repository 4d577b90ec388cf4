//! How far each sink has come, and the trimming of what all of them have passed.
//!
//! Cursors are hints: what a sink has stored is known to the sink's own transaction. They are made
//! durable now and then, by a thread of their own so that no group commit waits for it; and always
//! before a segment is deleted because of them. A crash between the two leaves a segment too many,
//! never one too few.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::error::SpoolError;
use super::frame::LSN_MAX;
use super::log::{SegmentEntry, Shared};
use super::segment::{self, HeaderFound, segment_name};
use super::worker::{Next, Wake, Work, now};
use crate::stats::now_us;
use crate::storage::{self, Storage};

const FILE: &str = "cursors";
const FORMAT: u32 = 1;
/// Thousands of long names; anything above is no file of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The cursors of a spool. Clones move the same ones.
#[derive(Clone)]
pub struct Cursors {
    shared: Arc<Shared>,
}

impl Cursors {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The cursor of that name: the last lsn it has passed. A new one stands before the oldest
    /// record that is held, and keeps that from being trimmed.
    pub fn register(&self, name: &str) -> u64 {
        let oldest = self.shared.segments().first().map(|segment| segment.first_lsn - 1);
        let start = oldest.unwrap_or_else(|| self.shared.durable_lsn());
        let mut state = self.shared.cursors.lock();
        if let Some(lsn) = state.values.get(name) {
            return *lsn;
        }
        state.changed = true;
        *state.values.entry(name.to_owned()).or_insert(start)
    }

    /// Everything up to and including `lsn` is done with. Never moves back; returns at once.
    pub fn advance(&self, name: &str, lsn: u64) {
        let lsn = lsn.min(self.shared.durable_lsn());
        let mut state = self.shared.cursors.lock();
        let cursor = state.values.entry(name.to_owned()).or_insert(0);
        if *cursor < lsn {
            *cursor = lsn;
            state.changed = true;
            if state.wants_room {
                state.poked = true;
                self.shared.cursors.wake.call();
            }
        }
    }

    /// Puts the cursor back, where the sink's own record says that it has come less far: a database
    /// restored from a dump.
    pub fn rewind(&self, name: &str, lsn: u64) {
        let mut state = self.shared.cursors.lock();
        if let Some(cursor) = state.values.get_mut(name) {
            *cursor = lsn.min(*cursor);
            state.changed = true;
        }
    }

    /// Forgets the cursor of a sink that is no longer part of the pipeline.
    pub fn retire(&self, name: &str) {
        let mut state = self.shared.cursors.lock();
        if state.values.remove(name).is_some() {
            state.changed = true;
        }
    }

    /// All cursors: the last lsn that each has passed.
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.shared.cursors.lock().values.clone()
    }
}

/// The cursors as they are in memory.
pub(crate) struct CursorTable {
    state: Mutex<CursorState>,
    wake: Wake,
}

#[derive(Default)]
pub(crate) struct CursorState {
    pub values: BTreeMap<String, u64>,
    /// The last lsn of the last segment that was ever trimmed.
    pub trimmed_lsn: u64,
    changed: bool,
    /// The writer is out of room: retention is given up for it.
    wants_room: bool,
    poked: bool,
    stopping: bool,
}

impl CursorTable {
    /// `changed`: they aren't on disk as they are here.
    pub fn new(file: CursorFile, changed: bool) -> Self {
        let state =
            CursorState { values: file.cursors, trimmed_lsn: file.trimmed_lsn, changed, ..CursorState::default() };
        Self { state: Mutex::new(state), wake: Wake::default() }
    }

    fn lock(&self) -> MutexGuard<'_, CursorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a segment to be trimmed even if it is still retained.
    pub fn request_room(&self) {
        let mut state = self.lock();
        (state.wants_room, state.poked) = (true, true);
        self.wake.call();
    }

    /// Takes back [`CursorTable::request_room`].
    pub fn found_room(&self) {
        self.lock().wants_room = false;
    }

    pub fn stop(&self) {
        self.lock().stopping = true;
        self.wake.call();
    }
}

/// What the keeper thread does: keeps the cursors durable and the spool trimmed until
/// [`CursorTable::stop`], and once more then.
pub(crate) struct Keeping {
    shared: Arc<Shared>,
    next: Instant,
}

impl Keeping {
    pub fn new(shared: Arc<Shared>) -> Self {
        let next = now() + shared.options.cursor_interval;
        Self { shared, next }
    }
}

impl Work for Keeping {
    fn turn(&mut self) -> Next {
        let mut state = self.shared.cursors.lock();
        let left = self.next.saturating_duration_since(now());
        if !state.poked && !state.stopping && !left.is_zero() {
            return Next::WaitAtMost(left);
        }
        state.poked = false;
        let stopping = state.stopping;
        drop(state);
        if let Err(error) = trim(&self.shared, now_us()) {
            // Tried again at the next interval: until then the spool holds more than it must.
            tracing::warn!(%error, "the spool's cursors could not be made durable, or a segment not deleted");
        }
        if stopping {
            return Next::End;
        }
        self.next = now() + self.shared.options.cursor_interval;
        Next::WaitAtMost(self.shared.options.cursor_interval)
    }

    fn wake(&self) -> &Wake {
        &self.shared.cursors.wake
    }
}

/// Makes the cursors durable if they have moved, then deletes the segments that nobody needs.
pub(crate) fn trim(shared: &Shared, now_us: i64) -> io::Result<()> {
    let mut state = shared.cursors.lock();
    let passed_lsn = state.values.values().copied().min();
    let needless = needless_segments(shared, passed_lsn.unwrap_or(0), now_us, state.wants_room);
    let trimmed_lsn = needless.last().map_or(state.trimmed_lsn, |segment| segment.last_lsn.max(state.trimmed_lsn));
    let write = state.changed || !needless.is_empty();
    let file = CursorFile {
        format: FORMAT,
        epoch: shared.epoch,
        trimmed_lsn,
        next_lsn: shared.intake.next_lsn(),
        cursors: state.values.clone(),
    };
    // Taken back below if it fails; a cursor that moves meanwhile sets it again.
    state.changed = false;
    drop(state);

    #[cfg(test)]
    if shared.options.has_planted(super::options::PlantedBug::UnlinkBeforeCursor) {
        delete(shared, &needless)?;
        return file.store(&*shared.storage, &shared.dir);
    }
    if write {
        if let Err(error) = file.store(&*shared.storage, &shared.dir) {
            shared.cursors.lock().changed = true;
            return Err(error);
        }
        shared.cursors.lock().trimmed_lsn = trimmed_lsn;
    }
    delete(shared, &needless)
}

/// The oldest segments, as far as every cursor has passed them and they aren't retained. When room
/// is wanted, one of those that are.
fn needless_segments(shared: &Shared, passed_lsn: u64, now_us: i64, wants_room: bool) -> Vec<SegmentEntry> {
    let retain_us = i64::try_from(shared.options.retain.as_micros()).unwrap_or(i64::MAX);
    let segments = shared.segments();
    let mut needless = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        // Its last record came before the next segment's first.
        let retired = segments.get(index + 1).is_some_and(|next| next.opened_at_us.saturating_add(retain_us) <= now_us);
        let passed = !segment.active && segment.last_lsn <= passed_lsn;
        if !(passed && (retired || wants_room && needless.is_empty())) {
            break;
        }
        needless.push(*segment);
    }
    needless
}

fn delete(shared: &Shared, needless: &[SegmentEntry]) -> io::Result<()> {
    for segment in needless {
        // Out of the index first: a reader must not be sent to a file that is gone.
        shared.segments().retain(|other| other.first_lsn != segment.first_lsn);
        match shared.storage.remove(&shared.dir.join(segment_name(segment.first_lsn))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                shared.segments().insert(0, *segment);
                return Err(error);
            }
            _ => shared.counters.segments_trimmed.increment(),
        }
    }
    if !needless.is_empty() {
        shared.intake.retry();
    }
    Ok(())
}

/// The cursors as they are on disk: one line of JSON, and one with its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CursorFile {
    pub format: u32,
    pub epoch: u64,
    pub trimmed_lsn: u64,
    /// All below have been given, or must not be: what the last segment knew, if that is trimmed.
    pub next_lsn: u64,
    pub cursors: BTreeMap<String, u64>,
}

/// What the start found of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CursorsFound {
    Good(CursorFile),
    Absent,
    Damaged(Vec<u8>),
    /// They are there, and the disk does not give them.
    Unreadable,
}

impl Default for CursorFile {
    fn default() -> Self {
        Self { format: FORMAT, epoch: 0, trimmed_lsn: 0, next_lsn: 0, cursors: BTreeMap::new() }
    }
}

impl CursorFile {
    fn store(&self, storage: &dyn Storage, dir: &Path) -> io::Result<()> {
        storage::replace(storage, dir, FILE, &[&self.encode()]).map(drop)
    }

    /// A record of this lsn was durable when the file was written, and so were all before it.
    pub fn highest_lsn(&self) -> u64 {
        self.cursors.values().copied().fold(self.trimmed_lsn, u64::max)
    }

    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("numbers and text are JSON");
        format!("{json}\n{:08x}\n", crc32fast::hash(json.as_bytes())).into_bytes()
    }

    /// The cursors of a spool. Those of another life of the directory are damaged: with them, segments that
    /// nobody has read would count as trimmed. And whether all that tells of that could be read.
    pub fn find(storage: &dyn Storage, dir: &Path) -> Result<(CursorsFound, bool), SpoolError> {
        let found = Self::load(storage, dir);
        let CursorsFound::Good(file) = found else {
            let was_read = found != CursorsFound::Unreadable;
            return Ok((found, was_read));
        };
        let (newest_epoch, headers_read) = newest_epoch(storage, dir)?;
        match newest_epoch {
            Some(epoch) if epoch != file.epoch => Ok((CursorsFound::Damaged(file.encode()), headers_read)),
            _ => Ok((CursorsFound::Good(file), headers_read)),
        }
    }

    fn load(storage: &dyn Storage, dir: &Path) -> CursorsFound {
        let file = match storage.open(&dir.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return CursorsFound::Absent,
            Err(_) => return CursorsFound::Unreadable,
        };
        let Ok(bytes) = file.bytes() else { return CursorsFound::Unreadable };
        let read = segment::read_range(&*file, 0..bytes.min(FILE_BYTES_MAX));
        match Self::parse(&read.bytes) {
            _ if read.failure.is_some() => CursorsFound::Unreadable,
            Some(file) => CursorsFound::Good(file),
            None => CursorsFound::Damaged(read.bytes),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (json, crc) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split_once('\n')?;
        if crc != format!("{:08x}", crc32fast::hash(json.as_bytes())) {
            return None;
        }
        let file: Self = serde_json::from_str(json).ok()?;
        let possible = file.highest_lsn().max(file.next_lsn) <= LSN_MAX;
        (file.format == FORMAT && possible).then_some(file)
    }
}

/// What the newest header says that can be read; and whether all newer ones could be.
fn newest_epoch(storage: &dyn Storage, dir: &Path) -> Result<(Option<u64>, bool), SpoolError> {
    let mut names = storage.list(dir).map_err(SpoolError::io("list", dir))?;
    names.retain(|name| segment::first_lsn_in(name).is_some());
    names.sort();
    let mut all_read = true;
    for name in names.iter().rev() {
        let path = dir.join(name);
        let file = match storage.open(&path) {
            Ok(file) => file,
            // Trimmed since it was listed, by the pipeline that we look at from beside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SpoolError::io("open", path)(error)),
        };
        let (header, was_read) = segment::read_header(&*file);
        all_read &= was_read;
        if let HeaderFound::Good(header) = header {
            return Ok((Some(header.epoch), all_read));
        }
    }
    Ok((None, all_read))
}
