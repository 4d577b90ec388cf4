//! Tells when a device has stopped sending, and when it is back.
//!
//! ```toml
//! [transforms.heard]
//! type = "silence"
//! inputs = ["valid"]
//! after_min = "1m"
//! ```
//!
//! Every row leaves by the main port as it came, in the same batch. A device that has sent nothing for longer than it
//! may is one row by the port `alerts`, with the status `silent`; when it sends again, another with `returned`.
//!
//! # How long it may be silent
//! `after`, where that is set: the same for all. Else each device has a rhythm of its own: `times` the second-longest of
//! its newest 32 intervals, and no less than `after_min`. So a device that sends in bursts is known by its pauses. One
//! that has sent fewer than nine rows is not judged, and an interval that was an alert is not learned.
//!
//! # How time passes
//! By the others: a device is silent once two others of its partition have come so far beyond it in time, or the only
//! other one. So where the link to the broker is down and nobody is heard, nobody is silent, and one clock that is ahead
//! silences nobody. A device that is alone in its partition tells nothing of itself. A time more than `ahead_max` after
//! its receipt counts as that much after it. Time that only passes on a clock tells nothing: there is no clock, so a
//! replay tells the same.
//!
//! How many devices are known, and how many of them are not silent, is shown as `pipeline_devices_known` and
//! `pipeline_devices_connected`. One that can't be judged yet is not silent. Devices that
//! `pipeline verify` and `pipeline soak` make up are not followed: they stop without meaning anything by it.
//!
//! # What it remembers
//! The newest time and the rhythm of at most `devices_max` devices, 450 bytes each. Beyond it the device seen least
//! recently is forgotten and counted in `forgotten_devices`: its return is not told then. It outlives a restart.

mod rhythm;
mod run;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

use self::run::{Allowance, Counters, Silence};
use super::followed::Followed;
use super::keys::{KeyColumns, is_device};
use super::snapshot::Fingerprint;
use super::units::micros;

/// The output for devices that fall silent or are back, one row each.
pub const ALERTS: Port = Port::new("alerts");

/// `type = "silence"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SilenceConfig {
    /// The columns that tell devices apart, of text or whole numbers. They are the first columns of an alert.
    #[serde(default = "device_id")]
    pub key: Vec<String>,
    /// The column with the time of the reading.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How long any device may be silent. Default: learned for each device.
    pub after: Option<DurationText>,
    /// Where it is learned: how many times the usual pause of a device it may be silent.
    pub times: Option<u32>,
    /// Where it is learned: no device is silent sooner. Default: a minute.
    pub after_min: Option<DurationText>,
    /// How far after its receipt the time of a row may lie; a later one counts as this much after it.
    #[serde(default = "ahead_max")]
    pub ahead_max: DurationText,
    /// How many devices are remembered; beyond it, the one seen least recently is forgotten.
    #[serde(default = "devices_max")]
    pub devices_max: u32,
}

const TIMES: u32 = 3;

fn device_id() -> Vec<String> {
    vec!["device_id".to_owned()]
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

fn ahead_max() -> DurationText {
    DurationText::secs(60)
}

fn devices_max() -> u32 {
    100_000
}

impl TransformConfig for SilenceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "silence",
        summary: "Tells when a device has stopped sending, and when it is back.",
        ports: &[(
            "alerts",
            "One row each time: the key's columns, status (silent or returned), last_seen (its newest time before), \
             noticed_at (what the others had come to, or the time of the row it is back with), silent_seconds between \
             the two, and allowed_seconds.",
        )],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What it remembers goes on after \
                  a restart, so a replay tells the same. Where that can't be read (the configuration has changed, the \
                  snapshot is damaged), it starts with nothing: who was silent then is neither told again nor told to \
                  be back. The key of an alert is the device with status and last_seen.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = KeyColumns::find(input, &self.key, "text or a whole number", is_device)?;
        let is_time = |kind: &_| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        let allowance = self.allowance()?;
        let ahead_max_us = micros("ahead_max", self.ahead_max)?;
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could be remembered"));
        }
        let alerts = alert_schema(&key)?;
        let mut fingerprint = Fingerprint::default();
        key.mark(&mut fingerprint);
        fingerprint.text(&self.time_column);
        fingerprint.text(&format!("{allowance:?} {ahead_max_us}"));
        fingerprint.number(self.devices_max.into());
        let transform = Silence {
            key,
            time,
            allowance,
            ahead_max_us,
            devices: Followed::new(self.devices_max),
            fingerprint: fingerprint.finish(),
            schema: alerts.clone(),
            counters: Counters::of(cx),
            shown: cx.devices(),
            silent_now: 0,
            alerts: Vec::new(),
            bytes: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, input.clone()), (ALERTS, alerts)];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl SilenceConfig {
    fn allowance(&self) -> Result<Allowance, BuildError> {
        let positive = |key: &str, duration: DurationText| match micros(key, duration)? {
            0 => Err(BuildError::invalid(key, "every device would be silent at once")),
            micros => Ok(micros),
        };
        let learned = [("times", self.times.is_some()), ("after_min", self.after_min.is_some())];
        if let (Some(after), Some((key, _))) = (self.after, learned.iter().find(|(_, is_set)| *is_set)) {
            let text = format!("with after = \"{after}\" nothing is learned");
            return Err(BuildError::invalid(*key, text).hint("Leave out this key, or `after`."));
        }
        match (self.after, self.times.unwrap_or(TIMES)) {
            (Some(after), _) => Ok(Allowance::Fixed(positive("after", after)?)),
            (None, 0) => Err(BuildError::invalid("times", "every device would be silent at once")),
            (None, times) => {
                let least_us = positive("after_min", self.after_min.unwrap_or(DurationText::secs(60)))?;
                Ok(Allowance::Learned { times: times.into(), least_us })
            }
        }
    }
}

fn alert_schema(key: &KeyColumns) -> Result<SchemaRef, BuildError> {
    let own = [
        Field::new("status", DataType::Utf8, false),
        Field::new("last_seen", timestamp_type(), false),
        Field::new("noticed_at", timestamp_type(), false),
        Field::new("silent_seconds", DataType::Float64, false),
        Field::new("allowed_seconds", DataType::Float64, false),
    ];
    let mut fields: Vec<Field> = key.fields().collect();
    for field in own {
        if fields.iter().any(|other| other.name() == field.name()) {
            return Err(BuildError::invalid("key", format!("alerts have a column \"{}\" of their own", field.name())));
        }
        fields.push(field);
    }
    Ok(Arc::new(Schema::new(fields)))
}
