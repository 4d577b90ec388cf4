//! Lays rows down as Parquet files or JSON lines in folders, by day or as a prefix of Firehose's says, in an S3 bucket or on a local disk.
//!
//! Each group of the engine becomes one object for each folder it touches, whole and durable before
//! the group counts as stored. An object is never seen half and never overwritten.
//!
//! **Guarantee.** Where the source can resume, each row ends in exactly one object, through crashes
//! at any point and outages of the store: a group is staged on the local disk with its finished
//! objects before the first of them is created (see `journal`; where several workers share the source, in the
//! bucket: see `shared`). Groups end by the clock as well
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
mod shared;
mod store;
mod writer;

use std::any::Any;
use std::collections::VecDeque;

use async_trait::async_trait;
use pipeline_engine::dlq::LetterStore;
use pipeline_engine::far_end::FarEnd;
use pipeline_engine::stage::{
    Account, Adopted, Batch, Committed, Examination, Group, SchemaComparison, Sharing, Sink, StageError,
};

use self::account::Objects;
pub use self::config::ParquetConfig;
pub(crate) use self::destination::Destination;
use self::far_end::LakeEnd;
use self::format::{Encoded, Form};
use self::journal::{Journal, Staged};
pub use self::lake::Lake;
pub(crate) use self::lake::LakeObject;
use self::layout::Place;
use self::letters::{LakeLetters, is_object_of};
use self::shared::SharedJournal;
use self::store::{Guard, Listed, Object};
use self::writer::Writer;

/// How many objects are remembered to tell a twin from a retry. Twins follow closely on each other.
const REMEMBERED_MAX: usize = 1_024;

/// The running stage.
struct Parquet {
    writer: Writer,
    journal: Journal,
    /// In the place of the journal, where several workers share the source.
    shared: Option<SharedJournal>,
    /// Keys of the files of earlier groups of this run that had no positions, newest last.
    made: VecDeque<String>,
}

#[async_trait]
impl Sink for Parquet {
    /// Brings to the store what an earlier run had not finished.
    async fn open(&mut self) -> Result<(), StageError> {
        self.writer.store.open().await?;
        if self.shared.is_some() {
            return self.writer.store.open_records().await;
        }
        self.journal.open().await?;
        self.finish_staged().await
    }

    fn sharing(&self) -> Sharing {
        match self.writer.store.records() {
            Some(_) => Sharing::ExactlyOnce { keeps_checkpoints: false },
            None => Sharing::Refused(
                "A folder is one machine's: no other worker finds there what was stored before it. Write to a bucket: \
                 url = \"s3://bucket/prefix\". Or take \"workers\" out of the source.",
            ),
        }
    }

    fn share(&mut self) {
        self.shared = Some(SharedJournal::new(&self.writer.owner));
    }

    async fn adopt(&mut self, partition: &str, tenure: u64, _: &[String]) -> Result<Adopted, StageError> {
        let Some(shared) = &mut self.shared else { return Err(not_shared()) };
        let positions = shared.adopt(&self.writer, partition, tenure).await?;
        Ok(Adopted { positions, ..Adopted::default() })
    }

    async fn forget(&mut self, partition: &str, _: &[String]) -> Result<bool, StageError> {
        let Some(shared) = &mut self.shared else { return Err(not_shared()) };
        shared.forget(&self.writer, partition).await
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        Ok(self.journal.committed())
    }

    /// Opening writes a probe and removes it: more than this can't be asked without changing something.
    async fn probe(&mut self) -> Result<String, StageError> {
        let guard = self.writer.store.open().await?;
        if self.shared.is_some() {
            self.writer.store.open_records().await?;
            return Ok("the store takes objects, and keeps the conditions that several workers need".to_owned());
        }
        Ok(match guard {
            Guard::Store => "the store takes objects".to_owned(),
            Guard::Sink => "the store takes objects, but ignores If-None-Match: the sink will look before it writes, \
                            so let only one run write there"
                .to_owned(),
        })
    }

    async fn examine(&mut self, report: &Examination) {
        self.writer.store.examine(report).await;
    }

    fn time_column(&self) -> Option<usize> {
        self.writer.layout.time_column()
    }

    async fn account(&mut self) -> Result<Option<Account>, StageError> {
        let Some(mut reader) = self.writer.store.reader() else { return Ok(None) };
        let mut keys = reader.keys().await?;
        keys.retain(|key| is_object_of(&self.writer.owner, key));
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
        let Form::Parquet(_) = self.writer.encoder.form else { return Ok(None) };
        let Some(mut reader) = self.writer.store.reader() else { return Ok(None) };
        let mut listed = reader.list().await?;
        listed.retain(|listed| {
            is_object_of(&self.writer.owner, &listed.key) && listed.key.ends_with(self.writer.encoder.extension())
        });
        let count = listed.len();
        let newest =
            listed.into_iter().max_by(|one, other| (one.made_at_us, &one.key).cmp(&(other.made_at_us, &other.key)));
        let none_yet =
            || SchemaComparison { against: format!("{}, which is empty", reader.place()), ..Default::default() };
        let Some(Listed { key, .. }) = newest else { return Ok(Some(none_yet())) };
        match reader.get(&key).await? {
            Some(content) => compare::compare(&self.writer.encoder.schema, &key, content, count).await.map(Some),
            None => Err(StageError::transient(format!("\"{key}\" has gone since it was listed"))),
        }
    }

    fn declared(&self) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(Lake::new(self.writer.store.reader()?, &self.writer.owner, self.writer.encoder.schema.clone())))
    }

    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        Some(Box::new(LakeLetters::new(self.writer.store.reader()?, &self.writer.owner)))
    }

    fn far_end(&self) -> Option<Box<dyn FarEnd>> {
        Some(Box::new(LakeEnd::new(
            self.writer.store.reader()?,
            &self.writer.owner,
            self.writer.encoder.schema.clone(),
        )))
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        if let Some(shared) = &mut self.shared {
            // What has no positions comes last: it would not be recognised if the rest had to come again.
            let (placed, unplaced): (Vec<_>, Vec<_>) =
                shared::split(group).into_iter().partition(|part| !part.advances.is_empty());
            shared.store(&self.writer, &placed).await?;
            let unplaced: Vec<&Batch> = unplaced.into_iter().flat_map(|part| part.batches).collect();
            return if unplaced.is_empty() { Ok(()) } else { self.write_unstaged(&unplaced).await };
        }
        let batches: Vec<&Batch> = group.batches().iter().collect();
        if group.advances().is_empty() {
            return self.write_unstaged(&batches).await;
        }
        // An earlier group whose store was away, or this very one.
        self.finish_staged().await?;
        if !self.journal.is_due(group.advances())? {
            return Ok(());
        }
        let objects = self.writer.named_objects(&batches, group.advances()).await?;
        self.journal.stage(Staged { advances: group.advances().to_vec(), objects }).await?;
        self.finish_staged().await
    }
}

impl Parquet {
    /// Rows whose positions mean nothing after a restart.
    async fn write_unstaged(&mut self, batches: &[&Batch]) -> Result<(), StageError> {
        let files = self.writer.encode(batches, &[]).await?;
        let object = |(place, file): (Place, Encoded)| Object { key: self.key(&place, &file), content: file.content };
        let objects: Vec<_> = files.into_iter().map(object).collect();
        self.writer.create(&objects).await?;
        self.made.extend(objects.into_iter().map(|object| object.key));
        let surplus = self.made.len().saturating_sub(REMEMBERED_MAX);
        self.made.drain(..surplus);
        Ok(())
    }

    async fn finish_staged(&mut self) -> Result<(), StageError> {
        if let Some(staged) = self.journal.staged() {
            self.writer.create(&staged.objects).await?;
        }
        self.journal.settle().await
    }

    fn key(&self, place: &Place, file: &Encoded) -> String {
        let (stem, extension) = (self.writer.stem(place, file), self.writer.encoder.extension());
        // The very same rows of the very same positions, in an earlier group: they came by two ways
        // through the pipeline, and are two rows. A retry is none of these, its group is not made yet.
        let twins = self.made.iter().filter(|key| key.starts_with(&stem)).count();
        if twins == 0 { format!("{stem}{extension}") } else { format!("{stem}-{}{extension}", twins + 1) }
    }
}

fn not_shared() -> StageError {
    StageError::bug("a partition was claimed for a lake that one worker writes")
}

#[cfg(test)]
mod tests;
