//! The running stage: finds the zone of each position, and adds what is known of it.

use arrow::array::{Array, AsArray, Float64Array, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::shape::{LATITUDE_MAX, LONGITUDE_MAX, Position, position};
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
        let (latitudes, longitudes) = (self.latitude.degrees(&batch.rows)?, self.longitude.degrees(&batch.rows)?);
        // `None` for a null and for what is nowhere on Earth.
        let pairs = latitudes.iter().zip(&longitudes);
        let positions: Vec<_> = pairs.map(|(latitude, longitude)| position(longitude?, latitude?)).collect();
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
        let refused = |_: &RecordBatch| self.refuse(&positions, &places, [&latitudes, &longitudes]);
        join::emit(batch, &places, self.outside, &self.stage, joined, refused, out)
    }
}

impl Geofence {
    /// One entry for each row that has no place in the table.
    fn refuse(
        &self,
        positions: &[Option<Position>],
        places: &UInt32Array,
        degrees: [&Float64Array; 2],
    ) -> Vec<Refused> {
        let found = (0..).zip(positions).zip(places.iter());
        let missing = found.filter(|(_, place)| place.is_none());
        let refused = missing.map(|((row, position), _)| match position {
            Some(at) => {
                let detail = format!("latitude {}, longitude {} is in no zone of {}", at.y, at.x, self.zones.place());
                (row, "outside".to_owned(), Some(detail))
            }
            None => (row, "position".to_owned(), Some(self.why_nowhere(degrees, row as usize))),
        });
        refused.collect()
    }

    /// What is wrong with a row's latitude, or else with its longitude.
    fn why_nowhere(&self, [latitudes, longitudes]: [&Float64Array; 2], row: usize) -> String {
        let has_latitude = latitudes.is_valid(row) && latitudes.value(row).abs() <= LATITUDE_MAX;
        let (name, degrees, most) = match has_latitude {
            true => (&self.longitude.name, longitudes, LONGITUDE_MAX),
            false => (&self.latitude.name, latitudes, LATITUDE_MAX),
        };
        match degrees.is_null(row) {
            true => format!("{name} is null"),
            false => format!("{name} {} is not within {most} degrees", degrees.value(row)),
        }
    }
}

impl PositionColumn {
    fn degrees(&self, rows: &RecordBatch) -> Result<Float64Array, StageError> {
        Ok(cast(rows.column(self.index), &DataType::Float64)?.as_primitive::<Float64Type>().clone())
    }
}
