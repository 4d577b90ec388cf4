//! Lays rows down as Parquet files in folders by day, in an S3 bucket or on a local disk.
//!
//! Each group of the engine becomes one object for each day it touches, whole and durable before
//! the group counts as stored. An object is never seen half and never overwritten.
//!
//! **Guarantee.** Where the source can resume, each row ends in exactly one object, through crashes
//! at any point and outages of the store: a group is staged on the local disk with its finished
//! objects before the first of them is created (see `journal`). Groups end by the clock as well
//! (`roll_age`), but that is decided once: what was staged is created as it is, and what was not has
//! left no object behind. So no restart, and no clock set back or forward, can cut rows otherwise
//! than the objects that are there.
//!
//! **Names.** `year=YYYY/month=MM/day=DD/<pipeline>-<stage>-<hash>.parquet`, the hash being 128 bits
//! of SHA-256 over the file. The footer holds the positions and the times of receipt of the rows, so
//! the same group gives the same name, whatever became of an earlier try: a retry finds its object
//! there and is done. Different rows never share a name, not even where a source counts its
//! positions anew in each run, since their times of receipt differ. A name made of positions alone
//! would fail there, and where two branches of a pipeline bring rows of one position to one sink.
//!
//! **Proof.** The footers (`pipeline.group`, see `provenance`) say of each group how many rows it has
//! and where it goes on from: whether all rows are there, each once, shows from the objects alone.
//!
//! **Danger.** A source that can't resume gives groups without positions: the rows it sends again
//! after a crash may be grouped differently, and at most one group is then stored twice, under
//! another name. The same happens to whatever the source still holds if the sink's folder below the
//! data directory is lost. Of a group that touches several days, some days may be visible before
//! the others.

mod account;
mod bucket;
mod compare;
mod config;
mod days;
mod destination;
mod disk;
mod encode;
mod far_end;
mod folder;
mod journal;
mod lake;
mod letters;
mod provenance;
mod store;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use pipeline_engine::dlq::LetterStore;
use pipeline_engine::far_end::FarEnd;
use pipeline_engine::stage::{Account, Committed, Examination, Group, SchemaComparison, Sink, StageError};
use pipeline_engine::{Counter, now_us};

use self::account::Objects;
pub use self::config::ParquetConfig;
use self::days::{Day, split_by_day};
pub(crate) use self::destination::Destination;
use self::encode::Encoder;
use self::far_end::LakeEnd;
use self::journal::{Journal, Staged};
pub use self::lake::Lake;
pub(crate) use self::lake::LakeObject;
use self::letters::{LakeLetters, is_object_of};
use self::provenance::Provenance;
use self::store::{Guard, Listed, Object, Store};

/// Objects of one group that are on their way at once. A group has one as a rule; a fleet of bad
/// clocks can make thousands.
const CREATES_MAX: usize = 8;

/// How many objects are remembered to tell a twin from a retry. Twins follow closely on each other.
const REMEMBERED_MAX: usize = 1_024;

/// The running stage.
struct Parquet {
    store: Box<dyn Store>,
    encoder: Arc<Encoder>,
    folders: Folders,
    /// What every name begins with.
    owner: String,
    journal: Journal,
    /// Keys of the files of earlier groups of this run that had no positions, newest last.
    made: VecDeque<String>,
    files: Counter,
    bytes: Counter,
}

/// What decides the folder of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folders {
    ByReceipt,
    ByColumn(usize),
}

#[async_trait]
impl Sink for Parquet {
    /// Brings to the store what an earlier run had not finished.
    async fn open(&mut self) -> Result<(), StageError> {
        self.store.open().await?;
        self.journal.open().await?;
        self.finish_staged().await
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        Ok(self.journal.committed())
    }

    /// Opening writes a probe and removes it: more than this can't be asked without changing something.
    async fn probe(&mut self) -> Result<String, StageError> {
        Ok(match self.store.open().await? {
            Guard::Store => "the store takes objects".to_owned(),
            Guard::Sink => "the store takes objects, but ignores If-None-Match: the sink will look before it writes, \
                            so let only one run write there"
                .to_owned(),
        })
    }

    async fn examine(&mut self, report: &Examination) {
        self.store.examine(report).await;
    }

    fn time_column(&self) -> Option<usize> {
        match self.folders {
            Folders::ByReceipt => None,
            Folders::ByColumn(column) => Some(column),
        }
    }

    async fn account(&mut self) -> Result<Option<Account>, StageError> {
        let Some(mut reader) = self.store.reader() else { return Ok(None) };
        let mut keys = reader.keys().await?;
        keys.retain(|key| is_object_of(&self.owner, key));
        keys.sort_unstable();
        let mut objects = Objects::default();
        for key in keys {
            // One that is gone has expired since it was listed.
            if let Some(content) = reader.get(&key).await? {
                objects.add(&key, content).await;
            }
        }
        objects.account().map(Some)
    }

    async fn compare_schema(&mut self) -> Result<Option<SchemaComparison>, StageError> {
        let Some(mut reader) = self.store.reader() else { return Ok(None) };
        let mut listed = reader.list().await?;
        listed.retain(|listed| is_object_of(&self.owner, &listed.key));
        let count = listed.len();
        let newest =
            listed.into_iter().max_by(|one, other| (one.made_at_us, &one.key).cmp(&(other.made_at_us, &other.key)));
        let none_yet =
            || SchemaComparison { against: format!("{}, which is empty", reader.place()), ..Default::default() };
        let Some(Listed { key, .. }) = newest else { return Ok(Some(none_yet())) };
        match reader.get(&key).await? {
            Some(content) => compare::compare(&self.encoder.schema, &key, content, count).await.map(Some),
            None => Err(StageError::transient(format!("\"{key}\" has gone since it was listed"))),
        }
    }

    fn declared(&self) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(Lake::new(self.store.reader()?, &self.owner)))
    }

    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        Some(Box::new(LakeLetters::new(self.store.reader()?, &self.owner)))
    }

    fn far_end(&self) -> Option<Box<dyn FarEnd>> {
        Some(Box::new(LakeEnd::new(self.store.reader()?, &self.owner)))
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        if group.advances().is_empty() {
            return self.write_unstaged(group).await;
        }
        // An earlier group whose store was away, or this very one.
        self.finish_staged().await?;
        if !self.journal.is_due(group.advances())? {
            return Ok(());
        }
        let files = self.encode(group).await?;
        // No two groups have the same positions, so no two objects have the same name.
        let object =
            |(day, content): (Day, Bytes)| Object { key: format!("{}.parquet", self.stem(day, &content)), content };
        let objects = files.into_iter().map(object).collect();
        self.journal.stage(Staged { advances: group.advances().to_vec(), objects }).await?;
        self.finish_staged().await
    }
}

impl Parquet {
    /// A group whose positions mean nothing after a restart.
    async fn write_unstaged(&mut self, group: &Group) -> Result<(), StageError> {
        let files = self.encode(group).await?;
        let objects: Vec<_> =
            files.into_iter().map(|(day, content)| Object { key: self.key(day, &content), content }).collect();
        self.create(&objects).await?;
        self.made.extend(objects.into_iter().map(|object| object.key));
        let surplus = self.made.len().saturating_sub(REMEMBERED_MAX);
        self.made.drain(..surplus);
        Ok(())
    }

    async fn finish_staged(&mut self) -> Result<(), StageError> {
        if let Some(staged) = self.journal.staged() {
            self.create(&staged.objects).await?;
        }
        self.journal.settle().await
    }

    /// All of them are in the store on return, durable.
    async fn create(&self, objects: &[Object]) -> Result<(), StageError> {
        let store = &self.store;
        let create = |object: Object| async move { store.create(&object).await };
        // Clones share the content.
        stream::iter(objects.to_vec()).map(create).buffered(CREATES_MAX).try_collect::<()>().await?;
        for object in objects {
            self.files.increment();
            self.bytes.add(object.content.len() as u64);
        }
        Ok(())
    }

    async fn encode(&self, group: &Group) -> Result<Vec<(Day, Bytes)>, StageError> {
        let provenance = Provenance::of(group);
        let batches: Vec<_> =
            group.batches().iter().map(|batch| (batch.rows.clone(), batch.ack().received_at_us())).collect();
        let (encoder, folders) = (self.encoder.clone(), self.folders);
        tokio::task::spawn_blocking(move || encode_days(&encoder, folders, batches, &provenance))
            .await
            .map_err(|panic| StageError::bug("encoding a file panicked").because(panic))?
    }

    fn stem(&self, day: Day, content: &Bytes) -> String {
        let hash = digest(&SHA256, content);
        let hash: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}/{}{hash}", day.folder(), self.owner)
    }

    fn key(&self, day: Day, content: &Bytes) -> String {
        let stem = self.stem(day, content);
        // The very same rows of the very same positions, in an earlier group: they came by two ways
        // through the pipeline, and are two rows. A retry is none of these, its group is not made yet.
        let twins = self.made.iter().filter(|key| key.starts_with(&stem)).count();
        if twins == 0 { format!("{stem}.parquet") } else { format!("{stem}-{}.parquet", twins + 1) }
    }
}

/// One file for each day, with its rows in order of arrival.
fn encode_days(
    encoder: &Encoder,
    folders: Folders,
    batches: Vec<(RecordBatch, Option<i64>)>,
    provenance: &Provenance,
) -> Result<Vec<(Day, Bytes)>, StageError> {
    let mut days = BTreeMap::<Day, Vec<RecordBatch>>::new();
    for (rows, received_at_us) in batches {
        match folders {
            // Only tests make rows that were never received.
            Folders::ByReceipt => days.entry(Day::of(received_at_us.unwrap_or_else(now_us))).or_default().push(rows),
            Folders::ByColumn(column) => {
                for (day, rows) in split_by_day(&rows, column)? {
                    days.entry(day).or_default().push(rows);
                }
            }
        }
    }
    let encode = |(day, batches): (Day, Vec<RecordBatch>)| Ok((day, encoder.encode(&batches, provenance)?));
    let files = days.into_iter().map(encode).collect::<Result<_, parquet::errors::ParquetError>>();
    files.map_err(|error| StageError::bug("the Parquet writer failed").because(error))
}

#[cfg(test)]
mod tests;
