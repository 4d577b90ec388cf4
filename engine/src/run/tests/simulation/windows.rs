//! A transform with state: count, sum and ends of each window of each device, sent on when the first
//! reading of the next window comes.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use schemars::JsonSchema;
use serde::Deserialize;

use super::source::{batch_of, schema_of};
use super::world::{Row, WINDOW};
use crate::run::tests::DOC;
use crate::stage::*;

/// All columns of a batch are numbers.
pub(super) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let columns: Vec<_> = batch.columns().iter().map(|column| column.as_primitive::<Int64Type>().values()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row]).collect()).collect()
}

fn rollups() -> SchemaRef {
    schema_of(&["device", "window", "count", "sum", "first", "last"])
}

/// The open window of each device: as a row of the output.
#[derive(Clone, Default, Deserialize, JsonSchema)]
pub(super) struct Windows {
    #[serde(skip)]
    open: BTreeMap<i64, Row>,
}

impl Windows {
    /// Takes a reading in; gives the window that it closes.
    pub(super) fn add(&mut self, reading: &Row) -> Option<Row> {
        let [number, device, at, value] = reading[..] else { panic!("a reading has four columns") };
        let window = at / WINDOW;
        match self.open.get_mut(&device) {
            Some(open) if open[1] == window => {
                (open[2], open[3], open[5]) = (open[2] + 1, open[3] + value, number);
                None
            }
            _ => self.open.insert(device, vec![device, window, 1, value, number, number]),
        }
    }
}

impl TransformConfig for Windows {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        Ok(BuiltTransform { transform: Box::new(self), outputs: vec![(Port::MAIN, rollups())] })
    }
}

impl Transform for Windows {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let closed: Vec<Row> = rows_of(&batch.rows).iter().filter_map(|reading| self.add(reading)).collect();
        out.emit(batch.with_rows(batch_of(&rollups(), &closed)));
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        Some(self.open.values().flatten().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let (numbers, rest) = snapshot.as_chunks::<8>();
        let numbers: Vec<i64> = numbers.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        if !rest.is_empty() || !numbers.len().is_multiple_of(6) {
            return Err(StageError::permanent("not a snapshot of windows"));
        }
        self.open = numbers.chunks(6).map(|row| (row[0], row.to_vec())).collect();
        Ok(())
    }
}
