//! Leaves out readings that can be told from those that stay, within a bound that is stated.
//!
//! ```toml
//! [transforms.thinned]
//! type = "thin"
//! inputs = ["valid"]
//! method = "swinging_door"
//! absolute = { temperature = 0.1, humidity = 0.5 }
//! heartbeat = "10m"
//! ```
//!
//! What stays is a row of the input, whole and unchanged; nothing is averaged. Each device is a series of its own, in
//! the time of its readings. Where several columns are thinned, a row stays if any of them needs it, and then it
//! stands for all of them. `docs/thin.md` says which method is for what and how much each leaves.
//!
//! # What is guaranteed
//! Of the rows that leave by the main port, for each column with a bound e and each reading v of it that is left out,
//! where e is the larger of `absolute` and `percent` of v:
//! - `dead_band`: v differs from the row kept last before it by at most e;
//! - `swinging_door`: v differs from the straight line between the kept rows on either side of it by at most e.
//!
//! The line is exact to the rounding of 64-bit floats, 4e-15 of the larger of its two ends. Both keep the first and the last row of a device,
//! and with `heartbeat` a row at least that often while readings come: kept rows are farther apart only where nothing
//! lies between them. A null and what is no finite number have no value: where values end or begin, the row stays, so
//! a gap remains a gap. Columns that are sent by different rows make such gaps all the time: there `nulls = "ignore"`
//! takes a null for nothing said. Then a `dead_band` holds v against the value kept last of its column; a
//! `swinging_door` has one column, and rows without a value of it are left out.
//!
//! `lttb` and `min_max` cut time into buckets of `every`, in UTC from 1970 on, and keep the first and the last row of
//! each. `min_max` keeps for each column the first, least, greatest and last value too, so nothing that was left out
//! lies outside of what was kept of its bucket. `lttb` (largest triangle three buckets) keeps `points` values of each
//! column, chosen so that a drawn line looks the same; it bounds the number of rows and no error. Of equals, both keep
//! the one that came first.
//!
//! # Time
//! Rows are put in order within `allowed_lateness`: one waits until its device has sent a row that much newer. A row
//! before one that has been decided leaves by the port `late`, unthinned, and is counted in `late_rows`: in between,
//! it would bend the lines that others were left out for. So do rows from a clock that is more than `ahead_max` ahead
//! of the receipt (`ahead_rows`), and rows without a key or a time (`unplaced_rows`). Of several rows at one time,
//! each is judged like any other; a repetition is left out.
//!
//! The newest row of a device waits, since only the next one tells whether it is needed. For a device that is silent it
//! leaves once its partition of the source has come `idle_timeout`, and a tenth of it at most, beyond
//! `allowed_lateness` after it. How far a partition has come is the third-newest time of its devices, so neither one
//! bad clock nor two move anybody else; with fewer than three devices it is the time of the one farthest behind. Where
//! a device is alone, its newest row waits for the next one. When the input ends, all that waits leaves. A stop ends
//! nothing: the next run goes on with it.
//!
//! # What it remembers
//! Of each device the row kept last, and rows that are not decided: for the methods with a bound those of
//! `allowed_lateness` and one more, for `lttb` those of a bucket, for `min_max` at most 8 for each column and 32. With
//! more than `held_rows_max` of them in all, the device at hand is decided at once, as though its lateness and its
//! bucket were over; its rows are counted in `early_rows`. The guarantees hold nonetheless, but rows that come out of
//! order are late sooner, and a bucket keeps its number of rows for each part. So at most `held_rows_max` rows are
//! held, and one for each of `devices_max` devices. Beyond `devices_max` the device seen least recently is decided and
//! forgotten (`forgotten_devices`); when it comes back it begins anew.

mod bounds;
mod buckets;
mod held;
mod run;
mod segment;
mod series;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

pub use self::bounds::Nulls;
use self::bounds::{Bounds, Tolerance};
use self::held::HeldRows;
use self::run::{Counters, Thin, Times};
use self::series::Rule;
use super::followed::Followed;
use super::keys::{KeyColumns, is_device};
use super::snapshot::Fingerprint;
use super::units::micros;

/// The output for rows that belong to no series, as they came.
pub const LATE: Port = Port::new("late");

/// Without a heartbeat or a bucket to go by.
const IDLE: DurationText = DurationText::secs(3600);

/// `type = "thin"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinConfig {
    /// `dead_band`, `swinging_door`, `lttb` or `min_max`.
    pub method: Method,
    /// For `dead_band` and `swinging_door`: by how much a reading of a column may differ from what the kept rows say,
    /// in the column's unit. 0 leaves out only what is told exactly.
    #[serde(default)]
    pub absolute: BTreeMap<String, f64>,
    /// The same in percent of the reading. Of a column with both, the larger one counts.
    #[serde(default)]
    pub percent: BTreeMap<String, f64>,
    /// For `dead_band` and `swinging_door`: a row is kept at least so often while readings come.
    pub heartbeat: Option<DurationText>,
    /// For `dead_band` and `swinging_door`: what a null means. As a `gap` the values end there, and the row stays; with
    /// `ignore` the row says nothing of the column, as where devices send only what has changed. Default: `gap`.
    pub nulls: Option<Nulls>,
    /// For `lttb` and `min_max`: the columns by whose values rows are kept.
    #[serde(default)]
    pub columns: Vec<String>,
    /// For `lttb` and `min_max`: how long a bucket is.
    pub every: Option<DurationText>,
    /// For `lttb`: how many values of each column are kept of a bucket, three or more.
    pub points: Option<u32>,
    /// The columns that tell devices apart, of text or whole numbers.
    #[serde(default = "device_id")]
    pub key: Vec<String>,
    /// The column with the time of the reading.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How far behind its device's newest row a row may come and still be put in order. So long each row waits.
    #[serde(default = "allowed_lateness")]
    pub allowed_lateness: DurationText,
    /// How much longer the newest row of a device that is silent waits, by the time of the others. A device that sends
    /// less often is not thinned. Default: `heartbeat`, or `every`, or an hour.
    pub idle_timeout: Option<DurationText>,
    /// How far after its receipt the time of a row may lie; beyond it the device's clock is wrong.
    #[serde(default = "ahead_max")]
    pub ahead_max: DurationText,
    /// How many devices have series; beyond it the one seen least recently is forgotten.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
    /// How many rows wait for a decision in all; beyond it the device at hand is decided at once.
    #[serde(default = "held_rows_max")]
    pub held_rows_max: u32,
}

/// How rows are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A row stays where a value has moved away from that of the row kept last.
    DeadBand,
    /// A row stays where a straight line between kept rows would miss a reading.
    SwingingDoor,
    /// So many rows of each bucket, those that give a drawn line its shape.
    Lttb,
    /// First, least, greatest and last of each bucket.
    MinMax,
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::DeadBand => "dead_band",
            Self::SwingingDoor => "swinging_door",
            Self::Lttb => "lttb",
            Self::MinMax => "min_max",
        }
    }

    fn has_bound(self) -> bool {
        matches!(self, Self::DeadBand | Self::SwingingDoor)
    }
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

fn ahead_max() -> DurationText {
    DurationText::secs(60)
}

fn devices_max() -> u32 {
    100_000
}

/// Ten seconds of 20,000 rows a second.
fn held_rows_max() -> u32 {
    200_000
}

impl TransformConfig for ThinConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "thin",
        summary: "Leaves out readings that can be told from those that stay, within a stated bound.",
        ports: &[(
            "late",
            "Rows that belong to no series, as they came: too late, from a clock that is ahead, or without a key or time.",
        )],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. Rows that wait for a decision go \
                  on after a restart, so a replay keeps the same rows; under another method, bound or bucket they are \
                  decided by that. Where they can't be read (the input has other columns, `key`, `time_column` or \
                  `devices_max` have changed, the snapshot is damaged), it starts with nothing, and the rows that \
                  waited are missing. So they are after a crash of a pipeline that takes no checkpoints because one of \
                  its sources can't be resumed. The keys of rows are untouched.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = KeyColumns::find(input, &self.key, "text or a whole number", is_device)?;
        let is_time = |kind: &_| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        self.check_keys()?;
        let (columns, rule) = if self.method.has_bound() { self.bounded(input)? } else { self.bucketed(input)? };
        let idle = self.idle_timeout.or(self.heartbeat).or(self.every).unwrap_or(IDLE);
        let times = Times {
            lateness: micros("allowed_lateness", self.allowed_lateness)?,
            idle: micros("idle_timeout", idle)?,
            ahead_max: micros("ahead_max", self.ahead_max)?,
        };
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could have a series"));
        }
        if self.held_rows_max == 0 {
            return Err(BuildError::invalid("held_rows_max", "no row could wait for the next one"));
        }
        let fingerprints = (self.fingerprint_of_rows(&key, input), self.fingerprint_of_rule(&rule));
        let transform = Thin {
            key,
            time,
            times,
            held: HeldRows::new(input.clone(), columns),
            held_rows_max: self.held_rows_max as usize,
            rule,
            devices: Followed::new(self.devices_max),
            fingerprints,
            counters: Counters::of(cx),
            outside: Vec::new(),
            bytes: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, input.clone()), (LATE, input.clone())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl ThinConfig {
    /// Refuses keys that mean nothing to the method, rather than ignoring them.
    fn check_keys(&self) -> Result<(), BuildError> {
        let has_bound = self.method.has_bound();
        let is_lttb = self.method == Method::Lttb;
        for (key, is_set, belongs, why) in [
            ("absolute", !self.absolute.is_empty(), has_bound, "keeps rows by their number, not by a bound"),
            ("percent", !self.percent.is_empty(), has_bound, "keeps rows by their number, not by a bound"),
            ("heartbeat", self.heartbeat.is_some(), has_bound, "keeps rows of each bucket anyway"),
            ("nulls", self.nulls.is_some(), has_bound, "ignores nulls anyway"),
            ("columns", !self.columns.is_empty(), !has_bound, "goes by the columns that `absolute` and `percent` name"),
            ("every", self.every.is_some(), !has_bound, "has no buckets"),
            ("points", self.points.is_some(), is_lttb, "keeps no chosen number of rows"),
        ] {
            if is_set && !belongs {
                return Err(BuildError::invalid(key, format!("{} {why}", self.method.word())).hint("Leave it out."));
            }
        }
        Ok(())
    }

    /// The columns that have a bound, and the rule.
    fn bounded(&self, input: &SchemaRef) -> Result<(Vec<usize>, Rule), BuildError> {
        let mut tolerances: BTreeMap<usize, Tolerance> = BTreeMap::new();
        for (key, bounds) in [("absolute", &self.absolute), ("percent", &self.percent)] {
            for (name, bound) in bounds {
                let key_of_column = format!("{key}.{name}");
                let column = self.number_column(input, &key_of_column, name)?;
                if !(bound.is_finite() && *bound >= 0.0) {
                    return Err(BuildError::invalid(key_of_column, "a bound is a number, 0 or more"));
                }
                let tolerance = tolerances.entry(column).or_default();
                match key {
                    "absolute" => tolerance.absolute = *bound,
                    _ => tolerance.of_value = *bound / 100.0,
                }
            }
        }
        if tolerances.is_empty() {
            return Err(BuildError::invalid("", "no column has a bound")
                .hint("Name at least one, such as absolute = { temperature = 0.1 }."));
        }
        let heartbeat = match self.heartbeat.map(|heartbeat| micros("heartbeat", heartbeat)).transpose()? {
            Some(0) => return Err(BuildError::invalid("heartbeat", "every row would be kept").hint("Leave it out.")),
            heartbeat => heartbeat,
        };
        let nulls = self.nulls.unwrap_or_default();
        if nulls == Nulls::Ignore && self.method == Method::SwingingDoor && tolerances.len() > 1 {
            let message = "a line can't leave out what a row does not say where the row stays for another column";
            return Err(BuildError::invalid("nulls", message)
                .hint("Thin each column in a stage of its own, or by a dead_band."));
        }
        let bounds = Bounds { heartbeat, nulls, tolerances: tolerances.values().copied().collect() };
        let rule = if self.method == Method::DeadBand { Rule::DeadBand(bounds) } else { Rule::SwingingDoor(bounds) };
        Ok((tolerances.into_keys().collect(), rule))
    }

    /// The columns that rows are kept by, and the rule.
    fn bucketed(&self, input: &SchemaRef) -> Result<(Vec<usize>, Rule), BuildError> {
        if self.columns.is_empty() {
            return Err(BuildError::invalid("columns", "no column is named")
                .hint("Name at least one, such as columns = [\"temperature\"]."));
        }
        let mut columns = Vec::new();
        for name in &self.columns {
            let column = self.number_column(input, "columns", name)?;
            if columns.contains(&column) {
                return Err(BuildError::invalid("columns", format!("\"{name}\" is named twice")));
            }
            columns.push(column);
        }
        columns.sort_unstable();
        let every = match self.every.map(|every| micros("every", every)).transpose()? {
            None => return Err(BuildError::invalid("", "it has no buckets").hint("Set `every`, such as \"1m\".")),
            Some(0) => return Err(BuildError::invalid("every", "a bucket of no time holds nothing")),
            Some(every) => every,
        };
        if self.method == Method::MinMax {
            return Ok((columns, Rule::MinMax { every }));
        }
        match self.points {
            Some(points @ 3..) => Ok((columns, Rule::Lttb { every, points: points as usize })),
            None => Err(BuildError::invalid("", "it does not say how many values are kept of a bucket")
                .hint("Set `points`, such as points = 10.")),
            Some(_) => {
                Err(BuildError::invalid("points", "a bucket keeps its first and its last value and one between")
                    .hint("Make it 3 or more."))
            }
        }
    }

    fn number_column(&self, input: &SchemaRef, key: &str, name: &str) -> Result<usize, BuildError> {
        use DataType::{Float32, Float64, Int16, Int32, Int64};
        let is_number = |kind: &_| matches!(kind, Int16 | Int32 | Int64 | Float32 | Float64);
        let column = columns::find_typed(input, key, name, "a number", is_number)?;
        if self.key.iter().any(|of_key| of_key == name) {
            return Err(BuildError::invalid(key, format!("\"{name}\" tells devices apart, and is no reading")));
        }
        Ok(column)
    }

    /// What must be the same for rows that wait to be read back.
    fn fingerprint_of_rows(&self, key: &KeyColumns, input: &SchemaRef) -> u128 {
        let mut fingerprint = Fingerprint::default();
        key.mark(&mut fingerprint);
        fingerprint.text(&self.time_column);
        fingerprint.number(self.devices_max.into());
        for field in input.fields() {
            fingerprint.text(field.name());
            fingerprint.text(&format!("{} {}", field.data_type(), field.is_nullable()));
        }
        fingerprint.finish()
    }

    /// What must be the same for what is known of rows that were kept to mean anything.
    fn fingerprint_of_rule(&self, rule: &Rule) -> u128 {
        let mut fingerprint = Fingerprint::default();
        fingerprint.text(&format!("{rule:?}"));
        for name in self.columns.iter().chain(self.absolute.keys()).chain(self.percent.keys()) {
            fingerprint.text(name);
        }
        fingerprint.finish()
    }
}
