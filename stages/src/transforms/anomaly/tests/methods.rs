//! Each method against numpy, pandas and scipy: `oracle.py` beside this file says how the values came
//! about. And what each one is for, on a series that shows it.

use std::collections::HashMap;

use pipeline_engine::stage::{Batch, Port};

use super::{ANOMALIES, Reading, SECOND_US, apply, flagged, rows, scores, stage, temperatures};

/// One row of an oracle's file: the reading, and expected value, spread and score.
type Measured = (Reading, Option<[f64; 3]>);

fn oracle(text: &str) -> Vec<Measured> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let [device, time, value, expected, spread, score] = cells[..] else { panic!("{line}") };
        let mut reading = Reading::of(device, 0);
        reading.timestamp = (!time.is_empty()).then(|| time.parse().unwrap());
        reading.temperature = Some(value.parse().unwrap());
        let found = (!score.is_empty()).then(|| [expected, spread, score].map(|number| number.parse().unwrap()));
        (reading, found)
    };
    text.lines().skip(1).map(row).collect()
}

/// Every score, and what is said of every alert, is the oracle's to 1e-9: of itself where it is above
/// one, of a spread where it is a distance near zero.
fn assert_agrees(configuration: &str, text: &str) {
    let measured = oracle(text);
    let readings: Vec<Reading> = measured.iter().map(|(reading, _)| reading.clone()).collect();
    // Each flagged reading is one alert, but for late ones: a fault ends at once, and is none again.
    let common = "metrics = [\"temperature\"]\nmin_stddev = { temperature = 0.02 }\n";
    let mut stage = stage(&format!("{common}{configuration}"));
    let mut explained: HashMap<String, usize> = HashMap::new();
    for (at, part) in readings.chunks(61).enumerate() {
        let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(part)));
        let expected = &measured[at * 61..][..part.len()];
        let found = scores(outcome.port(Port::MAIN).unwrap(), "temperature_score");
        for (row, (found, (reading, expected))) in found.iter().zip(expected).enumerate() {
            let row = at * 61 + row;
            assert_eq!(found.is_some(), expected.is_some(), "row {row}: {reading:?} {expected:?}");
            let (Some(found), Some([_, _, score])) = (found, expected) else { continue };
            assert!((found - score).abs() <= 1e-9 * score.abs().max(1.0), "row {row}: {found} {score}");
        }
        let Some(alerts) = outcome.port(ANOMALIES) else { continue };
        let numbers = ["value", "mean", "stddev", "zscore"].map(|column| scores(alerts, column));
        for (alert, method) in outcome.texts(ANOMALIES, "method").into_iter().enumerate() {
            let [value, mean, stddev, score] = [0, 1, 2, 3].map(|column| numbers[column][alert].unwrap());
            let matches = |(reading, found): &Measured| {
                reading.temperature == Some(value)
                    && found.is_some_and(|[expected, spread, oracle]| {
                        (mean - expected).abs() <= 1e-9 * spread.max(expected.abs())
                            && (stddev - spread).abs() <= 1e-9 * spread
                            && (score - oracle).abs() <= 1e-9 * oracle.abs()
                    })
            };
            assert!(expected.iter().any(matches), "{value} {mean} {stddev} {score}");
            *explained.entry(method).or_default() += 1;
        }
    }
    let alerts: usize = explained.values().sum();
    assert!(alerts > 5, "{explained:?}");
}

#[test]
fn zscore_is_that_of_numpy() {
    assert_agrees("method = \"zscore\"\nwindow = 16\nwarmup = 6\nrelearn_after = 4", include_str!("oracle/zscore.csv"));
}

#[test]
fn ewma_is_that_of_pandas() {
    assert_agrees(
        "method = \"ewma\"\nwindow = 16\nwarmup = 6\nrelearn_after = 4\nleave = 4",
        include_str!("oracle/ewma.csv"),
    );
}

#[test]
fn robust_is_that_of_scipy() {
    assert_agrees(
        "method = \"robust\"\nwindow = 16\nwarmup = 6\nrelearn_after = 4\nleave = 4",
        include_str!("oracle/robust.csv"),
    );
}

#[test]
fn seasonal_is_that_of_numpy() {
    let configuration = "method = \"seasonal\"\nseasons = 4\nwarmup = 5\nrelearn_after = 4\nleave = 4";
    assert_agrees(configuration, include_str!("oracle/seasonal.csv"));
}

#[test]
fn rate_is_that_of_numpy() {
    assert_agrees(
        "method = \"rate\"\nwindow = 16\nwarmup = 6\nrelearn_after = 4\nleave = 4",
        include_str!("oracle/rate.csv"),
    );
    let limit =
        "method = \"rate\"\nwindow = 16\nwarmup = 6\nrelearn_after = 4\nleave = 4\nrate_max = { temperature = 0.02 }";
    assert_agrees(limit, include_str!("oracle/rate_limit.csv"));
}

#[test]
fn auto_is_that_of_numpy_and_scipy() {
    assert_agrees("method = \"auto\"\nleave = 3", include_str!("oracle/auto_days.csv"));
    assert_agrees("method = \"auto\"\nleave = 3", include_str!("oracle/auto_readings.csv"));
}

#[test]
fn flatline_is_that_of_a_search_from_the_start() {
    let configuration =
        "method = \"flatline\"\nwindow = 5\nflat_for = \"40m\"\nflat_tolerance = { temperature = 0.5 }\nleave = 4";
    assert_agrees(configuration, include_str!("oracle/flatline.csv"));
}

#[test]
fn robust_sees_a_spike_that_others_have_hidden() {
    // Spikes within the warm-up are learned: they widen a standard deviation, and not the median's.
    let quiet = (0..12).map(|index| 20.0 + f64::from(index % 3) * 0.1);
    let readings = temperatures([60.0, -20.0].into_iter().chain(quiet).chain([26.0]));
    let text = |method| format!("metrics = [\"temperature\"]\nmethod = \"{method}\"\nwindow = 20\nwarmup = 10");
    assert_eq!(flagged(&text("zscore"), &readings), [0; 0]);
    assert_eq!(flagged(&text("robust"), &readings), [14]);
}

#[test]
fn seasonal_sees_the_night_at_noon() {
    let hour_us = 3600 * SECOND_US;
    let mut readings: Vec<Reading> = (0..24 * 6 * 4)
        .map(|step| {
            let mut reading = Reading::of("dev-1", step * hour_us / 6);
            let is_day = (8..18).contains(&(step / 6 % 24));
            reading.temperature = Some(if is_day { 30.0 } else { 10.0 } + (step % 3) as f64 * 0.2);
            reading
        })
        .collect();
    let noon = 24 * 6 * 3 + 12 * 6;
    readings[noon].temperature = Some(10.2);
    let text = "metrics = [\"temperature\"]\nmethod = \"seasonal\"\nwarmup = 6";
    assert_eq!(flagged(text, &readings), [noon]);
    let weekly = format!("{text}\nseason = \"hour_of_week\"");
    assert_eq!(flagged(&weekly, &readings), [0; 0], "no week has passed");
}

#[test]
fn rate_takes_gaps_for_what_they_are() {
    // A degree in ten seconds is a jump, after ten minutes it is none.
    let mut readings = temperatures([20.0, 20.1, 20.0, 21.0, 21.1, 22.1]);
    for (reading, second) in readings.iter_mut().zip([0, 10, 20, 30, 40, 640]) {
        reading.timestamp = Some(second * SECOND_US);
    }
    let text = "metrics = [\"temperature\"]\nmethod = \"rate\"\nrate_max = { temperature = 0.05 }";
    assert_eq!(flagged(text, &readings), [3]);
}

#[test]
fn flatline_waits_for_both_its_count_and_its_time() {
    let readings = temperatures([20.0, 21.0, 21.0, 21.0, 21.0, 21.0, 22.0, 22.0]);
    let by_count = "metrics = [\"temperature\"]\nmethod = \"flatline\"\nwindow = 3";
    assert_eq!(flagged(by_count, &readings), [3, 4, 5]);
    let by_both = format!("{by_count}\nflat_for = \"4s\"");
    assert_eq!(flagged(&by_both, &readings), [5]);
}
