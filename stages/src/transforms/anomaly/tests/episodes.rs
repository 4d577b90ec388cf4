//! One fault is one alert: hysteresis and cool-down, by the time of the readings alone.

use pipeline_engine::stage::Port;

use super::{ANOMALIES, Reading, SECOND_US, flagged, scored, temperatures};

/// A spread of 1 by the floor, about 20: scores are distances from there.
const BY_DISTANCE: &str = r#"
    metrics = ["temperature"]
    window = 50
    warmup = 4
    relearn_after = 100
    min_stddev = { temperature = 1.0 }
    threshold = 4.0
    leave = 2.0
"#;

/// Fifty readings to learn from, so that a few more don't count, then these distances, one a second.
fn distances(of: &[f64]) -> Vec<Reading> {
    temperatures([20.0; 50].into_iter().chain(of.iter().map(|distance| 20.0 + distance)))
}

/// The alerts, by the number of the distance.
fn alerts(text: &str, readings: &[Reading]) -> Vec<i64> {
    let times = scored(text, readings).texts(ANOMALIES, "event_time");
    let second = |time: &String| time[14..16].parse::<i64>().unwrap() * 60 + time[17..19].parse::<i64>().unwrap();
    times.iter().map(|time| second(time) - 50).collect()
}

/// What is flagged, by the number of the row after the first fifty.
fn flags(text: &str, readings: &[Reading]) -> Vec<usize> {
    flagged(text, readings).into_iter().map(|row| row - 50).collect()
}

#[test]
fn a_fault_lasts_from_the_threshold_down_to_leave() {
    let readings = distances(&[3.0, 5.0, 3.0, 9.0, 2.5, 1.5, 3.0, -4.5]);
    assert_eq!(flags(BY_DISTANCE, &readings), [1, 2, 3, 4, 7], "3 enters no fault and ends none");
    assert_eq!(alerts(BY_DISTANCE, &readings), [1, 7]);
    let outcome = scored(BY_DISTANCE, &readings);
    assert_eq!(outcome.texts(ANOMALIES, "severity"), ["warning", "warning"], "as severe as its first reading");
}

#[test]
fn within_the_cool_down_it_is_the_same_fault() {
    let readings = distances(&[5.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 5.0]);
    let text = format!("{BY_DISTANCE}\ncooldown = \"4s\"");
    assert_eq!(flags(&text, &readings), [0, 3, 8]);
    assert_eq!(alerts(&text, &readings), [0, 8], "four seconds after the last, not the first");
    assert_eq!(alerts(&text.replace("4s", "6s"), &readings), [0]);
}

#[test]
fn without_leave_and_cool_down_zscore_reports_each_flagged_reading() {
    let readings = distances(&[5.0, 5.0, 0.0, 5.0]);
    let text = BY_DISTANCE.replace("leave = 2.0", "");
    assert_eq!(alerts(&text, &readings), [0, 1, 3]);
    let robust = format!("{text}\nmethod = \"robust\"");
    assert_eq!(alerts(&robust, &readings), [0, 3], "the others report faults");
}

#[test]
fn late_and_repeated_readings_neither_begin_nor_end_a_fault() {
    let mut readings = distances(&[5.0, 5.0, 0.0, 5.0, 0.0]);
    let late = |distance: f64, second: i64| {
        let mut reading = Reading::of("dev-1", second * SECOND_US);
        reading.temperature = Some(20.0 + distance);
        reading
    };
    readings.insert(55, late(5.0, 9)); // after the last
    readings.insert(51, late(0.0, 3)); // within the first fault
    let outcome = scored(BY_DISTANCE, &readings);
    assert_eq!(flags(BY_DISTANCE, &readings), [0, 2, 4, 6]);
    assert_eq!(alerts(BY_DISTANCE, &readings), [0, 3]);
    assert_eq!(outcome.count(Port::MAIN), readings.len());
}

#[test]
fn devices_and_metrics_have_faults_of_their_own() {
    let mut readings = Vec::new();
    for reading in distances(&[5.0, 5.0]) {
        let other = Reading { device_id: Some("dev-2".to_owned()), ..reading.clone() };
        readings.extend([reading, other]);
    }
    let text = format!("{BY_DISTANCE}\ncooldown = \"1h\"");
    assert_eq!(scored(&text, &readings).texts(ANOMALIES, "device_id"), ["dev-1", "dev-2"]);
}
