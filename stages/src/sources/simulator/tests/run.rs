//! The source at work.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use pipeline_engine::testing;

use super::super::run::ROWS_MAX;
use super::*;

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
    let mut lines = file.lines().skip(1).zip(1..);
    for batch in &ports[0] {
        for payload in batch.column(1).as_binary::<i32>().iter().flatten() {
            let (line, seq) = lines.next().expect("a row for each message");
            let (time, value) = line.split_once(',').expect("two fields");
            let expected = format!(
                r#"{{"device_id":"machine_temperature_system_failure","timestamp":"{}Z","value":{},"seq":{seq}}}"#,
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
