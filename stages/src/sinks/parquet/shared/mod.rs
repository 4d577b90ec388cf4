//! The sink's memory where several workers share the source: in the bucket, where every worker finds it.
//!
//! It is the journal of one worker (see [`super::journal`]), a partition at a time, and fenced. Each partition has a *head*, a
//! small object that only changes by compare-and-swap (`If-Match`), so a worker whose claim is over can't change it any more. A
//! group is set aside as one file with its finished objects; it is stored once the head names that file, and none of its objects
//! is created before. Whoever has the partition then, whether the same worker or the next, creates them, or finds them there, and
//! moves the position on.
//!
//! ```text
//! _pipeline/heads/<pipeline>-<stage>/<source>/<shard>.head      whose it is, how far it has come, which file is on its way
//! _pipeline/staged/<pipeline>-<stage>/<source>/<shard>/<tenure>-<holder>-<hash>
//!
//! put the file ─▶ swap: the head names it ─▶ create its objects ─▶ swap: position moved, file not named ─▶ remove the file
//!                 (commit, and fence)
//! ```
//!
//! | a worker ends, or loses the partition | what is there | what the next owner does |
//! |---|---|---|
//! | before the first swap | perhaps a file that no head names | sweeps it; the rows come again |
//! | before all objects are created | the file, some objects | creates the rest |
//! | before the second swap | the file, all objects | finds them, moves the position on |
//! | before the file is removed | a file that no head names | sweeps it |
//!
//! **A file that a head names is there**: it is removed only behind the swap that has taken it out of the head. **No request is
//! trusted to have failed**: after a lost answer the head is read again, and a late request finds another ETag than its own.
//!
//! Objects are created, and not copied from what is set aside, so that `If-None-Match` holds for them as with one worker:
//! each appears once, is never replaced, and sends one notification. It costs a second upload.
//!
//! **Danger.** Rows without positions (see [`super`]) are stored without all this, at least once.

mod head;
mod held;
mod parts;

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use pipeline_engine::stage::{Committed, StageError};

use self::held::{Held, Place};
pub(super) use self::parts::{Part, split};
use super::writer::Writer;

/// Partitions of one group that are stored at once: each holds its finished objects in memory.
const PARTITIONS_MAX: usize = 4;

/// The partitions that this worker has claimed.
pub(super) struct SharedJournal {
    /// What the names of the sink's objects begin with.
    owner: String,
    /// This sink of this process, and no other: the number of a tenure is one worker's as long as the table of leases
    /// keeps its word, and here nobody has to believe it.
    holder: String,
    held: BTreeMap<String, Held>,
}

impl SharedJournal {
    pub(super) fn new(owner: &str) -> Self {
        let holder = format!("{:016x}", rand::random::<u64>());
        Self { owner: owner.to_owned(), holder, held: BTreeMap::new() }
    }

    /// Begins a tenure, finishes what an earlier one has left, and says how far the sink has come. On return nothing of an earlier
    /// tenure is stored any more.
    ///
    /// # Errors
    /// [`StageError::superseded`] where a later tenure is on record, or somebody else's of this number.
    pub(super) async fn adopt(
        &mut self,
        writer: &Writer,
        partition: &str,
        tenure: u64,
    ) -> Result<Vec<Committed>, StageError> {
        let records = writer.records()?;
        self.held.remove(partition);
        let mut held = Held::claim(Place::of(&self.owner, partition), records, tenure, &self.holder).await?;
        held.finish(writer).await?;
        held.place().sweep(records, tenure).await;
        let committed = held.head().positions.committed();
        self.held.insert(partition.to_owned(), held);
        Ok(committed)
    }

    /// Stores parts of a group that have positions. On an error some may be stored: they are recognised when they come again.
    ///
    /// # Errors
    /// [`StageError::superseded`] of all that are somebody else's, once the others were tried; else the first error.
    pub(super) async fn store(&mut self, writer: &Writer, parts: &[Part<'_>]) -> Result<(), StageError> {
        let mut parts: BTreeMap<&str, &Part<'_>> = parts.iter().map(|part| (part.partition, part)).collect();
        let mut work = Vec::new();
        for (partition, held) in &mut self.held {
            if let Some(part) = parts.remove(&**partition) {
                work.push(held.store(writer, part));
            }
        }
        if let Some(partition) = parts.into_keys().next() {
            return Err(StageError::bug(format!("\"{partition}\" came before it was claimed")));
        }
        let mut superseded = Vec::new();
        let mut failed = None;
        for outcome in stream::iter(work).buffer_unordered(PARTITIONS_MAX).collect::<Vec<_>>().await {
            match outcome {
                Ok(()) => {}
                Err(error) if !error.superseded_partitions().is_empty() => {
                    superseded.extend_from_slice(error.superseded_partitions());
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            _ if !superseded.is_empty() => Err(StageError::superseded(superseded)),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes a partition off the record that nobody will claim again. False while a group of it is on its way: nothing is
    /// forgotten that is not in the lake.
    pub(super) async fn forget(&mut self, writer: &Writer, partition: &str) -> Result<bool, StageError> {
        let records = writer.records()?;
        let place = Place::of(&self.owner, partition);
        if place.look(records).await?.is_some_and(|(head, _)| head.staged.is_some()) {
            return Ok(false);
        }
        self.held.remove(partition);
        place.sweep(records, u64::MAX).await;
        records.remove(&place.head).await.map(|()| true)
    }
}
