//! Opening a spool: what is there, what is damaged, and where the next record goes.
//!
//! No file is changed. A torn tail is passed over by the next segment, which says what it follows;
//! damaged bytes are copied to `quarantine/`, reported, and skipped by every reader. The last frame
//! of a log that wasn't closed is written once more into a fresh segment: it can be read, but
//! nobody knows whether it came to the disk or only to the page cache (after a failed sync the
//! kernel shows bytes that it will never write).

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::cursors::{self, CursorFile, CursorTable, CursorsFound};
use super::error::SpoolError;
use super::frame::EncodedFrame;
use super::log::{Log, SegmentEntry, Shared, SpoolCounters, SpoolStatus};
use super::options::SpoolOptions;
use super::quarantine;
use super::segment;
use super::survey::{Damage, DamageKind, Survey, TornTail, survey};
use super::worker;
use super::writer::Intake;
use crate::storage::Storage;

/// How often it is looked whether what can't be read can be after all, with waits of 3 s in all: what a disk
/// that was reset takes, and little beside the operator whom a damaged spool needs.
const LOOKS_MAX: u32 = 7;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What opening a spool found.
#[derive(Debug, Clone, Default)]
pub struct RecoveryReport {
    /// Segments there are.
    pub segments: usize,
    /// Bytes they take.
    pub bytes: u64,
    /// Bytes of the oldest segments that will be checked only when they are read.
    pub bytes_unscanned: u64,
    /// The last durable lsn; 0 before the first.
    pub durable_lsn: u64,
    /// The lsn of the next record.
    pub next_lsn: u64,
    /// Bytes passed over at the very end.
    pub torn_tail: Option<TornTail>,
    /// Damaged places, at most 1,000 of them.
    pub damage: Vec<Damage>,
    /// How many damaged places there are in all.
    pub damage_total: u64,
    /// How many records they have cost.
    pub records_lost: u64,
    /// The cursors' file was damaged (a copy of it is kept) or is gone: cursors start at the oldest
    /// record that is held.
    pub cursors_damaged: bool,
    /// Unfinished files of an earlier run that were removed.
    pub leftovers_removed: usize,
}

impl RecoveryReport {
    /// Nothing was lost or damaged, as after any crash of the process or the machine alone.
    pub fn is_sound(&self) -> bool {
        self.damage_total == 0 && !self.cursors_damaged
    }
}

impl fmt::Display for RecoveryReport {
    /// One line for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} segments of {} bytes, durable up to {}", self.segments, self.bytes, self.durable_lsn)?;
        if let Some(torn) = &self.torn_tail {
            write!(f, "; {} torn bytes passed over at the end", torn.bytes)?;
        }
        if self.damage_total > 0 {
            write!(f, "; {} damaged places, {} records lost", self.damage_total, self.records_lost)?;
        }
        if self.cursors_damaged {
            f.write_str("; the cursors are damaged or gone, sinks start at the oldest record")?;
        }
        Ok(())
    }
}

/// Opens the log in a directory that nobody else has open.
pub(crate) fn recover(
    dir: &Path,
    options: SpoolOptions,
    storage: Arc<dyn Storage>,
    now_us: i64,
) -> Result<(Log, RecoveryReport), SpoolError> {
    options.check()?;
    storage.create_dir(dir).map_err(SpoolError::io("create", dir))?;
    let lock = storage.lock(&dir.join("lock")).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => SpoolError::Locked { dir: dir.to_owned() },
        _ => SpoolError::io("lock", dir.join("lock"))(error),
    })?;
    // Names that are visible after a crash of the process alone may not be durable yet.
    storage.sync_dir(dir).map_err(SpoolError::io("sync", dir))?;
    let identity = segment::identity(&options.pipeline, &options.source);
    let Found { cursors: found, mut survey } = look_until_read(&*storage, dir, identity, options.scan_bytes_max)?;
    if let CursorsFound::Damaged(bytes) = &found {
        quarantine::keep_file(&*storage, dir, "cursors", bytes);
    }
    let known = if let CursorsFound::Good(file) = &found { Some(file.clone()) } else { None };
    let leftovers_removed = remove_leftovers(&*storage, dir, known.as_ref().map_or(0, |file| file.trimmed_lsn))?;
    refuse_foreign(&survey, dir, &options, identity)?;
    quarantine_all(&*storage, dir, &mut survey.damage);

    let before_first_lsn = survey.segments.first().map_or(0, |segment| segment.follows_lsn);
    // A spool may be without cursors only before anything was trimmed because of them.
    let cursors_damaged = match found {
        CursorsFound::Good(_) => false,
        CursorsFound::Absent => before_first_lsn > 0,
        CursorsFound::Damaged(_) | CursorsFound::Unreadable => true,
    };
    let cursors_read = known.is_some();
    let cursors = known.unwrap_or(CursorFile { trimmed_lsn: before_first_lsn, ..CursorFile::default() });
    let last_lsn = survey.segments.last().map_or(0, |segment| segment.last_lsn).max(cursors.highest_lsn());
    let durable_lsn = survey.unproven.as_ref().map_or(last_lsn, |unproven| unproven.head.first_lsn - 1);
    // Torn bytes hold fewer records than bytes. If they were durable once, a sink may know their
    // lsns: none of them is given to another record.
    let torn_bytes = survey.torn.as_ref().map_or(0, |torn| torn.bytes);
    let next_lsn = (last_lsn + 1 + torn_bytes).max(cursors.next_lsn);
    let shared = Arc::new(Shared {
        identity,
        epoch: epoch(&survey, &cursors, now_us),
        counters: SpoolCounters::default(),
        durable: watch::Sender::new(durable_lsn),
        status: watch::Sender::new(SpoolStatus::Running),
        cursors: CursorTable::new(cursors, !cursors_read),
        intake: Intake::new(next_lsn, survey.last_received_at_us),
        segments: Mutex::new(index(&survey)),
        dir: dir.to_owned(),
        storage,
        options,
        _lock: lock,
    });
    // The file is also the second place that knows the epoch. If it can't be written, the keeper goes
    // on trying.
    drop(cursors::trim(&shared, i64::MIN));
    shared.counters.damage.add(survey.damage_total);
    shared.counters.records_lost.add(survey.lost_records);
    let report = RecoveryReport {
        segments: survey.segments.len(),
        bytes: shared.bytes(),
        bytes_unscanned: survey.unscanned_bytes,
        durable_lsn: last_lsn,
        next_lsn,
        torn_tail: survey.torn,
        damage: survey.damage,
        damage_total: survey.damage_total,
        records_lost: survey.lost_records,
        cursors_damaged,
        leftovers_removed,
    };
    let unproven = survey.unproven.map(|unproven| EncodedFrame { bytes: unproven.bytes, head: unproven.head });
    Ok((Log::new(shared, unproven), report))
}

/// What is on the disk.
struct Found {
    cursors: CursorsFound,
    survey: Survey,
}

/// Looks again while something can't be read. A disk that is away comes back; a bad sector stays bad, and is
/// damage in the end.
fn look_until_read(storage: &dyn Storage, dir: &Path, identity: u64, scan_bytes_max: u64) -> Result<Found, SpoolError> {
    let mut wait = LOOK_AGAIN_AFTER;
    for _ in 1..LOOKS_MAX {
        match look(storage, dir, identity, scan_bytes_max) {
            Ok((found, true)) => return Ok(found),
            Ok((_, false)) | Err(SpoolError::Io { what: "read", .. }) => {}
            Err(error) => return Err(error),
        }
        tracing::warn!("not all of the spool in \"{}\" can be read; trying again in {wait:?}", dir.display());
        worker::pause(wait);
        wait *= 2;
    }
    look(storage, dir, identity, scan_bytes_max).map(|(found, _)| found)
}

/// What is on the disk, and whether all of it could be read.
fn look(storage: &dyn Storage, dir: &Path, identity: u64, scan_bytes_max: u64) -> Result<(Found, bool), SpoolError> {
    let (cursors, cursors_read) = CursorFile::find(storage, dir)?;
    let known = if let CursorsFound::Good(file) = &cursors { Some(file) } else { None };
    let nobody = &mut |_, _| ControlFlow::Continue(());
    let survey = survey(storage, dir, Some(identity), known, scan_bytes_max, nobody)?;
    let all_read = cursors_read && !survey.reads_failed;
    Ok((Found { cursors, survey }, all_read))
}

/// Files that never got their name, and segments that were being trimmed.
fn remove_leftovers(storage: &dyn Storage, dir: &Path, trimmed_lsn: u64) -> Result<usize, SpoolError> {
    let names = storage.list(dir).map_err(SpoolError::io("list", dir))?;
    let trimmed = |name: &str| segment::first_lsn_in(name).is_some_and(|first_lsn| first_lsn <= trimmed_lsn);
    let leftovers = names.iter().filter(|name| name.ends_with(".tmp") || trimmed(name));
    // One that can't be removed now is passed over, and found again at the next start.
    Ok(leftovers.filter(|name| storage.remove(&dir.join(name)).is_ok()).count())
}

fn refuse_foreign(survey: &Survey, dir: &Path, options: &SpoolOptions, identity: u64) -> Result<(), SpoolError> {
    let foreign = |header: &segment::Header| header.identity != identity;
    match survey.segments.iter().find(|segment| segment.header.as_ref().is_some_and(foreign)) {
        Some(segment) => Err(SpoolError::Foreign {
            segment: dir.join(&segment.name),
            pipeline: options.pipeline.clone(),
            source_name: options.source.clone(),
        }),
        None => Ok(()),
    }
}

fn quarantine_all(storage: &dyn Storage, dir: &Path, damage: &mut [Damage]) {
    for place in damage {
        if place.kind != DamageKind::Missing {
            let range = place.offset..place.offset + place.bytes;
            let kept = quarantine::keep_range(storage, dir, &place.segment, range);
            (place.quarantined, place.known) = (kept.path, kept.known);
        }
    }
}

/// The life of this directory. A spool that starts from nothing counts lsns from 1 again; its later
/// epoch keeps its positions apart from, and after, those that a sink may remember.
fn epoch(survey: &Survey, cursors: &CursorFile, now_us: i64) -> u64 {
    let headers = survey.segments.iter().filter_map(|segment| segment.header);
    let known = headers.map(|header| header.epoch).max().unwrap_or(0).max(cursors.epoch);
    if known > 0 { known } else { u64::try_from(now_us).unwrap_or(0).max(1) }
}

fn index(survey: &Survey) -> Vec<SegmentEntry> {
    let mut index: Vec<SegmentEntry> = survey
        .segments
        .iter()
        .map(|segment| SegmentEntry {
            first_lsn: segment.first_lsn,
            follows_lsn: segment.follows_lsn,
            last_lsn: segment.last_lsn,
            readable_bytes: segment.readable_bytes,
            bytes: segment.bytes,
            opened_at_us: segment.opened_at_us,
            active: false,
        })
        .collect();
    if let (Some(last), Some(unproven)) = (index.last_mut(), &survey.unproven) {
        last.last_lsn = unproven.head.first_lsn - 1;
        last.readable_bytes = unproven.offset;
    }
    index
}
