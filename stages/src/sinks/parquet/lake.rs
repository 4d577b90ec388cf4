//! The objects of a sink read back as rows, with the positions that they took the sink to: for `pipeline db`.

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline_engine::Position;
use pipeline_engine::stage::{Advance, StageError};

use super::account::{group_of, position};
use super::letters::is_object_of;
use super::store::{Listed, Reader};

/// Where a sink lays its objects down.
pub struct Lake {
    reader: Box<dyn Reader>,
    /// What the names of the sink's objects begin with.
    owner: String,
}

/// One object, read.
pub(crate) struct LakeObject {
    pub rows: Vec<RecordBatch>,
    /// How far its group took the sink; `None` for one of a source that can't resume.
    pub advances: Option<Vec<Advance>>,
}

impl Lake {
    pub(super) fn new(reader: Box<dyn Reader>, owner: &str) -> Self {
        Self { reader, owner: owner.to_owned() }
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
        let unreadable = |why: String| StageError::permanent(format!("\"{key}\" can't be read as Parquet: {why}"));
        // On a damaged object the library may panic.
        let read = tokio::task::spawn_blocking(move || decode(content)).await;
        let (rows, group) = read.unwrap_or_else(|panic| Err(panic.to_string())).map_err(unreadable)?;
        let advances = group.map(|group| {
            let advance = |text: super::account::AdvanceText| {
                let from: Option<Position> = text.from.as_deref().map(position).transpose()?;
                Ok(Advance { input: text.input, partition: text.partition, from, to: position(&text.to)? })
            };
            group.advances.into_iter().map(advance).collect::<Result<Vec<_>, StageError>>()
        });
        Ok(Some(LakeObject { rows, advances: advances.transpose()? }))
    }
}

fn decode(content: Bytes) -> Result<(Vec<RecordBatch>, Option<super::account::GroupText>), String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|error| error.to_string())?;
    let group = group_of(reader.metadata().file_metadata().key_value_metadata())?;
    let rows = reader.build().map_err(|error| error.to_string())?;
    let rows = rows.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    Ok((rows, group))
}
