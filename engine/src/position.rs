//! Where rows came from: the currency of progress, replay and deduplication.

use std::fmt;

/// A place in one partition of a source, ordered as the partition is read.
///
/// 256 bits, most significant word first, so that a Kinesis sequence number (up to 186 bits) with
/// its sub-sequence fits as well as a line number, a log sequence number or a packet count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub [u64; 4]);

impl From<u64> for Position {
    fn from(low: u64) -> Self {
        Self([0, 0, 0, low])
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [0, 0, 0, low] => write!(f, "{low}"),
            [0, 0, high, low] => write!(f, "{high:x}-{low:016x}"),
            [a, b, c, d] => write!(f, "{a:x}-{b:016x}-{c:016x}-{d:016x}"),
        }
    }
}

/// The positions behind one batch: a closed interval of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first position that the batch holds.
    pub first: Position,
    /// The last position that the batch holds; not before `first`.
    pub last: Position,
}

impl Span {
    /// From `first` to `last`, both included.
    pub fn new(first: impl Into<Position>, last: impl Into<Position>) -> Self {
        let (first, last) = (first.into(), last.into());
        debug_assert!(first <= last, "a span must not run backwards");
        Self { first, last }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}
