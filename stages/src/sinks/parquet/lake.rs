//! The objects of a sink read back as rows, with the positions that they took the sink to: for `pipeline db`.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use pipeline_engine::Position;
use pipeline_engine::stage::{Advance, StageError};

use super::account::position;
use super::format::{Origin, Written};
use super::letters::is_object_of;
use super::store::{Listed, Reader};

/// Where a sink lays its objects down.
pub struct Lake {
    reader: Box<dyn Reader>,
    /// What the names of the sink's objects begin with.
    owner: String,
    schema: SchemaRef,
}

/// One object, read.
pub(crate) struct LakeObject {
    pub rows: Vec<RecordBatch>,
    /// How far its group took the sink; `None` for one of a source that can't resume, and for one that does not say.
    pub advances: Option<Vec<Advance>>,
}

impl Lake {
    pub(super) fn new(reader: Box<dyn Reader>, owner: &str, schema: SchemaRef) -> Self {
        Self { reader, owner: owner.to_owned(), schema }
    }

    /// The place, for a person.
    pub fn place(&self) -> String {
        self.reader.place()
    }

    /// Keys of the sink's objects and when they were made, in microseconds since 1970; the newest first.
    pub(crate) async fn newest_first(&mut self) -> Result<Vec<(String, i64)>, StageError> {
        let mut listed = self.reader.list().await?;
        listed.retain(|listed| is_object_of(&self.owner, &listed.key));
        listed.sort_unstable_by(|left, right| (right.made_at_us, &right.key).cmp(&(left.made_at_us, &left.key)));
        Ok(listed.into_iter().map(|Listed { key, made_at_us }| (key, made_at_us)).collect())
    }

    /// What is in an object; `None` if it is gone.
    pub(crate) async fn read(&mut self, key: &str) -> Result<Option<LakeObject>, StageError> {
        let Some(content) = self.reader.get(key).await? else { return Ok(None) };
        let unreadable = |why: String| StageError::permanent(format!("\"{key}\" can't be read: {why}"));
        let Some(written) = Written::of(key) else { return Err(unreadable("no sink writes such objects".to_owned())) };
        let schema = self.schema.clone();
        // On a damaged object the library may panic.
        let read = tokio::task::spawn_blocking(move || written.read(content, &schema)).await;
        let (rows, origin) =
            read.map_err(|panic| unreadable(panic.to_string()))?.map_err(|error| unreadable(error.to_string()))?;
        let Origin::Group(group) = origin else { return Ok(Some(LakeObject { rows, advances: None })) };
        let advance = |text: super::account::AdvanceText| {
            let from: Option<Position> = text.from.as_deref().map(position).transpose()?;
            Ok(Advance { input: text.input, partition: text.partition, from, to: position(&text.to)?, tenure: None })
        };
        let advances = group.advances.into_iter().map(advance).collect::<Result<Vec<_>, StageError>>()?;
        Ok(Some(LakeObject { rows, advances: Some(advances) }))
    }
}
