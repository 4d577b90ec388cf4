//! Parts a batch into the rows that go on and dead letters for the rest.
//!
//! No row is lost here: every row of the batch is either kept or has its letter.

use arrow::array::{BooleanArray, BooleanBufferBuilder};
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use pipeline_engine::dead_letter;
use pipeline_engine::stage::{Batch, Emitter, Port, StageError};

/// A refused row: its index, the reason's word, and the detail for a person.
pub(super) type Refused = (u32, String, Option<String>);

/// The rows that are not in `refused`, which is in order and without repeats.
pub(super) fn keep_rest(rows: &RecordBatch, refused: impl Iterator<Item = u32>) -> Result<RecordBatch, StageError> {
    let mut keep = BooleanBufferBuilder::new(rows.num_rows());
    keep.append_n(rows.num_rows(), true);
    for row in refused {
        keep.set_bit(row as usize, false);
    }
    Ok(filter_record_batch(rows, &BooleanArray::new(keep.finish(), None))?)
}

/// A letter for each refused row of `batch`.
pub(super) fn letters(batch: &Batch, refused: &[Refused], stage: &str) -> Result<RecordBatch, StageError> {
    let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
    // Only a batch that no source has read is without a time of receipt.
    let received_at_us = batch.ack().received_at_us().unwrap_or(0);
    Ok(dead_letter::of_rows(&batch.rows, refused, stage, received_at_us, position.as_deref())?)
}

/// Sends both parts out under the promise of `batch`. A part without rows is not sent, unless both
/// are: then the batch goes on empty, since a promise with no share left would count as broken.
pub(super) fn emit(batch: Batch, kept: RecordBatch, letters: RecordBatch, out: &mut Emitter) {
    match (kept.num_rows(), letters.num_rows()) {
        (_, 0) => out.emit(batch.with_rows(kept)),
        (0, _) => out.emit_to(Port::REJECTED, batch.with_rows(letters)),
        _ => {
            let (kept, letters) = batch.split(kept, letters);
            out.emit(kept);
            out.emit_to(Port::REJECTED, letters);
        }
    }
}
