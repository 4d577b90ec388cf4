//! The spool: a write-ahead log on local disk behind sources that can't be asked again (MQTT, HTTP).
//!
//! The source appends each message as it came; a thread of the spool's own writes what has come
//! together as one frame and syncs it; only then does [`Spool::durable`] move and the source
//! acknowledge. Readers turn frames into batches; each sink has a cursor, and segments that every
//! cursor has passed are deleted.
//!
//! **Guarantee.** A record that was reported durable is read again, in order and once, by every
//! reader that asks for it, until all cursors have passed it: through kill -9, power cuts, failing
//! syncs and a full disk. If the disk itself damages it, its lsn is reported as lost: in the
//! [`RecoveryReport`], by [`SpoolReader::next`] and in `quarantine/`. It is never silently absent,
//! and the spool goes on.
//!
//! **Danger.** The disk is the only copy. Records that were appended but not yet durable may be there
//! after a crash all the same; the broker, which was never told so, sends them again.
//!
//! # On disk
//! `<first_lsn>.seg` segments of frames, `cursors`, `lock`, `quarantine/`. An lsn counts records from
//! 1; 0 stands for "before the first". A directory that starts from nothing gets a new, higher
//! [`Spool::epoch`], so that (epoch, lsn) is a position which never comes twice.
//!
//! # Where to find what
//! | file | answers |
//! |---|---|
//! | `frame`, `segment` | what is on disk, byte by byte |
//! | `log` | how a frame becomes durable, what happens when it can't |
//! | `writer` | how records become groups, who waits when |
//! | `worker` | the two threads, and what stands in for them in virtual time |
//! | `reader` | how records come back, and what a reader says of damage |
//! | `cursors` | how far sinks have come, what is deleted when |
//! | `survey`, `recovery`, `quarantine` | what a start makes of what it finds |
//! | `inspect`, `export` | what a person can look at, and take out |
//! | `crate::storage`, `testing` | the seam to the disk, and a disk that fails on demand |
//! | `walk` | a whole spool read at once, for `crate::fuzzing` |

mod cursors;
mod error;
mod export;
mod frame;
mod inspect;
mod log;
mod options;
mod quarantine;
mod reader;
mod recovery;
mod segment;
mod survey;
pub mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod walk;
mod worker;
mod writer;

use std::path::Path;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

pub use crate::storage::{FsStorage, Storage, StorageFile, StorageLock};
pub use cursors::Cursors;
pub use error::SpoolError;
pub use export::{ExportedRecord, export};
pub use frame::{Frame, RECORD_BYTES_MAX, Record};
pub use inspect::{Inspection, Quarantined, SegmentCounts, SegmentInspection, SegmentState, inspect, verify};
pub use log::{Pause, PauseReason, SpoolCounters, SpoolStatus};
#[cfg(test)]
pub(crate) use options::PlantedBug;
pub use options::SpoolOptions;
pub use reader::{Replay, SpoolReader};
pub use recovery::RecoveryReport;
pub use survey::{Damage, DamageKind, TornTail};
pub use writer::SpoolWriter;

use crate::stats::now_us;
use cursors::Keeping;
use log::Shared;
use worker::Worker;

/// An open spool: everything but appending. Holds the directory's lock, together with its writer
/// and readers, until all are dropped.
pub struct Spool {
    shared: Arc<Shared>,
    keeper: Worker,
}

impl Spool {
    /// Opens the spool in a directory, which is made if it isn't there. Blocks while it reads what
    /// is there.
    ///
    /// # Errors
    /// [`SpoolError::Locked`], [`SpoolError::Foreign`], [`SpoolError::Version`],
    /// [`SpoolError::Options`], or the filesystem refuses. Damage is no error: see the report.
    pub fn open(
        dir: &Path,
        options: SpoolOptions,
        storage: Arc<dyn Storage>,
    ) -> Result<(Self, SpoolWriter, RecoveryReport), SpoolError> {
        let (mut log, report) = recovery::recover(dir, options, storage, now_us())?;
        // If the disk is full, the writer thread goes on trying.
        drop(log.settle());
        let shared = log.shared().clone();
        let writer = SpoolWriter::start(log)?;
        let keeper = Worker::start("spool-keeper", Keeping::new(shared.clone()));
        let keeper = keeper.map_err(SpoolError::io("start the keeper thread of", dir))?;
        Ok((Self { shared, keeper }, writer, report))
    }

    /// The last durable lsn. A source acknowledges up to it.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// What the spool is doing; if it has paused, why.
    pub fn status(&self) -> watch::Receiver<SpoolStatus> {
        self.shared.status.subscribe()
    }

    /// A reader of the records from this lsn on.
    pub fn reader(&self, from_lsn: u64) -> SpoolReader {
        SpoolReader::new(self.shared.clone(), from_lsn)
    }

    /// The sinks' cursors.
    pub fn cursors(&self) -> Cursors {
        Cursors::new(self.shared.clone())
    }

    /// Which life of the directory this is: higher than that of any spool here before.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// What happened since it was opened.
    pub fn counters(&self) -> SpoolCounters {
        self.shared.counters.clone()
    }

    /// How much it holds, for whoever looks.
    pub fn meter(&self) -> SpoolMeter {
        SpoolMeter { shared: Arc::downgrade(&self.shared) }
    }

    /// Bytes that all segments take.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes()
    }
}

/// How much a spool holds. Keeps neither the spool nor its lock.
#[derive(Debug, Clone)]
pub struct SpoolMeter {
    shared: Weak<Shared>,
}

impl SpoolMeter {
    /// Bytes that all segments take; `None` once the spool is closed.
    pub fn bytes(&self) -> Option<u64> {
        self.shared.upgrade().map(|shared| shared.bytes())
    }

    /// How many it may take before messages are no longer acknowledged; `None` once the spool is closed.
    pub fn bytes_max(&self) -> Option<u64> {
        self.shared.upgrade().map(|shared| shared.options.bytes_max)
    }
}

impl Drop for Spool {
    /// Makes the cursors durable once more.
    fn drop(&mut self) {
        self.shared.cursors.stop();
        self.keeper.join();
    }
}
