//! Segment files: their names, their headers, and the walk over what they hold.
//!
//! ```text
//! header  magic 8 | version u32 | identity u64 | epoch u64 | first_lsn u64 | follows_lsn u64
//!         | opened_at_us i64 | reserved 8 | crc32 u32
//! ```
//! `follows_lsn` is the last lsn that was durable when the segment was made. It says two things
//! about the segment before: whatever that holds beyond `follows_lsn` never counted (a torn or dead
//! tail, written again here), and whatever it lacks up to there is lost.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::frame::{self, FrameHead, LSN_MAX, array};
use crate::storage::StorageFile;

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"pipespl\n";
/// How much of an unreadable file is given up at once.
const READ_STEP_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub identity: u64,
    pub epoch: u64,
    pub first_lsn: u64,
    pub follows_lsn: u64,
    /// When the first record was received.
    pub opened_at_us: i64,
}

/// What the first bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Good(Header),
    /// An intact header of a version that this program doesn't know.
    Version(u32),
    Damaged,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.identity.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.follows_lsn.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.opened_at_us.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn find(bytes: &[u8]) -> HeaderFound {
        Self::find_whole(bytes).unwrap_or(HeaderFound::Damaged)
    }

    fn find_whole(bytes: &[u8]) -> Option<HeaderFound> {
        let whole = bytes.get(..HEADER_BYTES)?;
        if whole[..8] != MAGIC || crc32fast::hash(&whole[..60]).to_le_bytes() != whole[60..] {
            return None;
        }
        let version = u32::from_le_bytes(array(whole, 8)?);
        if version != FORMAT_VERSION {
            return Some(HeaderFound::Version(version));
        }
        let header = Header {
            identity: u64::from_le_bytes(array(whole, 12)?),
            epoch: u64::from_le_bytes(array(whole, 20)?),
            first_lsn: u64::from_le_bytes(array(whole, 28)?),
            follows_lsn: u64::from_le_bytes(array(whole, 36)?),
            opened_at_us: i64::from_le_bytes(array(whole, 44)?),
        };
        // What a segment follows was there before it.
        (header.follows_lsn < header.first_lsn).then_some(HeaderFound::Good(header))
    }
}

/// Sets the checksum of a header right, if there is a whole one.
pub(crate) fn mend_header(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_BYTES {
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Tells the spools of all sources of all pipelines apart, in headers and checksums.
pub(crate) fn identity(pipeline: &str, source: &str) -> u64 {
    u64::from(crc32fast::hash(pipeline.as_bytes())) << 32 | u64::from(crc32fast::hash(source.as_bytes()))
}

/// The identity that a spool has where its pipeline puts it: `PIPELINE/SOURCE/spool`. For a spool of
/// which no header is left.
pub(crate) fn identity_in(dir: &Path) -> Option<u64> {
    let mut names = dir.components().rev().map(|part| part.as_os_str().to_str());
    let (_, source, pipeline) = (names.next()??, names.next()??, names.next()??);
    Some(identity(pipeline, source))
}

/// The file that starts at this lsn.
pub(crate) fn segment_name(first_lsn: u64) -> String {
    format!("{first_lsn:020}.seg")
}

/// The lsn in a segment's name; `None` for any other file.
pub(crate) fn first_lsn_in(name: &str) -> Option<u64> {
    let first_lsn = name.strip_suffix(".seg")?.parse().ok()?;
    ((1..=LSN_MAX).contains(&first_lsn) && segment_name(first_lsn) == name).then_some(first_lsn)
}

/// How far the frames of a segment are good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    /// The last lsn in them.
    pub lsn: u64,
    /// Where they end.
    pub offset: u64,
}

impl Reached {
    /// Before the first frame.
    pub fn start_of(first_lsn: u64) -> Self {
        Self { lsn: first_lsn - 1, offset: HEADER_BYTES as u64 }
    }

    /// Whether a frame at `at` can have been written after those. Lsns in a segment only go up and have no gaps but by
    /// damage, and a record takes more than one byte: so the bytes given up on bound how many lsns may be left out.
    /// Else it is what a failing disk put there, or a payload that looks like a frame in the midst of damage.
    pub fn can_be_followed(self, at: u64, head: &FrameHead) -> bool {
        head.first_lsn > self.lsn && head.first_lsn - self.lsn - 1 <= at.saturating_sub(self.offset)
    }
}

/// A stretch of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Frame(usize, FrameHead),
    Bad(Range<usize>),
}

/// What lies behind the header: frames, and between them what is none.
pub(crate) fn pieces(bytes: &[u8], identity: u64) -> impl Iterator<Item = Piece> {
    let mut at = HEADER_BYTES;
    let mut ahead: Option<(usize, FrameHead)> = None;
    std::iter::from_fn(move || {
        if let Some((start, head)) = ahead.take() {
            at = start + head.bytes;
            return Some(Piece::Frame(start, head));
        }
        if at >= bytes.len() {
            return None;
        }
        if let Some(head) = frame::check(&bytes[at..], identity) {
            let start = at;
            at += head.bytes;
            return Some(Piece::Frame(start, head));
        }
        ahead = frame::find(bytes, at, identity);
        let bad = at..ahead.map_or(bytes.len(), |(start, _)| start);
        at = bad.end;
        Some(Piece::Bad(bad))
    })
}

/// What the first bytes of a file are, and whether they could be read: an unreadable header is a damaged
/// one, as the frames may be fine.
pub(crate) fn read_header(file: &dyn StorageFile) -> (HeaderFound, bool) {
    let mut bytes = [0; HEADER_BYTES];
    match file.read_at(0, &mut bytes) {
        Ok(filled) => (Header::find(&bytes[..filled]), true),
        Err(_) => (HeaderFound::Damaged, false),
    }
}

/// A range of a file as far as it can be read.
pub(crate) struct RangeRead {
    /// Zeros, which are no frame, in place of what can't be read: a bad sector is damage like any
    /// other.
    pub bytes: Vec<u8>,
    /// Set if not all of it could be read. It may be the disk that is away, not the bytes.
    pub failure: Option<io::Error>,
    /// Nothing of it could be read.
    pub failed_whole: bool,
}

pub(crate) fn read_range(file: &dyn StorageFile, range: Range<u64>) -> RangeRead {
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
    let mut bytes = vec![0; len];
    let failure = match file.read_at(range.start, &mut bytes) {
        Ok(filled) => {
            bytes.truncate(filled);
            return RangeRead { bytes, failure: None, failed_whole: false };
        }
        Err(error) => Some(error),
    };
    let mut failed_whole = true;
    for (step, chunk) in bytes.chunks_mut(READ_STEP_BYTES).enumerate() {
        match file.read_at(range.start + (step * READ_STEP_BYTES) as u64, chunk) {
            Ok(_) => failed_whole = false,
            Err(_) => chunk.fill(0),
        }
    }
    RangeRead { bytes, failure, failed_whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_any_bit_changed_is_damaged() {
        let header = Header { identity: 1, epoch: 2, first_lsn: 3, follows_lsn: 2, opened_at_us: 4 };
        let bytes = header.encode();
        assert_eq!(Header::find(&bytes), HeaderFound::Good(header));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::find(&bytes), HeaderFound::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn only_whole_names_are_segments() {
        assert_eq!(first_lsn_in(&segment_name(42)), Some(42));
        for name in ["42.seg", "00000000000000000042.seg.tmp", "cursors", "+0000000000000000042.seg"] {
            assert_eq!(first_lsn_in(name), None, "{name}");
        }
    }
}
