use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use pipeline_engine::testing::{self, Outlet, build_context, deliver};
use serde_json::Value;

use super::fleet::Fleet;
use super::run::ROWS_MAX;
use super::*;

const START: &str = "2026-01-31T12:00:00Z";
const START_US: i64 = 1_769_860_800_000_000;
const SCHEMA: &str = r#"
[schema.telemetry]
device_id = { type = "text", required = true }
timestamp = { type = "timestamp", required = true }
temperature = "float64"
humidity = "float64"
seq = "int64"
"#;

/// A deterministic run of so many messages.
fn config(count: u64) -> SimulatorConfig {
    SimulatorConfig {
        count: Some(count),
        start_time: Some(START.to_owned()),
        pace: Pace::Unpaced,
        ..SimulatorConfig::default()
    }
}

fn fleet(config: SimulatorConfig) -> Fleet {
    let topic = Topic::parse(&config.topic).unwrap();
    let duration_us = config.duration.map(|duration| micros(duration.0));
    Fleet::new(&config.fleet_settings(topic, duration_us).expect("valid settings"), START_US)
}

/// Message by message: when it was sent, its payload, and the word for what was planted.
fn messages(config: SimulatorConfig) -> Vec<(i64, Vec<u8>, Option<String>)> {
    let mut fleet = fleet(config);
    let mut all = Vec::new();
    while let Some(due_us) = fleet.due_us() {
        if let Some(message) = fleet.next() {
            assert_eq!(message.sent_at_us, due_us, "a message goes out when it was said to be due");
            let planted = message.planted.map(|planted| format!("{:?}", planted.kind));
            all.push((due_us, message.payload.to_vec(), planted));
        }
    }
    all
}

fn payloads(config: SimulatorConfig) -> Vec<Vec<u8>> {
    messages(config).into_iter().map(|(_, payload, _)| payload).collect()
}

fn json(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).expect("JSON")
}

fn of_device(payloads: &[Vec<u8>], id: &str) -> Vec<Vec<u8>> {
    payloads.iter().filter(|payload| json(payload)["device_id"] == id).cloned().collect()
}

fn time_us(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).expect("RFC 3339").timestamp_micros()
}

fn build(config: SimulatorConfig) -> Result<BuiltSource, BuildError> {
    config.build(&build_context("fleet", SCHEMA))
}

/// Runs a source to its end with somebody who reads and keeps promises; rows by batch, main and
/// rejected.
async fn run_to_end(config: SimulatorConfig) -> (Result<(), String>, Vec<Batches>, Outlet) {
    let source = build(config).expect("a valid configuration").source;
    let (cx, mut outlet) = testing::source(1_000_000);
    let run = tokio::spawn(source.run(cx));
    let mut main = Vec::new();
    while let Some(batch) = outlet.next().await {
        main.push(batch.rows.clone());
        deliver(batch);
    }
    let mut rejected = Vec::new();
    while let Some(batch) = outlet.next_rejected().await {
        rejected.push(batch.rows.clone());
        deliver(batch);
    }
    let outcome = run.await.expect("no panic").map_err(|error| error.chain());
    (outcome, vec![main, rejected], outlet)
}

type Batches = Vec<arrow::record_batch::RecordBatch>;

fn rows(batches: &Batches) -> usize {
    batches.iter().map(|batch| batch.num_rows()).sum()
}

#[test]
fn the_first_payloads_are_the_same_on_every_machine() {
    let mut config = config(3);
    config.devices = 2;
    let lines: Vec<String> = payloads(config).into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    let expected = [
        r#"{"device_id":"device-1","timestamp":"2026-01-31T12:00:00.000000Z","temperature":36.95,"humidity":54.57,"seq":1}"#,
        r#"{"device_id":"device-2","timestamp":"2026-01-31T12:00:02.500000Z","temperature":27.06,"humidity":60.30,"seq":1}"#,
        r#"{"device_id":"device-1","timestamp":"2026-01-31T12:00:05.000000Z","temperature":30.96,"humidity":54.12,"seq":2}"#,
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let faulty = |seed| {
        let mut config = config(20_000);
        config.seed = seed;
        config.bad_probability = 0.01;
        config.late_probability = 0.01;
        config.duplicate_probability = 0.01;
        payloads(config)
    };
    let (first, again, other) = (faulty(7), faulty(7), faulty(8));
    assert!(first == again);
    assert!(first != other);
}

#[test]
fn a_device_measures_the_same_in_a_fleet_of_any_size() {
    let alone = payloads(SimulatorConfig { devices: 1, ..config(50) });
    let among = payloads(SimulatorConfig { devices: 7, ..config(350) });
    assert_eq!(of_device(&among, "device-1"), alone);
}

#[test]
fn devices_differ_from_each_other() {
    let all = payloads(SimulatorConfig { devices: 100, ..config(100) });
    let temperatures: BTreeSet<String> = all.iter().map(|payload| json(payload)["temperature"].to_string()).collect();
    assert!(temperatures.len() > 80, "only {} temperatures in 100 devices", temperatures.len());
}

#[test]
fn planted_faults_change_no_other_message() {
    let clean = payloads(config(5_000));
    let mut faulty = config(u64::MAX);
    faulty.count = None;
    faulty.duration = Some(DurationText::secs(2_500));
    faulty.bad_probability = 0.02;
    faulty.late_probability = 0.02;
    faulty.duplicate_probability = 0.02;
    let clean_set: BTreeSet<&[u8]> = clean.iter().map(Vec::as_slice).collect();
    let all = messages(faulty);
    let bad = all.iter().filter(|(.., planted)| planted.as_deref() == Some("Bad")).count();
    let strange = all.iter().filter(|(_, payload, _)| !clean_set.contains(payload.as_slice())).count();
    assert!(bad > 50, "{bad}");
    assert_eq!(strange, bad, "all but the bad ones are as they would have been");
}

#[test]
fn timestamps_of_a_device_increase_and_its_seq_has_no_gap() {
    let mut config = config(100_000);
    config.devices = 3;
    config.rate = Some(3_000_000.0); // a microsecond between two readings of a device
    let mut last: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for payload in payloads(config) {
        let reading = json(&payload);
        let id = reading["device_id"].as_str().unwrap().to_owned();
        let (timestamp, seq) = (reading["timestamp"].as_str().unwrap().to_owned(), reading["seq"].as_u64().unwrap());
        let (last_timestamp, last_seq) = last.get(&id).cloned().unwrap_or_default();
        assert!(timestamp > last_timestamp, "{timestamp} after {last_timestamp}");
        assert_eq!(seq, last_seq + 1);
        last.insert(id, (timestamp, seq));
    }
    assert_eq!(last.len(), 3);
}

#[test]
fn devices_are_spread_evenly_over_the_interval() {
    let times: Vec<i64> = messages(SimulatorConfig { devices: 3, ..config(7) }).iter().map(|sent| sent.0).collect();
    let offsets: Vec<i64> = times.iter().map(|time_us| time_us - START_US).collect();
    assert_eq!(offsets, [0, 1_666_666, 3_333_333, 5_000_000, 6_666_666, 8_333_333, 10_000_000]);
}

#[test]
fn the_count_includes_what_is_sent_twice_or_late() {
    for count in [1, 2, 999] {
        let mut config = config(count);
        config.anomaly_probability = 0.0;
        config.duplicate_probability = 0.5;
        config.late_probability = 0.5;
        assert_eq!(payloads(config).len() as u64, count);
    }
}

#[test]
fn the_duration_bounds_when_readings_are_taken() {
    let config = SimulatorConfig { count: None, duration: Some(DurationText::secs(10)), ..config(1) };
    let times: Vec<i64> = messages(config).iter().map(|sent| sent.0).collect();
    assert_eq!(times.len(), 20);
    assert!(times.iter().all(|time_us| *time_us < START_US + 10_000_000));
}

#[test]
fn a_late_message_is_exactly_late_and_a_duplicate_has_been_sent_before() {
    let mut config = config(20_000);
    config.late_probability = 0.05;
    config.late_by = DurationText::secs(7);
    config.duplicate_probability = 0.05;
    let (mut late, mut duplicates, mut sent) = (0, 0, BTreeSet::new());
    for (sent_us, payload, planted) in messages(config) {
        let delay_us = sent_us - time_us(json(&payload)["timestamp"].as_str().unwrap());
        match planted.as_deref() {
            Some("Late") => {
                late += 1;
                assert_eq!(delay_us, 7_000_000);
            }
            Some("Duplicate") => {
                duplicates += 1;
                assert_eq!(delay_us, 5_000_000);
                assert!(sent.contains(&payload), "a duplicate of nothing");
            }
            _ => assert_eq!(delay_us, 0),
        }
        let is_new = sent.insert(payload);
        assert_eq!(is_new, planted.as_deref() != Some("Duplicate"), "only a duplicate has been sent before");
    }
    assert!((800..1_200).contains(&late), "{late}");
    assert!((800..1_200).contains(&duplicates), "{duplicates}");
}

/// What a plain rolling z-score makes of a fleet, the outliers it finds left out of its window.
#[test]
fn a_rolling_z_score_tells_spikes_from_noise() {
    let mut config = config(200_000);
    config.anomaly_probability = 0.05;
    let mut windows: BTreeMap<(String, &str), Vec<f64>> = BTreeMap::new();
    let (mut normal_max, mut spike_min, mut spikes) = (0.0_f64, f64::MAX, 0);
    for (_, payload, planted) in messages(config) {
        let reading = json(&payload);
        for (index, metric) in signal::METRICS.into_iter().enumerate() {
            let value = reading[metric].as_f64().unwrap();
            let window = windows.entry((reading["device_id"].to_string(), metric)).or_default();
            let is_spike = planted == Some(format!("Anomaly {{ metric: {index} }}"));
            if window.len() == 60 {
                let mean = window.iter().sum::<f64>() / 60.0;
                let variance = window.iter().map(|past| (past - mean).powi(2)).sum::<f64>() / 59.0;
                let z = ((value - mean) / variance.sqrt()).abs();
                if is_spike {
                    spikes += 1;
                    spike_min = spike_min.min(z);
                } else {
                    normal_max = normal_max.max(z);
                }
                if z > 6.0 {
                    continue;
                }
                window.remove(0);
            }
            if !is_spike {
                window.push(value);
            }
        }
    }
    eprintln!("normal up to {normal_max}, spikes from {spike_min}");
    assert!(spikes > 9_000, "{spikes}");
    assert!(normal_max < 4.5, "noise reached {normal_max}");
    assert!(spike_min > 15.0, "a spike was only {spike_min}");
}

#[tokio::test]
async fn a_run_ends_with_its_count_in_batches_of_a_bounded_size() {
    let (outcome, ports, outlet) = run_to_end(config(20_000)).await;
    assert_eq!(outcome, Ok(()));
    let sizes: Vec<usize> = ports[0].iter().map(|batch| batch.num_rows()).collect();
    assert_eq!(sizes, [ROWS_MAX, ROWS_MAX, 20_000 - 2 * ROWS_MAX]);
    assert!(outlet.counter("planted_anomalies") > 0);
    assert_eq!(outlet.counter("behind_ms"), 0, "a clock without pace is never behind");
}

#[tokio::test]
async fn rows_without_a_schema_are_messages_and_the_same_every_time() {
    let mut config = config(100);
    config.topic = "iot/{device_id}/up".to_owned();
    let (_, first, _) = run_to_end(config.clone()).await;
    let (_, second, _) = run_to_end(config.clone()).await;
    assert_eq!(first, second, "times of receipt included");
    let batch = &first[0][0];
    let topics = batch.column(0).as_string::<i32>();
    let payload = batch.column(1).as_binary::<i32>();
    let received_at = batch.column(2).as_primitive::<TimestampMicrosecondType>();
    assert_eq!((topics.value(0), topics.value(11)), ("iot/device-1/up", "iot/device-2/up"));
    assert_eq!(payload.value(99), payloads(config)[99]);
    assert_eq!(received_at.value(10), START_US + 5_000_000);
}

#[tokio::test]
async fn rows_with_a_schema_are_typed_and_bad_messages_are_rejected() {
    let mut config = config(5_000);
    config.schema = Some("telemetry".to_owned());
    config.bad_probability = 0.1;
    let bad_in_range = |flaw: &str| flaw != "out_of_range";
    let folder = tempfile::tempdir().unwrap();
    config.truth = Some(folder.path().join("truth.jsonl"));
    let truth_path = config.truth.clone().unwrap();
    let (outcome, ports, outlet) = run_to_end(config).await;
    assert_eq!(outcome, Ok(()));
    let truth = std::fs::read_to_string(truth_path).unwrap();
    let flaws: Vec<String> =
        truth.lines().filter_map(|line| json(line.as_bytes())["flaw"].as_str().map(str::to_owned)).collect();
    let undecodable = flaws.iter().filter(|flaw| bad_in_range(flaw)).count();
    assert_eq!(flaws.iter().collect::<BTreeSet<_>>().len(), 9, "every flaw occurs");
    assert_eq!(outlet.counter("planted_bad") as usize, flaws.len());
    assert_eq!((rows(&ports[0]), rows(&ports[1])), (5_000 - undecodable, undecodable));
    let temperatures = ports[0][0].column(2).as_primitive::<Float64Type>();
    assert!(temperatures.iter().flatten().any(|value| value == -9999.0), "out of range, but decoded");
    assert_eq!(ports[0][0].column(4).as_primitive::<Int64Type>().value(0), 1);
}

#[tokio::test]
async fn the_truth_file_names_each_planted_spike_as_it_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(3_000);
    config.late_probability = 0.02;
    config.duplicate_probability = 0.02;
    config.truth = Some(folder.path().join("truth.jsonl"));
    let truth_path = config.truth.clone().unwrap();
    let (outcome, ports, outlet) = run_to_end(config).await;
    assert_eq!(outcome, Ok(()));
    let mut sent = BTreeMap::new();
    for batch in &ports[0] {
        for payload in batch.column(1).as_binary::<i32>().iter().flatten() {
            let reading = json(payload);
            sent.insert((reading["device_id"].to_string(), reading["seq"].as_u64().unwrap()), reading);
        }
    }
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for line in std::fs::read_to_string(truth_path).unwrap().lines() {
        let planted = json(line.as_bytes());
        let reading = &sent[&(planted["device_id"].to_string(), planted["seq"].as_u64().unwrap())];
        assert_eq!(planted["timestamp"], reading["timestamp"]);
        if let Some(metric) = planted["metric"].as_str() {
            assert_eq!(planted["value"], reading[metric]);
        }
        *kinds.entry(planted["kind"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(kinds["anomaly"], outlet.counter("planted_anomalies"));
    assert_eq!(kinds["late"], outlet.counter("planted_late"));
    assert_eq!(kinds["duplicate"], outlet.counter("planted_duplicates"));
}

#[tokio::test]
async fn a_paced_run_sends_nothing_before_it_is_due_and_loses_nothing() {
    let config = SimulatorConfig {
        rate: Some(20_000.0),
        count: Some(4_000),
        schema: Some("telemetry".to_owned()),
        ..SimulatorConfig::default()
    };
    let source = build(config).unwrap().source;
    let (cx, mut outlet) = testing::source(100_000);
    let run = tokio::spawn(source.run(cx));
    let mut count = 0;
    while let Some(batch) = outlet.next().await {
        let now_us = pipeline_engine::now_us();
        let times = batch.rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let latest_us = times.values().iter().copied().max().expect("no batch is empty");
        // The wall clock may be slewed against the one that paces.
        assert!(latest_us <= now_us + 2_000, "{} us too early", latest_us - now_us);
        count += batch.rows.num_rows();
        deliver(batch);
    }
    run.await.unwrap().expect("a good end");
    assert_eq!(count, 4_000);
}

#[tokio::test]
async fn a_stop_ends_an_endless_run_and_sends_what_was_held_back() {
    let config = SimulatorConfig {
        rate: Some(50_000.0),
        anomaly_probability: 0.0,
        late_probability: 0.5,
        late_by: DurationText::secs(10),
        ..SimulatorConfig::default()
    };
    let source = build(config).unwrap().source;
    let (cx, mut outlet) = testing::source(1_000_000);
    let run = tokio::spawn(source.run(cx));
    let mut readings: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    while let Some(batch) = outlet.next().await {
        outlet.stop();
        for payload in batch.rows.column(1).as_binary::<i32>().iter().flatten() {
            let reading = json(payload);
            let of_device = readings.entry(reading["device_id"].to_string()).or_default();
            assert!(of_device.insert(reading["seq"].as_u64().unwrap()));
        }
        deliver(batch);
    }
    run.await.unwrap().expect("a good end");
    for (device, seqs) in readings {
        assert_eq!(seqs.last().copied(), Some(seqs.len() as u64), "{device} has a gap");
    }
}

#[tokio::test]
async fn a_stop_wakes_a_fleet_that_waits_for_its_next_turn() {
    let config = SimulatorConfig { devices: 1, interval: DurationText::secs(86_400), ..SimulatorConfig::default() };
    let source = build(config).unwrap().source;
    let (cx, mut outlet) = testing::source(10);
    let run = tokio::spawn(source.run(cx));
    deliver(outlet.next().await.expect("the first reading is due at once"));
    outlet.stop();
    assert!(outlet.next().await.is_none());
    run.await.unwrap().expect("a good end");
}

#[tokio::test]
async fn a_full_pipeline_makes_the_fleet_wait() {
    let source = build(config(100_000)).unwrap().source;
    let (cx, mut outlet) = testing::source(ROWS_MAX as u32);
    let mut run = Box::pin(source.run(cx));
    // One batch fills the queue; the source makes a second and waits with it, however often polled.
    for _ in 0..100 {
        assert!(futures::poll!(run.as_mut()).is_pending());
    }
    let mut count = 0;
    let reader = async {
        let first = outlet.next().await.expect("a batch");
        count += first.rows.num_rows();
        deliver(first);
        while let Some(batch) = outlet.next().await {
            count += batch.rows.num_rows();
            deliver(batch);
        }
    };
    let (outcome, ()) = tokio::join!(run, reader);
    outcome.expect("a good end");
    assert_eq!(count, 100_000);
}

#[tokio::test]
async fn a_broken_row_stops_a_replay_after_all_before_it_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pump.csv");
    std::fs::write(&path, "timestamp,value\n2014-01-07 00:00:00,1\n2014-01-07 00:00:01,2\nnever,3\n").unwrap();
    let config = SimulatorConfig { replay: Some(path), pace: Pace::Unpaced, ..SimulatorConfig::default() };
    let (outcome, ports, _) = run_to_end(config).await;
    assert_eq!(rows(&ports[0]), 2);
    let text = outcome.expect_err("the file is broken");
    assert!(text.contains("pump.csv\", row 3: \"never\" is not a timestamp"), "{text}");
}

#[tokio::test]
async fn a_real_data_set_comes_through_whole() {
    // The data is not part of the project.
    let Some(data) = std::env::var_os("PIPELINE_TEST_DATA") else {
        eprintln!("skipped: PIPELINE_TEST_DATA is not set");
        return;
    };
    let path = PathBuf::from(data).join("nab/realKnownCause/machine_temperature_system_failure.csv");
    let file = std::fs::read_to_string(&path).expect("the data set is there");
    let config = SimulatorConfig { replay: Some(path), pace: Pace::Unpaced, ..SimulatorConfig::default() };
    let (outcome, ports, _) = run_to_end(config).await;
    assert_eq!(outcome, Ok(()));
    let mut lines = file.lines().skip(1);
    for batch in &ports[0] {
        for payload in batch.column(1).as_binary::<i32>().iter().flatten() {
            let (time, value) = lines.next().and_then(|line| line.split_once(',')).expect("a row for each message");
            let expected = format!(
                r#"{{"device_id":"machine_temperature_system_failure","timestamp":"{}Z","value":{}}}"#,
                time.replace(' ', "T"),
                value.trim()
            );
            assert_eq!(std::str::from_utf8(payload), Ok(expected.as_str()));
        }
    }
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn an_unwritable_truth_file_stops_the_run_before_it_begins() {
    let mut config = config(10);
    config.truth = Some(PathBuf::from("/nowhere/truth.jsonl"));
    let source = build(config).unwrap().source;
    let (cx, _outlet) = testing::source(10);
    let error = source.run(cx).await.expect_err("there is no such folder");
    assert!(error.chain().starts_with("the truth file \"/nowhere/truth.jsonl\" can't be written"), "{}", error.chain());
}

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
