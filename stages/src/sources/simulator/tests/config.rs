//! Defaults and mistakes of the configuration.

use super::*;

#[test]
fn the_defaults_are_the_runbooks() {
    let config: SimulatorConfig = toml::from_str("").unwrap();
    assert_eq!(config, SimulatorConfig::default());
    assert_eq!((config.devices, config.prefix.as_str(), config.interval), (10, "device-", DurationText::secs(5)));
    assert_eq!((config.topic.as_str(), config.anomaly_probability, config.spike_factor), ("iot/telemetry", 0.05, 2.5));
}

#[test]
fn the_reference_shows_defaults() {
    let schema = schemars::schema_for!(SimulatorConfig);
    let default = |key: &str| schema.pointer(&format!("/properties/{key}/default")).cloned();
    assert_eq!(default("interval"), Some("5s".into()));
    assert_eq!(default("pace"), Some("real".into()));
}

#[test]
fn a_mistake_is_found_at_its_key() {
    let mistakes = [
        ("devices = 0", "devices"),
        ("devices = 2000000", "devices"),
        ("interval = \"0s\"", "interval"),
        ("interval = \"100ns\"", "interval"),
        ("rate = 0.0", "rate"),
        ("rate = nan", "rate"),
        ("rate = 10000001.0", "rate"),
        ("count = 0", "count"),
        ("duration = \"0s\"", "duration"),
        ("topic = \"iot/#\"", "topic"),
        ("topic = \"iot/{id}\"", "topic"),
        ("temperature_range = [35.0, 15.0]", "temperature_range"),
        ("humidity_range = [nan, 15.0]", "humidity_range"),
        ("spike_factor = 0.0", "spike_factor"),
        ("anomaly_probability = 1.5", "anomaly_probability"),
        ("bad_probability = nan", "bad_probability"),
        ("bad_probability = 0.5\nlate_probability = 0.5", ""),
        ("late_probability = 0.5\nrate = 100000.0", "late_by"),
        ("start_time = \"yesterday\"", "start_time"),
        ("start_time = \"1960-01-01T00:00:00Z\"", "start_time"),
        ("speed = 0.0", "speed"),
        ("speed = 2.0", "speed"),
        ("schema = \"telemtry\"", "schema"),
        ("replay_device_id = \"a\"", "replay_device_id"),
        ("replay = \"/\"", "replay"),
        ("replay = \"a.csv\"\nrate = 1.0", "rate"),
        ("replay = \"a.csv\"\nbad_probability = 0.1", "bad_probability"),
    ];
    for (text, key) in mistakes {
        let mistake = build(toml::from_str(text).expect(text)).err().unwrap_or_else(|| panic!("{text} was accepted"));
        assert_eq!(mistake.key, key, "{text}: {mistake}");
    }
    for text in ["rate = 50000.0\nlate_probability = 0.1", "replay = \"a.csv\"\nspeed = 60.0", "devices = 1000000"] {
        assert!(build(toml::from_str(text).expect(text)).is_ok(), "{text}");
    }
}
