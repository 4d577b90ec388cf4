//! A partition that this worker has claimed: its head as it was seen last, and what is done with it.

use bytes::Bytes;
use pipeline_engine::stage::{Advance, StageError};

use super::head::{Head, StagedFile};
use super::parts::Part;
use crate::s3::ASIDE;
use crate::sinks::parquet::journal::format::sha256;
use crate::sinks::parquet::journal::{Staged, Standing};
use crate::sinks::parquet::layout::push_value;
use crate::sinks::parquet::store::{Object, Records, Version};
use crate::sinks::parquet::writer::Writer;

/// So often a claim is tried again that somebody else's request came before.
const CLAIMS_MAX: u32 = 10;

/// Where the head of a partition lies, and what is set aside of it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    partition: String,
    pub(super) head: String,
    /// A folder, without the slash.
    pub(super) staged: String,
}

impl Place {
    /// `owner`: what the names of the sink's objects begin with.
    pub(super) fn of(owner: &str, partition: &str) -> Self {
        let mut path = String::new();
        for (number, part) in partition.split('/').enumerate() {
            if number > 0 {
                path.push('/');
            }
            push_value(&mut path, part);
        }
        let owner = owner.trim_end_matches('-');
        Self {
            partition: partition.to_owned(),
            // No end that a reader of objects asks for.
            head: format!("{ASIDE}/heads/{owner}/{path}.head"),
            staged: format!("{ASIDE}/staged/{owner}/{path}"),
        }
    }

    fn superseded(&self) -> StageError {
        StageError::superseded(vec![self.partition.clone()])
    }

    /// The head as it is now.
    pub(super) async fn look(&self, records: &dyn Records) -> Result<Option<(Head, Version)>, StageError> {
        let Some((content, version)) = records.read(&self.head, 0).await? else { return Ok(None) };
        Ok(Some((Head::decode(&content, &self.head)?, version)))
    }

    /// Removes what is set aside of tenures before this one, which nobody will ask for again. What can't be removed costs
    /// money, and no row.
    pub(super) async fn sweep(&self, records: &dyn Records, tenure: u64) {
        let number = |key: &str| key.rsplit('/').next()?.split('-').next()?.parse::<u64>().ok();
        let swept = async {
            for key in records.list_below(&self.staged).await? {
                if number(&key).is_some_and(|number| number < tenure) {
                    records.remove(&key).await?;
                }
            }
            Ok::<_, StageError>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(folder = self.staged, "what an earlier owner has left there stays: {}", error.chain());
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    place: Place,
    head: Head,
    /// Of that head; `None` once a change was asked for and it is not known what became of it.
    version: Option<Version>,
    /// A group that this worker has set aside, or was about to when the answer was lost.
    staged: Option<(StagedFile, Staged)>,
    /// The part that was settled last: it may be asked for again.
    settled: Vec<Advance>,
}

impl Held {
    /// Puts the claim into the head, whoever had it before under a lower number.
    ///
    /// # Errors
    /// [`StageError::superseded`] where a later claim is there, or somebody else's of this number.
    pub(super) async fn claim(
        place: Place,
        records: &dyn Records,
        tenure: u64,
        holder: &str,
    ) -> Result<Self, StageError> {
        for _ in 0..CLAIMS_MAX {
            let (head, seen) = match place.look(records).await? {
                None => (Head::first(tenure, holder), None),
                Some((head, version)) if head.is_of(tenure, holder) => return Ok(Self::new(place, head, version)),
                Some((head, _)) if head.tenure >= tenure => return Err(place.superseded()),
                Some((head, version)) => (head.claimed(tenure, holder), Some(version)),
            };
            if let Some(version) = records.swap(&place.head, head.encode(&place.partition), seen.as_ref()).await? {
                return Ok(Self::new(place, head, version));
            }
        }
        Err(StageError::transient(format!("\"{}\" was changed by others all the while", place.head)))
    }

    fn new(place: Place, head: Head, version: Version) -> Self {
        Self { place, head, version: Some(version), staged: None, settled: Vec::new() }
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Stores a part of a group: its rows are in objects on return, under their own names.
    ///
    /// # Errors
    /// [`StageError::superseded`] where the partition is somebody else's.
    pub(super) async fn store(&mut self, writer: &Writer, part: &Part<'_>) -> Result<(), StageError> {
        if part.tenure != Some(self.head.tenure) {
            return Err(self.place.superseded());
        }
        let records = writer.records()?;
        if self.version.is_none() {
            self.look_again(records).await?;
        }
        // An earlier part whose store was away, or this very one.
        self.finish(writer).await?;
        if !self.head.positions.is_due(&self.settled, &part.advances)? {
            return Ok(());
        }
        let objects = writer.named_objects(&part.batches, &part.advances).await?;
        self.stage(records, Staged { advances: part.advances.clone(), objects }).await?;
        self.finish(writer).await
    }

    /// Sets a group aside, and commits it by naming it in the head.
    async fn stage(&mut self, records: &dyn Records, staged: Staged) -> Result<(), StageError> {
        let first = Bytes::from(staged.encode_head());
        // The tenure first, for whoever sweeps. The same group has the same name, so that its commit is known again.
        let name = format!("{:020}-{}-{}", self.head.tenure, self.head.holder, &sha256(&first)[..32]);
        let parts: Vec<Bytes> = [first].into_iter().chain(staged.objects.iter().map(content)).collect();
        let file =
            StagedFile { key: format!("{}/{name}", self.place.staged), bytes: parts.iter().map(Bytes::len).sum() };
        records.put(&file.key, parts).await?;
        self.staged = Some((file.clone(), staged));
        self.swap(records, self.head.staging(file)).await
    }

    /// Creates the objects of the group that is set aside, if one is, and moves the partition on.
    pub(super) async fn finish(&mut self, writer: &Writer) -> Result<(), StageError> {
        let Some(file) = self.head.staged.clone() else { return Ok(()) };
        let records = writer.records()?;
        let staged = match &self.staged {
            Some((ours, staged)) if *ours == file => staged.clone(),
            _ => self.fetch(records, &file).await?,
        };
        if !matches!(self.head.positions.standing(&staged.advances), Standing::Next) {
            let text = format!("\"{}\" does not go on from what \"{}\" says", file.key, self.place.head);
            return Err(StageError::permanent(text).hint("The two belong together: put both back as they were."));
        }
        writer.create(&staged.objects).await?;
        let settled = self.head.settled(&staged.advances);
        self.staged = Some((file, staged));
        self.swap(records, settled).await
    }

    async fn fetch(&mut self, records: &dyn Records, file: &StagedFile) -> Result<Staged, StageError> {
        let unusable = |why: &str| {
            StageError::permanent(format!("\"{}\" can't be used", file.key)).because(why).hint(
                "It holds rows that were stored and have no objects of their own yet. Put it back from an earlier version of \
                 the object, or take \"staged\" out of the head: then these rows are lost.",
            )
        };
        match records.read(&file.key, file.bytes).await? {
            Some((content, _)) => Staged::decode(&content).map_err(|why| unusable(&why.to_string())),
            None => {
                // Whoever has the partition by now may have finished it.
                self.look_again(records).await?;
                if self.head.staged.as_ref() == Some(file) {
                    return Err(unusable("it is gone"));
                }
                Err(StageError::transient(format!("\"{}\" was finished by another request", file.key)))
            }
        }
    }

    /// Puts a head in the place of the one that was seen last.
    async fn swap(&mut self, records: &dyn Records, next: Head) -> Result<(), StageError> {
        let seen = self.version.take().ok_or_else(|| StageError::bug("a head was changed before it was seen"))?;
        let content = next.encode(&self.place.partition);
        if let Some(version) = records.swap(&self.place.head, content, Some(&seen)).await? {
            self.see(records, next, version).await;
            return Ok(());
        }
        // By an earlier request whose answer was lost, or by another worker.
        self.look_again(records).await?;
        if self.head == next {
            return Ok(());
        }
        Err(StageError::transient(format!("\"{}\" was being changed by another request", self.place.head)))
    }

    /// # Errors
    /// [`StageError::superseded`] where the partition is somebody else's.
    async fn look_again(&mut self, records: &dyn Records) -> Result<(), StageError> {
        match self.place.look(records).await? {
            Some((head, version)) if head.is_of(self.head.tenure, &self.head.holder) => {
                self.see(records, head, version).await;
                Ok(())
            }
            found => {
                let named = found.and_then(|(head, _)| head.staged);
                if let Some((file, _)) = self.staged.take()
                    && Some(&file) != named.as_ref()
                {
                    remove(records, &file).await;
                }
                Err(self.place.superseded())
            }
        }
    }

    /// Takes a head of ours for what is there now. What was set aside and is not named in it is over: either it is settled, or its
    /// commit has not come through.
    async fn see(&mut self, records: &dyn Records, head: Head, version: Version) {
        (self.head, self.version) = (head, Some(version));
        let is_over = |(file, _): &mut (StagedFile, Staged)| Some(&*file) != self.head.staged.as_ref();
        let Some((file, staged)) = self.staged.take_if(is_over) else { return };
        if let Standing::Reached = self.head.positions.standing(&staged.advances) {
            self.settled = staged.advances;
            remove(records, &file).await;
        }
    }
}

fn content(object: &Object) -> Bytes {
    object.content.clone()
}

/// Removes what nobody will ask for again.
async fn remove(records: &dyn Records, file: &StagedFile) {
    if let Err(error) = records.remove(&file.key).await {
        // The partition's next owner sweeps.
        tracing::warn!(file = file.key, "what was set aside stays for now: {}", error.chain());
    }
}
