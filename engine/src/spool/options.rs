//! The bounds of a spool.

use std::time::Duration;

use super::error::SpoolError;
use super::frame::RECORD_BYTES_MAX;

/// Whose spool it is, and its bounds. Start from [`SpoolOptions::new`].
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// The pipeline's name: a spool opens for no other.
    pub pipeline: String,
    /// The source's name: a spool opens for no other.
    pub source: String,
    /// A segment that has come to this size is followed by a new one.
    pub segment_bytes: u64,
    /// A group is committed once it holds this much.
    pub group_bytes_max: usize,
    /// A group, and so a batch on replay, holds at most this many records.
    pub group_records_max: usize,
    /// How long the first record of a group may wait for more.
    pub group_linger: Duration,
    /// The same for a group that has come to [`SpoolOptions::BUSY_RECORDS`], where that is longer: a sync costs the same for ten
    /// times as many, and so does whoever is told of it.
    pub group_linger_busy: Duration,
    /// Appended records that aren't durable yet are held up to this size; then appending waits.
    pub buffer_bytes_max: usize,
    /// The segments together are held below this size: at it, appending waits.
    pub bytes_max: u64,
    /// Below this much free space on the filesystem appending waits, so that the spool is not what
    /// fills it up for others. Zero: no bound.
    pub free_space_min: u64,
    /// How long records are kept after every cursor has passed them. Given up for records that
    /// can't be held otherwise.
    pub retain: Duration,
    /// How often cursors that have moved are made durable.
    pub cursor_interval: Duration,
    /// A pause is tried again after at most this long.
    pub retry_max: Duration,
    /// How much is read in full when the spool opens, the newest first. What is older is checked
    /// when it is read, so that a long backlog doesn't hold up the start.
    pub scan_bytes_max: u64,
    /// A mistake made on purpose, to see that the tests find it.
    #[cfg(test)]
    pub(crate) planted: Option<PlantedBug>,
}

/// Mistakes that a test of this module must find.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    DurableBeforeSync,
    UnlinkBeforeCursor,
    SyncTriedAgain,
}

impl SpoolOptions {
    /// How long the first record of a group waits for more, unless somebody says otherwise.
    pub const GROUP_LINGER: Duration = Duration::from_millis(5);
    /// Records within one linger that show a source to be busy.
    pub const BUSY_RECORDS: usize = 128;

    /// The defaults: 64 MiB segments, groups of 1 MiB or 5 ms, 20 GiB in all, 1 GiB left free.
    pub fn new(pipeline: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            pipeline: pipeline.into(),
            source: source.into(),
            segment_bytes: 64 << 20,
            group_bytes_max: 1 << 20,
            // What 1 MiB holds of the usual 115 bytes.
            group_records_max: 8192,
            group_linger: Self::GROUP_LINGER,
            group_linger_busy: Duration::ZERO,
            buffer_bytes_max: 8 << 20,
            // At 1,000 messages of 170 bytes a second, more than a day of outage.
            bytes_max: 20 << 30,
            free_space_min: 1 << 30,
            // Database dumps are hourly: a restored database finds what it lacks here.
            retain: Duration::from_secs(2 * 3600),
            cursor_interval: Duration::from_secs(1),
            retry_max: Duration::from_secs(5),
            // One to ten seconds of reading.
            scan_bytes_max: 1 << 30,
            #[cfg(test)]
            planted: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), SpoolError> {
        let wrong = if self.segment_bytes > 1 << 30 {
            "a segment above 1 GiB can't be checked in memory"
        } else if self.bytes_max < self.segment_bytes.saturating_mul(2) {
            "a spool needs room for two segments, as only whole ones are deleted"
        } else if self.group_bytes_max == 0 || self.group_bytes_max > RECORD_BYTES_MAX {
            "a group must be between 1 byte and 16 MiB"
        } else if self.group_records_max == 0 || self.group_records_max > 1 << 20 {
            "a group must be between 1 and 1,048,576 records"
        } else if self.buffer_bytes_max == 0 {
            "a spool without a buffer takes no record"
        } else {
            return Ok(());
        };
        Err(SpoolError::Options { wrong })
    }

    #[cfg(test)]
    pub(crate) fn has_planted(&self, bug: PlantedBug) -> bool {
        self.planted == Some(bug)
    }
}
