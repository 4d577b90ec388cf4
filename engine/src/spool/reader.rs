//! Reading a spool: whole frames, in order, never beyond what is durable, and live at its end.
//!
//! Damage is never passed over in silence: where records are gone the reader says which.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::SpoolError;
use super::frame::{self, FRAME_HEAD_BYTES, Frame, FrameHead};
use super::log::{SegmentEntry, Shared, SpoolStatus};
use super::quarantine;
use super::segment::{self, Reached, segment_name};
use crate::blocking::off_the_runtime;
use crate::storage::StorageFile;

/// With the pauses of a caller that backs off, a minute or so: longer than a controller takes to
/// reset, and a bad sector stays bad.
const ATTEMPTS_MAX: u32 = 10;

/// What comes next in a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Records.
    Frame(Frame),
    /// These lsns can't be read any more: damaged, or trimmed before the reader came to them.
    Lost(RangeInclusive<u64>),
}

/// Reads from one lsn on. Readers don't know of each other, nor of cursors.
pub struct SpoolReader {
    shared: Arc<Shared>,
    walk: Arc<Mutex<Walk>>,
}

impl SpoolReader {
    pub(crate) fn new(shared: Arc<Shared>, from_lsn: u64) -> Self {
        let walk = Arc::new(Mutex::new(Walk::new(shared.clone(), from_lsn)));
        Self { shared, walk }
    }

    /// The next frame, as soon as it is durable; `None` when the writer has closed and all is read.
    /// A reader that starts within a frame gets that frame whole. Cancel safe.
    ///
    /// # Errors
    /// The filesystem refuses what should be there. May be called again, after a pause: a disk that
    /// is away comes back. At the tenth attempt in one place what can't be read is taken for damaged.
    pub async fn next(&mut self) -> Result<Option<Replay>, SpoolError> {
        let mut durable = self.shared.durable.subscribe();
        let mut status = self.shared.status.subscribe();
        loop {
            // In this order: what became durable before the end is still found.
            let closed = *status.borrow_and_update() == SpoolStatus::Closed;
            let seen = *durable.borrow_and_update();
            let mut walk = self.walk.clone().lock_owned().await;
            if walk.next_lsn <= seen && walk.ahead.is_none() {
                walk = read_ahead(walk).await?;
            }
            if let Some(replay) = walk.ahead.take() {
                return Ok(Some(replay));
            }
            drop(walk);
            if closed {
                return Ok(None);
            }
            tokio::select! {
                biased;
                _ = durable.changed() => {}
                _ = status.changed() => {}
            }
        }
    }
}

/// Reads off the runtime. When the caller is cancelled, what was read stays in `ahead`.
async fn read_ahead(mut walk: OwnedMutexGuard<Walk>) -> Result<OwnedMutexGuard<Walk>, SpoolError> {
    let read = off_the_runtime(move || {
        walk.ahead = walk.next()?;
        Ok(walk)
    });
    // Either the runtime is shutting down, or our own code has panicked: the stage ends with it.
    read.await.map_err(|_| SpoolError::Closed)?
}

/// A position in the segments. Blocks.
pub(crate) struct Walk {
    shared: Arc<Shared>,
    next_lsn: u64,
    open: Option<OpenSegment>,
    ahead: Option<Replay>,
    /// Attempts in a row that have failed.
    failures: u32,
}

struct OpenSegment {
    first_lsn: u64,
    file: Box<dyn StorageFile>,
    at: u64,
    /// What the frames that were good have come to.
    reached: Reached,
}

impl OpenSegment {
    /// Goes on behind a frame that is good.
    fn pass(&mut self, head: &FrameHead) {
        self.at += head.bytes as u64;
        self.reached = Reached { lsn: head.last_lsn(), offset: self.at };
    }
}

impl Walk {
    pub fn new(shared: Arc<Shared>, from_lsn: u64) -> Self {
        Self { shared, next_lsn: from_lsn.max(1), open: None, ahead: None, failures: 0 }
    }

    /// What comes next; `None` when all that is durable has been read.
    pub fn next(&mut self) -> Result<Option<Replay>, SpoolError> {
        loop {
            // In this order: what becomes durable in between is not taken for trimmed.
            let durable_lsn = self.shared.durable_lsn();
            let Some(segment) = self.shared.segment_of(self.next_lsn) else {
                let lost = self.next_lsn..=durable_lsn;
                self.next_lsn = self.next_lsn.max(durable_lsn + 1);
                return Ok((!lost.is_empty()).then_some(Replay::Lost(lost)));
            };
            if self.next_lsn < segment.first_lsn {
                let lost = self.next_lsn..=segment.follows_lsn;
                self.next_lsn = segment.first_lsn;
                if !lost.is_empty() {
                    return Ok(Some(Replay::Lost(lost)));
                }
                // A segment of which no frame is left may end before it starts.
                continue;
            }
            let Some(mut open) = self.enter(&segment)? else { continue };
            let step = self.step(&segment, &mut open)?;
            self.open = Some(open);
            match step {
                Step::Found(replay) => return Ok(Some(replay)),
                Step::Skipped => {}
            }
        }
    }

    /// The open file of the segment; `None` if it was trimmed under our feet.
    fn enter(&mut self, segment: &SegmentEntry) -> Result<Option<OpenSegment>, SpoolError> {
        if let Some(open) = self.open.take().filter(|open| open.first_lsn == segment.first_lsn) {
            return Ok(Some(open));
        }
        let path = self.shared.dir.join(segment_name(segment.first_lsn));
        match self.shared.storage.open(&path) {
            Ok(file) => {
                let reached = Reached::start_of(segment.first_lsn);
                Ok(Some(OpenSegment { first_lsn: segment.first_lsn, file, at: reached.offset, reached }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let still_listed = self.shared.segment_of(self.next_lsn).map(|entry| entry.first_lsn);
                if still_listed == Some(segment.first_lsn) {
                    return Err(SpoolError::io("open", path)(error));
                }
                Ok(None)
            }
            Err(error) => Err(SpoolError::io("open", path)(error)),
        }
    }

    fn step(&mut self, segment: &SegmentEntry, open: &mut OpenSegment) -> Result<Step, SpoolError> {
        let Some((frame, head)) = self.read_frame(segment, open)? else {
            return self.pass_over(segment, open);
        };
        if !open.reached.can_be_followed(open.at, &head) {
            // A frame where none can have been written, as when the spool is opened.
            let bad = open.at..open.at + frame.len() as u64;
            open.at = bad.end;
            self.report(segment, bad);
            return Ok(Step::Skipped);
        }
        if head.first_lsn > segment.last_lsn {
            // A dead tail.
            open.at = segment.readable_bytes;
            return self.pass_over(segment, open);
        }
        if head.last_lsn() < self.next_lsn {
            // Before the start, or the mark of an end.
            open.pass(&head);
            return Ok(Step::Skipped);
        }
        if head.first_lsn > self.next_lsn {
            let lost = self.next_lsn..=head.first_lsn - 1;
            self.next_lsn = head.first_lsn;
            return Ok(Step::Found(Replay::Lost(lost)));
        }
        open.pass(&head);
        match frame::decode(&frame, head) {
            Some(frame) => {
                self.next_lsn = head.last_lsn() + 1;
                Ok(Step::Found(Replay::Frame(frame)))
            }
            // Its checksum is right and its content is not: written by a program with a mistake in
            // it. The records are lost like damaged ones.
            None => {
                let lost = head.first_lsn..=head.last_lsn();
                self.next_lsn = head.last_lsn() + 1;
                Ok(Step::Found(Replay::Lost(lost)))
            }
        }
    }

    fn read_frame(
        &mut self,
        segment: &SegmentEntry,
        open: &OpenSegment,
    ) -> Result<Option<(Bytes, FrameHead)>, SpoolError> {
        let head_end = (open.at + FRAME_HEAD_BYTES as u64).min(segment.readable_bytes);
        let start = self.read_range(open, open.at..head_end)?;
        let Some(bytes) = frame::frame_bytes(&start) else { return Ok(None) };
        let end = open.at + bytes as u64;
        if end > segment.readable_bytes {
            return Ok(None);
        }
        let frame = self.read_range(open, open.at..end)?;
        let head = frame::check(&frame, self.shared.identity);
        Ok(head.map(|head| (Bytes::from(frame), head)))
    }

    fn read_range(&mut self, open: &OpenSegment, range: Range<u64>) -> Result<Vec<u8>, SpoolError> {
        let read = segment::read_range(&*open.file, range);
        match read.failure {
            Some(error) if self.failures + 1 < ATTEMPTS_MAX => {
                self.failures += 1;
                Err(SpoolError::io("read", self.shared.dir.join(segment_name(open.first_lsn)))(error))
            }
            Some(_) => Ok(read.bytes),
            None => {
                self.failures = 0;
                Ok(read.bytes)
            }
        }
    }

    /// From something that is no frame to the next one, or to the end of the segment.
    fn pass_over(&mut self, segment: &SegmentEntry, open: &mut OpenSegment) -> Result<Step, SpoolError> {
        if open.at >= segment.readable_bytes {
            // Records that the segment should have: it was cut short, or they were damaged at its end.
            let lost = self.next_lsn..=segment.last_lsn;
            self.next_lsn = segment.last_lsn + 1;
            return Ok(Step::Found(Replay::Lost(lost)));
        }
        let rest = self.read_range(open, open.at..segment.readable_bytes)?;
        // Whether that one can be what it says is seen when it is read.
        let next = frame::find(&rest, 0, self.shared.identity).map_or(rest.len(), |(at, _)| at);
        let bad = open.at..open.at + next as u64;
        open.at = if next == rest.len() { segment.readable_bytes } else { bad.end };
        self.report(segment, bad);
        Ok(Step::Skipped)
    }

    fn report(&self, segment: &SegmentEntry, bad: Range<u64>) {
        let name = segment_name(segment.first_lsn);
        let kept = quarantine::keep_range(&*self.shared.storage, &self.shared.dir, &name, bad.clone());
        if !kept.known {
            self.shared.counters.damage.increment();
            tracing::error!(segment = name, offset = bad.start, bytes = bad.end - bad.start, "the spool is damaged");
        }
    }
}

enum Step {
    Found(Replay),
    Skipped,
}
