//! `thin` keeps the rows that numpy and pandas keep, and of real series as much as `docs/thin.md` says.

use std::path::Path;

use arrow::array::{AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use pipeline_stages::transforms::thin::{LATE, ThinConfig};

use super::*;
use crate::nab::corpus::{self, Series};

/// The numbers of the rows that stay, and of those that are late, in the order in which they leave. The stage is ended
/// and restored between any two batches.
fn thinned(text: &str, rows: &RecordBatch, batch_rows: usize) -> (Vec<i64>, Vec<i64>) {
    let build = || {
        let config: ThinConfig = toml::from_str(text).unwrap();
        config.build(&rows.schema(), &BuildContext::detached("thinned", Default::default())).unwrap().transform
    };
    let mut transform = build();
    let mut out = Emitter::default();
    for from in (0..rows.num_rows()).step_by(batch_rows) {
        let part = rows.slice(from, batch_rows.min(rows.num_rows() - from));
        transform.apply(Batch::detached(part), &mut out).unwrap();
        let snapshot = transform.snapshot().unwrap();
        transform = build();
        transform.restore(&snapshot).unwrap();
    }
    transform.finish(&mut out).unwrap();
    let (mut kept, mut late) = (Vec::new(), Vec::new());
    for (port, batch) in out.take() {
        let numbers = batch.rows.column_by_name("number").unwrap().as_primitive::<Int64Type>();
        let left = if port == LATE { &mut late } else { &mut kept };
        left.extend(numbers.values());
    }
    (kept, late)
}

/// A stream with a second column, which drifts, and the rows' numbers.
fn numbered(rows: &[Row]) -> RecordBatch {
    let batch = batch(rows);
    let drift = (0..rows.len()).map(|at| Some(at as f64 * 0.01 + (at as f64 * 0.2).sin()));
    let [device, time, temperature] = batch.columns() else { panic!("three columns") };
    RecordBatch::try_from_iter_with_nullable([
        ("device_id", device.clone(), true),
        ("timestamp", time.clone(), true),
        ("temperature", temperature.clone(), true),
        ("drift", Arc::new(drift.collect::<Float64Array>()) as ArrayRef, true),
        ("number", Arc::new(Int64Array::from_iter_values(0..rows.len() as i64)) as ArrayRef, true),
    ])
    .unwrap()
}

#[test]
fn rows_that_stay_are_those_of_numpy() {
    let both = json!(["temperature", "drift"]);
    let bounds = "absolute = { temperature = 5, drift = 0.3 }\npercent = { temperature = 0.1 }\nheartbeat = \"2m\"";
    let bounded = |method: &str| {
        json!({
            "method": method, "columns": both, "heartbeat": 120 * SECOND,
            "absolute": { "temperature": 5, "drift": 0.3 }, "percent": { "temperature": 0.1 },
        })
    };
    let columns = "columns = [\"temperature\", \"drift\"]\nevery = \"3m\"";
    let cases = [
        (format!("method = \"dead_band\"\n{bounds}"), bounded("dead_band")),
        (format!("method = \"swinging_door\"\n{bounds}"), bounded("swinging_door")),
        (
            "method = \"swinging_door\"\nabsolute = { drift = 0.05 }".to_owned(),
            json!({ "method": "swinging_door", "columns": ["drift"], "absolute": { "drift": 0.05 } }),
        ),
        (
            format!("method = \"lttb\"\npoints = 4\n{columns}"),
            json!({ "method": "lttb", "columns": both, "every": 180 * SECOND, "points": 4 }),
        ),
        (
            format!("method = \"min_max\"\n{columns}"),
            json!({ "method": "min_max", "columns": both, "every": 180 * SECOND }),
        ),
    ];
    for (number, (text, mut config)) in cases.into_iter().enumerate() {
        // Silent devices wait: the oracle knows nothing of them.
        let text = format!("{text}\nallowed_lateness = \"30s\"\nidle_timeout = \"1000d\"");
        config["lateness"] = (30 * SECOND).into();
        for seed in 0..2 {
            let stream = stream(100 + seed * 7 + number as u64, 900);
            let rows = numbered(&stream);
            let (kept, late) = thinned(&text, &rows, 37);
            let drift = rows.column(3).as_primitive::<arrow::datatypes::Float64Type>();
            let input = stream.iter().enumerate().map(|(at, (device, time_us, temperature))| {
                json!({
                    "number": at, "device_id": device, "timestamp": time_us, "temperature": temperature,
                    "drift": drift.value(at),
                })
            });
            let files = [
                ("rows.jsonl", lines(input)),
                ("ours.json", json!({ "kept": kept, "late": late }).to_string()),
                ("config.json", config.to_string()),
            ];
            let (agrees, said) = ask("thin.py", &files);
            assert!(agrees, "{text}, seed {seed}: {said}");
        }
    }
}

/// One file of the benchmark as a device of its own.
fn device(series: &Series) -> RecordBatch {
    let rows = series.values.len();
    let times = TimestampMicrosecondArray::from(series.times_us.clone()).with_timezone("UTC");
    RecordBatch::try_from_iter_with_nullable([
        ("device_id", Arc::new(StringArray::from(vec![series.name.as_str(); rows])) as ArrayRef, true),
        ("timestamp", Arc::new(times) as ArrayRef, true),
        ("value", Arc::new(Float64Array::from(series.values.clone())) as ArrayRef, true),
        ("number", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef, true),
    ])
    .unwrap()
}

/// How far the readings of a series are at most from what the kept ones say of them: from the one before, or from the
/// line to the one after too. Rows are in order of time.
fn farthest_off(series: &Series, kept: &[i64], by_lines: bool) -> f64 {
    let mut farthest = 0.0_f64;
    for ends in kept.windows(2) {
        let [left, right] = [ends[0] as usize, ends[1] as usize];
        let elapsed = (series.times_us[right] - series.times_us[left]) as f64;
        for at in left + 1..right {
            let part = if by_lines { (series.times_us[at] - series.times_us[left]) as f64 / elapsed } else { 0.0 };
            let said = series.values[left] * (1.0 - part) + series.values[right] * part;
            farthest = farthest.max((said - series.values[at]).abs());
        }
    }
    farthest
}

/// The figures of `docs/thin.md`.
#[test]
fn of_real_series_little_stays_and_nothing_is_beyond_its_bound() {
    let Some(data) = std::env::var_os("PIPELINE_TEST_DATA") else {
        println!("skipped: PIPELINE_TEST_DATA names no folder with the series");
        return;
    };
    let (mut all, _) = corpus::read(&Path::new(&data).join("nab")).expect("the series");
    // Clocks were put back in some: those rows would be late.
    all.retain(|series| series.times_us.is_sorted());
    let rows: usize = all.iter().map(|series| series.values.len()).sum();
    println!("{} series, {rows} rows", all.len());
    let share = |kept: usize| 100.0 * kept as f64 / rows as f64;
    for method in ["dead_band", "swinging_door"] {
        for percent in [0.1, 1.0, 5.0] {
            let mut stays = 0;
            for series in &all {
                let (least, greatest) = series
                    .values
                    .iter()
                    .fold((f64::MAX, f64::MIN), |(least, greatest), value| (least.min(*value), greatest.max(*value)));
                let bound = (greatest - least) * percent / 100.0;
                let text = format!("method = \"{method}\"\nabsolute = {{ value = {bound:?} }}");
                let (kept, late) = thinned(&text, &device(series), 8192);
                let off = farthest_off(series, &kept, method == "swinging_door");
                let rounding = 4e-15 * greatest.abs().max(least.abs());
                assert!(off <= bound + rounding, "{}: {off} is more than {bound}", series.name);
                assert_eq!(late, [0; 0], "{}", series.name);
                stays += kept.len();
            }
            println!("{method}, {percent}% of each range: {:.1}% stay", share(stays));
            assert!(stays < rows);
        }
    }
    for (name, text) in [
        ("lttb, 4 points an hour", "method = \"lttb\"\npoints = 4\nevery = \"1h\""),
        ("min_max of each hour", "method = \"min_max\"\nevery = \"1h\""),
        ("min_max of each day", "method = \"min_max\"\nevery = \"1d\""),
    ] {
        let text = format!("{text}\ncolumns = [\"value\"]");
        let stays: usize = all.iter().map(|series| thinned(&text, &device(series), 8192).0.len()).sum();
        println!("{name}: {:.1}% stay", share(stays));
        assert!(stays < rows);
    }
}
