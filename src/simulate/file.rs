//! The simulator's configuration file: the runbook's `simulator_config.yaml`, or the same keys as
//! TOML.

use std::num::NonZeroU32;
use std::path::Path;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter};

use super::values::{BrokerUrl, Positive, Probability, Qos, Range, Seconds};

/// What a file says; every key may be left out.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigFile {
    pub devices: Devices,
    pub telemetry: Telemetry,
    pub mqtt: Mqtt,
    pub anomaly: Anomaly,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Devices {
    pub count: Option<NonZeroU32>,
    pub prefix: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    pub interval_seconds: Option<Seconds>,
    pub temperature_range: Option<Range>,
    pub humidity_range: Option<Range>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    pub broker: Option<BrokerUrl>,
    pub topic: Option<String>,
    pub qos: Option<Qos>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anomaly {
    pub probability: Option<Probability>,
    pub spike_factor: Option<Positive>,
}

impl ConfigFile {
    /// Reads a file: TOML if its name ends so, else YAML.
    ///
    /// # Errors
    /// It can't be read, or a key or value in it is wrong: with line and column.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        if path.extension().is_some_and(|extension| extension == "toml") {
            return toml::from_str(&text).map_err(|error| toml_mistake(path, &text, &error));
        }
        serde_saphyr::from_str(&text).map_err(|error| yaml_mistake(path, &text, &error))
    }
}

fn yaml_mistake(path: &Path, text: &str, error: &serde_saphyr::Error) -> anyhow::Error {
    let message = DefaultMessageFormatter.format_message(error.without_snippet());
    let place = error.location().map(|location| (location.line() as usize, location.column() as usize));
    mistake(path, text, place, &message)
}

fn toml_mistake(path: &Path, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let place = error.span().and_then(|span| text.get(..span.start)).map(|before| {
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    });
    mistake(path, text, place, error.message())
}

/// Names the place and shows the line, since the key stands there.
fn mistake(path: &Path, text: &str, place: Option<(usize, usize)>, message: &str) -> anyhow::Error {
    let path = path.display();
    match place {
        Some((line, column)) => {
            let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            let caret = " ".repeat(column.saturating_sub(1));
            anyhow!("{message}\n  --> {path}:{line}:{column}\n   | {shown}\n   | {caret}^")
        }
        None => anyhow!("{message}\n  --> {path}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// As the runbook has it.
    const RUNBOOK: &str = r#"devices:
  count: 100
  prefix: "device-"

telemetry:
  interval_seconds: 5
  temperature_range: [15, 35]
  humidity_range: [30, 80]

mqtt:
  broker: ssl://iot.us-east-1.amazonaws.com:8883
  topic: iot/telemetry
  qos: 1

anomaly:
  probability: 0.05
  spike_factor: 2.5
"#;

    fn read(name: &str, text: &str) -> Result<ConfigFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        // Without the folder, whose name is another each time.
        let shown = format!("{}/", folder.path().display());
        ConfigFile::read(&path).map_err(|error| format!("{error:#}").replace(&shown, ""))
    }

    fn mistake_in(name: &str, text: &str) -> String {
        read(name, text).expect_err(text)
    }

    #[test]
    fn the_runbooks_file_is_read() {
        let file = read("simulator_config.yaml", RUNBOOK).unwrap();
        assert_eq!(file.devices.count.map(NonZeroU32::get), Some(100));
        assert_eq!(file.devices.prefix.as_deref(), Some("device-"));
        assert_eq!(file.telemetry.interval_seconds, Some(Seconds(Duration::from_secs(5))));
        assert_eq!(file.telemetry.temperature_range, Some(Range([15.0, 35.0])));
        assert_eq!(file.telemetry.humidity_range, Some(Range([30.0, 80.0])));
        let url = "mqtts://iot.us-east-1.amazonaws.com:8883".to_owned();
        assert_eq!(file.mqtt.broker, Some(BrokerUrl { url, tls: true }));
        assert_eq!(file.mqtt.topic.as_deref(), Some("iot/telemetry"));
        assert_eq!(file.mqtt.qos, Some(Qos(1)));
        assert_eq!(file.anomaly.probability, Some(Probability(0.05)));
        assert_eq!(file.anomaly.spike_factor, Some(Positive(2.5)));
    }

    #[test]
    fn the_same_keys_may_be_toml() {
        let text = "[devices]\ncount = 100\n[telemetry]\ninterval_seconds = 0.5\ntemperature_range = [15, 35]\n";
        let file = read("simulator.toml", text).unwrap();
        assert_eq!(file.devices.count.map(NonZeroU32::get), Some(100));
        assert_eq!(file.telemetry.interval_seconds, Some(Seconds(Duration::from_millis(500))));
        assert_eq!(file.telemetry.temperature_range, Some(Range([15.0, 35.0])));
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(read("empty.yaml", ""), Ok(ConfigFile::default()));
        assert_eq!(read("comment.yaml", "# nothing yet\n"), Ok(ConfigFile::default()));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_place_and_the_known_ones() {
        let text = mistake_in("s.yaml", "devices:\n  count: 3\n  prefx: a\n");
        assert_eq!(
            text,
            "unknown field `prefx`, expected one of count, prefix\n  --> s.yaml:3:3\n   |   prefx: a\n   |   ^"
        );
        let text = mistake_in("s.toml", "[devices]\ncount = 3\nprefx = 1\n");
        assert!(text.contains("unknown field `prefx`") && text.contains("--> s.toml:3:1\n   | prefx = 1"), "{text}");
        let text = mistake_in("s.yaml", "device:\n  count: 3\n");
        assert!(text.contains("unknown field `device`") && text.contains("--> s.yaml:1:1"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_shown_with_its_place_and_its_line() {
        let mistakes = [
            ("mqtt:\n  qos: 3\n", "a QoS is 0, 1 or 2, not 3", "2:8\n   |   qos: 3"),
            (
                "telemetry:\n  interval_seconds: 0\n",
                "a duration is above 0 seconds, not 0",
                "2:21\n   |   interval_seconds: 0",
            ),
            ("telemetry:\n  humidity_range: [80, 30]\n", "not [80, 30]", "2:19\n   |   humidity_range: [80, 30]"),
            ("anomaly:\n  probability: 5\n", "a probability is between 0 and 1, not 5", "2:16\n   |   probability: 5"),
            ("mqtt:\n  broker: http://x\n", "not reached by http://", "2:11\n   |   broker: http://x"),
            ("devices:\n  count: 0\n", "nonzero", "2:3\n   |   count: 0"),
            ("devices:\n  count: many\n", "", "2:10\n   |   count: many"),
            ("devices: [\n", "", "s.yaml:"),
        ];
        for (yaml, message, place) in mistakes {
            let text = mistake_in("s.yaml", yaml);
            assert!(text.contains(message) && text.contains(place), "{yaml}: {text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = format!("{:#}", ConfigFile::read(Path::new("/nowhere/s.yaml")).expect_err("missing"));
        assert!(text.starts_with("can't read /nowhere/s.yaml: "), "{text}");
    }
}
