//! How rows are written in an object, and read back from it.
//!
//! Every object says of what group its rows are (see [`super::provenance`]): Parquet in its footer, gzip and zstd in a part that
//! unpacking passes over. Only lines that are not packed have no place for it.

mod json;
mod packing;
mod parquet;

use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use ::parquet::basic::Compression as Codec;
use ::parquet::file::metadata::KeyValue;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use pipeline_engine::stage::StageError;

pub(super) use self::packing::Packing;
use super::account::GroupText;
use super::provenance::{GROUP, Provenance};

/// What can't be read, and why.
pub(super) type Unreadable = Box<dyn std::error::Error + Send + Sync>;

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Parquet(Codec),
    /// A JSON object on each line.
    Json(Packing),
}

/// What is the same for every object of a sink.
pub(super) struct Encoder {
    pub(super) pipeline: String,
    pub(super) stage: String,
    pub(super) schema: SchemaRef,
    pub(super) form: Form,
}

/// One object, written.
pub(super) struct Encoded {
    pub(super) content: Bytes,
    /// SHA-256 of the content and of where its rows came from: other rows have another one, also where they say the same.
    pub(super) digest: Vec<u8>,
}

impl Encoder {
    /// One object with these rows, in this order.
    ///
    /// # Errors
    /// A mistake of ours: the rows are of the schema.
    pub(super) fn encode(&self, batches: &[RecordBatch], provenance: &Provenance) -> Result<Encoded, StageError> {
        let names = [("pipeline.name", self.pipeline.as_str()), ("pipeline.stage", &self.stage)];
        let entries: Vec<_> = names.into_iter().chain(provenance.entries()).collect();
        let failed = |error: Unreadable| StageError::bug("an object could not be written").because(error);
        let mut hash = Context::new(&SHA256);
        let content = match self.form {
            Form::Parquet(codec) => {
                parquet::write(&self.schema, codec, batches, &entries).map_err(|error| failed(error.into()))?
            }
            Form::Json(packing) => {
                // Lines alone are the same for other positions of the same rows.
                provenance.entries().for_each(|(_, value)| hash.update(value.as_bytes()));
                json::write(packing, batches, &entries).map_err(failed)?
            }
        };
        hash.update(&content);
        Ok(Encoded { content, digest: hash.finish().as_ref().to_vec() })
    }

    /// What the names of its objects end with.
    pub(super) fn extension(&self) -> &'static str {
        match self.form {
            Form::Parquet(_) => ".parquet",
            Form::Json(packing) => packing.extension(),
        }
    }
}

/// What an object says of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Group(GroupText),
    /// Its source can't resume.
    Unplaced,
    /// It has no place to say so.
    Silent,
}

/// How an object is written, by the end of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Parquet,
    Json(Packing),
}

impl Written {
    /// `None` for what no sink of ours writes.
    pub(super) fn of(key: &str) -> Option<Self> {
        if key.ends_with(".parquet") { Some(Self::Parquet) } else { Packing::of(key).map(Self::Json) }
    }

    /// Rows of the schema, and where they came from. The schema is that of the sink: Parquet has its own.
    ///
    /// # Errors
    /// It is damaged, or somebody else's. On damaged Parquet the library may also panic.
    pub(super) fn read(self, content: Bytes, schema: &SchemaRef) -> Result<(Vec<RecordBatch>, Origin), Unreadable> {
        match self {
            Self::Parquet => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(content)?;
                let origin = origin_in(reader.metadata().file_metadata().key_value_metadata())?;
                Ok((reader.build()?.collect::<Result<_, _>>()?, origin))
            }
            Self::Json(packing) => Ok((json::read(packing, &content, schema)?, json::origin(packing, &content)?)),
        }
    }

    /// How many rows it has, and where they came from.
    ///
    /// # Errors
    /// As for [`Written::read`].
    pub(super) fn count(self, content: &Bytes) -> Result<(u64, Origin), Unreadable> {
        match self {
            Self::Parquet => {
                let metadata = ArrowReaderMetadata::load(content, Default::default())?;
                let file = metadata.metadata().file_metadata();
                Ok((u64::try_from(file.num_rows()).unwrap_or(0), origin_in(file.key_value_metadata())?))
            }
            Self::Json(packing) => Ok((json::count(packing, content)?, json::origin(packing, content)?)),
        }
    }
}

/// What a footer says of the group.
fn origin_in(entries: Option<&Vec<KeyValue>>) -> Result<Origin, serde_json::Error> {
    let entries: &[KeyValue] = entries.map_or(&[], Vec::as_slice);
    let group = entries.iter().find(|entry| entry.key == GROUP).and_then(|entry| entry.value.as_deref());
    group.map_or(Ok(Origin::Unplaced), |group| serde_json::from_str(group).map(Origin::Group))
}
