//! What a fleet sends, as a pure sequence.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

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
