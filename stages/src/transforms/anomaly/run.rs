//! The running stage: scores rows, and reports what is flagged.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float64Array, Float64Builder, Int32Array, StringArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::ANOMALIES;
use super::fleet::Fleet;
use super::methods::{Limits, Method, Standing};
use super::series::Rules;
use crate::transforms::snapshot::{Fingerprint, Format, Reader, Writer};

/// Rules by column, and the devices.
pub(super) struct Anomaly<M: Method> {
    pub(super) pipeline: String,
    pub(super) key: usize,
    pub(super) time: usize,
    /// Column and name of each metric.
    pub(super) metrics: Vec<(usize, String)>,
    pub(super) method: M,
    pub(super) rules: Rules,
    /// By metric.
    pub(super) limits: Vec<Limits>,
    pub(super) fleet: Fleet<M>,
    pub(super) schema: SchemaRef,
    pub(super) anomalies: SchemaRef,
    pub(super) evicted: Counter,
    /// Alerts of the batch at hand; kept for its capacity.
    pub(super) found: Vec<Found>,
}

/// A reading that is an alert.
pub(super) struct Found {
    row: u32,
    metric: usize,
    value: f64,
    standing: Standing,
}

impl<M: Method> Transform for Anomaly<M> {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        self.found.clear();
        let scored = self.score(&batch.rows)?;
        if self.found.is_empty() {
            out.emit(batch.with_rows(scored));
            return Ok(());
        }
        let anomalies = self.report(&batch.rows, batch.ack().received_at_us())?;
        let (scored, anomalies) = batch.split(scored, anomalies);
        out.emit(scored);
        out.emit_to(ANOMALIES, anomalies);
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let mut state = Writer::new(FORMAT, self.fingerprint());
        self.fleet.write(&self.method, &mut state);
        Some(state.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        self.fleet = self.read(snapshot)?;
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let fleet = self.read(snapshot)?;
        self.fleet.absorb(&fleet, self.method.places());
        Ok(())
    }
}

const FORMAT: Format = Format { name: 3, version: 2 };

impl<M: Method> Anomaly<M> {
    fn read(&self, snapshot: &[u8]) -> Result<Fleet<M>, StageError> {
        let mut state = Reader::open(snapshot, FORMAT, self.fingerprint())?;
        let fleet = self.fleet.read(&self.method, &mut state)?;
        state.end()?;
        Ok(fleet)
    }

    /// What is remembered. With other thresholds it means the same; with another of these it doesn't.
    fn fingerprint(&self) -> u128 {
        let mut fingerprint = Fingerprint::default();
        fingerprint.text(M::WORD);
        self.method.mark(&mut fingerprint);
        let columns = [self.key, self.time].into_iter().chain(self.metrics.iter().map(|(column, _)| *column));
        columns.for_each(|column| fingerprint.text(self.schema.field(column).name()));
        fingerprint.finish()
    }

    /// All rows with their scores; alerts are put into `found`, in the order of the rows.
    fn score(&mut self, rows: &RecordBatch) -> Result<RecordBatch, StageError> {
        let keys = rows.column(self.key).as_string::<i32>();
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        let mut metrics = Vec::with_capacity(self.metrics.len());
        for (column, _) in &self.metrics {
            metrics.push(cast(rows.column(*column), &DataType::Float64)?.as_primitive::<Float64Type>().clone());
        }
        let mut scores: Vec<_> = metrics.iter().map(|_| Float64Builder::with_capacity(rows.num_rows())).collect();
        let mut flags = BooleanBuilder::with_capacity(rows.num_rows());
        let places = self.method.places();
        // The device of the row before: devices often send several readings together.
        let mut last: Option<(&str, usize)> = None;
        for row in 0..rows.num_rows() {
            let key = keys.is_valid(row).then(|| keys.value(row));
            if last.map(|(key, _)| key) != key {
                last = key.map(|key| (key, self.fleet.slot(key, &self.method, &self.evicted)));
            }
            let time_us = times.is_valid(row).then(|| times.value(row));
            let mut is_flagged = false;
            for (metric, values) in metrics.iter().enumerate() {
                let judgement = match last {
                    Some((_, slot)) if values.is_valid(row) => {
                        let (series, places) = self.fleet.series(slot, metric, places);
                        let (value, limits) = (values.value(row), &self.limits[metric]);
                        series.observe(&self.method, places, value, time_us, &self.rules, limits)
                    }
                    _ => None,
                };
                scores[metric].append_option(judgement.map(|judgement| judgement.standing.score));
                let Some(judgement) = judgement.filter(|judgement| judgement.is_flagged) else { continue };
                is_flagged = true;
                if judgement.is_alert {
                    let value = values.value(row);
                    let row = u32::try_from(row).map_err(|_| StageError::bug("a batch has more than 2^32 rows"))?;
                    self.found.push(Found { row, metric, value, standing: judgement.standing });
                }
            }
            flags.append_value(is_flagged);
        }
        let mut columns = rows.columns().to_vec();
        columns.extend(scores.iter_mut().map(|score| Arc::new(score.finish()) as ArrayRef));
        columns.push(Arc::new(flags.finish()));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// One row for each entry of `found`.
    ///
    /// A batch that no source has read has no time of receipt: the reading's own stands in for it.
    fn report(&self, rows: &RecordBatch, received_at_us: Option<i64>) -> Result<RecordBatch, StageError> {
        let found = &self.found;
        let indices = UInt32Array::from_iter_values(found.iter().map(|found| found.row));
        let event_time = take(rows.column(self.time), &indices, None)?;
        let events = event_time.as_primitive::<TimestampMicrosecondType>().iter();
        let detected_at: TimestampMicrosecondArray = events.map(|time| received_at_us.or(time).or(Some(0))).collect();
        let numbers =
            |of: fn(&Found) -> f64| Arc::new(Float64Array::from_iter_values(found.iter().map(of))) as ArrayRef;
        let severity = |found: &Found| if self.rules.is_critical(&found.standing) { "critical" } else { "warning" };
        let readings = |found: &Found| i32::try_from(found.standing.readings).unwrap_or(i32::MAX);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(detected_at.with_timezone("UTC")),
            take(rows.column(self.key), &indices, None)?,
            event_time,
            Arc::new(StringArray::from_iter_values(found.iter().map(|found| &self.metrics[found.metric].1))),
            numbers(|found| found.value),
            numbers(|found| found.standing.expected),
            numbers(|found| found.standing.spread),
            numbers(|found| found.standing.score),
            Arc::new(StringArray::from_iter_values(found.iter().map(severity))),
            Arc::new(Int32Array::from_iter_values(found.iter().map(readings))),
            Arc::new(StringArray::from_iter_values(found.iter().map(|found| found.standing.method))),
            Arc::new(StringArray::from_iter_values(found.iter().map(|_| &self.pipeline))),
        ];
        Ok(RecordBatch::try_new(self.anomalies.clone(), columns)?)
    }
}
