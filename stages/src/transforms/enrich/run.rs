//! The running stage: looks up keys, and adds what was found.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::history::shown_time;
use super::table::{Table, shown_key};
use crate::transforms::refusal::Refused;
use crate::transforms::tables::follow::Followed;
use crate::transforms::tables::join::{self, Missing};
use crate::transforms::values::Scalar;

/// The table, if there is one, and the constants.
pub(super) struct Enrich {
    pub(super) stage: String,
    pub(super) lookup: Option<Lookup>,
    /// In the order of the output's last columns.
    pub(super) constants: Vec<Scalar>,
    pub(super) schema: SchemaRef,
}

/// A table, and what is looked up in it.
pub(super) struct Lookup {
    pub(super) key: InputColumn,
    /// The reading's time, where the table has a history.
    pub(super) time: Option<InputColumn>,
    pub(super) table: Followed<Table>,
    pub(super) missing: Missing,
    pub(super) missing_rows: Counter,
}

/// A column of the input.
pub(super) struct InputColumn {
    pub(super) index: usize,
    pub(super) name: String,
}

impl Transform for Enrich {
    fn open(&mut self) -> Result<(), StageError> {
        self.lookup.as_mut().map_or(Ok(()), |lookup| lookup.table.current().map(drop))
    }

    fn probe(&mut self) -> Option<Result<String, StageError>> {
        self.lookup.as_mut().map(|lookup| lookup.table.probe())
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let Some(lookup) = &mut self.lookup else {
            let rows = with_constants(&self.schema, &self.constants, &batch.rows, batch.rows.columns().to_vec())?;
            out.emit(batch.with_rows(rows));
            return Ok(());
        };
        let table = lookup.table.current()?;
        let places = lookup.find(&table, &batch.rows);
        lookup.missing_rows.add(places.null_count() as u64);
        let (schema, constants, lookup) = (&self.schema, &self.constants, &*lookup);
        let joined = |rows: &RecordBatch, places: &UInt32Array| {
            let mut columns = rows.columns().to_vec();
            for column in &table.columns {
                columns.push(take(column, places, None)?);
            }
            with_constants(schema, constants, rows, columns)
        };
        let refused = |rows: &RecordBatch| lookup.refuse(rows, &places);
        join::emit(batch, &places, lookup.missing, &self.stage, joined, refused, out)
    }
}

fn with_constants(
    schema: &SchemaRef,
    constants: &[Scalar],
    rows: &RecordBatch,
    mut columns: Vec<ArrayRef>,
) -> Result<RecordBatch, StageError> {
    columns.extend(constants.iter().map(|value| repeat(value, rows.num_rows())));
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

impl Lookup {
    /// The table's columns to add.
    pub(super) fn columns(&self) -> &[(String, ColumnType)] {
        let spec = self.table.spec();
        &spec.layout.columns[spec.first_added()..]
    }

    fn find(&self, table: &Table, rows: &RecordBatch) -> UInt32Array {
        let times = self.time.as_ref().map(|time| rows.column(time.index));
        table.find(rows.column(self.key.index), times)
    }

    /// One entry for each row that has no place in the table.
    fn refuse(&self, rows: &RecordBatch, places: &UInt32Array) -> Vec<Refused> {
        let missing = (0..).zip(places.iter()).filter(|(_, place)| place.is_none());
        missing
            .map(|(row, _)| (row, format!("missing.{}", self.key.name), Some(self.reason(rows, row as usize))))
            .collect()
    }

    fn reason(&self, rows: &RecordBatch, row: usize) -> String {
        let (name, place) = (&self.key.name, self.table.place());
        let Some(key) = shown_key(rows.column(self.key.index), row) else { return format!("{name} is null") };
        let Some(time) = &self.time else { return format!("{name} {key} is not in {place}") };
        match shown_time(rows.column(time.index), row) {
            Some(at) => format!("{name} {key} has no entry in {place} that is valid at {at}"),
            None => format!("{} is null", time.name),
        }
    }
}

fn repeat(value: &Scalar, rows: usize) -> ArrayRef {
    match value {
        Scalar::Text(text) => Arc::new(StringArray::new_repeated(text, rows)),
        Scalar::Integer(whole) => Arc::new(Int64Array::from_value(*whole, rows)),
        Scalar::Float(float) => Arc::new(Float64Array::from_value(*float, rows)),
        Scalar::Bool(truth) => Arc::new(BooleanArray::from(vec![*truth; rows])),
    }
}
