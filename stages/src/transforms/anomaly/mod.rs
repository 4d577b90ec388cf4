//! Scores each reading by what its device has sent before, and reports what is out of the ordinary by the
//! port `anomalies`.
//!
//! ```toml
//! [transforms.scored]
//! type = "anomaly"
//! inputs = ["valid"]
//! key = "device_id"
//! time_column = "timestamp"
//! metrics = ["temperature", "humidity"]
//! ```
//!
//! Each device and metric is measured on its own. A reading is scored by its distance from what was to be
//! expected *before* it came, in the spread that is usual there: `temperature_score`, null while there is too
//! little to go by. From `threshold` on, in either direction, the row has `anomaly = true`, and its alert
//! is one row by the port `anomalies`: `warning`, or `critical` from `critical` on, with what was expected
//! (`mean`), the spread (`stddev`), the score (`zscore`), the method, and how many readings that rests on
//! (`window_size`).
//!
//! No row is lost or held back: every row leaves by the main port, with its scores. An alert leaves with
//! the batch of its reading.
//!
//! # Methods
//! | `method` | a reading is measured by | keys of its own |
//! |---|---|---|
//! | `auto` | how rare it is among all that the device has sent at this hour of the day | none |
//! | `zscore` | mean and standard deviation of the last `window` readings | `window`, `warmup` |
//! | `ewma` | the same, exponentially weighted with a span of `window` | `window`, `warmup` |
//! | `robust` | median and median absolute deviation of the last `window` readings | `window`, `warmup` |
//! | `seasonal` | mean and standard deviation of this hour in earlier days or weeks | `season`, `seasons`, `warmup` |
//! | `rate` | how fast it changes, against a limit or the last `window` changes | `rate_max`, `window`, `warmup` |
//! | `flatline` | how long it has not moved | `window`, `flat_for`, `flat_tolerance` |
//!
//! `auto` needs no settings and is the default. It scores zero what it has seen the like of lately: so a lasting
//! fault is one alert, or few. A file that says no method but sets one of `window`, `warmup`, `threshold`,
//! `critical`, `min_stddev`, `min_stddev_relative`, `learn_from_anomalies` or `relearn_after` means
//! `zscore`, the only method there was once. A sensor whose readings are to be told apart one by one is
//! better served by `zscore` or `robust`.
//!
//! Several stages in a row apply several methods: give each a `suffix` and a `column` of its own.
//!
//! # What is learned
//! - Null, NaN, infinite and absurd values (beyond 1e100) are no readings: no score, not learned.
//! - A flagged reading is not learned, so one spike does not hide the next. But a level that lasts is
//!   no anomaly: once flagged readings outweigh the others (each counts two, each other one takes one
//!   off, and it starts over at twice `relearn_after`), the device warms up again with what
//!   it now sends. So no more than a third of readings can be flagged for long.
//!   `learn_from_anomalies` learns them all instead.
//! - A reading that is not newer than the newest of its metric is scored, not learned: late readings
//!   and duplicates don't bend what is expected. After as many of those in a row as a warm-up takes, the
//!   device's clock has been set back, and they are learned again. A row without a time is scored only.
//! - A flat line has no spread to measure by: a spread below `min_stddev`, or below
//!   `min_stddev_relative` of what is expected where that is not given, counts as that much. So a score is
//!   always finite, and a sensor that moves by its last digit raises no alarm.
//!
//! # One fault, one alert
//! A fault begins with a reading at `threshold` and lasts while scores stay at or above `leave`. Its first
//! reading is its alert; the others have `anomaly = true` and no alert. What is flagged within `cooldown`
//! of the last flagged reading, by the readings' own time, is still the same fault. Late readings are flagged
//! and neither begin nor end a fault. With `zscore` this is so where `leave` or `cooldown` is given; otherwise
//! each flagged reading is an alert of its own.
//!
//! # What it remembers
//! At most `devices_max` devices; beyond it, the device seen least recently is forgotten and counted as
//! `evicted_devices`. A device takes some 100 bytes, and for each metric those that `docs/anomaly.md` states by
//! method. What comes out depends on the order of the
//! rows alone, not on how they are cut into batches. All of it is part of the pipeline's checkpoints: a
//! run that was interrupted finds the same anomalies as one that was not. It is given up where
//! the method, its window or season, `metrics` or the columns change; other thresholds go on with it.

mod build;
mod fleet;
mod methods;
mod run;
mod series;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

pub use self::methods::seasonal::Season;

/// The output for alerts, one row each.
pub const ANOMALIES: Port = Port::new("anomalies");

/// How a reading is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// How rare a reading is for its device at this time of the day, whatever the data are like.
    Auto,
    /// Distance from the mean of the last readings, in standard deviations.
    Zscore,
    /// The same, exponentially weighted.
    Ewma,
    /// Distance from the median of the last readings, in median absolute deviations.
    Robust,
    /// Distance from the mean of the same hour in earlier days or weeks.
    Seasonal,
    /// How fast readings change.
    Rate,
    /// How long readings have not moved.
    Flatline,
}

/// `type = "anomaly"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
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
    /// How a reading is measured. Default: `auto`, or `zscore` where the file sets `window`, `warmup`,
    /// `threshold`, `critical`, `min_stddev`, `min_stddev_relative`, `learn_from_anomalies` or
    /// `relearn_after`.
    pub method: Option<MethodName>,
    /// How many readings of a device and metric a reading is compared with, or (`flatline`) how many
    /// that don't move are one too many: 2 to 10000. Default: 60.
    pub window: Option<u32>,
    /// How many readings a device and metric must have before any is scored: 2 to `window`. Default: 20,
    /// or `window` where that is less.
    pub warmup: Option<u32>,
    /// What repeats itself, for `seasonal`; in UTC. Default: `hour_of_day`.
    pub season: Option<Season>,
    /// How many earlier days or weeks a reading is compared with, for `seasonal`: the span of
    /// exponential weights, 2 to 1000. Default: 14.
    pub seasons: Option<u32>,
    /// The fastest change that is normal for a metric, in its unit a second, for `rate`. A metric
    /// without one is compared with its own last changes.
    pub rate_max: Option<BTreeMap<String, f64>>,
    /// How long readings that don't move must last to be flagged, for `flatline`. Default: `window`
    /// readings are enough.
    pub flat_for: Option<DurationText>,
    /// How far readings that don't move may lie apart, for each metric and in its unit, for
    /// `flatline`. Default: not at all.
    pub flat_tolerance: Option<BTreeMap<String, f64>>,
    /// The score from which a reading is flagged. With noise as the bell curve has it, 3 flags one
    /// reading in 240, 4 one in 5,000 and 5 one in 160,000: at a reading every five seconds, 4 is
    /// about three false alarms a day for each device and metric, and 3 is seventy. Default: 4; with
    /// `auto`, which says a thing only once, 3.
    pub threshold: Option<f64>,
    /// The score from which a flagged reading is `critical` and no longer a `warning`. Default: 6; with
    /// `auto` 4.5.
    pub critical: Option<f64>,
    /// A fault that has begun at `threshold` lasts while scores are at or above this one. Default: half of
    /// `threshold`; with `zscore` there are no faults, and each flagged reading is an alert,
    /// unless this or `cooldown` is given.
    pub leave: Option<f64>,
    /// So long after a flagged reading, by the readings' own time, another one is no new alert.
    /// Default: none.
    pub cooldown: Option<DurationText>,
    /// The least standard deviation, for each metric and in its unit: the sensor's noise or its last
    /// digit, whichever is larger.
    pub min_stddev: Option<BTreeMap<String, f64>>,
    /// The least standard deviation of all other metrics, as a part of the mean: 0 to 1. Default:
    /// 0.005, a tenth of a degree at room temperature.
    pub min_stddev_relative: Option<f64>,
    /// Flagged readings are learned as well: a new level is learned at once, and a spike hides
    /// the next. Default: false. `auto` and `flatline` learn everything.
    pub learn_from_anomalies: Option<bool>,
    /// After so many flagged readings in a row the device has a new level, and warms up again.
    /// Default: 10.
    pub relearn_after: Option<u32>,
    /// How many devices are remembered. With `zscore`, each takes 8 bytes for each metric and reading of its
    /// window; docs/anomaly.md has the other methods.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
    /// The name of the column that tells whether any metric of the row is flagged.
    #[serde(default = "column")]
    pub column: String,
    /// The score of a metric is in a column of its name, an underscore and this.
    #[serde(default = "suffix")]
    pub suffix: String,
}

fn device_id() -> String {
    "device_id".to_owned()
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

fn devices_max() -> u32 {
    100_000
}

fn column() -> String {
    "anomaly".to_owned()
}

fn suffix() -> String {
    "score".to_owned()
}

impl TransformConfig for AnomalyConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "anomaly",
        summary: "Scores each reading by what its device has sent before, and reports what is out of the ordinary.",
        ports: &[("anomalies", "Alerts, one row for each row and metric, with what they were measured by.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What was learned survives a \
                  restart where the pipeline takes checkpoints, and what is replayed is scored as it was; where it \
                  takes none, or the method, `window`, `metrics`, `key` or `time_column` has changed, each device warms \
                  up again. The key of an anomaly is the device, `metric` and `event_time`.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        self.build_stage(input, cx)
    }
}
