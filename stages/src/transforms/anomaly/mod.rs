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
//! rows alone, not on how they are cut into batches. The windows are part of the pipeline's checkpoints: a
//! run that was interrupted finds the same anomalies as one that was not. They are given up where
//! `window`, `metrics` or the columns change; other thresholds go on with them.

mod baseline;
mod build;
mod fleet;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use schemars::JsonSchema;
use serde::Deserialize;

use self::fleet::Fleet;
use self::run::Anomaly;

/// The output for flagged readings, one row each.
pub const ANOMALIES: Port = Port::new("anomalies");

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
        failure: "Touches nothing outside, so nothing can fail for a time or for good. The windows survive a restart \
                  where the pipeline takes checkpoints, and what is replayed is scored as it was; where it takes \
                  none, or `window`, `metrics`, `key` or `time_column` has changed, each device warms up again. \
                  The key of an anomaly is the device, `metric` and `event_time`.",
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
