//! Rows and what a table has for them, put together; and what becomes of rows that it has nothing for.

use arrow::array::{Array, BooleanArray, UInt32Array};
use arrow::compute::{filter, filter_record_batch, is_not_null};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::{Batch, Emitter, StageError};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::transforms::refusal::{self, Refused};

/// What becomes of a row that the table has nothing for. All are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It goes on, with nulls for the table's columns.
    #[default]
    Null,
    /// It leaves by `rejected`.
    Reject,
    /// It is dropped.
    Drop,
}

/// Sends the rows on with what stands at their `places` in the table; `joined` puts the two together. Rows without a
/// place go where `missing` says, with the reasons that `refused` gives, one entry for each in order.
pub(in crate::transforms) fn emit(
    batch: Batch,
    places: &UInt32Array,
    missing: Missing,
    stage: &str,
    joined: impl Fn(&RecordBatch, &UInt32Array) -> Result<RecordBatch, StageError>,
    refused: impl FnOnce(&RecordBatch) -> Vec<Refused>,
    out: &mut Emitter,
) -> Result<(), StageError> {
    if places.null_count() == 0 || missing == Missing::Null {
        let rows = joined(&batch.rows, places)?;
        out.emit(batch.with_rows(rows));
        return Ok(());
    }
    let refused = if missing == Missing::Reject { refused(&batch.rows) } else { Vec::new() };
    let letters = refusal::letters(&batch, &refused, stage)?;
    let is_found: BooleanArray = is_not_null(places)?;
    let found = filter_record_batch(&batch.rows, &is_found)?;
    let places = UInt32Array::from(filter(places, &is_found)?.to_data());
    let kept = joined(&found, &places)?;
    refusal::emit(batch, kept, letters, out);
    Ok(())
}
