use pipeline_engine::stage::{Batch, BuiltTransform, Emitter, Port, Transform};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

const SECOND: i64 = 1_000_000;

/// At this second, with this temperature.
fn reading(device: &str, second: i64, temperature: f64) -> Reading {
    Reading { temperature: Some(temperature), ..Reading::of(device, second * SECOND) }
}

fn stage(text: &str) -> BuiltTransform {
    built::<DownsampleConfig>(text, &context()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Rows of the main port as `device start end values`, in seconds.
fn told(outcome: &Outcome) -> Vec<String> {
    let Some(rows) = outcome.port(Port::MAIN) else { return Vec::new() };
    let names: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    let columns: Vec<Vec<String>> = names.iter().map(|name| outcome.texts(Port::MAIN, name)).collect();
    let shorten =
        |text: &str| text.strip_prefix("1970-01-01T00:").map_or(text.to_owned(), |time| time.replace('Z', ""));
    (0..rows.num_rows())
        .map(|row| columns.iter().map(|column| shorten(&column[row])).collect::<Vec<_>>().join(" "))
        .collect()
}

fn late(outcome: &Outcome) -> Vec<String> {
    outcome.texts(LATE, "timestamp")
}

fn run(transform: &mut dyn Transform, readings: &[Reading]) -> Outcome {
    apply(transform, Batch::detached(rows(readings)))
}

fn finish(transform: &mut dyn Transform) -> Outcome {
    let mut out = Emitter::default();
    transform.finish(&mut out).unwrap();
    Outcome(out.take())
}

const MEANS: &str = "[aggregates]\nn = \"count()\"\nx = \"mean(temperature)\"";

#[test]
fn the_example_in_its_header_works() {
    let text = example(include_str!("mod.rs"));
    // The second table is a part of the first.
    let text = text.replacen("readings =", "[aggregates]\nreadings =", 1);
    stage(&text);
}

#[test]
fn a_window_is_told_once_its_device_is_past_it() {
    let mut stage = stage(&format!("window = \"1m\"\nallowed_lateness = \"10s\"\n{MEANS}"));
    let first = run(&mut *stage.transform, &[reading("a", 0, 1.0), reading("a", 59, 3.0), reading("a", 69, 9.0)]);
    assert_eq!(told(&first), [""; 0], "ten seconds must pass after its end");
    let second = run(&mut *stage.transform, &[reading("a", 58, 5.0), reading("a", 70, 9.0), reading("a", 57, 7.0)]);
    assert_eq!(told(&second), ["a 00:00 01:00 3 3.0"]);
    assert_eq!(late(&second), ["1970-01-01T00:00:57Z"]);
    assert!(first.keeps(&stage.outputs) && second.keeps(&stage.outputs));
    let end = finish(&mut *stage.transform);
    assert_eq!(told(&end), ["a 01:00 02:00 2 9.0"]);
}

#[test]
fn windows_overlap_where_they_begin_more_often_than_they_end() {
    let mut stage = stage(&format!("window = \"60s\"\nevery = \"30s\"\nallowed_lateness = \"0s\"\n{MEANS}"));
    let outcome = run(&mut *stage.transform, &[reading("a", 40, 1.0), reading("a", 70, 3.0), reading("a", 120, 5.0)]);
    assert_eq!(told(&outcome), ["a 00:00 01:00 1 1.0", "a 00:30 01:30 2 2.0", "a 01:00 02:00 1 3.0"]);
    // In one of its two windows in time, so not late.
    let outcome = run(&mut *stage.transform, &[reading("a", 100, 7.0)]);
    assert_eq!(late(&outcome), [""; 0]);
    assert_eq!(told(&finish(&mut *stage.transform)), ["a 01:30 02:30 2 6.0", "a 02:00 03:00 1 5.0"]);
}

#[test]
fn a_session_ends_where_a_device_was_silent_and_a_late_row_joins_two() {
    let text = format!("session_gap = \"10s\"\nallowed_lateness = \"60s\"\n{MEANS}");
    let mut stage = stage(&text);
    let readings = [("a", 0, 1.0), ("a", 5, 2.0), ("a", 20, 6.0), ("a", 12, 3.0), ("a", 40, 8.0), ("a", 100, 9.0)];
    let outcome = run(&mut *stage.transform, &readings.map(|(device, second, value)| reading(device, second, value)));
    assert_eq!(told(&outcome), ["a 00:00 00:30 4 3.0"], "0 to 5 and 20 are one by 12");
    assert_eq!(told(&finish(&mut *stage.transform)), ["a 00:40 00:50 1 8.0", "a 01:40 01:50 1 9.0"]);
}

#[test]
fn a_silent_device_is_told_once_three_others_have_moved_on_and_two_fast_clocks_move_nothing() {
    let text = format!("window = \"1m\"\nallowed_lateness = \"0s\"\nidle_timeout = \"60s\"\n{MEANS}");
    let mut stage = stage(&text);
    let fleet = ["a", "b", "c", "d", "e"].map(|device| reading(device, 30, 1.0));
    assert_eq!(told(&run(&mut *stage.transform, &fleet)), [""; 0]);
    let fast = run(&mut *stage.transform, &[reading("a", 5000, 1.0), reading("b", 5000, 1.0)]);
    assert_eq!(told(&fast), ["a 00:00 01:00 1 1.0", "b 00:00 01:00 1 1.0"], "their own alone");
    let third = run(&mut *stage.transform, &[reading("c", 119, 1.0)]);
    assert_eq!(told(&third), ["c 00:00 01:00 1 1.0"]);
    let third = run(&mut *stage.transform, &[reading("c", 120, 1.0)]);
    assert_eq!(told(&third), ["c 01:00 02:00 1 1.0", "d 00:00 01:00 1 1.0", "e 00:00 01:00 1 1.0"]);
    assert_eq!(late(&run(&mut *stage.transform, &[reading("d", 59, 1.0)])), ["1970-01-01T00:00:59Z"]);
}

#[test]
fn a_clock_that_is_ahead_of_the_receipt_moves_nothing() {
    let cx = context();
    let mut stage = built::<DownsampleConfig>(&format!("window = \"1m\"\n{MEANS}"), &cx).unwrap();
    let partition = pipeline_engine::ack::Partition::new("in/0");
    let received_us = 100 * SECOND;
    let batch = |number: u64, readings: &[Reading]| {
        Batch::new(rows(readings), partition.open(pipeline_engine::Span::new(number, number), received_us))
    };
    let outcome = apply(&mut *stage.transform, batch(1, &[reading("a", 90, 1.0), reading("a", 161, 1.0)]));
    assert_eq!((told(&outcome), late(&outcome)), (vec![], vec!["1970-01-01T00:02:41Z".to_owned()]));
    let outcome = apply(&mut *stage.transform, batch(2, &[reading("a", 100, 2.0)]));
    assert_eq!(late(&outcome), [""; 0]);
}

#[test]
fn rows_without_key_or_time_are_in_no_window() {
    let mut stage = stage(&format!("window = \"1m\"\n{MEANS}"));
    let nameless = Reading { device_id: None, ..reading("a", 1, 1.0) };
    let timeless = Reading { timestamp: None, ..reading("a", 1, 1.0) };
    let outcome = run(&mut *stage.transform, &[nameless, timeless]);
    assert_eq!((outcome.count(LATE), told(&finish(&mut *stage.transform)).len()), (2, 0));
}

#[test]
fn the_device_seen_least_recently_makes_room() {
    let mut stage = stage(&format!("window = \"1m\"\ndevices_max = 2\n{MEANS}"));
    let outcome = run(&mut *stage.transform, &["a", "b", "a", "c"].map(|device| reading(device, 1, 1.0)));
    assert_eq!(told(&outcome), ["b 00:00 01:00 1 1.0"]);
    assert_eq!(told(&finish(&mut *stage.transform)), ["a 00:00 01:00 2 1.0", "c 00:00 01:00 1 1.0"]);
}

const ALL: &str = r#"
[aggregates]
a_rows = "count()"
b_count = "count(temperature)"
c_sum = "sum(temperature)"
d_mean = "mean(floor)"
e_min = "min(floor)"
f_max = "max(timestamp)"
g_first = "first(status)"
h_last = "last(armed)"
i_stddev = "stddev(temperature)"
j_median = "median(temperature)"
k_step = "time_weighted_mean(temperature)"
l_line = "time_weighted_mean(temperature, line)"
"#;

#[test]
fn each_aggregate_has_its_type_and_null_where_nothing_is_known() {
    let mut stage = stage(&format!("window = \"1m\"\n{ALL}"));
    let empty = Reading {
        temperature: Some(f64::NAN),
        status: None,
        floor: None,
        armed: None,
        ..Reading::of("a", 60 * SECOND)
    };
    let full = [
        Reading { floor: Some(2), ..reading("a", 10, 2.0) },
        Reading { floor: Some(5), status: Some("bad".to_owned()), armed: Some(false), ..reading("a", 0, 1.0) },
        Reading { floor: Some(-1), ..reading("a", 40, 6.0) },
    ];
    run(&mut *stage.transform, &full);
    run(&mut *stage.transform, &[empty]);
    let end = finish(&mut *stage.transform);
    assert!(end.keeps(&stage.outputs));
    let told = told(&end);
    // The mean between steps: 1 for ten seconds, 2 for thirty; between lines: 1.5 and 4.
    assert_eq!(told[0], "a 00:00 01:00 3 3 9.0 2.0 -1 00:40 bad true 2.6457513110645907 1.993661701417341 1.75 3.375",);
    for name in end.port(Port::MAIN).unwrap().schema().fields().iter().map(|field| field.name()).skip(4) {
        let expected = match name.as_str() {
            "b_count" => "0",
            "f_max" => "1970-01-01T00:01:00Z",
            _ => "",
        };
        assert_eq!(end.texts(Port::MAIN, name)[1], expected, "{name}");
    }
}

/// Devices that send late, twice and out of order, and change between two partitions.
fn stream(seed: u64, count: usize) -> Vec<Reading> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut second = 0;
    (0..count)
        .map(|_| {
            second += rng.random_range(0..8);
            let device = ["a", "b", "c", "d"][rng.random_range(0..4)];
            let back = if rng.random_bool(0.2) { rng.random_range(0..150) } else { 0 };
            let temperature = (!rng.random_bool(0.1)).then(|| f64::from(rng.random_range(-100..100)) / 7.0);
            Reading {
                temperature,
                floor: Some(rng.random_range(-5..5)),
                status: Some(format!("s{}", rng.random_range(0..9))),
                ..Reading::of(device, (second - back) * SECOND)
            }
        })
        .collect()
}

const SHAPES: [&str; 3] = ["window = \"1m\"", "window = \"1m\"\nevery = \"25s\"", "session_gap = \"20s\""];

/// What a stream becomes: rows by the main port and by `late`.
fn outcome(text: &str, parts: &[&[Reading]], restart_after: Option<usize>) -> (Vec<String>, Vec<String>) {
    let mut current = stage(text);
    let (mut all, mut all_late) = (Vec::new(), Vec::new());
    for (number, part) in parts.iter().enumerate() {
        let outcome = run(&mut *current.transform, part);
        all.extend(told(&outcome));
        all_late.extend(late(&outcome));
        if restart_after == Some(number) {
            let snapshot = current.transform.snapshot().unwrap();
            current = stage(text);
            current.transform.restore(&snapshot).unwrap();
            assert_eq!(current.transform.snapshot().unwrap(), snapshot, "what is restored is written again");
        }
    }
    all.extend(told(&finish(&mut *current.transform)));
    (all, all_late)
}

#[test]
fn neither_the_cut_into_batches_nor_a_restart_changes_what_comes_out() {
    for shape in SHAPES {
        let text = format!("{shape}\nallowed_lateness = \"30s\"\nidle_timeout = \"40s\"\ndevices_max = 3\n{ALL}");
        for seed in 0..5 {
            let readings = stream(seed, 120);
            let whole = outcome(&text, &[&readings], None);
            assert!(whole.0.len() > 10 && !whole.1.is_empty(), "{whole:?}");
            let ones: Vec<&[Reading]> = readings.chunks(1).collect();
            for cut in (0..readings.len()).step_by(7) {
                assert_eq!(outcome(&text, &ones, Some(cut)), whole, "{shape}, seed {seed}, restarted after {cut}");
            }
        }
    }
}

#[test]
fn a_snapshot_of_another_configuration_or_with_a_damaged_byte_is_refused() {
    let text = format!("window = \"1m\"\n{MEANS}");
    let mut one = stage(&text);
    run(&mut *one.transform, &stream(1, 50));
    let mut snapshot = one.transform.snapshot().unwrap();
    for other in ["2m", "61s"] {
        let error = stage(&text.replace("1m", other)).transform.restore(&snapshot).unwrap_err();
        assert!(error.to_string().contains("another configuration"), "{error}");
    }
    snapshot[40] ^= 1;
    assert!(stage(&text).transform.restore(&snapshot).unwrap_err().to_string().contains("damaged"));
}

#[test]
fn a_window_takes_what_the_header_says() {
    use super::column::ColumnState;
    use super::windows::Window;

    assert!(size_of::<Window>() <= 80, "{}", size_of::<Window>());
    assert!(size_of::<ColumnState>() <= 270, "{}", size_of::<ColumnState>());
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    for (text, key, says) in [
        ("[aggregates]\nn = \"count()\"", "", "it has no window"),
        ("window = \"0s\"\n[aggregates]\nn = \"count()\"", "window", "holds nothing"),
        ("window = \"1m\"\nevery = \"2m\"\n[aggregates]\nn = \"count()\"", "every", "readings in none"),
        ("window = \"1d\"\nevery = \"1s\"\n[aggregates]\nn = \"count()\"", "every", "more than 1000 windows"),
        ("window = \"1m\"\nsession_gap = \"1m\"\n[aggregates]\nn = \"count()\"", "session_gap", "Leave out"),
        ("session_gap = \"1m\"\nevery = \"1m\"\n[aggregates]\nn = \"count()\"", "every", "Leave it out"),
        ("window = \"1m\"\n[aggregates]", "aggregates", "readings = \"count()\""),
        ("window = \"1m\"\n[aggregates]\nx = \"mean(temprature)\"", "aggregates.x", "temperature"),
        ("window = \"1m\"\n[aggregates]\nx = \"mean(status)\"", "aggregates.x", "not a number"),
        ("window = \"1m\"\n[aggregates]\nx = \"avrg(temperature)\"", "aggregates.x", "It can be count()"),
        ("window = \"1m\"\n[aggregates]\nx = \"mean temperature\"", "aggregates.x", "function(column)"),
        ("window = \"1m\"\n[aggregates]\nx = \"percentile(temperature, 101)\"", "aggregates.x", "from 0 to 100"),
        ("window = \"1m\"\n[aggregates]\ndevice_id = \"count()\"", "aggregates.device_id", "already"),
        ("window = \"1m\"\ndevices_max = 0\n[aggregates]\nn = \"count()\"", "devices_max", "no device"),
        (
            "window = \"1m\"\nkey = [\"temperature\"]\n[aggregates]\nn = \"count()\"",
            "key",
            "not text or a whole number",
        ),
    ] {
        let (found, message) = mistake::<DownsampleConfig>(text);
        assert!(found == key && message.contains(says), "{text}: {found}: {message}");
    }
}
