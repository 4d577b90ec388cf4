//! The running stage: looks up keys, and adds what was found.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt32Array};
use arrow::compute::{filter, filter_record_batch, is_not_null, take};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::Missing;
use super::table::{self, Table, TableSpec};
use super::watch::{self, Reloads, WatchedTable};
use crate::transforms::refusal::{self, Refused};
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
    /// The input's column, by index and name.
    pub(super) key: usize,
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) table: TableState,
    pub(super) missing: Missing,
    pub(super) missing_rows: Counter,
}

pub(super) enum TableState {
    Unread(Arc<TableSpec>, Reloads),
    Watched(Arc<TableSpec>, WatchedTable),
}

impl Transform for Enrich {
    fn open(&mut self) -> Result<(), StageError> {
        self.lookup.as_mut().map_or(Ok(()), |lookup| lookup.table().map(drop))
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let Some(lookup) = &mut self.lookup else {
            let rows = self.with_constants(&batch.rows, batch.rows.columns().to_vec())?;
            out.emit(batch.with_rows(rows));
            return Ok(());
        };
        let table = lookup.table()?;
        let places = table.find(batch.rows.column(lookup.key));
        lookup.missing_rows.add(places.null_count() as u64);
        if places.null_count() == 0 || lookup.missing == Missing::Null {
            let rows = self.with_table(&batch.rows, &table, &places)?;
            out.emit(batch.with_rows(rows));
            return Ok(());
        }
        let refused = if lookup.missing == Missing::Reject { lookup.refuse(&batch.rows, &places) } else { Vec::new() };
        let letters = refusal::letters(&batch, &refused, &self.stage)?;
        let is_found: BooleanArray = is_not_null(&places)?;
        let found = filter_record_batch(&batch.rows, &is_found)?;
        let places = UInt32Array::from(filter(&places, &is_found)?.to_data());
        let kept = self.with_table(&found, &table, &places)?;
        refusal::emit(batch, kept, letters, out);
        Ok(())
    }
}

impl Enrich {
    /// The rows with the table's columns at `places` and the constants.
    fn with_table(&self, rows: &RecordBatch, table: &Table, places: &UInt32Array) -> Result<RecordBatch, StageError> {
        let mut columns = rows.columns().to_vec();
        for column in &table.columns {
            columns.push(take(column, places, None)?);
        }
        self.with_constants(rows, columns)
    }

    fn with_constants(&self, rows: &RecordBatch, mut columns: Vec<ArrayRef>) -> Result<RecordBatch, StageError> {
        columns.extend(self.constants.iter().map(|value| repeat(value, rows.num_rows())));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

impl Lookup {
    /// The table's columns to add.
    pub(super) fn columns(&self) -> &[(String, ColumnType)] {
        let (TableState::Unread(spec, _) | TableState::Watched(spec, _)) = &self.table;
        &spec.columns
    }

    /// The table as it is now; read, and watched from then on, when it is first asked for.
    fn table(&mut self) -> Result<Arc<Table>, StageError> {
        if let TableState::Unread(spec, reloads) = &self.table {
            let watched = WatchedTable::open(spec.clone(), reloads.clone(), watch::EVERY)?;
            self.table = TableState::Watched(spec.clone(), watched);
        }
        match &self.table {
            TableState::Watched(_, watched) => Ok(watched.current()),
            TableState::Unread(..) => Err(StageError::bug("the table was read and is not there")),
        }
    }

    /// One entry for each row that has no place in the table.
    fn refuse(&self, rows: &RecordBatch, places: &UInt32Array) -> Vec<Refused> {
        let keys = rows.column(self.key);
        let missing = (0..).zip(places.iter()).filter(|(_, place)| place.is_none());
        missing
            .map(|(row, _)| {
                let detail = match table::shown_key(keys, row as usize) {
                    Some(key) => format!("{} {key} is not in \"{}\"", self.name, self.path.display()),
                    None => format!("{} is null", self.name),
                };
                (row, format!("missing.{}", self.name), Some(detail))
            })
            .collect()
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
