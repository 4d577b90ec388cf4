//! The running stage: converts, then computes, column by column.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::Failed;
use super::units::Conversion;
use crate::transforms::refusal::{self, Refused};
use crate::transforms::rule::Computation;

/// Columns over the batches of one run. It keeps nothing from one batch to the next.
pub(super) struct Compute {
    pub(super) stage: String,
    pub(super) converted: Vec<Converted>,
    /// The columns after those conversions: what expressions see.
    pub(super) seen: SchemaRef,
    pub(super) computed: Vec<Computed>,
    pub(super) output: SchemaRef,
    pub(super) failed: Failed,
    pub(super) failed_values: Counter,
}

/// A column put into another unit.
pub(super) struct Converted {
    /// Of the result.
    pub(super) name: String,
    pub(super) source: usize,
    pub(super) target: usize,
    pub(super) conversion: Conversion,
}

/// A column computed by an expression.
pub(super) struct Computed {
    pub(super) name: String,
    pub(super) target: usize,
    pub(super) computation: Computation,
}

/// What failed, by row: the column's name and why, of the first one that failed and of all.
type Failures = BTreeMap<u32, (String, String)>;

impl Transform for Compute {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let mut failures = Failures::new();
        let mut values_failed = 0;
        let mut fail = |row: u32, name: &str, why: &str| {
            values_failed += 1;
            let (_, detail) = failures.entry(row).or_insert_with(|| (name.to_owned(), String::new()));
            if !detail.is_empty() {
                detail.push_str("; ");
            }
            detail.push_str(&format!("{name}: {why}"));
        };
        let mut columns = batch.rows.columns().to_vec();
        for converted in &self.converted {
            let source = batch.rows.column(converted.source);
            let result = convert(source, converted.conversion, |row| {
                fail(row, &converted.name, "the number is too large in the other unit");
            })?;
            put(&mut columns, converted.target, result);
        }
        let seen = rows_of(&self.seen, columns.clone(), batch.rows.num_rows())?;
        for computed in &self.computed {
            let (results, failed) = computed.computation.results(&seen, &batch)?;
            failed.iter().for_each(|(row, why)| fail(*row, &computed.name, why));
            put(&mut columns, computed.target, results);
        }
        let rows = rows_of(&self.output, columns, batch.rows.num_rows())?;
        if failures.is_empty() || self.failed == Failed::Null {
            self.failed_values.add(values_failed);
            out.emit(batch.with_rows(rows));
            return Ok(());
        }
        let refused = failures.into_iter().map(|(row, (name, detail))| (row, format!("compute.{name}"), Some(detail)));
        let refused: Vec<Refused> = refused.collect();
        let kept = refusal::keep_rest(&rows, refused.iter().map(|(row, ..)| *row))?;
        // Letters hold rows as they came.
        let letters = refusal::letters(&batch, &refused, &self.stage)?;
        refusal::emit(batch, kept, letters, out);
        Ok(())
    }
}

/// In its place, or behind the others.
fn put(columns: &mut Vec<ArrayRef>, target: usize, column: ArrayRef) {
    match columns.get_mut(target) {
        Some(place) => *place = column,
        None => columns.push(column),
    }
}

fn rows_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, StageError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The numbers in the other unit. Nulls stay null, and what is no finite number stays as it is; `fail` is told the rows
/// whose number would no longer be one, which become null.
fn convert(source: &ArrayRef, conversion: Conversion, mut fail: impl FnMut(u32)) -> Result<ArrayRef, StageError> {
    let is_single = *source.data_type() == DataType::Float32;
    let numbers = cast(source, &DataType::Float64)?;
    let numbers = numbers.as_primitive::<Float64Type>();
    let in_type = |number: f64| if is_single { f64::from(number as f32) } else { number };
    let results: Float64Array = numbers.unary(|number| in_type(conversion.of(number)));
    let is_lost = |row: &usize| !results.value(*row).is_finite() && numbers.value(*row).is_finite();
    let lost: Vec<usize> = (0..results.len()).filter(|row| results.is_valid(*row) && is_lost(row)).collect();
    let results = if lost.is_empty() {
        results
    } else {
        lost.iter().for_each(|row| fail(*row as u32));
        let kept = results.iter().enumerate().map(|(row, number)| number.filter(|_| lost.binary_search(&row).is_err()));
        kept.collect()
    };
    if is_single {
        return Ok(Arc::new(results.unary::<_, Float32Type>(|number| number as f32)));
    }
    Ok(Arc::new(results))
}
