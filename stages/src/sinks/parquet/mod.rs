//! Lays rows down as Parquet files or JSON lines in folders, by day or as a prefix of Firehose's says, in an S3 bucket or on a local disk.
//!
//! Each group of the engine becomes one object for each folder it touches, whole and durable before
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
//! of SHA-256 over the file. The footer holds the positions and the times of receipt of the rows (for
//! JSON lines they are hashed as well), so
//! the same group gives the same name, whatever became of an earlier try: a retry finds its object
//! there and is done. Different rows never share a name, not even where a source counts its
//! positions anew in each run, since their times of receipt differ. A name made of positions alone
//! would fail there, and where two branches of a pipeline bring rows of one position to one sink.
//!
//! **Proof.** The footers (`pipeline.group`, see `provenance`) say of each group how many rows it has
//! and where it goes on from: whether all rows are there, each once, shows from the objects alone. Packed
//! JSON lines say so too (see `format`).
//!
//! **Danger.** A source that can't resume gives groups without positions: the rows it sends again
//! after a crash may be grouped differently, and at most one group is then stored twice, under
//! another name. The same happens to whatever the source still holds if the sink's folder below the
//! data directory is lost. Of a group that touches several folders, some may be visible before
//! the others.

mod account;
mod bucket;
mod compare;
mod config;
mod destination;
mod disk;
mod far_end;
mod folder;
mod format;
mod journal;
mod lake;
mod layout;
mod letters;
mod provenance;
mod store;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use pipeline_engine::Counter;
use pipeline_engine::dlq::LetterStore;
use pipeline_engine::far_end::FarEnd;
use pipeline_engine::stage::{Account, Committed, Examination, Group, SchemaComparison, Sharing, Sink, StageError};

use self::account::Objects;
pub use self::config::ParquetConfig;
pub(crate) use self::destination::Destination;
use self::far_end::LakeEnd;
use self::format::{Encoded, Encoder, Form};
use self::journal::{Journal, Staged};
pub use self::lake::Lake;
pub(crate) use self::lake::LakeObject;
use self::layout::{Layout, Place};
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
    layout: Arc<Layout>,
    /// What every name begins with.
    owner: String,
    journal: Journal,
    /// Keys of the files of earlier groups of this run that had no positions, newest last.
    made: VecDeque<String>,
    files: Counter,
    bytes: Counter,
}

#[async_trait]
impl Sink for Parquet {
    /// Brings to the store what an earlier run had not finished.
    async fn open(&mut self) -> Result<(), StageError> {
        self.store.open().await?;
        self.journal.open().await?;
        self.finish_staged().await
    }

    fn sharing(&self) -> Sharing {
        Sharing::Refused(
            "Its journal is on one worker's disk, where the next one can't find it. Store by a sink of type timescaledb; or \
             read the stream once more for the lake, in a pipeline of one worker, without \"workers\".",
        )
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
        self.layout.time_column()
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
        // Lines have no schema.
        let Form::Parquet(_) = self.encoder.form else { return Ok(None) };
        let Some(mut reader) = self.store.reader() else { return Ok(None) };
        let mut listed = reader.list().await?;
        listed
            .retain(|listed| is_object_of(&self.owner, &listed.key) && listed.key.ends_with(self.encoder.extension()));
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
        Some(Box::new(Lake::new(self.store.reader()?, &self.owner, self.encoder.schema.clone())))
    }

    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        Some(Box::new(LakeLetters::new(self.store.reader()?, &self.owner)))
    }

    fn far_end(&self) -> Option<Box<dyn FarEnd>> {
        Some(Box::new(LakeEnd::new(self.store.reader()?, &self.owner, self.encoder.schema.clone())))
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
        let object = |(place, file): (Place, Encoded)| Object {
            key: format!("{}{}", self.stem(&place, &file), self.encoder.extension()),
            content: file.content,
        };
        let objects = files.into_iter().map(object).collect();
        self.journal.stage(Staged { advances: group.advances().to_vec(), objects }).await?;
        self.finish_staged().await
    }
}

impl Parquet {
    /// A group whose positions mean nothing after a restart.
    async fn write_unstaged(&mut self, group: &Group) -> Result<(), StageError> {
        let files = self.encode(group).await?;
        let object = |(place, file): (Place, Encoded)| Object { key: self.key(&place, &file), content: file.content };
        let objects: Vec<_> = files.into_iter().map(object).collect();
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

    async fn encode(&self, group: &Group) -> Result<Vec<(Place, Encoded)>, StageError> {
        let provenance = Provenance::of(group);
        let batches: Vec<_> =
            group.batches().iter().map(|batch| (batch.rows.clone(), batch.ack().received_at_us())).collect();
        let (encoder, layout) = (self.encoder.clone(), self.layout.clone());
        tokio::task::spawn_blocking(move || encode_folders(&encoder, &layout, batches, &provenance))
            .await
            .map_err(|panic| StageError::bug("encoding a file panicked").because(panic))?
    }

    /// The key without its end.
    fn stem(&self, place: &Place, file: &Encoded) -> String {
        let hash: String = file.digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{}{hash}", place.folder(&file.digest), self.owner)
    }

    fn key(&self, place: &Place, file: &Encoded) -> String {
        let (stem, extension) = (self.stem(place, file), self.encoder.extension());
        // The very same rows of the very same positions, in an earlier group: they came by two ways
        // through the pipeline, and are two rows. A retry is none of these, its group is not made yet.
        let twins = self.made.iter().filter(|key| key.starts_with(&stem)).count();
        if twins == 0 { format!("{stem}{extension}") } else { format!("{stem}-{}{extension}", twins + 1) }
    }
}

/// One file for each folder, with its rows in order of arrival.
fn encode_folders(
    encoder: &Encoder,
    layout: &Layout,
    batches: Vec<(RecordBatch, Option<i64>)>,
    provenance: &Provenance,
) -> Result<Vec<(Place, Encoded)>, StageError> {
    let encode = |(place, batches): (Place, Vec<RecordBatch>)| Ok((place, encoder.encode(&batches, provenance)?));
    layout.split(batches)?.into_iter().map(encode).collect()
}

#[cfg(test)]
mod tests;
