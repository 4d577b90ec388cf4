//! The running stage: finds the zone of each position, and adds what is known of it.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::shape::{Position, position};
use super::zones::Zones;
use crate::transforms::refusal::Refused;
use crate::transforms::tables::follow::Followed;
use crate::transforms::tables::join::{self, Missing};

pub(super) struct Geofence {
    pub(super) stage: String,
    pub(super) latitude: PositionColumn,
    pub(super) longitude: PositionColumn,
    pub(super) zones: Followed<Zones>,
    pub(super) outside: Missing,
    pub(super) outside_rows: Counter,
    pub(super) bad_positions: Counter,
    pub(super) schema: SchemaRef,
}

/// A column of the input, of numbers.
pub(super) struct PositionColumn {
    pub(super) index: usize,
    pub(super) name: String,
}

impl Transform for Geofence {
    fn open(&mut self) -> Result<(), StageError> {
        self.zones.current().map(drop)
    }

    fn probe(&mut self) -> Option<Result<String, StageError>> {
        Some(self.zones.probe())
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let zones = self.zones.current()?;
        let positions = self.positions(&batch.rows)?;
        let places: UInt32Array = positions.iter().map(|position| position.and_then(|at| zones.find(at))).collect();
        let bad = positions.iter().filter(|position| position.is_none()).count();
        self.bad_positions.add(bad as u64);
        self.outside_rows.add((places.null_count() - bad) as u64);
        let joined = |rows: &RecordBatch, places: &UInt32Array| {
            let mut columns = rows.columns().to_vec();
            for column in zones.columns() {
                columns.push(take(column, places, None)?);
            }
            Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
        };
        let refused = |rows: &RecordBatch| self.refuse(rows, &positions, &places);
        join::emit(batch, &places, self.outside, &self.stage, joined, refused, out)
    }
}

impl Geofence {
    /// Where each row is; `None` for a null and for what is nowhere on Earth.
    fn positions(&self, rows: &RecordBatch) -> Result<Vec<Option<Position>>, StageError> {
        let (latitudes, longitudes) = (self.latitude.degrees(rows)?, self.longitude.degrees(rows)?);
        let pairs = latitudes.iter().zip(longitudes.iter());
        Ok(pairs.map(|(latitude, longitude)| position(longitude?, latitude?)).collect())
    }

    /// One entry for each row that has no place in the table.
    fn refuse(&self, rows: &RecordBatch, positions: &[Option<Position>], places: &UInt32Array) -> Vec<Refused> {
        let found = (0..).zip(positions).zip(places.iter());
        let missing = found.filter(|(_, place)| place.is_none());
        let refused = missing.map(|((row, position), _)| match position {
            Some(at) => {
                let detail = format!("latitude {}, longitude {} is in no zone of {}", at.y, at.x, self.zones.place());
                (row, "outside".to_owned(), Some(detail))
            }
            None => (row, "position".to_owned(), Some(self.why_nowhere(rows, row as usize))),
        });
        refused.collect()
    }

    fn why_nowhere(&self, rows: &RecordBatch, row: usize) -> String {
        for (column, most) in [(&self.latitude, 90.0), (&self.longitude, 180.0)] {
            match column.degrees(rows) {
                Ok(degrees) if degrees.is_null(row) => return format!("{} is null", column.name),
                Ok(degrees) if degrees.value(row).is_nan() || degrees.value(row).abs() > most => {
                    return format!("{} {} is not within {most} degrees", column.name, degrees.value(row));
                }
                _ => {}
            }
        }
        "there is no such position".to_owned()
    }
}

impl PositionColumn {
    fn degrees(&self, rows: &RecordBatch) -> Result<Arc<Float64Array>, StageError> {
        let numbers = cast(rows.column(self.index), &DataType::Float64)?;
        Ok(Arc::new(numbers.as_primitive::<Float64Type>().clone()))
    }
}
