//! A fleet of devices in this process, for demos, load and tests: the same seed gives the same fleet.
//!
//! With `start_time` and `pace = "none"` it is the same byte for byte, on every machine. What is
//! planted (anomalies, bad, late and duplicate messages) goes to a truth file, so that a test can
//! count what was found. `replay` sends a recorded data set instead.
//!
//! Of one device, no two readings have the same timestamp and `seq` counts up from 1 without a gap;
//! only planted duplicates have both of an earlier message. How readings and anomalies are made is
//! told in `signal.rs`.

mod fleet;
mod pace;
mod payload;
mod readings;
mod replay;
mod run;
mod signal;
#[cfg(test)]
mod tests;
mod topic;
mod truth;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Datelike};
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSource, SourceConfig, StageDoc};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decoder;
use crate::decode::Format;
use fleet::FleetSettings;
pub use readings::{Message, Readings};
use replay::ReplaySettings;
use run::{Origin, Simulator};
use topic::Topic;

/// The most devices: each holds about 200 bytes.
const DEVICES_MAX: u32 = 1_000_000;
/// The most messages that may wait for being late, on average.
const HELD_MAX: f64 = 1_000_000.0;

/// `type = "simulator"` in a pipeline file.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatorConfig {
    /// How many devices there are.
    pub devices: u32,
    /// What their ids begin with; a number from 1 follows.
    pub prefix: String,
    /// How often each device sends. The devices are spread evenly over the interval.
    pub interval: DurationText,
    /// Messages a second over the whole fleet, in place of `interval`.
    pub rate: Option<f64>,
    /// Stop after so many messages in all, duplicates included.
    pub count: Option<u64>,
    /// Take readings for so long, by the simulated clock. A late message is still sent after it.
    pub duration: Option<DurationText>,
    /// Another seed is another fleet.
    pub seed: u64,
    /// The topic of the messages; `{device_id}` in it is replaced.
    pub topic: String,
    /// Lowest and highest temperature of a normal reading. Noise is 1/100 of the range.
    pub temperature_range: [f64; 2],
    /// Lowest and highest humidity of a normal reading. Noise is 1/100 of the range.
    pub humidity_range: [f64; 2],
    /// How likely a reading is a planted anomaly: a spike in one of its two metrics.
    pub anomaly_probability: f64,
    /// How high spikes are: 10 to 15 times this, in standard deviations of the noise; that is 10% to
    /// 15% of the metric's range times this.
    pub spike_factor: f64,
    /// How likely a message is bad: broken JSON, a wrong type, a missing device id, a value out of
    /// range and the like, all equally often.
    pub bad_probability: f64,
    /// How likely a message is late.
    pub late_probability: f64,
    /// How late a late message is.
    pub late_by: DurationText,
    /// How likely a message is sent twice, the second time an interval later.
    pub duplicate_probability: f64,
    /// RFC 3339 time of the first reading, in place of now.
    pub start_time: Option<String>,
    /// Whether messages wait until they are due.
    pub pace: Pace,
    /// How fast the simulated clock runs. Other than 1 only with `start_time` or `replay`.
    pub speed: f64,
    /// Decode messages by this schema. Without it the rows are messages: topic, payload and
    /// received_at.
    pub schema: Option<String>,
    /// Send the rows of this file instead: CSV with a header, or JSON lines (`.jsonl`, `.ndjson`,
    /// `.json`). Each has a column or field `timestamp`; without a zone it is UTC.
    pub replay: Option<PathBuf>,
    /// The device id of replayed rows that have none of their own, in place of the file's name.
    pub replay_device_id: Option<String>,
    /// Write a JSON line to this file for each planted message: kind, device_id, timestamp, seq,
    /// and the metric and value of an anomaly or the flaw of a bad one.
    pub truth: Option<PathBuf>,
}

/// Whether messages wait until they are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Pace {
    /// As time passes. After a stall, what became due meanwhile is sent at once.
    #[serde(rename = "real")]
    Real,
    /// As fast as the pipeline takes them; `received_at` is the simulated time.
    #[serde(rename = "none")]
    Unpaced,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            devices: 10,
            prefix: "device-".to_owned(),
            interval: DurationText::secs(5),
            rate: None,
            count: None,
            duration: None,
            seed: 1,
            topic: "iot/telemetry".to_owned(),
            temperature_range: [15.0, 35.0],
            humidity_range: [30.0, 80.0],
            anomaly_probability: 0.05,
            spike_factor: 2.5,
            bad_probability: 0.0,
            late_probability: 0.0,
            late_by: DurationText::secs(60),
            duplicate_probability: 0.0,
            start_time: None,
            pace: Pace::Real,
            speed: 1.0,
            schema: None,
            replay: None,
            replay_device_id: None,
            truth: None,
        }
    }
}

impl SourceConfig for SimulatorConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "simulator",
        summary: "Sends the readings of a simulated fleet of devices, or replays a recorded data set.",
        ports: &[("rejected", "with a schema: messages that don't decode, the planted bad ones among them")],
        failure: "Nothing outside can fail for a while. A file to replay that can't be read, a row of it that is no \
                  reading, and a truth file that can't be written stop the run; what was sent before is still \
                  delivered. Each run is a stream of its own that begins at message 1: what a killed run had in \
                  flight is gone, and the next run does not repeat it. Only with start_time and the same seed and \
                  settings the next run makes the same rows again: (device_id, timestamp) is the key by which a sink \
                  recognises them, and planted duplicates.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let schema = self.schema.as_ref().map(|name| cx.schema("schema", name)).transpose()?;
        let simulator = self.settle(schema, cx)?;
        let outputs = simulator.decoder.outputs();
        Ok(BuiltSource { source: Box::new(simulator), outputs })
    }
}

impl SimulatorConfig {
    /// Checks what a key alone can't tell, and turns text into numbers.
    fn settle(self, schema: Option<Arc<DeclaredSchema>>, cx: &BuildContext) -> Result<Simulator, BuildError> {
        if self.count == Some(0) {
            return Err(BuildError::invalid("count", "a count is at least 1").hint("Leave it out to send without end."));
        }
        let duration_us = match self.duration {
            Some(DurationText(Duration::ZERO)) => {
                return Err(BuildError::invalid("duration", "a duration is longer than nothing"));
            }
            duration => duration.map(|DurationText(duration)| micros(duration)),
        };
        let start_us = self.start_time.as_deref().map(read_start_time).transpose()?;
        let speed = self.checked_speed()?;
        let topic = Topic::parse(&self.topic).map_err(|text| BuildError::invalid("topic", text))?;
        let origin = match &self.replay {
            Some(path) => Origin::Replay(self.replay_settings(path.clone(), topic, duration_us)?),
            None => Origin::Fleet(self.fleet_settings(topic, duration_us)?, start_us),
        };
        Ok(Simulator { origin, speed, truth: self.truth, decoder: decoder(cx, schema.as_deref(), Format::Json, None)? })
    }

    fn checked_speed(&self) -> Result<Option<f64>, BuildError> {
        let possible = self.speed.is_finite() && self.speed > 0.0;
        if !possible {
            return Err(BuildError::invalid("speed", format!("a speed is above 0, not {}", self.speed)));
        }
        if self.speed != 1.0 && self.start_time.is_none() && self.replay.is_none() {
            return Err(BuildError::invalid("speed", "the simulated clock would run away from the real one")
                .hint("Give a start_time, or use rate to send more often."));
        }
        Ok((self.pace == Pace::Real).then_some(self.speed))
    }

    fn replay_settings(
        &self,
        path: PathBuf,
        topic: Topic,
        duration_us: Option<i64>,
    ) -> Result<ReplaySettings, BuildError> {
        let planted = [
            ("bad_probability", self.bad_probability),
            ("late_probability", self.late_probability),
            ("duplicate_probability", self.duplicate_probability),
        ];
        let of_the_fleet =
            [("rate", self.rate.is_some()), ("start_time", self.start_time.is_some()), ("truth", self.truth.is_some())];
        let planted = planted.into_iter().map(|(key, probability)| (key, probability != 0.0));
        if let Some((key, _)) = planted.chain(of_the_fleet).find(|(_, given)| *given) {
            return Err(BuildError::invalid(key, "a replay sends what the file holds, when the file says so")
                .hint("Use speed or pace for another pace, and leave this key out."));
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let Some(device_id) = self.replay_device_id.clone().or(stem).filter(|id| !id.is_empty()) else {
            return Err(BuildError::invalid("replay", format!("\"{}\" is no file", path.display())));
        };
        Ok(ReplaySettings { path, device_id, topic, count: self.count, duration_us })
    }

    fn fleet_settings(&self, topic: Topic, duration_us: Option<i64>) -> Result<FleetSettings, BuildError> {
        if self.replay_device_id.is_some() {
            return Err(BuildError::invalid("replay_device_id", "there is no file to replay"));
        }
        if !(1..=DEVICES_MAX).contains(&self.devices) {
            return Err(BuildError::invalid("devices", format!("a fleet has 1 to {DEVICES_MAX} devices")));
        }
        let interval_ns = self.interval_ns()?;
        check_range("temperature_range", self.temperature_range)?;
        check_range("humidity_range", self.humidity_range)?;
        let fits = self.spike_factor > 0.0 && self.spike_factor <= 1000.0;
        if !fits {
            return Err(BuildError::invalid("spike_factor", "a spike factor is above 0 and at most 1000"));
        }
        self.check_probabilities()?;
        let late_a_second = f64::from(self.devices) * 1e9 / interval_ns as f64 * self.late_probability;
        if late_a_second * self.late_by.0.as_secs_f64() > HELD_MAX {
            return Err(BuildError::invalid("late_by", "more than 1,000,000 messages would wait to be late")
                .hint("Shorten it, or lower late_probability."));
        }
        Ok(FleetSettings {
            devices: self.devices,
            prefix: self.prefix.clone(),
            topic,
            seed: self.seed,
            interval_ns,
            count: self.count,
            duration_us,
            ranges: [self.temperature_range, self.humidity_range],
            spike_factor: self.spike_factor,
            anomaly_probability: self.anomaly_probability,
            bad_probability: self.bad_probability,
            late_probability: self.late_probability,
            duplicate_probability: self.duplicate_probability,
            late_by_us: micros(self.late_by.0),
        })
    }

    /// How long each device waits, from the interval or the rate.
    fn interval_ns(&self) -> Result<u64, BuildError> {
        let year_ns = 365.0 * 86_400.0 * 1e9;
        let (key, interval_ns) = match self.rate {
            Some(rate) if rate > 0.0 => ("rate", f64::from(self.devices) / rate * 1e9),
            Some(rate) => return Err(BuildError::invalid("rate", format!("a rate is above 0, not {rate}"))),
            None => ("interval", self.interval.0.as_nanos() as f64),
        };
        if (1e3..=year_ns).contains(&interval_ns) {
            return Ok(interval_ns.round() as u64);
        }
        let text = "each device sends at most once a microsecond and at least once a year";
        Err(BuildError::invalid(key, text).hint("More devices can send more."))
    }

    fn check_probabilities(&self) -> Result<(), BuildError> {
        let all = [
            ("anomaly_probability", self.anomaly_probability),
            ("bad_probability", self.bad_probability),
            ("late_probability", self.late_probability),
            ("duplicate_probability", self.duplicate_probability),
        ];
        if let Some((key, given)) = all.iter().find(|(_, probability)| !(0.0..=1.0).contains(probability)) {
            return Err(BuildError::invalid(*key, format!("a probability is between 0 and 1, not {given}")));
        }
        if all.iter().map(|(_, probability)| probability).sum::<f64>() > 1.0 {
            return Err(BuildError::invalid("", "the probabilities add up to more than 1")
                .hint("A message is at most one of anomalous, bad, late and duplicate."));
        }
        Ok(())
    }
}

fn check_range(key: &str, [low, high]: [f64; 2]) -> Result<(), BuildError> {
    let ordered = low.is_finite() && high.is_finite() && low < high; // false for NaN as well
    if !ordered {
        return Err(BuildError::invalid(key, format!("[{low}, {high}] is not the lowest and then the highest value")));
    }
    // Values are written with up to 9 decimals and computed with 53 bits.
    if high - low < 1e-6 || low.abs().max(high.abs()) > 1e6 {
        return Err(BuildError::invalid(key, "a range is at least 0.000001 wide and within a million of zero"));
    }
    Ok(())
}

fn read_start_time(text: &str) -> Result<i64, BuildError> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|error| {
        BuildError::invalid("start_time", format!("\"{text}\" is no RFC 3339 time: {error}"))
            .hint("Write it like \"2026-01-31T12:00:00Z\".")
    })?;
    if !(1970..2200).contains(&time.year()) {
        return Err(BuildError::invalid("start_time", "a start is between the years 1970 and 2199"));
    }
    Ok(time.timestamp_micros())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
