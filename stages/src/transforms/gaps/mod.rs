//! Finds the numbers that are missing where devices number what they send: what was lost before it came
//! to the pipeline.
//!
//! ```toml
//! [transforms.numbered]
//! type = "gaps"
//! inputs = ["valid"]
//! key = ["device_id"]
//! counter = "sequence"
//! ```
//!
//! Every row leaves by the main port as it came, in the same batch. A gap is a run of numbers between
//! two that came, and is one row by the port `gaps`.
//!
//! # When a number is missing
//! - A number above the newest of its device leaves out those between: they are awaited. One that comes
//!   while the newest is at most `window` ahead of it fills its place, and is counted in `late_numbers`;
//!   a gap that it falls into becomes two.
//! - A gap is settled once its last number is more than `window` behind the newest: its numbers are
//!   missing, whatever comes later. So it is one row, and a short one is told after `window` more numbers.
//! - A number within `window` of the newest that was there before is counted in `repeated_numbers`.
//! - A number that is more than `window` behind the newest, or below the first that is known, is a restart
//!   of the device if its row is newer than that of the newest number: counted in `resets`, and no gap.
//!   Where it is not newer, it was sent long before: counted in `overdue_numbers`. After `reset_after` of
//!   those in a row it is the device's clock that has been set back, and a restart too.
//! - At a restart, and when a device is forgotten, what is still awaited is missing.
//!
//! A device that falls back by less, to numbers that are known, looks like one that repeats itself, until
//! it comes to new ones. A counter that wraps is a restart: what was lost around it does not show. What a
//! device has lost before its first number, or after its last, does not show either. A row without a key or
//! a number is counted in `unnumbered_rows`, and goes on like all others.
//!
//! # What it remembers
//! The newest number and the awaited gaps of at most `devices_max` devices: for each its key and 130 to 250
//! bytes, and 48 for each gap that is awaited, at most half of `window` and one of those. Beyond it, the
//! device seen least recently is forgotten and counted in `forgotten_devices`. What comes out depends on the
//! order of the rows alone, not on how they are cut into batches. An awaited gap outlives a restart of the
//! pipeline, so the end of a run settles none.

mod memory;
mod report;
mod run;
mod sequence;
#[cfg(test)]
mod tests;

use arrow::datatypes::{DataType, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use schemars::JsonSchema;
use serde::Deserialize;

use self::report::report_schema;
use self::run::{Counters, Gaps};
use self::sequence::Rules;
use super::fleet::Fleet;
use super::keys::{KeyColumns, is_device};
use super::snapshot::Fingerprint;

/// The output for gaps, one row each.
pub const GAPS: Port = Port::new("gaps");

/// The largest window: a number is looked for among the gaps within it.
const WINDOW_MAX: u32 = 10_000;

/// `type = "gaps"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GapsConfig {
    /// The columns that tell devices apart, of text or whole numbers. They are the first columns of what
    /// leaves by `gaps`.
    #[serde(default = "device_id")]
    pub key: Vec<String>,
    /// The column of whole numbers that each device counts up by one with every message.
    pub counter: String,
    /// The column with the time of the reading: tells a device that has restarted from an old message,
    /// and when a gap began and ended.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How far behind the newest number of its device a number may come and still fill its place: 0 to
    /// 10000. Also how far the counter must fall back for a restart to be seen as one.
    #[serde(default = "window")]
    pub window: u32,
    /// After so many rows in a row that are more than `window` behind, or below the first number, a device
    /// has restarted even if its time has not moved on. 1: any such row is a restart.
    #[serde(default = "reset_after")]
    pub reset_after: u32,
    /// How many devices are remembered; beyond it, the one seen least recently is forgotten, and counted
    /// in `forgotten_devices`.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
}

fn device_id() -> Vec<String> {
    vec!["device_id".to_owned()]
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

fn window() -> u32 {
    64
}

/// More than a few messages that a broker sends again, and less than an hour of a device whose clock
/// was reset.
fn reset_after() -> u32 {
    100
}

fn devices_max() -> u32 {
    100_000
}

fn is_whole(kind: &DataType) -> bool {
    matches!(kind, DataType::Int16 | DataType::Int32 | DataType::Int64)
}

impl TransformConfig for GapsConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "gaps",
        summary: "Finds the numbers that are missing where devices number what they send.",
        ports: &[(
            "gaps",
            "One row for each gap: the key's columns, first_missing, last_missing, missing_count, and time_before and \
             time_after, the times of the rows around it.",
        )],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What it remembers goes on after \
                  a restart, so a replay finds each gap again as it was. Where that can't be read (the configuration \
                  has changed, the snapshot is damaged), it starts with nothing: gaps that were awaited then are not \
                  told. The key of a gap is the device with first_missing and time_before; counters of devices start \
                  over, so first_missing alone is none.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = KeyColumns::find(input, &self.key, "text or a whole number", is_device)?;
        let counter = columns::find_typed(input, "counter", &self.counter, "a whole number", is_whole)?;
        if self.key.contains(&self.counter) {
            return Err(BuildError::invalid("counter", format!("\"{}\" is part of the key", self.counter)));
        }
        let is_time = |kind: &_| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        if self.window > WINDOW_MAX {
            let text = format!("a window of {} is not between 0 and {WINDOW_MAX}", self.window);
            return Err(BuildError::invalid("window", text));
        }
        if self.reset_after == 0 {
            return Err(BuildError::invalid("reset_after", "a restart takes at least one row"));
        }
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could be remembered"));
        }
        let report = report_schema(&key)?;
        let mut fingerprint = Fingerprint::default();
        key.mark(&mut fingerprint);
        fingerprint.text(&self.counter);
        fingerprint.text(&self.time_column);
        for number in [self.window, self.reset_after, self.devices_max] {
            fingerprint.number(number.into());
        }
        let transform = Gaps {
            key,
            counter,
            time,
            rules: Rules { window: self.window, reset_after: self.reset_after },
            fleet: Fleet::new(self.devices_max),
            fingerprint: fingerprint.finish(),
            report: report.clone(),
            counters: Counters::of(cx),
            found: Vec::new(),
            bytes: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, input.clone()), (GAPS, report)];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}
