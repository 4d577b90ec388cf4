mod bound;
mod restart;

use pipeline_engine::Span;
use pipeline_engine::ack::Partition;
use pipeline_engine::stage::{Batch, BuiltTransform, Emitter, Port, Transform};

use super::*;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows, schema};

const SECOND: i64 = 1_000_000;

/// At this second, with this temperature; its number is in `floor`.
fn reading(device: &str, second: i64, temperature: f64) -> Reading {
    Reading { temperature: Some(temperature), ..Reading::of(device, second * SECOND) }
}

fn stage(text: &str) -> BuiltTransform {
    built::<ThinConfig>(text, &context()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn run(transform: &mut dyn Transform, readings: &[Reading]) -> Outcome {
    apply(transform, Batch::detached(rows(readings)))
}

fn finish(transform: &mut dyn Transform) -> Outcome {
    let mut out = Emitter::default();
    transform.finish(&mut out).unwrap();
    Outcome(out.take())
}

/// Rows of a port as `device second temperature`.
fn told(outcome: &Outcome, port: Port) -> Vec<String> {
    let column = |name| outcome.texts(port, name);
    let (devices, times, values) = (column("device_id"), column("timestamp"), column("temperature"));
    let seconds = times.iter().map(|time| time.strip_prefix("1970-01-01T00:").unwrap_or(time).trim_end_matches('Z'));
    devices.iter().zip(seconds).zip(values).map(|((device, time), value)| format!("{device} {time} {value}")).collect()
}

fn kept(outcome: &Outcome) -> Vec<String> {
    told(outcome, Port::MAIN)
}

/// All that stays of the readings of one device, one a second.
fn kept_of(text: &str, values: &[Option<f64>]) -> Vec<i64> {
    let mut stage = stage(text);
    let readings: Vec<Reading> =
        (0..).zip(values).map(|(at, value)| Reading { temperature: *value, ..reading("a", at, 0.0) }).collect();
    let first = run(&mut *stage.transform, &readings);
    let last = finish(&mut *stage.transform);
    assert!(first.keeps(&stage.outputs) && last.keeps(&stage.outputs));
    let seconds = |outcome: &Outcome| -> Vec<i64> {
        let times = outcome.texts(Port::MAIN, "timestamp");
        times.iter().map(|time| pipeline_engine::time::parse_us(time, 0).unwrap() / SECOND).collect()
    };
    [seconds(&first), seconds(&last)].concat()
}

fn all(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(Some).collect()
}

const DOOR: &str = "method = \"swinging_door\"\nallowed_lateness = \"0s\"\nabsolute = { temperature = 0.5 }\n";
const BAND: &str = "method = \"dead_band\"\nallowed_lateness = \"0s\"\nabsolute = { temperature = 0.5 }\n";

#[test]
fn the_example_in_its_header_works() {
    stage(&example(include_str!("../mod.rs")));
}

#[test]
fn a_dead_band_keeps_what_has_moved_away_and_the_ends() {
    assert_eq!(kept_of(BAND, &all(&[1.0, 1.5, 1.4, 1.6, 1.5, 1.1, 1.0])), [0, 3, 6]);
    let percent = "method = \"dead_band\"\nallowed_lateness = \"0s\"\npercent = { temperature = 10 }";
    assert_eq!(kept_of(percent, &all(&[100.0, 110.0, 112.0, 91.0, 90.0])), [0, 2, 3, 4], "10% of the reading");
    let both = format!("{percent}\nabsolute = {{ temperature = 30 }}");
    assert_eq!(kept_of(&both, &all(&[100.0, 110.0, 112.0, 91.0, 90.0])), [0, 4], "the larger one counts");
}

#[test]
fn a_swinging_door_keeps_the_ends_of_straight_lines() {
    assert_eq!(kept_of(DOOR, &all(&[0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0])), [0, 4, 7]);
    // Steps: one reading before and one after each.
    assert_eq!(kept_of(DOOR, &all(&[0.0, 0.0, 0.0, 9.0, 9.0, 9.0])), [0, 2, 3, 5]);
    let exact = "method = \"swinging_door\"\nallowed_lateness = \"0s\"\nabsolute = { temperature = 0 }";
    assert_eq!(kept_of(exact, &all(&[2.0, 2.0, 2.0, 2.0, 2.5, 2.0])), [0, 3, 4, 5], "a bound of nothing");
}

#[test]
fn a_gap_remains_a_gap() {
    let (value, none, not) = (Some(1.0), None, Some(f64::NAN));
    let values = [value, value, value, none, not, none, value, value];
    assert_eq!(kept_of(DOOR, &values), [0, 2, 3, 5, 6, 7]);
    assert_eq!(kept_of(BAND, &values), [0, 3, 6, 7]);
    assert_eq!(kept_of(DOOR, &[None, None, None]), [0, 2]);
    // What is too large to reckon with stays.
    assert_eq!(kept_of(DOOR, &all(&[f64::MAX, f64::MIN, f64::MAX, f64::MAX, f64::MAX])), [0, 1, 2, 4]);
}

#[test]
fn where_devices_send_only_what_has_changed_a_null_says_nothing() {
    let text = "method = \"dead_band\"\nallowed_lateness = \"0s\"\nabsolute = { temperature = 0.5, humidity = 5 }";
    let readings: Vec<Reading> = (0..8)
        .map(|second| Reading {
            temperature: (second % 2 == 0).then_some(if second < 6 { 1.0 } else { 2.0 }),
            humidity: (second % 2 == 1).then_some(50.0),
            ..reading("a", second, 0.0)
        })
        .collect();
    let kept_by = |text: &str| {
        let mut stage = stage(text);
        let outcome = run(&mut *stage.transform, &readings);
        [outcome, finish(&mut *stage.transform)].iter().flat_map(kept).collect::<Vec<_>>()
    };
    assert_eq!(kept_by(text).len(), 8, "gaps");
    let seconds = kept_by(&format!("{text}\nnulls = \"ignore\""));
    assert_eq!(
        seconds,
        ["a 00:00 1.0", "a 00:01 ", "a 00:06 2.0", "a 00:07 "],
        "the first of each, what moved, the last"
    );
    let line = format!("{DOOR}nulls = \"ignore\"");
    assert_eq!(kept_of(&line, &[None, Some(1.0), None, Some(1.0), Some(f64::NAN), Some(3.0), None]), [1, 3, 5]);
}

#[test]
fn a_row_stays_where_any_column_needs_it_and_stands_for_all() {
    let text = "method = \"dead_band\"\nallowed_lateness = \"0s\"\nabsolute = { temperature = 0.5, humidity = 5 }";
    let mut stage = stage(text);
    let both =
        |second, temperature, humidity| Reading { humidity: Some(humidity), ..reading("a", second, temperature) };
    let readings = [both(0, 1.0, 50.0), both(1, 1.4, 50.0), both(2, 1.4, 56.0), both(3, 1.8, 56.0), both(4, 2.0, 56.0)];
    assert_eq!(kept(&run(&mut *stage.transform, &readings)), ["a 00:00 1.0", "a 00:02 1.4", "a 00:04 2.0"]);
}

#[test]
fn a_heartbeat_bounds_how_far_kept_rows_are_apart() {
    for (text, jump) in [(DOOR, vec![0, 2, 4, 6, 8, 9]), (BAND, vec![0, 2, 4, 6, 8, 9])] {
        let text = format!("{text}heartbeat = \"2500ms\"");
        assert_eq!(kept_of(&text, &[Some(1.0); 10]), jump);
        assert_eq!(
            kept_of(&text.replace("2500ms", "3s"), &[Some(1.0); 10]),
            [0, 3, 6, 9],
            "a gap as long is no longer"
        );
        assert_eq!(kept_of(&text.replace("2500ms", "1ms"), &[Some(1.0); 4]), [0, 1, 2, 3], "nothing lies between");
    }
}

#[test]
fn rows_are_put_in_order_within_the_lateness_and_are_late_beyond_it() {
    let mut stage = stage(&DOOR.replace("0s", "10s"));
    // In order these are one straight line.
    let readings = [0, 5, 3, 8, 1, 12, 10].map(|second| reading("a", second, second as f64));
    assert_eq!(kept(&run(&mut *stage.transform, &readings)), ["a 00:00 0.0"]);
    let outcome = run(&mut *stage.transform, &[reading("a", 20, 0.0), reading("a", 9, 9.0), reading("a", 10, 10.0)]);
    assert_eq!(told(&outcome, LATE), ["a 00:09 9.0"], "10 is decided");
    assert_eq!(kept(&finish(&mut *stage.transform)), ["a 00:12 12.0", "a 00:20 0.0"]);
}

#[test]
fn a_repetition_is_left_out_and_another_reading_of_the_same_time_is_not() {
    let text = "method = \"swinging_door\"\nallowed_lateness = \"1s\"\nabsolute = { temperature = 0.5 }";
    let mut stage = stage(text);
    let readings = [(0, 1.0), (0, 1.0), (5, 1.0), (5, 9.0), (5, 9.0), (9, 9.0)];
    let outcome = run(&mut *stage.transform, &readings.map(|(second, value)| reading("a", second, value)));
    let end = finish(&mut *stage.transform);
    assert_eq!([kept(&outcome), kept(&end)].concat(), ["a 00:00 1.0", "a 00:05 1.0", "a 00:05 9.0", "a 00:09 9.0"]);
}

#[test]
fn the_newest_row_of_a_silent_device_leaves_once_three_others_have_moved_on() {
    let mut stage = stage(&format!("{DOOR}idle_timeout = \"60s\""));
    let fleet = ["a", "b", "c", "d", "e"];
    run(&mut *stage.transform, &fleet.map(|device| reading(device, 0, 1.0)));
    assert_eq!(kept(&run(&mut *stage.transform, &fleet.map(|device| reading(device, 1, 1.0)))), [""; 0]);
    let fast = run(&mut *stage.transform, &[reading("a", 5000, 1.0), reading("b", 5000, 1.0)]);
    assert_eq!(kept(&fast), [""; 0], "two clocks that are ahead move nobody");
    let third = run(&mut *stage.transform, &[reading("c", 61, 1.0)]);
    assert_eq!(kept(&third), [""; 0], "not yet over");
    let third = run(&mut *stage.transform, &[reading("c", 68, 1.0)]);
    assert_eq!(kept(&third), ["d 00:01 1.0", "e 00:01 1.0"]);
    // It goes on from there.
    assert_eq!(told(&run(&mut *stage.transform, &[reading("d", 0, 1.0)]), LATE), ["d 00:00 1.0"]);
    assert_eq!(kept(&finish(&mut *stage.transform)).len(), 3, "the newest of a, b and c");
}

#[test]
fn rows_without_a_place_in_time_leave_as_they_came() {
    let mut stage = stage(DOOR);
    let partition = Partition::new("in/0");
    let batch = Batch::new(
        rows(&[
            Reading { device_id: None, ..reading("a", 90, 1.0) },
            Reading { timestamp: None, ..reading("a", 90, 2.0) },
            reading("a", 161, 3.0),
            reading("a", 160, 4.0),
        ]),
        partition.open(Span::new(1, 1), 100 * SECOND),
    );
    let outcome = apply(&mut *stage.transform, batch);
    assert_eq!(outcome.texts(LATE, "temperature"), ["1.0", "2.0", "3.0"], "the receipt was at 100");
    assert_eq!(kept(&outcome), ["a 02:40 4.0"]);
}

#[test]
fn min_max_keeps_four_of_each_bucket() {
    let text = "method = \"min_max\"\nevery = \"10s\"\nallowed_lateness = \"0s\"\ncolumns = [\"temperature\"]";
    let values = [1.0, 2.0, 9.0, 2.0, -5.0, -5.0, 9.0, 1.0, 3.0, 2.0, 7.0, 7.0, 7.0];
    assert_eq!(kept_of(text, &all(&values)), [0, 2, 4, 9, 10, 12], "of equals the first");
    let gaps = [None, Some(2.0), Some(1.0), Some(3.0), Some(2.5), None];
    assert_eq!(kept_of(text, &gaps), [0, 1, 2, 3, 4, 5]);
    assert_eq!(kept_of(text, &[None; 5]), [0, 4]);
    // Far more rows than are held of a bucket.
    let long = text.replace("10s", "1d");
    let wave: Vec<Option<f64>> = (0..1000).map(|at| Some(f64::from(at % 97) * f64::from((at * 7) % 31))).collect();
    let best = |by: fn(&f64, &f64) -> bool| {
        let value = |at: usize| wave[at].unwrap();
        (0..1000).reduce(|best, at| if by(&value(at), &value(best)) { at } else { best }).unwrap() as i64
    };
    let mut expected = vec![0, best(|a, b| a < b), best(|a, b| a > b), 999];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(kept_of(&long, &wave), expected);
}

#[test]
fn lttb_keeps_so_many_of_each_bucket() {
    let text = "method = \"lttb\"\npoints = 4\nevery = \"8s\"\nallowed_lateness = \"0s\"\ncolumns = [\"temperature\"]";
    let bucket = [0.0, 0.1, 5.0, 0.2, 0.1, -4.0, 0.3, 0.1];
    assert_eq!(kept_of(text, &all(&[bucket, bucket].concat())), [0, 2, 5, 7, 8, 10, 13, 15]);
    let mut sparse = all(&bucket);
    sparse[2] = None;
    sparse[5] = Some(f64::INFINITY);
    assert_eq!(kept_of(text, &sparse), [0, 3, 6, 7], "what has no value spans no triangle");
}

#[test]
fn beyond_the_rows_that_may_wait_the_device_at_hand_is_decided() {
    let cx = context();
    let text = "method = \"lttb\"\npoints = 3\nevery = \"1h\"\nallowed_lateness = \"0s\"\ncolumns = [\"temperature\"]\n\
                held_rows_max = 10";
    let mut stage = built::<ThinConfig>(text, &cx).unwrap();
    let readings: Vec<Reading> = (0..30).map(|second| reading("a", second, (second % 7) as f64)).collect();
    let outcome = run(&mut *stage.transform, &readings);
    assert_eq!(outcome.count(Port::MAIN), 6, "two parts of 11");
    assert_eq!(finish(&mut *stage.transform).count(Port::MAIN), 3);
    assert_eq!((cx.counter("early_rows").get(), cx.counter("thinned_rows").get()), (22, 21));
}

#[test]
fn the_device_seen_least_recently_makes_room_and_loses_nothing() {
    let mut stage = stage(&format!("{DOOR}devices_max = 2"));
    let readings = [("a", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("c", 3)];
    let outcome = run(&mut *stage.transform, &readings.map(|(device, second)| reading(device, second, 1.0)));
    assert_eq!(kept(&outcome), ["a 00:00 1.0", "b 00:01 1.0", "b 00:02 1.0", "c 00:03 1.0"]);
    assert_eq!(kept(&finish(&mut *stage.transform)), ["a 00:03 1.0"]);
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    let lttb = "method = \"lttb\"\nevery = \"1m\"\ncolumns = [\"temperature\"]";
    for (text, key, says) in [
        ("method = \"dead_band\"", "", "absolute = { temperature = 0.1 }"),
        (
            "method = \"dead_band\"\nabsolute = { temprature = 1 }",
            "absolute.temprature",
            "Did you mean \"temperature\"?",
        ),
        ("method = \"dead_band\"\npercent = { status = 1 }", "percent.status", "not a number"),
        ("method = \"dead_band\"\nabsolute = { floor = -1 }", "absolute.floor", "0 or more"),
        ("method = \"dead_band\"\nabsolute = { floor = nan }", "absolute.floor", "0 or more"),
        ("method = \"dead_band\"\nabsolute = { floor = 1 }\nheartbeat = \"0s\"", "heartbeat", "every row"),
        (
            "method = \"dead_band\"\nabsolute = { floor = 1 }\nevery = \"1m\"",
            "every",
            "dead_band has no buckets. Leave",
        ),
        ("method = \"dead_band\"\ncolumns = [\"floor\"]", "columns", "goes by the columns"),
        ("method = \"dead_band\"\nkey = [\"floor\"]\nabsolute = { floor = 1 }", "absolute.floor", "is no reading"),
        ("method = \"swinging_door\"\nabsolute = { floor = 1 }\npoints = 5", "points", "no chosen number"),
        (
            "method = \"swinging_door\"\nabsolute = { floor = 1, humidity = 1 }\nnulls = \"ignore\"",
            "nulls",
            "a stage of its own",
        ),
        (&format!("{lttb}\npoints = 5\nnulls = \"gap\""), "nulls", "ignores nulls anyway"),
        ("method = \"min_max\"\nevery = \"1m\"", "columns", "columns = [\"temperature\"]"),
        ("method = \"min_max\"\ncolumns = [\"temperature\"]", "", "`every`"),
        ("method = \"min_max\"\nevery = \"0s\"\ncolumns = [\"temperature\"]", "every", "holds nothing"),
        ("method = \"min_max\"\nevery = \"1m\"\ncolumns = [\"floor\", \"floor\"]", "columns", "named twice"),
        (lttb, "", "points = 10"),
        (&format!("{lttb}\npoints = 2"), "points", "3 or more"),
        (&format!("{lttb}\npoints = 5\nheartbeat = \"1m\""), "heartbeat", "anyway"),
        (&format!("{lttb}\npoints = 5\nabsolute = {{ floor = 1 }}"), "absolute", "by their number"),
        (&format!("{lttb}\npoints = 5\ndevices_max = 0"), "devices_max", "no device"),
        (&format!("{lttb}\npoints = 5\nheld_rows_max = 0"), "held_rows_max", "no row"),
        (&format!("{lttb}\npoints = 5\ntime_column = \"floor\""), "time_column", "not a timestamp"),
    ] {
        let (found, message) = mistake::<ThinConfig>(text);
        assert!(found == key && message.contains(says), "{text}: {found}: {message}");
    }
}
