//! Walks over all segments and says what they hold, what is damaged and what is lost. Changes
//! nothing: recovery acts on what it finds, `inspect` and `verify` print it.

use std::io;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;

use super::cursors::{CursorFile, CursorsFound};
use super::error::SpoolError;
use super::frame::{self, FrameHead};
use super::segment::{self, HEADER_BYTES, Header, HeaderFound, Piece, Reached};
use crate::storage::{Storage, StorageFile};

/// How many damaged places are listed; those beyond are counted.
pub(crate) const DAMAGE_LISTED_MAX: usize = 1000;

/// What is wrong with a place in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DamageKind {
    /// Bytes that should be frames and are none.
    BadFrames,
    /// The first bytes of a segment. Its frames are found without.
    BadHeader,
    /// Records are missing where nothing looks damaged: a segment is gone, or was cut short.
    Missing,
}

/// A damaged place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What is wrong.
    pub kind: DamageKind,
    /// The segment's file name; for a missing segment that of its neighbour.
    pub segment: String,
    /// Where the damaged bytes start.
    pub offset: u64,
    /// How many damaged bytes there are.
    pub bytes: u64,
    /// The records that are lost, by lsn; `None` if all are there.
    pub lost: Option<RangeInclusive<u64>>,
    /// The copy of the damaged bytes below the spool's directory; `None` if there are none or there
    /// was no room for a copy.
    pub quarantined: Option<String>,
    /// It was there when the spool was opened before.
    pub known: bool,
}

/// Bytes at the very end that are no frame: what a power cut leaves of a group that never became
/// durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TornTail {
    /// The segment's file name.
    pub segment: String,
    /// Where the torn bytes start.
    pub offset: u64,
    /// How many torn bytes there are.
    pub bytes: u64,
    /// The last lsn before them. Any record after it that was durable is lost, which only damage to
    /// the last frames does; its lsn is not given again.
    pub after_lsn: u64,
}

/// What one segment holds.
#[derive(Debug, Clone)]
pub(crate) struct Surveyed {
    pub name: String,
    pub bytes: u64,
    pub header: Option<Header>,
    pub first_lsn: u64,
    pub follows_lsn: u64,
    /// The last lsn that this segment answers for, whether or not it is lost.
    pub last_lsn: u64,
    /// Nothing behind this offset counts.
    pub readable_bytes: u64,
    pub opened_at_us: i64,
    pub frames: u64,
    pub records: u64,
    pub scanned: bool,
}

/// What all segments hold.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub segments: Vec<Surveyed>,
    pub damage: Vec<Damage>,
    pub damage_total: u64,
    pub torn: Option<TornTail>,
    pub lost_records: u64,
    pub unscanned_bytes: u64,
    /// Of the last record.
    pub last_received_at_us: i64,
    /// The last frame, if it may not be durable.
    pub unproven: Option<UnprovenFrame>,
    /// Something could not be read, and counts as damaged: it may be the disk that was away.
    pub reads_failed: bool,
    any_readable: bool,
    unreadable: Option<(PathBuf, io::Error)>,
}

/// The last frame of a log that wasn't closed. Every frame before it is proven durable by the one
/// that was written after it, and the first of a segment by the segment's name.
#[derive(Debug)]
pub(crate) struct UnprovenFrame {
    pub bytes: Vec<u8>,
    pub offset: u64,
    pub head: FrameHead,
}

/// Who looks at each undamaged frame, in order, while everything is read.
pub(crate) type Visitor<'v> = dyn FnMut(Bytes, FrameHead) -> ControlFlow<()> + 'v;

/// What is known before the contents are read.
struct Entry {
    name: String,
    bytes: u64,
    first_lsn: u64,
    header: HeaderFound,
}

/// Reads all headers, and of the contents the newest `scan_bytes_max`, at least the last segment.
///
/// # Errors
/// Another format version, or a filesystem that refuses everything; damage is none.
///
/// `cursors` are those of the spool, if they are known; `identity` the one to expect, else that of the
/// first intact header is taken, or what the path says where there is none.
pub(crate) fn survey(
    storage: &dyn Storage,
    dir: &Path,
    identity: Option<u64>,
    cursors: Option<&CursorFile>,
    scan_bytes_max: u64,
    visit: &mut Visitor<'_>,
) -> Result<Survey, SpoolError> {
    let trimmed_lsn = cursors.map(|file| file.trimmed_lsn);
    let durable_lsn = cursors.map_or(0, CursorFile::highest_lsn);
    let (entries, headers_read) = read_entries(storage, dir, trimmed_lsn.unwrap_or(0))?;
    let identity = identity
        .or_else(|| entries.iter().find_map(|entry| entry.good_header()).map(|header| header.identity))
        .or_else(|| segment::identity_in(dir));
    let mut survey = Survey { reads_failed: !headers_read, ..Survey::default() };
    let mut budget = scan_bytes_max;
    let mut scan_from = entries.len().saturating_sub(1);
    for (index, entry) in entries.iter().enumerate().rev() {
        let Some(left) = budget.checked_sub(entry.bytes) else { break };
        (budget, scan_from) = (left, index);
    }
    for (index, entry) in entries.iter().enumerate() {
        if index == 0 {
            survey.compare_with_trimmed(entry, trimmed_lsn);
        }
        let next = entries.get(index + 1);
        if index >= scan_from {
            let identity = identity.unwrap_or_default();
            let read = SegmentRead { storage, dir, entry, next, identity, durable_lsn };
            if survey.scan(&read, visit)?.is_break() {
                break;
            }
        } else {
            survey.believe(entry, next);
        }
    }
    if entries.is_empty() && durable_lsn > trimmed_lsn.unwrap_or(0) {
        let lost = trimmed_lsn.unwrap_or(0) + 1..=durable_lsn;
        survey.note(DamageKind::Missing, "the spool", 0..0, Some(lost));
    }
    match survey.unreadable.take() {
        // Not damage but a disk that is away: to call all of it lost would make it so.
        Some((path, error)) if !survey.any_readable => Err(SpoolError::io("read", path)(error)),
        _ => Ok(survey),
    }
}

/// All segments but those that were trimmed, whose deletion a power cut may have undone in part; and
/// whether all of their headers could be read.
fn read_entries(storage: &dyn Storage, dir: &Path, trimmed_lsn: u64) -> Result<(Vec<Entry>, bool), SpoolError> {
    let names = storage.list(dir).map_err(SpoolError::io("list", dir))?;
    let mut entries = Vec::new();
    let mut all_read = true;
    for name in names {
        let Some(first_lsn) = segment::first_lsn_in(&name).filter(|lsn| *lsn > trimmed_lsn) else { continue };
        let path = dir.join(&name);
        let Some(file) = open_unless_trimmed(storage, dir, &path, first_lsn)? else { continue };
        let bytes = file.bytes().map_err(SpoolError::io("measure", &path))?;
        let (header, was_read) = segment::read_header(&*file);
        all_read &= was_read;
        let header = match header {
            // A file that was renamed by hand: its frames say what it is.
            HeaderFound::Good(header) if header.first_lsn != first_lsn => HeaderFound::Damaged,
            found => found,
        };
        if let HeaderFound::Version(version) = header {
            return Err(SpoolError::Version { segment: path, version });
        }
        entries.push(Entry { name, bytes, first_lsn, header });
    }
    entries.sort_by_key(|entry| entry.first_lsn);
    distrust_contradictions(&mut entries);
    Ok((entries, all_read))
}

/// When a segment is made, the one before has durable records, or what came before that one still ends the durable ones.
/// A header that says otherwise is damaged, whatever its checksum says.
fn distrust_contradictions(entries: &mut [Entry]) {
    for index in 1..entries.len() {
        let [before, after] = &mut entries[index - 1..=index] else { continue };
        if after.follows_lsn() < before.first_lsn && after.follows_lsn() != before.follows_lsn() {
            after.header = HeaderFound::Damaged;
        }
    }
}

/// A segment's file; `None` if the pipeline that is running has trimmed it since it was listed.
fn open_unless_trimmed(
    storage: &dyn Storage,
    dir: &Path,
    path: &Path,
    first_lsn: u64,
) -> Result<Option<Box<dyn StorageFile>>, SpoolError> {
    match storage.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && trimmed_lsn(storage, dir) >= first_lsn => Ok(None),
        Err(error) => Err(SpoolError::io("open", path)(error)),
    }
}

/// How far the spool is trimmed by now; 0 if that is not known.
pub(crate) fn trimmed_lsn(storage: &dyn Storage, dir: &Path) -> u64 {
    match CursorFile::find(storage, dir) {
        Ok((CursorsFound::Good(file), _)) => file.trimmed_lsn,
        Ok(_) | Err(_) => 0,
    }
}

impl Entry {
    fn good_header(&self) -> Option<Header> {
        if let HeaderFound::Good(header) = self.header { Some(header) } else { None }
    }

    /// Everything up to and including this lsn was durable when the segment was made.
    fn follows_lsn(&self) -> u64 {
        self.good_header().map_or(self.first_lsn - 1, |header| header.follows_lsn)
    }

    /// The segment before any of its frames is looked at.
    fn unread(&self) -> Surveyed {
        Surveyed {
            name: self.name.clone(),
            bytes: self.bytes,
            header: self.good_header(),
            first_lsn: self.first_lsn,
            follows_lsn: self.follows_lsn(),
            last_lsn: self.first_lsn - 1,
            readable_bytes: HEADER_BYTES as u64,
            opened_at_us: self.good_header().map_or(0, |header| header.opened_at_us),
            frames: 0,
            records: 0,
            scanned: false,
        }
    }
}

/// A segment about to be read in full.
struct SegmentRead<'a> {
    storage: &'a dyn Storage,
    dir: &'a Path,
    entry: &'a Entry,
    next: Option<&'a Entry>,
    identity: u64,
    /// The highest lsn that a cursor has passed.
    durable_lsn: u64,
}

impl Surveyed {
    fn reached(&self) -> Reached {
        Reached { lsn: self.last_lsn, offset: self.readable_bytes }
    }
}

impl Survey {
    /// The first segment must be there as of where trimming came to.
    fn compare_with_trimmed(&mut self, first: &Entry, trimmed_lsn: Option<u64>) {
        let expected = trimmed_lsn.map_or(u64::MAX, |lsn| lsn + 1);
        if expected <= first.follows_lsn() {
            self.note(DamageKind::Missing, &first.name, 0..0, Some(expected..=first.follows_lsn()));
        }
    }

    /// Takes a segment as what its neighbours say it is, to be checked when it is read.
    fn believe(&mut self, entry: &Entry, next: Option<&Entry>) {
        let last_lsn = next.map_or(entry.first_lsn - 1, Entry::follows_lsn);
        self.unscanned_bytes += entry.bytes;
        self.note_header(entry);
        self.segments.push(Surveyed { last_lsn, readable_bytes: entry.bytes, ..entry.unread() });
    }

    /// Takes back that the first segments are missing, where they were trimmed while we looked.
    pub(crate) fn forget_missing_up_to(&mut self, trimmed_lsn: u64) {
        let trimmed = |damage: &Damage| {
            let missing = damage.kind == DamageKind::Missing && damage.bytes == 0;
            missing && damage.lost.as_ref().is_some_and(|lost| *lost.end() <= trimmed_lsn)
        };
        if let Some(lost) = self.damage.first().filter(|damage| trimmed(damage)).and_then(|damage| damage.lost.clone())
        {
            self.damage.remove(0);
            self.damage_total -= 1;
            self.lost_records -= lost.end() - lost.start() + 1;
        }
    }

    fn scan(&mut self, read: &SegmentRead<'_>, visit: &mut Visitor<'_>) -> Result<ControlFlow<()>, SpoolError> {
        let SegmentRead { storage, dir, entry, next, identity, durable_lsn } = *read;
        let path = dir.join(&entry.name);
        let Some(file) = open_unless_trimmed(storage, dir, &path, entry.first_lsn)? else {
            return Ok(ControlFlow::Continue(()));
        };
        let read = segment::read_range(&*file, 0..entry.bytes);
        self.reads_failed |= read.failure.is_some();
        if read.failed_whole {
            self.unreadable = read.failure.map(|error| (path, error));
        } else {
            self.any_readable = true;
        }
        let bytes = Bytes::from(read.bytes);
        self.note_header(entry);

        let limit = next.map(Entry::follows_lsn);
        let mut found = Surveyed { scanned: true, ..entry.unread() };
        let mut bad: Option<Range<usize>> = None;
        let (mut last, mut unproven) = (None, None);
        let mut closed = false;
        for piece in segment::pieces(&bytes, identity) {
            let (at, head) = match piece {
                Piece::Bad(range) => {
                    bad = Some(bad.map_or(range.start, |bad| bad.start)..range.end);
                    continue;
                }
                Piece::Frame(at, head) if !found.reached().can_be_followed(at as u64, &head) => {
                    // A frame where none can have been written.
                    bad = Some(bad.map_or(at, |bad| bad.start)..at + head.bytes);
                    continue;
                }
                Piece::Frame(at, head) => (at, head),
            };
            if limit.is_some_and(|limit| head.first_lsn > limit) {
                // A dead tail: the next segment has it again, or it never counted.
                break;
            }
            self.note_gap(&entry.name, bad.take(), at, found.last_lsn + 1..head.first_lsn);
            if head.count > 0 {
                last = Some((at, head));
                unproven = last.filter(|_| at > HEADER_BYTES);
            }
            closed = head.count == 0;
            found.last_lsn = head.last_lsn();
            found.readable_bytes = (at + head.bytes) as u64;
            found.frames += u64::from(head.count > 0);
            found.records += u64::from(head.count);
            if visit(bytes.slice(at..at + head.bytes), head).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }

        if let Some(limit) = limit {
            if found.last_lsn < limit {
                self.note_gap(&entry.name, bad, bytes.len(), found.last_lsn + 1..limit + 1);
                found.last_lsn = limit;
            }
        } else {
            if let Some(bad) = bad {
                let (offset, bytes) = (bad.start as u64, bad.len() as u64);
                self.torn = Some(TornTail { segment: entry.name.clone(), offset, bytes, after_lsn: found.last_lsn });
                // They were written after the frame before them was durable.
                unproven = None;
            }
            if let Some((at, head)) = last {
                let frame = frame::decode(&bytes.slice(at..at + head.bytes), head);
                let record = frame.and_then(|frame| frame.records.last().cloned());
                self.last_received_at_us = record.map_or(head.received_at_us, |record| record.received_at_us);
            }
            if let (Some((at, head)), false) = (unproven, closed)
                && head.last_lsn() > durable_lsn
            {
                self.unproven =
                    Some(UnprovenFrame { bytes: bytes[at..at + head.bytes].to_vec(), offset: at as u64, head });
            }
            if found.last_lsn < durable_lsn {
                // A sink has stored them, so they were here: the segment was cut short, or the next one is gone.
                self.note_gap(&entry.name, None, bytes.len(), found.last_lsn + 1..durable_lsn + 1);
                found.last_lsn = durable_lsn;
            }
        }
        self.segments.push(found);
        Ok(ControlFlow::Continue(()))
    }

    fn note_header(&mut self, entry: &Entry) {
        if entry.header == HeaderFound::Damaged {
            self.note(DamageKind::BadHeader, &entry.name, 0..entry.bytes.min(HEADER_BYTES as u64), None);
        }
    }

    /// Bad bytes, or lsns left out, or both at once.
    fn note_gap(&mut self, segment: &str, bad: Option<Range<usize>>, at: usize, lost: Range<u64>) {
        let lost = (!lost.is_empty()).then(|| lost.start..=lost.end - 1);
        match bad {
            Some(bad) => self.note(DamageKind::BadFrames, segment, bad.start as u64..bad.end as u64, lost),
            None if lost.is_some() => self.note(DamageKind::Missing, segment, at as u64..at as u64, lost),
            None => {}
        }
    }

    fn note(&mut self, kind: DamageKind, segment: &str, place: Range<u64>, lost: Option<RangeInclusive<u64>>) {
        self.damage_total += 1;
        self.lost_records += lost.as_ref().map_or(0, |lost| lost.end() - lost.start() + 1);
        if self.damage.len() < DAMAGE_LISTED_MAX {
            self.damage.push(Damage {
                kind,
                segment: segment.to_owned(),
                offset: place.start,
                bytes: place.end - place.start,
                lost,
                quarantined: None,
                known: false,
            });
        }
    }
}
