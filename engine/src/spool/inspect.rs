//! What a spool holds, for a person to look at. Changes nothing and takes no lock: works beside a
//! running pipeline, and on a copy.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use super::cursors::{CursorFile, CursorsFound};
use super::error::SpoolError;
use crate::storage::Storage;
use super::survey::{Damage, Surveyed, TornTail, survey};

/// What a spool holds.
#[derive(Debug, Clone)]
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
}

/// What one segment holds.
#[derive(Debug, Clone)]
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
}

/// What was counted in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    look(dir, storage, 0)
}

/// Reads everything and compares every checksum.
///
/// # Errors
/// As for [`inspect`]. Damage is no error, it is what was asked for.
pub fn verify(dir: &Path, storage: &dyn Storage) -> Result<Inspection, SpoolError> {
    look(dir, storage, u64::MAX)
}

impl Inspection {
    /// No damage was found.
    pub fn is_sound(&self) -> bool {
        self.damage_total == 0 && !self.cursors_damaged
    }
}

fn look(dir: &Path, storage: &dyn Storage, scan_bytes_max: u64) -> Result<Inspection, SpoolError> {
    let found = CursorFile::load(storage, dir);
    let cursors_damaged = matches!(found, CursorsFound::Damaged(_));
    let file = if let CursorsFound::Good(file) = found { Some(file) } else { None };
    let survey = survey(storage, dir, None, file.as_ref().map(|file| file.trimmed_lsn), scan_bytes_max)?;
    let first_lsn = survey.segments.first().map(|segment| segment.first_lsn);
    let last_lsn = survey.segments.last().map(|segment| segment.last_lsn);
    Ok(Inspection {
        bytes: survey.segments.iter().map(|segment| segment.bytes).sum(),
        lsns: first_lsn.zip(last_lsn).map(|(first, last)| first..=last).filter(|lsns| !lsns.is_empty()),
        oldest_received_at_us: survey
            .segments
            .iter()
            .find_map(|segment| segment.header)
            .map(|header| header.opened_at_us),
        segments: survey.segments.into_iter().map(SegmentInspection::from).collect(),
        cursors: file.map(|file| file.cursors).unwrap_or_default(),
        cursors_damaged,
        damage: survey.damage,
        damage_total: survey.damage_total,
        records_lost: survey.lost_records,
        torn_tail: survey.torn,
    })
}

impl From<Surveyed> for SegmentInspection {
    fn from(segment: Surveyed) -> Self {
        let counts = SegmentCounts { frames: segment.frames, records: segment.records };
        Self {
            name: segment.name,
            bytes: segment.bytes,
            epoch: segment.header.map(|header| header.epoch),
            lsns: Some(segment.first_lsn..=segment.last_lsn).filter(|lsns| !lsns.is_empty()),
            opened_at_us: segment.header.map(|header| header.opened_at_us),
            counts: segment.scanned.then_some(counts),
        }
    }
}
