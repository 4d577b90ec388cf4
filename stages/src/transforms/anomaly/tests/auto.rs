//! `auto`, on series that show what it is for.

use super::{ANOMALIES, Reading, SECOND_US, flagged, scored};

const AUTO: &str = "metrics = [\"temperature\"]";
const STEP_US: i64 = 300 * SECOND_US;

/// Readings every five minutes: noise between -1 and 1 on what is given.
fn noisy(levels: impl IntoIterator<Item = f64>) -> Vec<Reading> {
    let mut state = 7_u64;
    let reading = |(step, level): (i64, f64)| {
        let mut noise = 0.0;
        // The mean of three: in the middle more often than at the ends.
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            noise += (state >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0;
        }
        let mut reading = Reading::of("dev-1", step * STEP_US);
        reading.temperature = Some(level + noise / 3.0);
        reading
    };
    (0..).zip(levels).map(reading).collect()
}

#[test]
fn a_fault_that_lasts_is_said_once() {
    let mut readings = noisy([20.0; 1300]);
    readings[1000..1100].iter_mut().for_each(|reading| *reading.temperature.as_mut().unwrap() += 9.0);
    let found: Vec<usize> = flagged(AUTO, &readings).into_iter().filter(|row| *row >= 1000).collect();
    assert!(found.first() == Some(&1000) && found.len() <= 3, "{found:?}");
    let outcome = scored(AUTO, &readings);
    assert!(outcome.texts(ANOMALIES, "method").contains(&"auto:reading".to_owned()));
}

#[test]
fn a_level_that_no_reading_gives_away_is_found() {
    // Half of what the noise does anyway.
    let mut readings = noisy([20.0; 1400]);
    readings[1200..1260].iter_mut().for_each(|reading| *reading.temperature.as_mut().unwrap() += 0.6);
    let outcome = scored(AUTO, &readings);
    let alerts = outcome.texts(ANOMALIES, "method").into_iter().zip(outcome.texts(ANOMALIES, "zscore"));
    let levels: Vec<_> = alerts.filter(|(method, _)| method == "auto:level").collect();
    assert!(!levels.is_empty() && levels.iter().all(|(_, score)| !score.starts_with('-')), "{levels:?}");
    let found: Vec<usize> = flagged(AUTO, &readings).into_iter().filter(|row| *row >= 1100).collect();
    assert!(found.iter().all(|row| (1200..1260).contains(row)) && !found.is_empty(), "{found:?}");
}

#[test]
fn the_night_at_noon_is_rare_though_the_night_is_not() {
    let is_day = |step: usize| (8 * 12..18 * 12).contains(&(step % 288));
    let mut readings = noisy((0..288 * 8).map(|step| if is_day(step) { 40.0 } else { 10.0 }));
    let noon = 288 * 7 + 12 * 12;
    readings[noon..noon + 12].iter_mut().for_each(|reading| *reading.temperature.as_mut().unwrap() -= 30.0);
    let found: Vec<usize> = flagged(AUTO, &readings).into_iter().filter(|row| *row >= 288 * 2).collect();
    assert!(found.contains(&noon) && found.iter().all(|row| (noon..noon + 12).contains(row)), "{found:?}");
}

#[test]
fn a_flat_series_and_one_that_warms_up_say_nothing() {
    let flat: Vec<Reading> =
        noisy([20.0; 400]).into_iter().map(|reading| Reading { temperature: Some(20.0), ..reading }).collect();
    assert_eq!(flagged(AUTO, &flat), [0; 0]);
    let mut young = noisy([20.0; 100]);
    young[99].temperature = Some(1e6);
    assert_eq!(flagged(AUTO, &young), [0; 0]);
}

#[test]
fn a_surprise_of_a_clock_that_was_ahead_does_not_silence_the_next() {
    let mut readings = noisy([20.0; 2000]);
    readings[400].temperature = Some(90.0);
    readings[400].timestamp = Some(365 * 86_400 * SECOND_US);
    readings[1500].temperature = Some(80.0);
    let found = flagged(AUTO, &readings);
    assert!(found.contains(&400) && found.contains(&1500), "{found:?}");
}

/// A value made of a bell curve, an even one, and the time of the day.
type Noise = fn(f64, f64, f64) -> f64;

/// False alarms of two days, for noise of several kinds; the first day is for learning what a day is like.
#[test]
fn noise_has_a_few_alerts_a_day_whatever_the_rate() {
    let kinds: [(&str, Noise); 4] = [
        ("the bell curve", |bell, _, _| 20.0 + 0.3 * bell),
        ("with a daily rhythm", |bell, _, day| 20.0 + 5.0 * day + 0.3 * bell),
        ("lognormal", |bell, _, day| (1.0 + 0.5 * day + 0.8 * bell).exp()),
        ("exponential", |_, even, _| -10.0 * even.ln()),
    ];
    for (name, value) in kinds {
        for step_s in [5, 60, 300] {
            let mut state = 7_u64;
            let mut even = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
            };
            let mut readings = Vec::new();
            for step in 0..3 * 86_400 / step_s {
                let time_s = step * step_s;
                let day = (time_s as f64 / 86_400.0 * std::f64::consts::TAU).sin();
                let bell = (-2.0 * even().ln()).sqrt() * (std::f64::consts::TAU * even()).cos();
                let mut reading = Reading::of("dev-1", time_s * SECOND_US);
                reading.temperature = Some(value(bell, even(), day));
                readings.push(reading);
            }
            let alerts = scored(AUTO, &readings).texts(ANOMALIES, "event_time");
            let alerts = alerts.iter().filter(|time| !time.starts_with("1970-01-01")).count();
            println!("{name}, every {step_s} s: {alerts} alerts in two days");
            assert!(alerts <= 8, "{name}, every {step_s} s: {alerts} alerts in two days");
        }
    }
}
