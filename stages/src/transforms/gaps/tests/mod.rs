mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int16Array, Int64Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use pipeline_engine::stage::{Batch, BuildContext, BuiltTransform, Port, TransformConfig};
use pipeline_engine::{Partition, Span, testing};
use proptest::prelude::*;

use self::model::{Model, ModelGap};
use super::{GAPS, GapsConfig};
use crate::transforms::testing::{Reading, apply, built, context, mistake, rows, schema};

/// The column `floor` counts here.
const TEXT: &str = r#"
    counter = "floor"
    window = 4
    reset_after = 3
    devices_max = 3
"#;
const SECOND_US: i64 = 1_000_000;
const COUNTERS: [&str; 8] = [
    "gap_count",
    "missing_numbers",
    "resets",
    "late_numbers",
    "repeated_numbers",
    "overdue_numbers",
    "forgotten_devices",
    "unnumbered_rows",
];

fn stage(text: &str, cx: &BuildContext) -> BuiltTransform {
    built::<GapsConfig>(text, cx).unwrap()
}

fn row(device: &str, number: i32, second: i64) -> Reading {
    Reading { floor: Some(number), ..Reading::of(device, second * SECOND_US) }
}

/// One device that sends these numbers, one a second.
fn numbers(sent: impl IntoIterator<Item = i32>) -> Vec<Reading> {
    (0..).zip(sent).map(|(second, number)| row("a", number, second)).collect()
}

/// Gaps as `device first-last count`, and the counters that are not zero.
fn told(text: &str, readings: &[Reading]) -> (Vec<String>, BTreeMap<&'static str, u64>) {
    let cx = context();
    let mut stage = stage(text, &cx);
    let batch = rows(readings);
    let outcome = apply(stage.transform.as_mut(), Batch::detached(batch.clone()));
    assert!(outcome.keeps(&stage.outputs));
    let kept = outcome.port(Port::MAIN).unwrap();
    assert!(batch.columns().iter().zip(kept.columns()).all(|(before, after)| Arc::ptr_eq(before, after)), "copied");
    let columns = ["device_id", "first_missing", "last_missing", "missing_count"].map(|name| outcome.texts(GAPS, name));
    let gap = |row: usize| format!("{} {}-{} {}", columns[0][row], columns[1][row], columns[2][row], columns[3][row]);
    ((0..columns[0].len()).map(gap).collect(), counted(&cx))
}

fn counted(cx: &BuildContext) -> BTreeMap<&'static str, u64> {
    COUNTERS.map(|name| (name, cx.counter(name).get())).into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn numbers_without_a_gap_tell_nothing() {
    assert_eq!(told(TEXT, &numbers(-5..20)), (vec![], BTreeMap::new()));
}

#[test]
fn a_gap_is_one_row_once_its_end_is_out_of_the_window() {
    let (gaps, counters) = told(TEXT, &numbers([1, 5, 6, 7, 8]));
    assert_eq!((gaps, counters.len()), (vec![], 0), "4 may still come");
    let (gaps, counters) = told(TEXT, &numbers([1, 5, 6, 7, 8, 9, 100, 101, 102, 103, 104]));
    assert_eq!(gaps, ["a 2-4 3", "a 10-99 90"]);
    assert_eq!(counters, BTreeMap::from([("gap_count", 2), ("missing_numbers", 93)]));
}

#[test]
fn a_gap_has_the_times_of_the_rows_around_it() {
    let mut stage = stage(TEXT, &context());
    let partition = Partition::new("p");
    let batch = Batch::new(rows(&numbers([1, 4, 5, 6, 7, 8])), partition.open(Span::new(1, 6), 0));
    let outcome = apply(stage.transform.as_mut(), batch);
    assert_eq!(outcome.texts(GAPS, "time_before"), ["1970-01-01T00:00:00Z"]);
    assert_eq!(outcome.texts(GAPS, "time_after"), ["1970-01-01T00:00:01Z"]);
    outcome.0.into_iter().for_each(|(_, batch)| testing::deliver(batch));
    assert!(partition.progress().borrow().is_complete() && !partition.progress().borrow().failed);
}

#[test]
fn a_number_that_comes_late_fills_its_place() {
    let (gaps, counters) = told(TEXT, &numbers([1, 5, 3, 2, 4, 6, 7, 8, 9, 10]));
    assert_eq!((gaps, counters), (vec![], BTreeMap::from([("late_numbers", 3)])));
    let (gaps, counters) = told(TEXT, &numbers([1, 5, 3, 6, 7, 8, 9, 10]));
    assert_eq!(gaps, ["a 2-2 1", "a 4-4 1"], "a gap becomes two");
    assert_eq!(counters, BTreeMap::from([("gap_count", 2), ("missing_numbers", 2), ("late_numbers", 1)]));
}

#[test]
fn a_number_that_was_there_before_is_repeated() {
    let (gaps, counters) = told(TEXT, &numbers([1, 2, 2, 1, 5, 3, 3, 4]));
    assert_eq!((gaps, counters), (vec![], BTreeMap::from([("repeated_numbers", 3), ("late_numbers", 2)])));
}

#[test]
fn a_window_of_zero_tells_at_once() {
    let (gaps, counters) = told(&TEXT.replace("window = 4", "window = 0"), &numbers([1, 2, 2, 4]));
    assert_eq!(gaps, ["a 3-3 1"]);
    assert_eq!(counters, BTreeMap::from([("gap_count", 1), ("missing_numbers", 1), ("repeated_numbers", 1)]));
}

#[test]
fn a_counter_that_falls_back_is_a_restart_and_no_gap() {
    let (gaps, counters) = told(TEXT, &numbers([100, 101, 103, 0, 1, 2, 3, 4, 5]));
    assert_eq!(gaps, ["a 102-102 1"], "what was awaited will not come");
    assert_eq!(counters, BTreeMap::from([("gap_count", 1), ("missing_numbers", 1), ("resets", 1)]));
}

#[test]
fn a_message_from_long_before_is_no_restart() {
    let mut readings = numbers(100..112);
    for (at, number) in [(5, 3), (8, 4)] {
        readings.insert(at, row("a", number, 0));
    }
    assert_eq!(told(TEXT, &readings), (vec![], BTreeMap::from([("overdue_numbers", 2)])));
}

#[test]
fn of_numbers_below_the_first_nothing_is_known() {
    let swapped = [row("a", 100, 5), row("a", 99, 4), row("a", 101, 6)];
    assert_eq!(told(TEXT, &swapped), (vec![], BTreeMap::from([("overdue_numbers", 1)])));
    let restarted = [row("a", 2, 5), row("a", 3, 6), row("a", 0, 7), row("a", 1, 8), row("a", 2, 9)];
    assert_eq!(told(TEXT, &restarted), (vec![], BTreeMap::from([("resets", 1)])));
}

#[test]
fn a_clock_that_was_set_back_does_not_hide_a_restart_for_ever() {
    let mut readings = numbers(100..105);
    readings.extend((0..9).map(|number| row("a", number, i64::from(number) - 1_000)));
    let (gaps, counters) = told(TEXT, &readings);
    assert_eq!((gaps, counters), (vec![], BTreeMap::from([("overdue_numbers", 2), ("resets", 1)])));
}

#[test]
fn devices_have_numbers_of_their_own_and_the_one_not_seen_is_forgotten() {
    let sent = [("a", 1), ("b", 7), ("a", 3), ("c", 9), ("b", 8), ("d", 1), ("a", 50), ("b", 9)];
    let readings: Vec<_> = (0..).zip(sent).map(|(second, (device, number))| row(device, number, second)).collect();
    let (gaps, counters) = told(TEXT, &readings);
    assert_eq!(gaps, ["a 2-2 1"], "a was forgotten for d, and starts over");
    assert_eq!(counters, BTreeMap::from([("forgotten_devices", 2), ("gap_count", 1), ("missing_numbers", 1)]));
}

#[test]
fn a_row_without_a_device_or_a_number_goes_on_uncounted() {
    let mut readings = numbers([1, 2, 100, 3, 4]);
    readings[2].floor = None;
    readings[3].device_id = None;
    readings[4].floor = Some(3);
    assert_eq!(told(TEXT, &readings), (vec![], BTreeMap::from([("unnumbered_rows", 2)])));
}

#[test]
fn keys_and_counters_of_any_width_keep_their_types() {
    let fields = ["unit", "sequence", "timestamp"];
    let kinds = [DataType::Int16, DataType::Int64, pipeline_engine::schema::timestamp_type()];
    let schema =
        Schema::new(fields.into_iter().zip(kinds).map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>());
    let config: GapsConfig = toml::from_str("key = [\"unit\"]\ncounter = \"sequence\"\nwindow = 0").unwrap();
    let mut stage = config.build(&Arc::new(schema.clone()), &context()).unwrap();
    let times = arrow::array::TimestampMicrosecondArray::from(vec![None, None, None]).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int16Array::from(vec![-7, -7, -7])),
        Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX - 1, i64::MAX])),
        Arc::new(times),
    ];
    let rows = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows));
    assert!(outcome.keeps(&stage.outputs));
    assert_eq!(outcome.texts(GAPS, "unit"), ["-7"]);
    assert_eq!(outcome.texts(GAPS, "missing_count"), [i64::MAX.to_string()], "as many as the column can say");
    assert_eq!(outcome.texts(GAPS, "time_after"), [""]);
}

#[test]
fn a_snapshot_of_another_configuration_is_refused_and_changes_nothing() {
    let cx = context();
    let mut taken = stage(TEXT, &cx);
    apply(taken.transform.as_mut(), Batch::detached(rows(&numbers([1, 4, 5]))));
    let snapshot = taken.transform.snapshot().unwrap();
    let others = [
        format!("{TEXT}\nkey = [\"status\"]"),
        TEXT.replace("window = 4", "window = 5"),
        TEXT.replace("reset_after = 3", "reset_after = 4"),
        TEXT.replace("devices_max = 3", "devices_max = 4"),
    ];
    for text in others {
        let mut other = stage(&text, &cx);
        apply(other.transform.as_mut(), Batch::detached(rows(&numbers([9]))));
        let before = other.transform.snapshot();
        let error = other.transform.restore(&snapshot).unwrap_err().to_string();
        assert!(error.contains("another configuration"), "{text}: {error}");
        assert_eq!(other.transform.snapshot(), before);
    }
    let before = taken.transform.snapshot();
    let mut damaged = snapshot.clone();
    damaged[30] ^= 1;
    for bytes in [&damaged[..], &snapshot[..snapshot.len() - 1], b""] {
        assert!(taken.transform.restore(bytes).unwrap_err().to_string().contains("damaged"));
        assert_eq!(taken.transform.snapshot(), before);
    }
    taken.transform.restore(&snapshot).unwrap();
}

#[test]
fn mistakes_name_their_key_and_a_way_out() {
    let cases = [
        ("counter = \"flor\"", "counter", "Did you mean \"floor\"?"),
        ("counter = \"status\"", "counter", "not a whole number"),
        ("counter = \"floor\"\nkey = [\"floor\"]", "counter", "part of the key"),
        ("counter = \"floor\"\nkey = []", "key", "Name at least one"),
        ("counter = \"floor\"\nkey = [\"temperature\"]", "key", "not text or a whole number"),
        ("counter = \"floor\"\ntime_column = \"status\"", "time_column", "not a timestamp"),
        ("counter = \"floor\"\nwindow = 10001", "window", "not between 0 and 10000"),
        ("counter = \"floor\"\nreset_after = 0", "reset_after", "at least one row"),
        ("counter = \"floor\"\ndevices_max = 0", "devices_max", "no device"),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<GapsConfig>(text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

/// Devices that count, lose, repeat and swap messages, and restart now and then.
fn any_readings(count: usize) -> impl Strategy<Value = Vec<Reading>> {
    let step = (0..8usize, 0..40u8, -9..9i32);
    prop::collection::vec(step, 0..count).prop_map(|steps| {
        let mut next = [100; 5];
        let mut readings = Vec::new();
        for (second, (device, chance, jump)) in (0..).zip(steps) {
            // Some devices send more than others.
            let device = [0, 0, 0, 1, 1, 2, 3, 4][device];
            let mut number = next[device];
            let mut reading = row(["a", "b", "c", "d", "e"][device], 0, second);
            match chance {
                0 => number = 0,
                1 => reading.device_id = None,
                2 => reading.timestamp = None,
                3..6 => reading.timestamp = Some((second - 1_000) * SECOND_US),
                _ => {}
            }
            if chance == 4 {
                number -= 30;
            }
            if chance > 20 {
                number += jump / if chance > 30 { 4 } else { 1 };
            }
            reading.floor = (chance != 6).then_some(number);
            next[device] = if chance == 0 { 1 } else { next[device].max(number + 1) };
            readings.push(reading);
        }
        readings
    })
}

/// The gaps where the stage is torn down after each of these rows and goes on from its snapshot, with
/// the counters and the last snapshot.
fn interrupted(readings: &[Reading], ends: &[usize]) -> (RecordBatch, BTreeMap<&'static str, u64>, Option<Vec<u8>>) {
    let cx = context();
    let mut current = stage(TEXT, &cx);
    let mut parts = Vec::new();
    let mut from = 0;
    for to in ends.iter().copied().filter(|end| *end <= readings.len()).chain([readings.len()]) {
        let outcome = apply(current.transform.as_mut(), Batch::detached(rows(&readings[from..to])));
        assert_eq!(outcome.port(Port::MAIN).unwrap(), &rows(&readings[from..to]));
        parts.extend(outcome.port(GAPS).cloned());
        let snapshot = current.transform.snapshot().unwrap();
        current = stage(TEXT, &cx);
        current.transform.restore(&snapshot).unwrap();
        from = to;
    }
    (concat_batches(&current.outputs[1].1, &parts).unwrap(), counted(&cx), current.transform.snapshot())
}

#[test]
fn an_interruption_after_any_batch_does_not_show() {
    let sent = |index: i32| {
        row(["a", "b", "c", "d"][(index * 5 % 13 % 4) as usize], index * 11 % 37 + index / 2, index.into())
    };
    let readings: Vec<_> = (0..80).map(sent).collect();
    let whole = interrupted(&readings, &[]);
    assert!(
        ["gap_count", "resets", "forgotten_devices"].iter().all(|name| whole.1.contains_key(name)),
        "{:?}",
        whole.1
    );
    for end in 0..=readings.len() {
        assert_eq!(interrupted(&readings, &[end]), whole, "after {end}");
    }
    assert_eq!(interrupted(&readings, &(0..readings.len()).collect::<Vec<_>>()), whole);
}

proptest! {
    #[test]
    fn gaps_are_those_of_the_model(readings in any_readings(300)) {
        let mut model = Model::default();
        readings.iter().for_each(|reading| model.observe(reading));
        let (found, counters, _) = interrupted(&readings, &[]);
        let column = |name| found.column_by_name(name).unwrap();
        let text = |name, row| arrow::util::display::array_value_to_string(column(name), row).unwrap();
        let times = |name| {
            use arrow::array::AsArray;
            column(name).as_primitive::<arrow::datatypes::TimestampMicrosecondType>().iter().collect::<Vec<_>>()
        };
        let (before, after) = (times("time_before"), times("time_after"));
        let told: Vec<(String, ModelGap)> = (0..found.num_rows())
            .map(|row| {
                let number = |name| text(name, row).parse().unwrap();
                (text("device_id", row), (number("first_missing"), number("last_missing"), before[row], after[row]))
            })
            .collect();
        prop_assert_eq!(told, model.gaps);
        prop_assert_eq!(counters, model.counters);
    }

    #[test]
    fn interruptions_and_batch_boundaries_do_not_show(
        readings in any_readings(150),
        mut ends in prop::collection::vec(0..150usize, 0..12),
    ) {
        ends.sort_unstable();
        prop_assert_eq!(interrupted(&readings, &ends), interrupted(&readings, &[]));
    }
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = crate::transforms::testing::example(include_str!("../mod.rs"));
    assert!(text.contains("counter = \"sequence\""), "{text}");
    let mut fields = schema().fields().to_vec();
    fields.push(Arc::new(Field::new("sequence", DataType::Int64, true)));
    let config: GapsConfig = toml::from_str(&text).unwrap();
    config.build(&Arc::new(Schema::new(fields)), &context()).unwrap();
}
