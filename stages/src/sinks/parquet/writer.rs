//! Rows made objects, named by their content, and brought to the store.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt, stream};
use pipeline_engine::Counter;
use pipeline_engine::stage::{Advance, Batch, StageError};

use super::format::{Encoded, Encoder};
use super::layout::{Layout, Place};
use super::provenance::Provenance;
use super::store::{Object, Records, Store};

/// Objects of one group that are on their way at once. A group has one as a rule; a fleet of bad
/// clocks can make thousands.
const CREATES_MAX: usize = 8;

/// See the module.
pub(super) struct Writer {
    pub(super) store: Box<dyn Store>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) layout: Arc<Layout>,
    /// What every name begins with.
    pub(super) owner: String,
    pub(super) files: Counter,
    pub(super) bytes: Counter,
}

impl Writer {
    /// What several workers need of the store.
    pub(super) fn records(&self) -> Result<&dyn Records, StageError> {
        self.store.records().ok_or_else(|| StageError::bug("the store is one worker's alone"))
    }

    /// One file for each folder, with its rows in order of arrival.
    pub(super) async fn encode(
        &self,
        batches: &[&Batch],
        advances: &[Advance],
    ) -> Result<Vec<(Place, Encoded)>, StageError> {
        let provenance = Provenance::of(batches, advances);
        let batches: Vec<_> = batches.iter().map(|batch| (batch.rows.clone(), batch.ack().received_at_us())).collect();
        let (encoder, layout) = (self.encoder.clone(), self.layout.clone());
        tokio::task::spawn_blocking(move || encode_folders(&encoder, &layout, batches, &provenance))
            .await
            .map_err(|panic| StageError::bug("encoding a file panicked").because(panic))?
    }

    /// The objects of a group with positions. No two groups have the same ones, so no two objects have the same name.
    pub(super) async fn named_objects(
        &self,
        batches: &[&Batch],
        advances: &[Advance],
    ) -> Result<Vec<Object>, StageError> {
        let object = |(place, file): (Place, Encoded)| Object {
            key: format!("{}{}", self.stem(&place, &file), self.encoder.extension()),
            content: file.content,
        };
        Ok(self.encode(batches, advances).await?.into_iter().map(object).collect())
    }

    /// The key without its end.
    pub(super) fn stem(&self, place: &Place, file: &Encoded) -> String {
        let hash: String = file.digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{}{hash}", place.folder(&file.digest), self.owner)
    }

    /// All of them are in the store on return, durable.
    pub(super) async fn create(&self, objects: &[Object]) -> Result<(), StageError> {
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
}

fn encode_folders(
    encoder: &Encoder,
    layout: &Layout,
    batches: Vec<(RecordBatch, Option<i64>)>,
    provenance: &Provenance,
) -> Result<Vec<(Place, Encoded)>, StageError> {
    let encode = |(place, batches): (Place, Vec<RecordBatch>)| Ok((place, encoder.encode(&batches, provenance)?));
    layout.split(batches)?.into_iter().map(encode).collect()
}
