//! A run that was interrupted says what an undisturbed one says, wherever it was.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::{any_readings, in_parts, json_lines};

/// Every method, with warm-ups and windows short enough to turn over within a test.
const METHODS: [&str; 9] = [
    "method = \"auto\"",
    "method = \"zscore\"\nwindow = 8\nwarmup = 4",
    "method = \"zscore\"\nwindow = 8\nwarmup = 4\nleave = 2\ncooldown = \"20s\"",
    "method = \"ewma\"\nwindow = 8\nwarmup = 4\ncooldown = \"9s\"",
    "method = \"robust\"\nwindow = 8\nwarmup = 4",
    "method = \"seasonal\"\nseasons = 3\nwarmup = 4",
    "method = \"rate\"\nwindow = 8\nwarmup = 4",
    "method = \"rate\"\nrate_max = { temperature = 2.0 }",
    "method = \"flatline\"\nwindow = 3\nflat_for = \"6s\"\nflat_tolerance = { temperature = 0.4 }",
];

fn configuration(method: &str, devices_max: u32) -> String {
    let relearn = if ["auto", "flatline"].iter().any(|all| method.contains(all)) { "" } else { "relearn_after = 3\n" };
    format!(
        "metrics = [\"temperature\", \"humidity\"]\nthreshold = 2.4\ndevices_max = {devices_max}\n\
         min_stddev = {{ temperature = 0.01 }}\n{relearn}{method}"
    )
}

/// The rows of both ports as text: NaN is not equal to itself, and JSON has every digit of a float.
fn told(text: &str, readings: &[super::Reading], ends: &[usize], interrupted: bool) -> Vec<String> {
    let parts = in_parts(text, readings, ends, interrupted);
    parts.iter().map(|rows| String::from_utf8(json_lines(rows).unwrap()).unwrap()).collect()
}

/// Readings over several days, so that seasons pass: the same rows, each an hour later than the last.
fn spread_out(readings: &[super::Reading]) -> Vec<super::Reading> {
    let mut readings = readings.to_vec();
    readings.iter_mut().for_each(|reading| reading.timestamp = reading.timestamp.map(|time_us| time_us * 3600));
    readings
}

proptest! {
    // Each case is a run for each method and reading.
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn an_interruption_at_any_one_point_does_not_show(readings in any_readings(60)) {
        for method in METHODS {
            let readings = if method.contains("seasonal") { spread_out(&readings) } else { readings.clone() };
            let text = configuration(method, 3);
            let undisturbed = told(&text, &readings, &[], false);
            for end in 0..=readings.len() {
                prop_assert_eq!(&told(&text, &readings, &[end], true), &undisturbed, "{} at {}", method, end);
            }
        }
    }

    /// `auto` takes a hundred readings to warm up.
    #[test]
    fn an_interruption_of_a_long_warm_up_does_not_show(
        mut readings in any_readings(500),
        mut ends in prop::collection::vec(0..500usize, 0..60),
    ) {
        ends.sort_unstable();
        readings.iter_mut().for_each(|reading| reading.device_id = Some("a".to_owned()));
        let text = configuration("method = \"auto\"", 1);
        let undisturbed = told(&text, &readings, &[], false);
        prop_assert_eq!(&told(&text, &readings, &ends, true), &undisturbed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn interruptions_at_many_points_do_not_show(
        readings in any_readings(400),
        mut ends in prop::collection::vec(0..400usize, 0..40),
        devices_max in 1..5u32,
    ) {
        ends.sort_unstable();
        for method in METHODS {
            let readings = if method.contains("seasonal") { spread_out(&readings) } else { readings.clone() };
            let text = configuration(method, devices_max);
            let undisturbed = told(&text, &readings, &[], false);
            prop_assert_eq!(&told(&text, &readings, &ends, true), &undisturbed, "{}", method);
            prop_assert_eq!(&told(&text, &readings, &ends, false), &undisturbed, "{}", method);
        }
    }
}

/// A test that compares nothing with nothing would pass: the readings above give scores and alerts.
#[test]
fn every_method_has_something_to_say_of_such_readings() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let readings: Vec<super::Reading> = (0..8)
        .flat_map(|_| any_readings(400).new_tree(&mut runner).unwrap().current())
        .zip(0..)
        .map(|(mut reading, second)| {
            reading.timestamp = Some(second * super::SECOND_US);
            reading
        })
        .collect();
    for method in METHODS {
        let readings = if method.contains("seasonal") { spread_out(&readings) } else { readings.clone() };
        let [scored, alerts] = &told(&configuration(method, 4), &readings, &[], false)[..] else { panic!() };
        assert!(scored.contains("temperature_score") && alerts.contains("zscore"), "{method}: {alerts}");
    }
}

/// What docs/anomaly.md says a device and metric takes, with a little for its name.
#[test]
fn what_is_remembered_of_a_device_is_bounded() {
    let bounds = [
        ("method = \"zscore\"", 700),
        ("method = \"ewma\"", 200),
        ("method = \"robust\"", 1_200),
        ("method = \"seasonal\"", 2_000),
        ("method = \"seasonal\"\nseason = \"hour_of_week\"", 12_500),
        ("method = \"rate\"", 700),
        ("method = \"flatline\"", 200),
        ("method = \"auto\"", 12_700),
    ];
    // Surprises that come down slowly: none is news, and `auto` would like to remember each.
    let shrinking = (0..6_000_i64).map(|step| {
        let mut reading = super::Reading::of("a", step * 900 * super::SECOND_US);
        let noise = (step * 7919 % 101) as f64 / 101.0;
        let spike = if step % 50 == 0 { 1e6 / (1.0 + step as f64) } else { 0.0 };
        reading.temperature = Some(20.0 + noise + spike);
        reading
    });
    let readings: Vec<super::Reading> = shrinking.collect();
    for (method, bound) in bounds {
        let mut stage = super::stage(&format!("metrics = [\"temperature\"]\n{method}"));
        let mut sizes = Vec::new();
        for part in readings.chunks(1_000) {
            super::apply(stage.transform.as_mut(), super::Batch::detached(super::rows(part)));
            sizes.push(stage.transform.snapshot().unwrap().len());
        }
        assert!(sizes.iter().all(|size| *size < bound), "{method}: {sizes:?}");
    }
}
