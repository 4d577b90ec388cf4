use pipeline_engine::stage::{Batch, BuiltTransform, Port};
use pipeline_engine::{Span, ack::Partition};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

const SECOND: i64 = 1_000_000;

fn stage(text: &str) -> BuiltTransform {
    built::<SilenceConfig>(text, &context()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn run(stage: &mut BuiltTransform, heard: &[(&str, i64)]) -> Vec<String> {
    let readings: Vec<Reading> = heard.iter().map(|(device, second)| Reading::of(device, second * SECOND)).collect();
    let outcome = apply(&mut *stage.transform, Batch::detached(rows(&readings)));
    assert_eq!(outcome.count(Port::MAIN), heard.len(), "every row goes on");
    assert!(outcome.keeps(&stage.outputs));
    alerts(&outcome)
}

/// Alerts as `device status last_seen-noticed_at/allowed`, in seconds.
fn alerts(outcome: &Outcome) -> Vec<String> {
    let column = |name| outcome.texts(ALERTS, name);
    let (devices, statuses, silent, allowed) =
        (column("device_id"), column("status"), column("silent_seconds"), column("allowed_seconds"));
    let times = [column("last_seen"), column("noticed_at")];
    (0..devices.len())
        .map(|row| {
            assert!(times.iter().all(|times| times[row].starts_with("1970")));
            format!("{} {} {} {}", devices[row], statuses[row], silent[row], allowed[row])
        })
        .collect()
}

#[test]
fn the_example_in_its_header_works() {
    stage(&example(include_str!("mod.rs")));
}

#[test]
fn a_device_that_the_others_leave_behind_is_silent_once_and_comes_back_once() {
    let mut stage = stage("after = \"60s\"");
    assert!(run(&mut stage, &[("a", 0), ("b", 0), ("c", 0), ("d", 0)]).is_empty());
    assert!(run(&mut stage, &[("a", 60), ("b", 60), ("c", 30)]).is_empty(), "no longer than it may");
    assert!(run(&mut stage, &[("a", 100)]).is_empty(), "one is too few");
    assert_eq!(run(&mut stage, &[("b", 62)]), ["d silent 62.0 60.0"]);
    assert_eq!(run(&mut stage, &[("a", 80), ("b", 100)]), ["c silent 70.0 60.0"], "and d only once");
    assert!(run(&mut stage, &[("d", 0)]).is_empty(), "an old row is no return");
    assert_eq!(run(&mut stage, &[("d", 101)]), ["d returned 101.0 60.0"]);
}

#[test]
fn known_and_connected_devices_are_shown_also_after_a_restart_and_made_up_ones_are_none() {
    let cx = context();
    let mut stage = built::<SilenceConfig>("after = \"60s\"", &cx).expect("a stage");
    let shown = || (cx.devices().known.get(), cx.devices().connected.get());
    run(&mut stage, &[("a", 0), ("b", 0), ("c", 0), ("pipeline-verify-1", 0)]);
    assert_eq!(shown(), (3, 3));
    run(&mut stage, &[("a", 100), ("b", 100)]);
    assert_eq!(shown(), (3, 2));
    let snapshot = stage.transform.snapshot().expect("it remembers");
    let cx = context();
    let mut again = built::<SilenceConfig>("after = \"60s\"", &cx).expect("a stage");
    again.transform.restore(&snapshot).expect("its own");
    assert_eq!((cx.devices().known.get(), cx.devices().connected.get()), (3, 2));
    run(&mut again, &[("c", 101)]);
    assert_eq!((cx.devices().known.get(), cx.devices().connected.get()), (3, 3));
}

#[test]
fn a_silent_device_that_is_forgotten_counts_nowhere() {
    let cx = context();
    let mut stage = built::<SilenceConfig>("after = \"60s\"\ndevices_max = 3", &cx).expect("a stage");
    run(&mut stage, &[("a", 0), ("b", 0), ("c", 0), ("a", 100), ("b", 100)]);
    assert_eq!((cx.devices().known.get(), cx.devices().connected.get()), (3, 2));
    run(&mut stage, &[("d", 100)]);
    assert_eq!((cx.devices().known.get(), cx.devices().connected.get()), (3, 3), "c is forgotten");
}

#[test]
fn of_two_devices_the_other_one_tells_and_one_alone_tells_nothing() {
    let mut stage = stage("after = \"60s\"");
    assert!(run(&mut stage, &[("a", 0), ("a", 1000)]).is_empty());
    assert_eq!(run(&mut stage, &[("b", 1010), ("b", 1070)]), ["a silent 70.0 60.0"]);
}

#[test]
fn nobody_is_silent_while_nobody_is_heard() {
    let mut stage = stage("after = \"60s\"");
    let fleet = |second| ["a", "b", "c", "d"].map(|device| (device, second));
    assert!(run(&mut stage, &fleet(0)).is_empty());
    // The broker was away for an hour, and all come back within a few seconds.
    let back: Vec<(&str, i64)> = (1..4).flat_map(|second| fleet(second * 20)).collect();
    assert!(run(&mut stage, &back).is_empty(), "what the broker has kept comes in order");
}

#[test]
fn a_rhythm_is_learned_with_its_pauses() {
    let mut stage = stage("after_min = \"10s\"\ntimes = 3");
    // "burst" sends three messages each minute, the others one a second; "new" is heard too little to judge.
    let mut heard = vec![("new", 0)];
    for second in 0..600 {
        heard.extend([("x", second), ("y", second)]);
        if second % 60 < 3 {
            heard.push(("burst", second));
        }
    }
    assert!(run(&mut stage, &heard).is_empty(), "a pause of a minute is usual");
    let on: Vec<(&str, i64)> = (600..800).map(|second| ("x", second)).collect();
    let told = run(&mut stage, &[on, vec![("z", 611), ("z", 800)]].concat());
    assert_eq!(told, ["y silent 12.0 10.0", "burst silent 257.0 174.0"]);
}

#[test]
fn a_clock_that_is_ahead_silences_nobody() {
    let mut stage = stage("after = \"10s\"\nahead_max = \"5s\"");
    let partition = Partition::new("in/0");
    let batch = |number: u64, received: i64, heard: &[(&str, i64)]| {
        let readings: Vec<Reading> =
            heard.iter().map(|(device, second)| Reading::of(device, second * SECOND)).collect();
        Batch::new(rows(&readings), partition.open(Span::new(number, number), received * SECOND))
    };
    let mut told = Vec::new();
    for second in 0..20 {
        let heard = [("fast", second + 1_000), ("faster", second + 2_000), ("right", second), ("also", second)];
        told.extend(alerts(&apply(&mut *stage.transform, batch(second as u64 + 1, second, &heard))));
    }
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn neither_the_cut_into_batches_nor_a_restart_changes_what_is_told() {
    for text in ["after = \"40s\"\ndevices_max = 4", "after_min = \"5s\"\ntimes = 2"] {
        for seed in 0..10 {
            let mut rng = StdRng::seed_from_u64(seed);
            let heard: Vec<(&str, i64)> = (0..400)
                .map(|second| {
                    let awake = if second / 100 % 2 == 0 { 5 } else { 3 };
                    (["a", "b", "c", "d", "e"][rng.random_range(0..awake)], second - rng.random_range(0..3))
                })
                .collect();
            let whole = run(&mut stage(text), &heard);
            assert!(!whole.is_empty());
            for cut in (0..heard.len()).step_by(37) {
                let mut current = stage(text);
                let mut told = Vec::new();
                for (number, one) in heard.chunks(1).enumerate() {
                    told.extend(run(&mut current, one));
                    if number == cut {
                        let snapshot = current.transform.snapshot().unwrap();
                        current = stage(text);
                        current.transform.restore(&snapshot).unwrap();
                        assert_eq!(current.transform.snapshot().unwrap(), snapshot);
                    }
                }
                assert_eq!(told, whole, "{text}, seed {seed}, restarted after {cut}");
            }
        }
    }
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    for (text, key, says) in [
        ("after = \"0s\"", "after", "silent at once"),
        ("after_min = \"0s\"", "after_min", "silent at once"),
        ("times = 0", "times", "silent at once"),
        ("after = \"1m\"\ntimes = 2", "times", "Leave out this key, or `after`"),
        ("after = \"1m\"\nafter_min = \"1m\"", "after_min", "nothing is learned"),
        ("key = [\"temperature\"]", "key", "not text or a whole number"),
        ("time_column = \"humidity\"", "time_column", "not a timestamp"),
        ("devices_max = 0", "devices_max", "no device"),
    ] {
        let (found, message) = mistake::<SilenceConfig>(text);
        assert!(found == key && message.contains(says), "{text}: {found}: {message}");
    }
    let error = stage("after = \"1m\"").transform.restore(&stage("after = \"2m\"").transform.snapshot().unwrap());
    assert!(error.unwrap_err().to_string().contains("another configuration"));
}
