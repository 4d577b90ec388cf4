//! Scores each reading against the recent readings of its device, and reports those far off by the
//! port `anomalies`.
//!
//! ```toml
//! [transforms.scored]
//! type = "anomaly"
//! inputs = ["valid"]
//! key = "device_id"
//! time_column = "timestamp"
//! metrics = ["temperature", "humidity"]
//! min_stddev = { temperature = 0.1 }      # the sensor's own noise; see below
//! ```
//!
//! For each device and metric there is a window of the last `window` readings. A reading is scored
//! by its distance from the mean of the window *before* it, in standard deviations of that window
//! (the sample's, with n - 1): `temperature_score`, null until the window holds `warmup` readings.
//! From `threshold` on, in either direction, the row has `anomaly = true` and the reading is one row
//! by the port `anomalies`: `warning`, or `critical` from `critical` on.
//!
//! No row is lost or held back: every row leaves by the main port, with its scores.
//!
//! # What goes into a window
//! - Null, NaN, infinite and absurd values (beyond 1e100) are no readings: no score, not learned.
//! - A flagged reading is not learned, so one spike does not hide the next. But a level that lasts is
//!   no anomaly: once flagged readings outweigh the others (each counts two, each other one takes one
//!   off, and the window starts over at twice `relearn_after`), the device warms up again with what
//!   it now sends. So no more than a third of readings can be flagged for long.
//!   `learn_from_anomalies` learns them all instead.
//! - A reading that is not newer than the newest of its metric is scored, not learned: late readings
//!   and duplicates don't bend the window. After `warmup` of those in a row, the device's clock has
//!   been set back, and they are learned again. A row without a time is scored only.
//! - A flat line has no spread to measure by: a standard deviation below `min_stddev`, or below
//!   `min_stddev_relative` of the mean where that is not given, counts as that much. So a score is
//!   always finite, and a sensor that moves by its last digit raises no alarm.
//!
//! # What it remembers
//! The windows of at most `devices_max` devices, 8 bytes a reading; beyond it, the device seen least
//! recently is forgotten and counted as `evicted_devices`. What comes out depends on the order of the
//! rows alone, not on how they are cut into batches. The windows are in memory: after a restart, each
//! device warms up again, and readings that are replayed then are scored by what is replayed.

mod baseline;
mod fleet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float64Array, Float64Builder, Int32Array, StringArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::baseline::{Floor, Rules, Standing};
use self::fleet::Fleet;

/// The output for flagged readings, one row each.
pub const ANOMALIES: Port = Port::new("anomalies");

/// The largest window. The window is summed anew as often as it turns over; its bound on rounding
/// (see `baseline`) holds up to here.
const WINDOW_MAX: u32 = 10_000;

/// `type = "anomaly"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnomalyConfig {
    /// The text column that tells devices apart. A row without it has no scores.
    #[serde(default = "device_id")]
    pub key: String,
    /// The column with the time of the reading.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// The columns of numbers to score.
    pub metrics: Vec<String>,
    /// How many readings of a device and metric a reading is compared with: 2 to 10000.
    #[serde(default = "window")]
    pub window: u32,
    /// How many readings a device and metric must have before any is scored: 2 to `window`.
    #[serde(default = "warmup")]
    pub warmup: u32,
    /// The score from which a reading is flagged. With noise as the bell curve has it, 3 flags one
    /// reading in 240, 4 one in 5,000 and 5 one in 160,000: at a reading every five seconds, 4 is
    /// about three false alarms a day for each device and metric, and 3 is seventy.
    #[serde(default = "threshold")]
    pub threshold: f64,
    /// The score from which a flagged reading is `critical` and no longer a `warning`.
    #[serde(default = "critical")]
    pub critical: f64,
    /// The least standard deviation, for each metric and in its unit: the sensor's noise or its last
    /// digit, whichever is larger.
    #[serde(default)]
    pub min_stddev: BTreeMap<String, f64>,
    /// The least standard deviation of all other metrics, as a part of the mean: 0 to 1.
    #[serde(default = "min_stddev_relative")]
    pub min_stddev_relative: f64,
    /// Flagged readings enter the window as well: a new level is learned at once, and a spike hides
    /// the next.
    #[serde(default)]
    pub learn_from_anomalies: bool,
    /// After so many flagged readings in a row the device has a new level, and warms up again.
    #[serde(default = "relearn_after")]
    pub relearn_after: u32,
    /// How many devices are remembered. Each takes 8 bytes for each metric and reading of its windows.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
    /// The name of the column that tells whether any metric of the row is flagged.
    #[serde(default = "column")]
    pub column: String,
}

fn device_id() -> String {
    "device_id".to_owned()
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

/// Five minutes of readings every five seconds.
fn window() -> u32 {
    60
}

/// Below it, a standard deviation is itself off by more than a sixth.
fn warmup() -> u32 {
    20
}

fn threshold() -> f64 {
    4.0
}

fn critical() -> f64 {
    6.0
}

/// A tenth of a degree at room temperature.
fn min_stddev_relative() -> f64 {
    0.005
}

fn relearn_after() -> u32 {
    10
}

fn devices_max() -> u32 {
    100_000
}

fn column() -> String {
    "anomaly".to_owned()
}

impl TransformConfig for AnomalyConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "anomaly",
        summary: "Scores each reading against the recent readings of its device, and reports those far off.",
        ports: &[("anomalies", "Flagged readings, one row for each row and metric, with what they were measured by.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. The windows are in memory: \
                  after a restart each device warms up again, and anomalies among replayed readings may be found \
                  anew or missed. The key of an anomaly is the device, `metric` and `event_time`.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = columns::find_typed(input, "key", &self.key, "text", |kind| *kind == DataType::Utf8)?;
        let is_time = |kind: &DataType| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        let metrics = self.metrics(input)?;
        let rules = self.rules()?;
        let floors = self.floors()?;
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could be remembered"));
        }
        let schema = self.main_schema(input)?;
        let anomalies = self.anomalies_schema(input.field(time))?;
        let transform = Anomaly {
            pipeline: cx.pipeline.clone(),
            key,
            time,
            metrics: metrics.into_iter().zip(self.metrics).collect(),
            rules,
            floors: floors.clone(),
            fleet: Fleet::new(floors.len(), self.window, self.devices_max),
            schema: schema.clone(),
            anomalies: anomalies.clone(),
            evicted: cx.counter("evicted_devices"),
            found: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, schema), (ANOMALIES, anomalies)];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl AnomalyConfig {
    /// The metrics' columns, in the order of the configuration.
    fn metrics(&self, input: &Schema) -> Result<Vec<usize>, BuildError> {
        if self.metrics.is_empty() {
            return Err(BuildError::invalid("metrics", "there is nothing to score").hint("Name at least one column."));
        }
        let mut found = Vec::new();
        for name in &self.metrics {
            let column = columns::find_typed(input, "metrics", name, "a number", |kind| {
                matches!(
                    kind,
                    DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64
                )
            })?;
            if found.contains(&column) {
                return Err(BuildError::invalid("metrics", format!("\"{name}\" is named twice")));
            }
            found.push(column);
        }
        Ok(found)
    }

    fn rules(&self) -> Result<Rules, BuildError> {
        if !(2..=WINDOW_MAX).contains(&self.window) {
            let text = format!("a window of {} is not between 2 and {WINDOW_MAX}", self.window);
            return Err(BuildError::invalid("window", text));
        }
        if !(2..=self.window).contains(&self.warmup) {
            let text = format!("a warm-up of {} is not between 2 and the window, {}", self.warmup, self.window);
            return Err(BuildError::invalid("warmup", text));
        }
        if !(self.threshold.is_finite() && self.threshold > 0.0) {
            return Err(BuildError::invalid("threshold", "a threshold is a number above zero"));
        }
        let is_ordered = self.critical >= self.threshold; // false for NaN as well
        if !is_ordered {
            let text = format!("{} is not at or above the threshold, {}", self.critical, self.threshold);
            return Err(BuildError::invalid("critical", text));
        }
        if self.relearn_after == 0 {
            return Err(BuildError::invalid("relearn_after", "no reading could be flagged"));
        }
        Ok(Rules {
            warmup: self.warmup,
            threshold: self.threshold,
            critical: self.critical,
            relearn_after: (!self.learn_from_anomalies).then_some(self.relearn_after),
        })
    }

    /// The least spread of each metric.
    fn floors(&self) -> Result<Vec<Floor>, BuildError> {
        for (name, floor) in &self.min_stddev {
            let key = format!("min_stddev.{name}");
            if !self.metrics.contains(name) {
                let known = self.metrics.iter().map(String::as_str);
                return Err(BuildError::invalid(key, format!("\"{name}\" is not one of the metrics"))
                    .hint(pipeline_engine::suggest::suggest(name, known, "Metrics", "")));
            }
            if !(floor.is_finite() && *floor > 0.0) {
                return Err(BuildError::invalid(key, "a least standard deviation is a number above zero"));
            }
        }
        if !(0.0..=1.0).contains(&self.min_stddev_relative) {
            return Err(BuildError::invalid("min_stddev_relative", "a part of the mean is between 0 and 1"));
        }
        let floor = |name| match self.min_stddev.get(name) {
            Some(absolute) => Floor { absolute: *absolute, relative: 0.0 },
            None => Floor { absolute: 0.0, relative: self.min_stddev_relative },
        };
        Ok(self.metrics.iter().map(floor).collect())
    }

    /// The input's columns, then a score for each metric, then the flag.
    fn main_schema(&self, input: &Schema) -> Result<SchemaRef, BuildError> {
        let mut fields = input.fields().to_vec();
        let scores =
            self.metrics.iter().map(|name| ("metrics", Field::new(score_column(name), DataType::Float64, true)));
        let flag = ("column", Field::new(&self.column, DataType::Boolean, false));
        for (key, field) in scores.chain([flag]) {
            if fields.iter().any(|other| other.name() == field.name()) {
                return Err(BuildError::invalid(key, format!("there is a column \"{}\" already", field.name()))
                    .hint("The stage adds a column NAME_score for each metric, and one named by `column`."));
            }
            fields.push(Arc::new(field));
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    fn anomalies_schema(&self, time: &Field) -> Result<SchemaRef, BuildError> {
        let fields = vec![
            Field::new("detected_at", timestamp_type(), false),
            Field::new(&self.key, DataType::Utf8, false),
            Field::new("event_time", timestamp_type(), time.is_nullable()),
            Field::new("metric", DataType::Utf8, false),
            Field::new("value", DataType::Float64, false),
            Field::new("mean", DataType::Float64, false),
            Field::new("stddev", DataType::Float64, false),
            Field::new("zscore", DataType::Float64, false),
            Field::new("severity", DataType::Utf8, false),
            Field::new("window_size", DataType::Int32, false),
            Field::new("pipeline", DataType::Utf8, false),
        ];
        if fields.iter().filter(|field| *field.name() == self.key).count() > 1 {
            return Err(BuildError::invalid("key", format!("anomalies have a column \"{}\" of their own", self.key)));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn score_column(metric: &str) -> String {
    format!("{metric}_score")
}

/// The running stage.
struct Anomaly {
    pipeline: String,
    key: usize,
    time: usize,
    /// Column and name of each metric.
    metrics: Vec<(usize, String)>,
    rules: Rules,
    /// By metric.
    floors: Vec<Floor>,
    fleet: Fleet,
    schema: SchemaRef,
    anomalies: SchemaRef,
    evicted: Counter,
    /// Flagged readings of the batch at hand; kept for its capacity.
    found: Vec<Found>,
}

/// A flagged reading.
struct Found {
    row: u32,
    metric: usize,
    value: f64,
    standing: Standing,
}

impl Transform for Anomaly {
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
}

impl Anomaly {
    /// All rows with their scores; flagged readings are put into `found`, in the order of the rows.
    fn score(&mut self, rows: &RecordBatch) -> Result<RecordBatch, StageError> {
        let keys = rows.column(self.key).as_string::<i32>();
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        let mut metrics = Vec::with_capacity(self.metrics.len());
        for (column, _) in &self.metrics {
            metrics.push(cast(rows.column(*column), &DataType::Float64)?.as_primitive::<Float64Type>().clone());
        }
        let mut scores: Vec<_> = metrics.iter().map(|_| Float64Builder::with_capacity(rows.num_rows())).collect();
        let mut flags = BooleanBuilder::with_capacity(rows.num_rows());
        // The device of the row before: devices often send several readings together.
        let mut last: Option<(&str, usize)> = None;
        for row in 0..rows.num_rows() {
            let key = keys.is_valid(row).then(|| keys.value(row));
            if last.map(|(key, _)| key) != key {
                last = key.map(|key| (key, self.fleet.slot(key, &self.evicted)));
            }
            let time_us = times.is_valid(row).then(|| times.value(row));
            let found_before = self.found.len();
            for (metric, values) in metrics.iter().enumerate() {
                let standing = match last {
                    Some((_, slot)) if values.is_valid(row) => {
                        let (baseline, ring) = self.fleet.baseline(slot, metric);
                        baseline.observe(ring, values.value(row), time_us, &self.rules, self.floors[metric])
                    }
                    _ => None,
                };
                scores[metric].append_option(standing.map(|standing| standing.score));
                if let Some(standing) = standing.filter(|standing| self.rules.flags(standing)) {
                    let row = u32::try_from(row).map_err(|_| StageError::bug("a batch has more than 2^32 rows"))?;
                    self.found.push(Found { row, metric, value: values.value(row as usize), standing });
                }
            }
            flags.append_value(self.found.len() > found_before);
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
        let columns: Vec<ArrayRef> = vec![
            Arc::new(detected_at.with_timezone("UTC")),
            take(rows.column(self.key), &indices, None)?,
            event_time,
            Arc::new(StringArray::from_iter_values(found.iter().map(|found| &self.metrics[found.metric].1))),
            numbers(|found| found.value),
            numbers(|found| found.standing.mean),
            numbers(|found| found.standing.spread),
            numbers(|found| found.standing.score),
            Arc::new(StringArray::from_iter_values(found.iter().map(severity))),
            Arc::new(Int32Array::from_iter_values(found.iter().map(|found| found.standing.readings))),
            Arc::new(StringArray::from_iter_values(found.iter().map(|_| &self.pipeline))),
        ];
        Ok(RecordBatch::try_new(self.anomalies.clone(), columns)?)
    }
}
