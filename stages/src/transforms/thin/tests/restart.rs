//! Rows that wait live through a restart, for every method, and snapshots that don't fit are refused.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Devices that send late, twice and out of order, and have values that are missing.
fn stream(seed: u64, count: usize) -> Vec<Reading> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut second = 0;
    (0..count)
        .map(|number| {
            second += rng.random_range(0..6);
            let device = ["a", "b", "c", "d", "e"][rng.random_range(0..5)];
            let back = if rng.random_bool(0.2) { rng.random_range(0..40) } else { 0 };
            let temperature = (!rng.random_bool(0.1)).then(|| f64::from(rng.random_range(-9..9)));
            Reading { temperature, status: Some(number.to_string()), ..reading(device, second - back, 0.0) }
        })
        .collect()
}

const METHODS: [&str; 4] = [
    "method = \"dead_band\"\nabsolute = { temperature = 3 }\nheartbeat = \"40s\"",
    "method = \"swinging_door\"\nabsolute = { temperature = 5 }",
    "method = \"lttb\"\ncolumns = [\"temperature\", \"floor\"]\nevery = \"1m\"\npoints = 3",
    "method = \"min_max\"\ncolumns = [\"temperature\"]\nevery = \"1m\"",
];

fn outcome(text: &str, parts: &[&[Reading]], restart_after: Option<usize>) -> Vec<String> {
    let mut current = stage(text);
    let mut all = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let outcome = run(&mut *current.transform, part);
        all.extend(outcome.texts(Port::MAIN, "status"));
        all.extend(outcome.texts(LATE, "status").into_iter().map(|number| format!("late {number}")));
        if restart_after == Some(number) {
            let snapshot = current.transform.snapshot().unwrap();
            current = stage(text);
            current.transform.restore(&snapshot).unwrap();
            assert_eq!(current.transform.snapshot().unwrap(), snapshot, "what is restored is written again");
        }
    }
    all.extend(finish(&mut *current.transform).texts(Port::MAIN, "status"));
    all
}

#[test]
fn a_restart_anywhere_changes_nothing() {
    for method in METHODS {
        let text = format!("{method}\nidle_timeout = \"60s\"\ndevices_max = 4\nheld_rows_max = 30");
        for seed in 0..4 {
            let readings = stream(seed, 150);
            let ones: Vec<&[Reading]> = readings.chunks(1).collect();
            let whole = outcome(&text, &ones, None);
            assert!(whole.len() < 150 && whole.len() > 20, "{method}: {} of 150", whole.len());
            for cut in (0..readings.len()).step_by(11) {
                assert_eq!(outcome(&text, &ones, Some(cut)), whole, "{method}, seed {seed}, restarted after {cut}");
            }
        }
    }
}

#[test]
fn rows_leave_as_they_came_whatever_batch_they_waited_in() {
    let text = format!("{}\nallowed_lateness = \"30s\"", METHODS[3]);
    let readings = stream(9, 3000);
    let mut stage = stage(&text);
    let mut left = Vec::new();
    for part in readings.chunks(7) {
        left.extend(run(&mut *stage.transform, part).0.into_iter().map(|(_, batch)| batch.rows));
    }
    left.extend(finish(&mut *stage.transform).0.into_iter().map(|(_, batch)| batch.rows));
    let left = arrow::compute::concat_batches(&schema(), &left).unwrap();
    let given = rows(&readings);
    let numbers = left.column_by_name("status").unwrap();
    assert!(left.num_rows() > 500);
    for row in 0..left.num_rows() {
        let number: usize = arrow::util::display::array_value_to_string(numbers, row).unwrap().parse().unwrap();
        assert_eq!(left.slice(row, 1), given.slice(number, 1));
    }
}

#[test]
fn rows_that_wait_are_decided_by_the_method_that_the_file_names_now() {
    let readings: Vec<Reading> = (0..50).map(|second| reading("a", second, second as f64)).collect();
    for before in METHODS {
        for after in METHODS {
            let mut first = stage(before);
            let mut left = run(&mut *first.transform, &readings).count(Port::MAIN);
            let mut second = stage(after);
            second.transform.restore(&first.transform.snapshot().unwrap()).unwrap();
            let end = finish(&mut *second.transform);
            left += end.count(Port::MAIN);
            assert_eq!(end.texts(Port::MAIN, "temperature").last().unwrap(), "49.0", "{before} then {after}");
            assert!((2..50).contains(&left), "{before} then {after}: {left}");
            assert!(kept(&finish(&mut *second.transform)).is_empty(), "each leaves once");
        }
    }
}

#[test]
fn a_snapshot_of_another_configuration_or_with_a_damaged_byte_is_refused() {
    let mut one = stage(METHODS[1]);
    run(&mut *one.transform, &stream(1, 50));
    let mut snapshot = one.transform.snapshot().unwrap();
    for other in ["key = [\"floor\"]", "devices_max = 7"] {
        let error = stage(&format!("{other}\n{}", METHODS[1])).transform.restore(&snapshot).unwrap_err();
        assert!(error.to_string().contains("another configuration"), "{error}");
    }
    snapshot[60] ^= 1;
    assert!(stage(METHODS[1]).transform.restore(&snapshot).unwrap_err().to_string().contains("damaged"));
}
