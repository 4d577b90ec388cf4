use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use pipeline_engine::stage::{Batch, BuildContext, BuiltTransform, Port};
use pipeline_engine::{Partition, Span, testing};
use proptest::prelude::*;

use super::DedupeConfig;
use crate::transforms::testing::{Reading, apply, built, context, example, mistake, rows, schema};

const TEXT: &str = r#"
    key = ["device_id", "floor"]
    within = "10s"
    keys_max = 4
"#;
const SECOND_US: i64 = 1_000_000;
const COUNTERS: [&str; 3] = ["repeated_rows", "forgotten_keys", "unjudged_rows"];

fn stage(text: &str, cx: &BuildContext) -> BuiltTransform {
    built::<DedupeConfig>(text, cx).unwrap()
}

/// A row of that key and second; `mark` tells it from others like it.
fn row(device: &str, second: i64, mark: usize) -> Reading {
    Reading { status: Some(mark.to_string()), ..Reading::of(device, second * SECOND_US) }
}

fn marked(sent: &[(&str, i64)]) -> Vec<Reading> {
    sent.iter().enumerate().map(|(mark, (device, second))| row(device, *second, mark)).collect()
}

/// The indices of the rows that go on, and the counters.
fn told(text: &str, readings: &[Reading]) -> (Vec<String>, [u64; 3]) {
    let cx = context();
    let mut stage = stage(text, &cx);
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(readings)));
    assert!(outcome.keeps(&stage.outputs));
    (outcome.texts(Port::MAIN, "status"), COUNTERS.map(|name| cx.counter(name).get()))
}

#[test]
fn the_first_row_of_a_key_wins() {
    let (kept, counters) = told(TEXT, &marked(&[("a", 0), ("b", 0), ("a", 1), ("a", 0), ("b", 9)]));
    assert_eq!(kept, ["0", "1"]);
    assert_eq!(counters, [3, 0, 0]);
}

#[test]
fn a_key_is_the_values_of_all_its_columns() {
    let mut readings = marked(&[("a", 0), ("a", 0), ("a", 0)]);
    readings[1].floor = Some(4);
    assert_eq!(told(TEXT, &readings).0, ["0", "1"]);
}

#[test]
fn the_bound_counts_from_the_first_row_and_in_both_directions() {
    // The second one does not carry the bound further.
    let (kept, _) = told(TEXT, &marked(&[("a", 0), ("a", 10), ("a", 11), ("a", 1), ("a", 0)]));
    assert_eq!(kept, ["0", "2", "4"]);
}

#[test]
fn a_row_without_a_key_or_a_time_goes_on_and_is_not_remembered() {
    let mut readings = marked(&[("a", 0), ("a", 0), ("a", 0), ("a", 0), ("a", 0)]);
    readings[0].timestamp = None;
    readings[1].device_id = None;
    readings[2].device_id = None;
    let (kept, counters) = told(TEXT, &readings);
    assert_eq!(kept, ["0", "1", "2", "3"]);
    assert_eq!(counters, [1, 0, 3]);
}

#[test]
fn where_nulls_are_equal_two_rows_with_the_same_ones_are_one() {
    let mut readings = marked(&[("a", 0), ("a", 0), ("a", 0), ("a", 0), ("a", 0)]);
    readings[0].floor = None;
    readings[1].floor = None;
    readings[2].timestamp = None;
    readings[3].device_id = None;
    readings[4].device_id = None;
    let (kept, counters) = told(&format!("{TEXT}\nnulls = \"equal\""), &readings);
    assert_eq!(kept, ["0", "2", "3"], "a row without a time can't be judged");
    assert_eq!(counters, [2, 0, 1]);
}

#[test]
fn the_oldest_key_is_forgotten_first_and_counted() {
    let (kept, counters) =
        told(TEXT, &marked(&[("a", 0), ("b", 0), ("c", 0), ("d", 0), ("a", 1), ("e", 0), ("b", 0), ("a", 0)]));
    assert_eq!(kept, ["0", "1", "2", "3", "5", "7"], "a made room for e, though it was seen again");
    assert_eq!(counters, [2, 2, 0]);
}

#[test]
fn a_key_that_is_past_makes_room_uncounted() {
    let sent = (0..40).map(|index| (["a", "b", "c", "d", "e", "f", "g", "h"][index % 8], index as i64 * 4));
    let (kept, counters) = told(TEXT, &marked(&sent.collect::<Vec<_>>()));
    assert_eq!((kept.len(), counters), (40, [0; 3]), "three keys in ten seconds, and room for four");
}

#[test]
fn one_clock_that_is_far_ahead_does_not_wipe_the_memory() {
    let text = TEXT.replace("keys_max = 4", "keys_max = 100");
    let (kept, _) =
        told(&text, &marked(&[("a", 0), ("b", 0), ("c", 0), ("x", 1_000_000), ("c", 1), ("a", 1), ("d", 1)]));
    assert_eq!(kept, ["0", "1", "2", "3", "5", "6"], "two keys were given up, and not c");
}

#[test]
fn a_batch_without_a_row_left_still_keeps_its_promise() {
    let partition = Partition::new("p");
    let mut stage = stage(TEXT, &context());
    for number in 1..=2 {
        let batch = Batch::new(rows(&marked(&[("a", 0)])), partition.open(Span::new(number, number), 0));
        let outcome = apply(stage.transform.as_mut(), batch);
        assert_eq!(outcome.count(Port::MAIN), usize::from(number == 1));
        outcome.0.into_iter().for_each(|(_, batch)| testing::deliver(batch));
    }
    let progress = partition.progress();
    assert!(progress.borrow().is_complete() && !progress.borrow().failed);
}

#[test]
fn a_batch_without_repetitions_is_not_copied() {
    let batch = rows(&marked(&[("a", 0), ("b", 0)]));
    let outcome = apply(stage(TEXT, &context()).transform.as_mut(), Batch::detached(batch.clone()));
    let kept = outcome.port(Port::MAIN).unwrap();
    assert!(batch.columns().iter().zip(kept.columns()).all(|(before, after)| std::sync::Arc::ptr_eq(before, after)));
}

#[test]
fn a_snapshot_of_another_configuration_is_refused_and_changes_nothing() {
    let cx = context();
    let mut taken = stage(TEXT, &cx);
    apply(taken.transform.as_mut(), Batch::detached(rows(&marked(&[("a", 0)]))));
    let snapshot = taken.transform.snapshot().unwrap();
    let others = [
        TEXT.replace("[\"device_id\", \"floor\"]", "[\"floor\", \"device_id\"]"),
        TEXT.replace("\"floor\"", "\"status\""),
        TEXT.replace("10s", "11s"),
        TEXT.replace("keys_max = 4", "keys_max = 5"),
    ];
    for text in others {
        let mut other = stage(&text, &cx);
        apply(other.transform.as_mut(), Batch::detached(rows(&marked(&[("b", 0)]))));
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
fn a_key_takes_24_bytes_of_a_snapshot() {
    let size = |readings: &[Reading]| {
        let mut stage = stage(TEXT, &context());
        apply(stage.transform.as_mut(), Batch::detached(rows(readings)));
        stage.transform.snapshot().unwrap().len()
    };
    assert_eq!(size(&marked(&[("a", 0), ("b", 0), ("c", 0)])) - size(&marked(&[("a", 0)])), 2 * 24);
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = example(include_str!("mod.rs"));
    assert!(text.lines().count() > 1, "{text}");
    built::<DedupeConfig>(&text, &context()).unwrap();
}

#[test]
fn mistakes_name_their_key_and_a_way_out() {
    let cases = [
        ("key = []", "key", "Name at least one"),
        ("key = [\"device_i\"]", "key", "Did you mean \"device_id\"?"),
        ("key = [\"floor\", \"floor\"]", "key", "named twice"),
        ("key = [\"floor\"]\ntime_column = \"status\"", "time_column", "not a timestamp"),
        ("key = [\"floor\"]\nwithin = \"2000000000y\"", "within", "longer than"),
        ("key = [\"floor\"]\nkeys_max = 0", "keys_max", "no key"),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<DedupeConfig>(text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

/// The stage as its documentation has it: a list, gone through from the front for every row.
#[derive(Default)]
struct Model {
    /// Key, time, and whether the entry still stands for its key.
    seen: Vec<((String, i32), i64, bool)>,
    counters: [u64; 3],
}

impl Model {
    fn lets_on(&mut self, reading: &Reading, within_us: i64, keys_max: usize) -> bool {
        let (Some(device), Some(floor), Some(time)) = (&reading.device_id, reading.floor, reading.timestamp) else {
            self.counters[2] += 1;
            return true;
        };
        let key = (device.clone(), floor);
        if let Some(first) = self.seen.iter_mut().find(|(other, _, stands)| *stands && *other == key) {
            if (time - first.1).abs() <= within_us {
                self.counters[0] += 1;
                return false;
            }
            first.2 = false;
        }
        self.seen.push((key, time, true));
        for _ in 0..2 {
            let (_, first, stands) = &self.seen[0];
            if !*stands || time - first > within_us {
                self.seen.remove(0);
            }
        }
        if self.seen.len() > keys_max && self.seen.remove(0).2 {
            self.counters[1] += 1;
        }
        true
    }
}

fn any_readings(count: usize) -> impl Strategy<Value = Vec<Reading>> {
    let step = (0..4usize, 0..3i32, -6..8i64, 0..60u8);
    prop::collection::vec(step, 0..count).prop_map(|steps| {
        let mut now = 0;
        let reading = |(mark, (device, floor, ahead, chance))| {
            now += ahead;
            let mut reading = row(["a", "b", "c", "d"][device], now, mark);
            reading.floor = Some(floor);
            match chance {
                0 => reading.floor = None,
                1 => reading.timestamp = None,
                2 => reading.timestamp = Some(now + 1_000 * SECOND_US),
                3 => reading.timestamp = Some(now - 1_000 * SECOND_US),
                _ => {}
            }
            reading
        };
        (0..).zip(steps).map(reading).collect()
    })
}

/// The rows that go on where the stage is torn down after each of these rows and goes on from its
/// snapshot, with the counters and the last snapshot.
fn interrupted(text: &str, readings: &[Reading], ends: &[usize]) -> (RecordBatch, [u64; 3], Option<Vec<u8>>) {
    let cx = context();
    let mut current = stage(text, &cx);
    let mut parts = Vec::new();
    let mut from = 0;
    for to in ends.iter().copied().filter(|end| *end <= readings.len()).chain([readings.len()]) {
        let outcome = apply(current.transform.as_mut(), Batch::detached(rows(&readings[from..to])));
        parts.extend(outcome.port(Port::MAIN).cloned());
        let snapshot = current.transform.snapshot().unwrap();
        current = stage(text, &cx);
        current.transform.restore(&snapshot).unwrap();
        from = to;
    }
    let counters = COUNTERS.map(|name| cx.counter(name).get());
    (concat_batches(&schema(), &parts).unwrap(), counters, current.transform.snapshot())
}

#[test]
fn an_interruption_after_any_batch_does_not_show() {
    let sent =
        (0..60).map(|index| (["a", "b", "c", "d", "e"][(index * index + index / 7) % 5], (index * index % 23) as i64));
    let readings = marked(&sent.collect::<Vec<_>>());
    let whole = interrupted(TEXT, &readings, &[]);
    assert!(whole.1[0] > 0 && whole.1[1] > 0, "the case has repetitions and forgotten keys: {:?}", whole.1);
    for end in 0..=readings.len() {
        assert_eq!(interrupted(TEXT, &readings, &[end]), whole, "after {end}");
    }
    assert_eq!(interrupted(TEXT, &readings, &(0..readings.len()).collect::<Vec<_>>()), whole);
}

proptest! {
    #[test]
    fn what_goes_on_is_what_the_model_lets_on(readings in any_readings(300), keys_max in 1..14usize) {
        let text = TEXT.replace("keys_max = 4", &format!("keys_max = {keys_max}"));
        let mut model = Model::default();
        let expected: Vec<String> = readings
            .iter()
            .filter(|reading| model.lets_on(reading, 10 * SECOND_US, keys_max))
            .map(|reading| reading.status.clone().unwrap())
            .collect();
        let (kept, counters) = told(&text, &readings);
        prop_assert_eq!(kept, expected);
        prop_assert_eq!(counters, model.counters);
    }

    #[test]
    fn interruptions_and_batch_boundaries_do_not_show(
        readings in any_readings(150),
        mut ends in prop::collection::vec(0..150usize, 0..12),
    ) {
        ends.sort_unstable();
        prop_assert_eq!(interrupted(TEXT, &readings, &ends), interrupted(TEXT, &readings, &[]));
    }
}
