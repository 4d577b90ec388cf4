//! What a spool holds, for a person to look at. Changes nothing and takes no lock: works beside a
//! running pipeline, and on a copy.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;

use serde::Serialize;

use super::cursors::{CursorFile, CursorsFound};
use super::error::SpoolError;
use super::quarantine;
use super::survey::{Damage, DamageKind, Surveyed, TornTail, Visitor, survey, trimmed_lsn};
use crate::storage::Storage;

/// What a spool holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The segments, the oldest first.
    pub segments: Vec<SegmentInspection>,
    /// Bytes of all segments.
    pub bytes: u64,
    /// The lsns that the segments answer for; `None` if there are none.
    pub lsns: Option<RangeInclusive<u64>>,
    /// When the oldest record was received, in microseconds since 1970.
    pub oldest_received_at_us: Option<i64>,
    /// The last lsn that each sink's cursor has passed, as last made durable.
    pub cursors: BTreeMap<String, u64>,
    /// The cursors' file can't be read.
    pub cursors_damaged: bool,
    /// Damaged places, at most 1,000 of them.
    pub damage: Vec<Damage>,
    /// How many damaged places there are in all.
    pub damage_total: u64,
    /// How many records they have cost.
    pub records_lost: u64,
    /// Bytes at the end that are no frame: torn, or just being written.
    pub torn_tail: Option<TornTail>,
    /// Copies of damaged bytes that were made when the spool was opened or read.
    pub quarantine: Vec<Quarantined>,
}

/// A copy of damaged bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Its path below the spool's directory. The name says where the bytes came from: file, offset and length.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// What a segment is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentState {
    /// A part of it is damaged.
    Damaged,
    /// The newest: what comes next is written here.
    Open,
    /// A sink has still to read from it.
    Needed,
    /// Every sink is past it. Kept for a while, for a database that is restored from a dump.
    Passed,
}

/// What one segment holds.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentInspection {
    /// The file's name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The life of the spool that it was written in; `None` if its header is damaged.
    pub epoch: Option<u64>,
    /// The lsns that it answers for; `None` if it holds no record.
    pub lsns: Option<RangeInclusive<u64>>,
    /// When its first record was received; `None` if its header is damaged.
    pub opened_at_us: Option<i64>,
    /// Frames and records in it; `None` if it wasn't read.
    pub counts: Option<SegmentCounts>,
    /// What it is there for.
    pub state: SegmentState,
}

/// What was counted in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SegmentCounts {
    /// Undamaged frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
}

/// Reads the headers of all segments and the last segment: quick, however large the spool is.
///
/// # Errors
/// There is no such directory, or it holds another format version.
pub fn inspect(dir: &Path, storage: &dyn Storage) -> Result<Inspection, SpoolError> {
    look(dir, storage, 0, &mut |_, _| ControlFlow::Continue(()))
}

/// Reads everything and compares every checksum.
///
/// # Errors
/// As for [`inspect`]. Damage is no error, it is what was asked for.
pub fn verify(dir: &Path, storage: &dyn Storage) -> Result<Inspection, SpoolError> {
    look(dir, storage, u64::MAX, &mut |_, _| ControlFlow::Continue(()))
}

impl Inspection {
    /// No damage was found.
    pub fn is_sound(&self) -> bool {
        self.damage_total == 0 && !self.cursors_damaged
    }

    /// How many records a cursor has still to pass.
    pub fn lag_records(&self, cursor_lsn: u64) -> u64 {
        self.lsns.as_ref().map_or(0, |lsns| lsns.end().saturating_sub(cursor_lsn))
    }
}

pub(super) fn look(
    dir: &Path,
    storage: &dyn Storage,
    scan_bytes_max: u64,
    visit: &mut Visitor<'_>,
) -> Result<Inspection, SpoolError> {
    let (found, _) = CursorFile::find(storage, dir)?;
    let is_damaged = matches!(found, CursorsFound::Damaged(_) | CursorsFound::Unreadable);
    let file = if let CursorsFound::Good(file) = found { Some(file) } else { None };
    let mut survey = survey(storage, dir, None, file.as_ref(), scan_bytes_max, visit)?;
    // A spool may be without cursors only before anything was trimmed because of them.
    let follows_lsn = survey.segments.first().map_or(0, |segment| segment.follows_lsn);
    let cursors_damaged = is_damaged || file.is_none() && follows_lsn > 0;
    survey.forget_missing_up_to(trimmed_lsn(storage, dir));
    let first_lsn = survey.segments.first().map(|segment| segment.first_lsn);
    let last_lsn = survey.segments.last().map(|segment| segment.last_lsn);
    let cursors = file.map(|file| file.cursors).unwrap_or_default();
    Ok(Inspection {
        bytes: survey.segments.iter().map(|segment| segment.bytes).sum(),
        lsns: first_lsn.zip(last_lsn).map(|(first, last)| first..=last).filter(|lsns| !lsns.is_empty()),
        oldest_received_at_us: survey
            .segments
            .iter()
            .find_map(|segment| segment.header)
            .map(|header| header.opened_at_us),
        segments: segments(survey.segments, &survey.damage, &cursors),
        cursors,
        cursors_damaged,
        damage: survey.damage,
        damage_total: survey.damage_total,
        records_lost: survey.lost_records,
        torn_tail: survey.torn,
        quarantine: quarantine::list(storage, dir),
    })
}

fn segments(found: Vec<Surveyed>, damage: &[Damage], cursors: &BTreeMap<String, u64>) -> Vec<SegmentInspection> {
    let passed_lsn = cursors.values().min().copied().unwrap_or(0);
    let last = found.len().saturating_sub(1);
    let inspected = found.into_iter().enumerate().map(|(index, segment)| {
        let counts = SegmentCounts { frames: segment.frames, records: segment.records };
        let state = if damage.iter().any(|damage| damage.segment == segment.name) {
            SegmentState::Damaged
        } else if index == last {
            SegmentState::Open
        } else if segment.last_lsn <= passed_lsn {
            SegmentState::Passed
        } else {
            SegmentState::Needed
        };
        SegmentInspection {
            name: segment.name,
            bytes: segment.bytes,
            epoch: segment.header.map(|header| header.epoch),
            lsns: Some(segment.first_lsn..=segment.last_lsn).filter(|lsns| !lsns.is_empty()),
            opened_at_us: segment.header.map(|header| header.opened_at_us),
            counts: segment.scanned.then_some(counts),
            state,
        }
    });
    inspected.collect()
}

impl fmt::Display for SegmentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Damaged => "damaged",
            Self::Open => "written to",
            Self::Needed => "still needed",
            Self::Passed => "passed by all sinks",
        })
    }
}

/// A sentence for a person.
impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, bytes, .. } = self;
        match self.kind {
            DamageKind::BadFrames => write!(f, "{bytes} bytes at offset {offset} of {segment} are damaged")?,
            DamageKind::BadHeader => write!(f, "the header of {segment} is damaged; its records are found without it")?,
            DamageKind::Missing => write!(f, "records are gone without a trace at offset {offset} of {segment}")?,
        }
        match &self.lost {
            Some(lost) => write!(f, ": {} lost ({} to {})", count(lost), lost.start(), lost.end()),
            None if self.kind == DamageKind::BadHeader => Ok(()),
            None => f.write_str(": no record is lost"),
        }
    }
}

fn count(lost: &RangeInclusive<u64>) -> String {
    match (lost.end() - lost.start()).saturating_add(1) {
        1 => "1 record is".to_owned(),
        many => format!("{many} records are"),
    }
}

/// A sentence for a person.
impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the last {} bytes of {} are no whole frame: they are being written just now, or a crash tore them off; \
             nothing in them was acknowledged unless the disk has damaged them",
            self.bytes, self.segment
        )
    }
}
