//! Reads a whole spool on the caller's thread, and mends the checksums of one: for the entry points of
//! [`crate::fuzzing`], which open thousands a second.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use super::error::SpoolError;
use super::log::Shared;
use super::options::SpoolOptions;
use super::reader::{Replay, Walk};
use super::{frame, recovery, segment};
use crate::storage::Storage;

pub(crate) use super::segment::segment_name;

/// More stretches than any input of a fuzzer can hold: a walk that comes so far goes in circles.
const STRETCHES_MAX: usize = 1 << 20;

/// What a start and a reader made of a spool.
#[derive(Debug)]
pub(crate) struct Walked {
    /// In the order in which they came, and whether they are lost.
    pub stretches: Vec<(RangeInclusive<u64>, bool)>,
    /// The records that were read.
    pub lsns: std::collections::BTreeSet<u64>,
    /// Numbers between two segments that no record has: those of a group that a crash tore off are not given again.
    pub never_given: Vec<RangeInclusive<u64>>,
    pub durable_lsn: u64,
    pub next_lsn: u64,
}

/// Opens the spool and reads all of it.
pub(crate) fn recover_and_read(
    dir: &Path,
    options: SpoolOptions,
    storage: Arc<dyn Storage>,
) -> Result<Walked, SpoolError> {
    let (mut log, report) = recovery::recover(dir, options, storage, 1)?;
    assert!(log.settle().is_ok(), "nothing is in the way of what may not be durable yet");
    let shared = log.shared().clone();
    let mut walked = Walked {
        stretches: Vec::new(),
        lsns: std::collections::BTreeSet::new(),
        never_given: never_given(&shared),
        durable_lsn: shared.durable_lsn(),
        next_lsn: report.next_lsn,
    };
    let mut walk = Walk::new(shared, 1);
    while let Some(replay) = walk.next()? {
        assert!(walked.stretches.len() < STRETCHES_MAX, "the reader goes in circles");
        match replay {
            Replay::Lost(lsns) => walked.stretches.push((lsns, true)),
            Replay::Frame(frame) => {
                let lsns = frame.first_lsn..=frame.last_lsn();
                walked.lsns.extend(lsns.clone());
                walked.stretches.push((lsns, false));
            }
        }
    }
    Ok(walked)
}

fn never_given(shared: &Shared) -> Vec<RangeInclusive<u64>> {
    let mut gaps = Vec::new();
    let mut at = 1;
    while let Some(segment) = shared.segment_of(at) {
        gaps.extend(Some(segment.follows_lsn + 1..=segment.first_lsn - 1).filter(|gap| !gap.is_empty()));
        at = segment.last_lsn.max(segment.first_lsn) + 1;
    }
    gaps
}

/// Sets the checksums of the header and of all that looks like a frame right.
pub(crate) fn mend_segment(bytes: &mut [u8], options: &SpoolOptions) {
    segment::mend_header(bytes);
    let identity = segment::identity(&options.pipeline, &options.source);
    let mut at = segment::HEADER_BYTES;
    while at < bytes.len() {
        at += match frame::frame_bytes(&bytes[at..]) {
            Some(length) if at + length <= bytes.len() => {
                frame::mend(&mut bytes[at..at + length], identity);
                length
            }
            _ => 1,
        };
    }
}
