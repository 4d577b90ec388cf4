//! The messages of a fleet one by one, for whoever sends them by other means than a pipeline.

use pipeline_engine::stage::BuildError;

use super::SimulatorConfig;
use super::fleet::Fleet;
use super::topic::Topic;

/// A fleet that takes its readings when it is asked. No clock of its own: a message says when it is due.
#[derive(Debug)]
pub struct Readings {
    fleet: Fleet,
}

/// A message of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Where it is published.
    pub topic: &'a str,
    /// JSON, with `device_id`, `timestamp`, `temperature`, `humidity` and `seq`, unless it is planted to be bad.
    pub payload: &'a [u8],
    /// When it is sent, in microseconds since 1970.
    pub due_us: i64,
}

impl SimulatorConfig {
    /// The fleet that this describes, from `start_us` on, in microseconds since 1970.
    ///
    /// # Errors
    /// The key that is wrong, as for a source. A replay is no fleet.
    pub fn readings(&self, start_us: i64) -> Result<Readings, BuildError> {
        if self.replay.is_some() {
            return Err(BuildError::invalid("replay", "a recorded data set is no fleet"));
        }
        let topic = Topic::parse(&self.topic).map_err(|text| BuildError::invalid("topic", text))?;
        let duration_us = self.duration.map(|duration| super::micros(duration.0));
        Ok(Readings { fleet: Fleet::new(&self.fleet_settings(topic, duration_us)?, start_us) })
    }
}

impl Readings {
    /// When the next message is due; `None` if there is none.
    pub fn due_us(&self) -> Option<i64> {
        self.fleet.due_us()
    }

    /// The next message; `None` where the turn of a device gives none now: see [`Readings::due_us`] for whether there are more.
    pub fn take(&mut self) -> Option<Message<'_>> {
        let sent = self.fleet.next()?;
        Some(Message { topic: sent.topic, payload: sent.payload, due_us: sent.sent_at_us })
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::units::DurationText;

    use super::*;

    #[test]
    fn readings_are_due_one_after_the_other_and_end() {
        let config = SimulatorConfig {
            devices: 2,
            rate: Some(4.0),
            duration: Some(DurationText::secs(2)),
            ..SimulatorConfig::default()
        };
        let mut readings = config.readings(1_000_000).expect("a fleet");
        let mut due = Vec::new();
        while readings.due_us().is_some() {
            due.extend(readings.take().map(|message| message.due_us));
        }
        assert_eq!(due, [4, 5, 6, 7, 8, 9, 10, 11].map(|quarter| quarter * 250_000));
    }
}
