//! One row for each device and window of time: what dashboards and archives need of what devices send each second.
//!
//! ```toml
//! [transforms.minutes]
//! type = "downsample"
//! inputs = ["valid"]
//! window = "1m"
//!
//! [transforms.minutes.aggregates]
//! readings = "count()"
//! temperature_mean = "mean(temperature)"
//! temperature_p95 = "percentile(temperature, 95)"
//! ```
//!
//! Windows lie in the time of the readings, not of their arrival, and are cut in UTC from 1970 on: `window` alone
//! makes them follow one another, with a shorter `every` they overlap, and `session_gap` makes one of all that comes
//! without such a silence. A window holds its start and not its end.
//!
//! # When a window is told
//! Once, and then it is final. It closes
//! - when its device sends a row that is `allowed_lateness` or more behind the window's end;
//! - where the device is silent, when its partition of the source has come `idle_timeout` beyond that. How far a
//!   partition has come is the third-newest time of its devices, so neither one bad clock nor two move anybody else's
//!   windows. With fewer than three devices it is the time of the one farthest behind;
//! - when the input ends. A stop does not close it: the next run goes on with it.
//!
//! A row whose windows have all closed leaves by the port `late` and is counted in `late_rows`. One whose time is more
//! than `ahead_max` after its receipt comes from a clock that is wrong: it leaves there too and moves nothing
//! (`ahead_rows`). So do rows without a key or a time (`unplaced_rows`). Time that only passes on a clock closes
//! nothing: there is no clock, so a replay makes the same rows.
//!
//! # Aggregates
//! `count()` counts rows, `count(x)` values; `sum`, `mean`, `stddev` (of a sample), `min`, `max`; `first` and `last` by
//! time; `median` and `percentile(x, p)`, which are within 1% of the value at rank p/100 * (count - 1), rounded down;
//! `time_weighted_mean(x)`, in which each value counts for as long as it held, and `time_weighted_mean(x, line)`, with
//! lines between the values: both from the first to the last sample of a window. Nulls, and floats that are no finite
//! number, are no values; without a value the result is null, a count 0. The standard deviation of one value is null.
//!
//! # What it remembers
//! The open windows of at most `devices_max` devices. Beyond it the windows of the device seen least recently are
//! closed as they are, and counted in `forgotten_devices`. A device has at most (window + allowed_lateness) / every + 1
//! windows open. A window takes 80 bytes, 270 for each aggregated column, for percentiles at most 100 KiB more (2,048
//! sizes of value of each sign, 17 powers of ten; smaller ones count with the smallest), and for a mean over time 16
//! bytes a sample, at most 64 KiB (then the older half is added up, and what comes for a time before that is counted
//! in `left_out_values`).

mod aggregate;
mod column;
mod curve;
mod output;
mod run;
mod sketch;
mod sum;
#[cfg(test)]
mod tests;
mod value;
mod windows;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

use self::aggregate::Aggregate;
use self::column::Needs;
use self::run::{Counters, Downsample, Times};
use self::windows::Shape;
use super::followed::Followed;
use super::keys::{KeyColumns, is_device};
use super::snapshot::Fingerprint;
use super::units::micros;

/// The output for rows that are in no window, as they came.
pub const LATE: Port = Port::new("late");

/// A row is in no more windows than this.
const OVERLAP_MAX: i64 = 1000;

/// `type = "downsample"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownsampleConfig {
    /// The columns that tell devices apart, of text or whole numbers. They are the first columns of the output.
    #[serde(default = "device_id")]
    pub key: Vec<String>,
    /// The column with the time of the reading.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How long a window is. Either this or `session_gap`.
    pub window: Option<DurationText>,
    /// How far apart windows begin; shorter than `window` they overlap. Default: `window`.
    pub every: Option<DurationText>,
    /// A window ends where a device was silent for so long.
    pub session_gap: Option<DurationText>,
    /// How far behind its device's newest row a row may come and still be counted.
    #[serde(default = "allowed_lateness")]
    pub allowed_lateness: DurationText,
    /// How much longer the windows of a device that is silent wait for it, by the time of the others. Longer where
    /// devices keep readings for when they have a connection.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: DurationText,
    /// How far after its receipt the time of a row may lie; beyond it the device's clock is wrong.
    #[serde(default = "ahead_max")]
    pub ahead_max: DurationText,
    /// The output's columns besides the key, `window_start` and `window_end`: name and function, as in
    /// `temperature_mean = "mean(temperature)"`.
    pub aggregates: BTreeMap<String, String>,
    /// How many devices have windows; beyond it those of the one seen least recently close.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
}

fn device_id() -> Vec<String> {
    vec!["device_id".to_owned()]
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

fn allowed_lateness() -> DurationText {
    DurationText::secs(10)
}

fn idle_timeout() -> DurationText {
    DurationText::secs(60)
}

fn ahead_max() -> DurationText {
    DurationText::secs(60)
}

fn devices_max() -> u32 {
    100_000
}

impl TransformConfig for DownsampleConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "downsample",
        summary: "Makes one row of aggregates for each device and window of time.",
        ports: &[(
            "late",
            "Rows that are in no window, as they came: too late, from a clock that is ahead, or without a key or time.",
        )],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. Open windows go on after a \
                  restart, so a replay makes the same rows. Where they can't be read (the configuration has changed, \
                  the snapshot is damaged), it starts with nothing: windows that were open then lack what came before. \
                  So they do after a crash of a pipeline that takes no checkpoints because one of its sources can't be \
                  resumed. The key of a row is the device with window_start.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = KeyColumns::find(input, &self.key, "text or a whole number", is_device)?;
        let is_time = |kind: &_| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        let times = Times {
            shape: self.shape()?,
            lateness: micros("allowed_lateness", self.allowed_lateness)?,
            idle: micros("idle_timeout", self.idle_timeout)?,
            ahead_max: micros("ahead_max", self.ahead_max)?,
        };
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could have a window"));
        }
        if self.aggregates.is_empty() {
            return Err(BuildError::invalid("aggregates", "nothing is told of a window")
                .hint("Name at least one, such as readings = \"count()\"."));
        }
        let aggregates: Vec<Aggregate> =
            self.aggregates.iter().map(|(name, text)| Aggregate::parse(name, text, input)).collect::<Result<_, _>>()?;
        let output = output::schema(&key, &aggregates)?;
        let fingerprint = self.fingerprint(&key, times, &output);
        let mut aggregated: Vec<usize> = aggregates.iter().filter_map(|aggregate| aggregate.column).collect();
        aggregated.sort_unstable();
        aggregated.dedup();
        let needs = aggregated.iter().map(|column| Needs::of(*column, &aggregates)).collect();
        let place = |aggregate: &Aggregate| aggregate.column.and_then(|column| aggregated.binary_search(&column).ok());
        let aggregates = aggregates.iter().map(|aggregate| (aggregate.clone(), place(aggregate))).collect();
        let transform = Downsample {
            key,
            time,
            times,
            aggregates,
            columns: aggregated,
            needs,
            devices: Followed::new(self.devices_max),
            fingerprint,
            output: output.clone(),
            counters: Counters::of(cx),
            closed: Vec::new(),
            outside: Vec::new(),
            bytes: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, output), (LATE, input.clone())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl DownsampleConfig {
    fn shape(&self) -> Result<Shape, BuildError> {
        let positive = |key: &str, duration: DurationText| match micros(key, duration)? {
            0 => Err(BuildError::invalid(key, "a window of no time holds nothing")),
            micros => Ok(micros),
        };
        match (self.window, self.session_gap) {
            (None, None) => Err(BuildError::invalid("", "it has no window")
                .hint("Set `window`, such as window = \"1m\", or `session_gap`.")),
            (Some(_), Some(_)) => Err(BuildError::invalid("session_gap", "sessions are as long as they are")
                .hint("Leave out `window` or `session_gap`.")),
            (None, Some(_)) if self.every.is_some() => {
                Err(BuildError::invalid("every", "sessions begin when a device does").hint("Leave it out."))
            }
            (None, Some(gap)) => Ok(Shape::Session { gap: positive("session_gap", gap)? }),
            (Some(window), None) => {
                let size = positive("window", window)?;
                let every = self.every.map_or(Ok(size), |every| positive("every", every))?;
                if every > size {
                    return Err(BuildError::invalid("every", "between two windows there would be readings in none")
                        .hint("Make it as long as `window`, or shorter."));
                }
                if (size - 1) / every >= OVERLAP_MAX {
                    return Err(BuildError::invalid(
                        "every",
                        format!("a row would be in more than {OVERLAP_MAX} windows"),
                    ));
                }
                Ok(Shape::Fixed { size, every })
            }
        }
    }

    fn fingerprint(&self, key: &KeyColumns, times: Times, output: &SchemaRef) -> u128 {
        let mut fingerprint = Fingerprint::default();
        key.mark(&mut fingerprint);
        fingerprint.text(&self.time_column);
        fingerprint.text(&format!("{times:?}"));
        fingerprint.number(self.devices_max.into());
        for (name, text) in &self.aggregates {
            fingerprint.text(name);
            fingerprint.text(text);
        }
        for field in output.fields() {
            fingerprint.text(&field.data_type().to_string());
        }
        fingerprint.finish()
    }
}
