mod auto;
mod episodes;
mod methods;
mod restart;

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Float64Type;
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuiltTransform, Port};
use pipeline_engine::{Partition, Span, testing};
use proptest::prelude::*;

use super::{ANOMALIES, AnomalyConfig};
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

/// Short windows, so that a test can see them turn over.
const SHORT: &str = r#"
    metrics = ["temperature", "humidity"]
    window = 8
    warmup = 4
    relearn_after = 3
    min_stddev = { temperature = 0.01 }
"#;
const SECOND_US: i64 = 1_000_000;

fn stage(text: &str) -> BuiltTransform {
    built::<AnomalyConfig>(text, &context()).unwrap()
}

/// A device that sends these temperatures, one a second.
fn temperatures(values: impl IntoIterator<Item = f64>) -> Vec<Reading> {
    let reading = |(second, value)| {
        let mut reading = Reading::of("dev-1", second * SECOND_US);
        reading.temperature = Some(value);
        reading
    };
    (0..).zip(values).map(reading).collect()
}

fn scored(text: &str, readings: &[Reading]) -> Outcome {
    let mut stage = stage(text);
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(readings)));
    assert!(outcome.keeps(&stage.outputs));
    assert_eq!(outcome.count(Port::MAIN), readings.len());
    outcome
}

fn scores(rows: &RecordBatch, column: &str) -> Vec<Option<f64>> {
    rows.column_by_name(column).unwrap().as_primitive::<Float64Type>().iter().collect()
}

fn temperature_scores(text: &str, readings: &[Reading]) -> Vec<Option<f64>> {
    scores(scored(text, readings).port(Port::MAIN).unwrap(), "temperature_score")
}

/// Which rows are flagged.
fn flagged(text: &str, readings: &[Reading]) -> Vec<usize> {
    let outcome = scored(text, readings);
    let flags = outcome.port(Port::MAIN).unwrap().column_by_name("anomaly").unwrap().as_boolean().clone();
    (0..flags.len()).filter(|row| flags.value(*row)).collect()
}

/// Twenty and a bit, never the same twice in a row.
fn calm(readings: usize) -> impl Iterator<Item = f64> {
    (0..readings).map(|index| 20.0 + [0.0, 0.1, -0.1, 0.05][index % 4])
}

#[test]
fn a_reading_is_scored_by_the_window_before_it() {
    let readings = temperatures([1.0, 2.0, 3.0, 4.0, 5.0]);
    let scores = temperature_scores(SHORT, &readings);
    assert_eq!(scores[..4], [None; 4], "warming up");
    // Mean 2.5, sample standard deviation sqrt(5 / 3).
    assert!((scores[4].unwrap() - 2.5 / (5.0_f64 / 3.0).sqrt()).abs() < 1e-12);
}

#[test]
fn a_spike_is_one_row_by_anomalies_and_does_not_hide_the_next() {
    let readings = temperatures(calm(10).chain([30.0]).chain(calm(2)).chain([-1.0, 20.0]));
    assert_eq!(flagged(SHORT, &readings), [10, 13]);
    let mut stage = stage(SHORT);
    let partition = Partition::new("p");
    let batch = Batch::new(rows(&readings), partition.open(Span::new(1, 15), 77 * SECOND_US));
    let outcome = apply(stage.transform.as_mut(), batch);
    let text = |column| outcome.texts(ANOMALIES, column);
    assert_eq!(text("detected_at"), ["1970-01-01T00:01:17Z"; 2], "the time of receipt");
    assert_eq!(text("event_time"), ["1970-01-01T00:00:10Z", "1970-01-01T00:00:13Z"]);
    assert_eq!(text("device_id"), ["dev-1"; 2]);
    assert_eq!(text("metric"), ["temperature"; 2]);
    assert_eq!(text("value"), ["30.0", "-1.0"]);
    assert_eq!(text("severity"), ["critical"; 2]);
    assert_eq!(text("window_size"), ["8"; 2]);
    assert_eq!(text("method"), ["zscore"; 2]);
    assert_eq!(text("pipeline"), ["detached"; 2]);
    let anomalies = outcome.port(ANOMALIES).unwrap();
    let [mean, stddev, value, score] = ["mean", "stddev", "value", "zscore"].map(|column| scores(anomalies, column));
    for row in 0..2 {
        let explained = (value[row].unwrap() - mean[row].unwrap()) / stddev[row].unwrap();
        assert!((explained / score[row].unwrap() - 1.0).abs() < 1e-9, "the row explains its own score");
    }
    for (_, batch) in outcome.0 {
        testing::deliver(batch);
    }
    assert!(partition.progress().borrow().is_complete() && !partition.progress().borrow().failed);
}

#[test]
fn severity_is_by_the_bands_of_the_score() {
    // A standard deviation of 1 by the floor: scores are distances from 20.
    let text = SHORT.replace("0.01", "1.0");
    let values = [20.0; 8].into_iter().chain([24.0, 20.0, 20.0, 25.9, 20.0, 20.0, 14.0, 20.0, 23.9]);
    let outcome = scored(&text, &temperatures(values));
    assert_eq!(outcome.texts(ANOMALIES, "severity"), ["warning", "warning", "critical"]);
    assert_eq!(outcome.texts(ANOMALIES, "zscore")[2], "-6.0");
}

#[test]
fn a_level_that_lasts_is_learned() {
    let readings = temperatures(calm(10).chain(calm(30).map(|value| value + 15.0)));
    assert_eq!(flagged(SHORT, &readings), [10, 11, 12], "three alarms, then the level is new");
    let outcome = scores(scored(SHORT, &readings).port(Port::MAIN).unwrap(), "temperature_score");
    assert_eq!(outcome[13..16], [None; 3], "it warms up again");
    assert!(outcome[16].is_some());
}

#[test]
fn a_device_that_jumps_between_two_levels_does_not_alarm_for_ever() {
    let jumps = (0..400).map(|index| if index % 2 == 0 { 20.0 } else { 40.0 });
    let readings = temperatures(calm(10).chain(jumps));
    let flagged = flagged(SHORT, &readings);
    assert!(flagged.len() <= 10 && flagged.last() < Some(&40), "{flagged:?}");
}

#[test]
fn flagged_readings_are_learned_where_that_is_asked_for() {
    let text = format!("{SHORT}\nlearn_from_anomalies = true");
    let readings = temperatures(calm(10).chain([40.0, 40.0, 40.0]));
    assert_eq!(flagged(&text, &readings), [10], "the first one widens the window");
}

#[test]
fn a_flat_line_has_finite_scores() {
    let readings = temperatures([20.0; 12].into_iter().chain([20.03, 20.05, 1e90]));
    let scores = temperature_scores(SHORT, &readings);
    assert_eq!(scores[8], Some(0.0));
    assert!((scores[12].unwrap() - 3.0).abs() < 1e-9, "by the absolute floor of 0.01");
    assert!(scores.iter().flatten().all(|score| score.is_finite()));

    let relative = SHORT.replace("min_stddev = { temperature = 0.01 }", "min_stddev_relative = 0.01");
    let scores = temperature_scores(&relative, &readings);
    assert!((scores[12].unwrap() - 0.15).abs() < 1e-9, "by one part in a hundred of 20");
    let zero = temperatures([0.0; 12].into_iter().chain([1.0]));
    assert!(temperature_scores(&relative, &zero)[12].unwrap().is_finite());
}

#[test]
fn what_is_no_reading_is_not_scored_and_not_learned() {
    let odd = [Some(f64::NAN), None, Some(f64::INFINITY), Some(1e200)];
    let mut with_odd = temperatures(calm(20));
    for (index, value) in odd.into_iter().enumerate() {
        let mut reading = Reading::of("dev-1", 8 * SECOND_US + index as i64 + 1);
        reading.temperature = value;
        with_odd.insert(9 + index, reading);
    }
    let mut scores = temperature_scores(SHORT, &with_odd);
    assert_eq!(scores.drain(9..13).collect::<Vec<_>>(), [None; 4]);
    assert_eq!(scores, temperature_scores(SHORT, &temperatures(calm(20))));
}

#[test]
fn a_row_without_a_device_has_no_scores() {
    let mut readings = temperatures(calm(12));
    readings[9].device_id = None;
    let scores = temperature_scores(SHORT, &readings);
    assert_eq!((scores[9], scores[10].is_some()), (None, true));
}

#[test]
fn late_readings_are_scored_and_not_learned() {
    let calm = temperatures(calm(20));
    let mut readings = calm.clone();
    for (at, time) in [(12, 3 * SECOND_US), (15, 13 * SECOND_US)] {
        let mut late = Reading::of("dev-1", time);
        late.temperature = Some(20.4);
        readings.insert(at, late);
    }
    readings[17].timestamp = None;
    readings[17].temperature = Some(20.4);
    let mut scores = temperature_scores(SHORT, &readings);
    assert!(scores[12].is_some() && scores[15].is_some() && scores[17].is_some());
    scores.remove(15);
    scores.remove(12);
    let undisturbed = temperature_scores(SHORT, &calm);
    assert_eq!(scores[..15], undisturbed[..15]);
    // The readings come round every four: the window without the one that has no time holds the same.
    assert!((scores[16].unwrap() - undisturbed[16].unwrap()).abs() < 1e-9);
}

#[test]
fn a_clock_that_was_far_ahead_once_does_not_stop_the_learning() {
    let mut readings = temperatures(calm(10).chain(calm(40).map(|value| value + 0.3)));
    readings[9].timestamp = Some(i64::MAX);
    let scores = temperature_scores(SHORT, &readings);
    let unlearned = scores[12].unwrap();
    let learned = scores[49].unwrap();
    assert!(unlearned > 2.0 && learned < 1.5, "{unlearned} {learned}");
}

#[test]
fn metrics_and_devices_have_windows_of_their_own() {
    let calm = temperatures(calm(20));
    let mut mixed = Vec::new();
    for reading in &calm {
        let other = Reading { device_id: Some("dev-2".to_owned()), temperature: Some(-300.0), ..reading.clone() };
        mixed.extend([reading.clone(), other]);
    }
    let all = temperature_scores(SHORT, &mixed);
    let of_first: Vec<_> = all.into_iter().step_by(2).collect();
    assert_eq!(of_first, temperature_scores(SHORT, &calm));
}

#[test]
fn whole_numbers_are_metrics_too() {
    let text = "metrics = [\"floor\"]\nwindow = 8\nwarmup = 4";
    let mut readings = temperatures(calm(10));
    readings[9].floor = Some(9);
    assert_eq!(flagged(text, &readings), [9]);
}

#[test]
fn forgotten_devices_are_counted_and_warm_up_again() {
    let text = format!("{SHORT}\ndevices_max = 2");
    let cx = context();
    let mut stage = built::<AnomalyConfig>(&text, &cx).unwrap();
    let sends = |device: &str, from: i64| -> Vec<Reading> {
        (from..from + 6).map(|second| Reading::of(device, second * SECOND_US)).collect()
    };
    let readings = [sends("a", 0), sends("b", 0), sends("a", 10), sends("c", 0), sends("a", 20), sends("b", 10)];
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(&readings.concat())));
    let scores = scores(outcome.port(Port::MAIN).unwrap(), "temperature_score");
    let cold: Vec<bool> = scores.chunks(6).map(|six| six[0].is_none()).collect();
    assert_eq!(cold, [true, true, false, true, false, true], "c took the place of b, b that of c");
    assert_eq!(cx.counter("evicted_devices").get(), 2);
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = example(include_str!("../mod.rs"));
    assert!(text.lines().count() > 2, "{text}");
    built::<AnomalyConfig>(&text, &context()).unwrap();
}

#[test]
fn mistakes_name_their_key_and_a_way_out() {
    let cases = [
        ("metrics = []", "metrics", "there is nothing to score"),
        ("metrics = [\"temperatur\"]", "metrics", "Did you mean \"temperature\"?"),
        ("metrics = [\"status\"]", "metrics", "not a number"),
        ("metrics = [\"floor\", \"floor\"]", "metrics", "named twice"),
        ("metrics = [\"floor\"]\nkey = \"floor\"", "key", "not text"),
        ("metrics = [\"floor\"]\ntime_column = \"status\"", "time_column", "not a timestamp"),
        ("metrics = [\"floor\"]\nwindow = 1", "window", "not between 2 and 10000"),
        ("metrics = [\"floor\"]\nwarmup = 61", "warmup", "not between 2 and the window, 60"),
        ("metrics = [\"floor\"]\nthreshold = nan", "threshold", "above zero"),
        ("metrics = [\"floor\"]\nthreshold = 7", "critical", "6 is not at or above the threshold, 7"),
        ("metrics = [\"floor\"]\nmin_stddev = { flor = 1 }", "min_stddev.flor", "Did you mean \"floor\"?"),
        ("metrics = [\"floor\"]\nmin_stddev = { floor = 0 }", "min_stddev.floor", "above zero"),
        ("metrics = [\"floor\"]\nmin_stddev_relative = 2", "min_stddev_relative", "between 0 and 1"),
        ("metrics = [\"floor\"]\nrelearn_after = 0", "relearn_after", "no reading could be flagged"),
        ("metrics = [\"floor\"]\ndevices_max = 0", "devices_max", "no device"),
        ("metrics = [\"floor\"]\ncolumn = \"armed\"", "column", "there is a column \"armed\" already"),
        ("metrics = [\"floor\"]\nmethod = \"robust\"\nleave = 5", "leave", "at most the threshold, 4"),
        ("metrics = [\"floor\"]\nmethod = \"robust\"\nleave = nan", "leave", "at most the threshold, 4"),
        (
            "metrics = [\"floor\"]\nmethod = \"seasonal\"\nwindow = 9",
            "window",
            "the method \"seasonal\" has no such setting",
        ),
        ("metrics = [\"floor\"]\nmethod = \"seasonal\"\nseasons = 1", "seasons", "not between 2 and 1000"),
        ("metrics = [\"floor\"]\nmethod = \"seasonal\"\nwarmup = 1", "warmup", "takes two readings"),
        ("metrics = [\"floor\"]\nmethod = \"ewma\"\nseason = \"hour_of_day\"", "season", "a setting of seasonal"),
        ("metrics = [\"floor\"]\nrate_max = { floor = 1 }", "rate_max", "\"auto\" has no such setting"),
        ("metrics = [\"floor\"]\nmethod = \"rate\"\nrate_max = { floor = 0 }", "rate_max.floor", "above zero"),
        (
            "metrics = [\"floor\"]\nmethod = \"rate\"\nrate_max = { flor = 1 }",
            "rate_max.flor",
            "Did you mean \"floor\"?",
        ),
        ("metrics = [\"floor\"]\nmethod = \"flatline\"\nwarmup = 9", "warmup", "rate and seasonal"),
        (
            "metrics = [\"floor\"]\nmethod = \"flatline\"\nflat_tolerance = { floor = -1 }",
            "flat_tolerance.floor",
            "not below zero",
        ),
        ("metrics = [\"floor\"]\ncolumn = \"floor_score\"", "column", "there is a column \"floor_score\" already"),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<AnomalyConfig>(text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

/// The stage as its documentation has it, for one device and metric, with nothing kept but readings.
#[derive(Default)]
struct Model {
    window: Vec<f64>,
    newest: Option<i64>,
    late: usize,
    strikes: usize,
}

impl Model {
    /// The score of a reading, and what is learned from it; the rules are those of [`SHORT`].
    fn observe(&mut self, value: Option<f64>, time: Option<i64>, min_stddev: f64, relative: f64) -> Option<f64> {
        let value = value.filter(|value| value.is_finite() && value.abs() <= 1e100)?;
        let score = (self.window.len() >= 4).then(|| {
            let count = self.window.len() as f64;
            let mean = self.window.iter().sum::<f64>() / count;
            let scatter: f64 = self.window.iter().map(|other| (other - mean).powi(2)).sum();
            let stddev = (scatter / (count - 1.0)).sqrt();
            (value - mean) / stddev.max(min_stddev).max(relative * mean.abs())
        });
        let time = time.filter(|time| {
            if self.newest.is_some_and(|newest| *time <= newest) {
                self.late += 1;
                return self.late >= 4;
            }
            true
        });
        let Some(time) = time else { return score };
        (self.newest, self.late) = (Some(time), 0);
        if score.is_some_and(|score| score.abs() >= 4.0) {
            self.strikes += 2;
            if self.strikes < 6 {
                return score;
            }
            (self.window, self.strikes) = (Vec::new(), 0);
        } else {
            self.strikes = self.strikes.saturating_sub(1);
        }
        self.window.push(value);
        if self.window.len() > 8 {
            self.window.remove(0);
        }
        score
    }
}

/// Noise on a level that sometimes shifts; spikes, gaps, late and repeated readings.
fn any_readings(count: usize) -> impl Strategy<Value = Vec<Reading>> {
    let step = (0..4usize, -1.0..1.0f64, 0..40u8, prop::option::weighted(0.95, -1.0..1.0f64));
    prop::collection::vec(step, 0..count).prop_map(|steps| {
        let mut level = 20.0;
        let mut readings = Vec::new();
        for (second, (device, noise, chance, humidity)) in (0..).zip(steps) {
            let mut reading = Reading::of(["a", "b", "c", "d"][device], second * SECOND_US);
            level += if chance == 0 { 40.0 } else { 0.0 };
            let spike = if chance == 1 { 30.0 } else { 1.0 };
            reading.temperature = Some(level + noise * spike);
            reading.humidity = humidity.map(|humidity| 50.0 + humidity);
            match chance {
                2 => reading.temperature = None,
                3 => reading.temperature = Some(f64::NAN),
                4 => reading.timestamp = Some((second - 9) * SECOND_US),
                5 => reading.timestamp = None,
                6 => reading.device_id = None,
                7 => reading.timestamp = Some((second + 100) * SECOND_US),
                _ => {}
            }
            readings.push(reading);
        }
        readings
    })
}

/// All rows of each port, as one batch each.
fn in_parts(text: &str, readings: &[Reading], ends: &[usize], interrupted: bool) -> Vec<RecordBatch> {
    let mut stage = stage(text);
    let mut parts: Vec<Vec<RecordBatch>> = vec![Vec::new(); 2];
    let mut from = 0;
    for to in ends.iter().copied().filter(|end| *end <= readings.len()).chain([readings.len()]) {
        let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(&readings[from..to])));
        if interrupted {
            let snapshot = stage.transform.snapshot().unwrap();
            stage = self::stage(text);
            stage.transform.restore(&snapshot).unwrap();
        }
        for (index, port) in [Port::MAIN, ANOMALIES].into_iter().enumerate() {
            parts[index].extend(outcome.port(port).cloned());
        }
        from = to;
    }
    stage.outputs.iter().zip(&parts).map(|((_, schema), parts)| concat_batches(schema, parts).unwrap()).collect()
}

proptest! {
    #[test]
    fn scores_and_anomalies_are_those_of_the_model(readings in any_readings(400)) {
        let outcome = scored(SHORT, &readings);
        let rows = outcome.port(Port::MAIN).unwrap();
        let found = [scores(rows, "temperature_score"), scores(rows, "humidity_score")];
        let flags = rows.column_by_name("anomaly").unwrap().as_boolean();
        let mut models: BTreeMap<(String, usize), Model> = BTreeMap::new();
        let mut anomalies = Vec::new();
        for (row, reading) in readings.iter().enumerate() {
            let mut is_flagged = false;
            for metric in 0..2 {
                let (value, min_stddev, relative) =
                    [(reading.temperature, 0.01, 0.0), (reading.humidity, 0.0, 0.005)][metric];
                let expected = reading.device_id.as_ref().and_then(|device| {
                    let model = models.entry((device.clone(), metric)).or_default();
                    model.observe(value, reading.timestamp, min_stddev, relative)
                });
                let score = found[metric][row];
                prop_assert_eq!(score.is_some(), expected.is_some(), "row {}", row);
                if let (Some(score), Some(expected)) = (score, expected) {
                    prop_assert!((score - expected).abs() <= 1e-9 * expected.abs().max(1.0), "row {}", row);
                    if expected.abs() >= 4.0 {
                        is_flagged = true;
                        anomalies.push(value.unwrap());
                    }
                }
            }
            prop_assert_eq!(flags.value(row), is_flagged);
        }
        let reported = outcome.port(ANOMALIES).map(|rows| scores(rows, "value")).unwrap_or_default();
        prop_assert_eq!(reported, anomalies.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn neither_batch_boundaries_nor_interruptions_show(
        readings in any_readings(200),
        mut ends in prop::collection::vec(0..200usize, 0..12),
        devices_max in 1..5u32,
    ) {
        ends.sort_unstable();
        let text = format!("{SHORT}\ndevices_max = {devices_max}");
        // Compared as text: NaN is not equal to itself. JSON has every digit of a float.
        let told = |ends: &[usize], interrupted| -> Vec<String> {
            let parts = in_parts(&text, &readings, ends, interrupted);
            parts.iter().map(|rows| String::from_utf8(json_lines(rows).unwrap()).unwrap()).collect()
        };
        prop_assert_eq!(told(&ends, false), told(&[], false));
        prop_assert_eq!(told(&ends, true), told(&[], false));
    }
}

#[test]
fn a_state_of_other_windows_or_a_damaged_one_is_refused_and_changes_nothing() {
    let mut warm = stage(SHORT);
    let readings = temperatures(calm(10));
    apply(warm.transform.as_mut(), Batch::detached(rows(&readings)));
    let snapshot = warm.transform.snapshot().unwrap();

    let mut other = stage(&SHORT.replace("window = 8", "window = 9"));
    let error = other.transform.restore(&snapshot).unwrap_err().chain();
    assert!(error.contains("another configuration"), "{error}");

    let mut cut = stage(SHORT);
    let empty = cut.transform.snapshot();
    for end in 0..snapshot.len() {
        assert!(cut.transform.restore(&snapshot[..end]).is_err(), "cut at {end}");
        assert_eq!(cut.transform.snapshot(), empty);
    }
    let mut stricter = stage(&format!("{SHORT}\nthreshold = 5.0"));
    stricter.transform.restore(&snapshot).expect("other thresholds go on with the same windows");
    assert_eq!(stricter.transform.snapshot(), Some(snapshot));
}

#[test]
fn of_more_devices_than_may_be_those_seen_last_go_on() {
    let mut many = stage(SHORT);
    let readings: Vec<Reading> =
        (0..5).map(|index| Reading::of(&format!("dev-{}", [0, 1, 2, 0, 3][index]), index as i64 * SECOND_US)).collect();
    apply(many.transform.as_mut(), Batch::detached(rows(&readings)));
    let mut few = stage(&format!("{SHORT}\ndevices_max = 2"));
    few.transform.restore(&many.transform.snapshot().unwrap()).unwrap();
    let kept = String::from_utf8_lossy(&few.transform.snapshot().unwrap()).into_owned();
    let known: Vec<bool> = (0..4).map(|device| kept.contains(&format!("dev-{device}"))).collect();
    assert_eq!(known, [true, false, false, true]);
}
