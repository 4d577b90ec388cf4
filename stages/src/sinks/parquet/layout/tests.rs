//! Prefixes read and filled in, and the rows that lie below them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Int64Type};
use chrono::DateTime;
use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use pipeline_engine::schema::timestamp_type;

use super::*;

fn us(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

fn input() -> Schema {
    Schema::new(vec![
        Field::new("time", timestamp_type(), true),
        Field::new("device", DataType::Utf8, true),
        Field::new("number", DataType::Int64, false),
        Field::new("on", DataType::Boolean, false),
        Field::new("value", DataType::Float64, true),
    ])
}

/// A row for each time and device, numbered from 0.
fn rows(given: &[(Option<i64>, Option<&str>)]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter(given.iter().map(|(time, _)| *time)).with_timezone("UTC");
    let devices = StringArray::from_iter(given.iter().map(|(_, device)| *device));
    let count = given.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times),
        Arc::new(devices),
        Arc::new(Int64Array::from_iter_values(0..count as i64)),
        Arc::new(BooleanArray::from(vec![true; count])),
        Arc::new(arrow::array::Float64Array::from(vec![0.5; count])),
    ];
    RecordBatch::try_new(Arc::new(input()), columns).unwrap()
}

fn text(prefix: Option<&'static str>) -> LayoutText<'static> {
    LayoutText { prefix, error_prefix: None, time_zone: None, partitions_max: 500 }
}

fn by_time(text: LayoutText<'_>) -> Layout {
    Layout::new(text, Clock::Column(0), &input()).unwrap()
}

/// Folders with the numbers of their rows.
fn split(layout: &Layout, rows: RecordBatch) -> Vec<(String, Vec<i64>)> {
    let split = layout.split(vec![(rows, Some(us("2026-03-07T16:05:09Z")))]).unwrap();
    let numbers = |rows: &Vec<RecordBatch>| {
        rows.iter().flat_map(|rows| rows.column(2).as_primitive::<Int64Type>().values().to_vec()).collect()
    };
    split.iter().map(|(place, rows)| (place.folder(b"content"), numbers(rows))).collect()
}

fn folders(layout: &Layout, rows: RecordBatch) -> Vec<String> {
    split(layout, rows).into_iter().map(|(folder, _)| folder).collect()
}

fn refusal(text: LayoutText<'_>) -> BuildError {
    Layout::new(text, Clock::Receipt, &input()).expect_err("must be refused")
}

#[test]
fn by_default_rows_part_at_midnight_and_at_a_months_end() {
    let times = ["2026-01-31T23:59:59.999999Z", "2026-02-01T00:00:00Z", "2026-01-31T00:00:00Z"];
    let given: Vec<_> = times.iter().map(|text| (Some(us(text)), Some("d"))).collect();
    let expected =
        [("year=2026/month=01/day=31/".to_owned(), vec![0, 2]), ("year=2026/month=02/day=01/".to_owned(), vec![1])];
    assert_eq!(split(&by_time(text(None)), rows(&given)), expected);
}

#[test]
fn times_that_no_calendar_holds_lie_with_those_without_one() {
    let layout = by_time(text(None));
    let nowhere = "year=__HIVE_DEFAULT_PARTITION__/month=__HIVE_DEFAULT_PARTITION__/day=__HIVE_DEFAULT_PARTITION__/";
    for (time, folder) in [
        (Some(-1), "year=1969/month=12/day=31/"),
        (Some(us("0001-01-01T00:00:00Z")), "year=0001/month=01/day=01/"),
        (Some(us("9999-12-31T23:59:59.999999Z")), "year=9999/month=12/day=31/"),
        (Some(us("0001-01-01T00:00:00Z") - 1), nowhere),
        (Some(us("9999-12-31T23:59:59.999999Z") + 1), nowhere),
        (Some(i64::MAX), nowhere),
        (Some(i64::MIN), nowhere),
        (None, nowhere),
    ] {
        assert_eq!(folders(&layout, rows(&[(time, None)])), [folder], "{time:?}");
    }
}

#[test]
fn a_prefix_without_expressions_is_followed_by_the_hour_as_firehose_does_it() {
    let one = || rows(&[(Some(us("2026-03-07T16:05:09Z")), Some("d"))]);
    assert_eq!(folders(&by_time(text(Some("raw/"))), one()), ["raw/2026/03/07/16/"]);
    assert_eq!(folders(&by_time(text(Some(""))), one()), ["2026/03/07/16/"]);
    let none = rows(&[(None, None)]);
    assert_eq!(folders(&by_time(text(Some(""))), none), ["__HIVE_DEFAULT_PARTITION__/"]);
}

#[test]
fn expressions_become_times_values_and_random_strings() {
    let one = || rows(&[(Some(us("2026-03-07T16:05:09Z")), Some("a/b"))]);
    for (prefix, folder) in [
        ("dt=!{timestamp:yyyy'-'MM'-'dd}/h=!{timestamp:HH}/", "dt=2026-03-07/h=16/"),
        ("!{timestamp:'y'yyyy/MMM/DDD}/", "y2026/Mar/066/"),
        ("d=!{partitionKeyFromQuery:device}/!{timestamp:mm}/", "d=a%2Fb/05/"),
        ("!{partitionKeyFromLambda:number}-!{partitionKeyFromLambda:on}/", "0-true/"),
        ("device=!{partitionKeyFromQuery:device}/", "device=a%2Fb/"),
    ] {
        assert_eq!(folders(&by_time(text(Some(prefix))), one()), [folder], "{prefix}");
    }
    let layout = by_time(text(Some("r/!{firehose:random-string}/!{firehose:random-string}/")));
    let split = layout.split(vec![(one(), None)]).unwrap();
    let place = split.keys().next().unwrap();
    let folder = place.folder(b"content");
    assert_eq!(folder, place.folder(b"content"), "a group that is written again makes the same keys");
    assert_ne!(folder, place.folder(b"other"));
    let parts: Vec<_> = folder.split('/').collect();
    assert!(parts.len() == 4 && parts[1] != parts[2] && parts[1].len() == 11 && parts[2].len() == 11, "{folder}");
}

#[test]
fn the_hour_is_that_of_the_time_zone() {
    let layout = by_time(LayoutText { time_zone: Some("Asia/Kolkata"), ..text(Some("!{timestamp:yyyy/MM/dd/HH}/")) });
    let given = ["2026-03-07T18:29:59Z", "2026-03-07T18:30:00Z"].map(|text| (Some(us(text)), None));
    assert_eq!(folders(&layout, rows(&given)), ["2026/03/07/23/", "2026/03/08/00/"]);
    let unknown = refusal(LayoutText { time_zone: Some("Mars/Base"), ..text(None) });
    assert_eq!(
        (unknown.key.as_str(), unknown.message.as_str()),
        ("custom_time_zone", "no time zone is named \"Mars/Base\"")
    );
}

#[test]
fn rows_of_other_devices_lie_apart_and_none_is_lost() {
    let layout = by_time(text(Some("!{partitionKeyFromQuery:device}/")));
    let given = [Some("b"), Some("a"), None, Some("b"), Some("")].map(|device| (Some(0), device));
    let expected = [("__HIVE_DEFAULT_PARTITION__/", vec![2, 4]), ("a/", vec![1]), ("b/", vec![0, 3])];
    assert_eq!(split(&layout, rows(&given)), expected.map(|(folder, rows)| (folder.to_owned(), rows)));
}

#[test]
fn a_hostile_device_leaves_neither_the_prefix_nor_the_sight_of_readers() {
    let layout = by_time(text(Some("raw/!{partitionKeyFromQuery:device}/x/")));
    for device in
        ["..", ".", "../../etc/passwd", "/", "a/../b", "_a", ".a", "\u{1}", "\u{2}", "a\0b", "!{timestamp:yyyy}"]
    {
        let folder = folders(&layout, rows(&[(Some(0), Some(device))])).remove(0);
        let names: Vec<_> = folder.split('/').collect();
        assert_eq!((names.len(), names[0], names[2], names[3]), (4, "raw", "x", ""), "{device:?} makes {folder}");
        assert!(!matches!(names[1], "." | "..") && !names[1].starts_with(['.', '_']), "{device:?} makes {folder}");
    }
}

#[test]
fn what_has_no_place_lies_under_the_error_prefix_with_the_reason() {
    let prefix = text(Some("!{partitionKeyFromQuery:device}/!{timestamp:yyyy}/"));
    let long = "x".repeat(256);
    let given = [(Some(0), Some("a")), (Some(0), Some(long.as_str())), (Some(0), Some("b")), (Some(0), Some("c"))];
    let layout = by_time(LayoutText { partitions_max: 2, ..prefix });
    let expected = [
        ("a/1970/", vec![0]),
        ("b/1970/", vec![2]),
        ("errors/key-too-long/1970/01/01/00/", vec![1]),
        ("errors/partitions-exceeded/1970/01/01/00/", vec![3]),
    ];
    assert_eq!(split(&layout, rows(&given)), expected.map(|(folder, rows)| (folder.to_owned(), rows)));
    let named = LayoutText { error_prefix: Some("bad/!{firehose:error-output-type}/"), ..prefix };
    assert_eq!(folders(&by_time(named), rows(&given[1..2])), ["bad/key-too-long/"]);
}

#[test]
fn dead_letters_lie_by_their_reason() {
    let mut letters = DeadLetters::default();
    for reason in ["invalid_json", "range.temperature", "../x"] {
        let letter = DeadLetter {
            received_at_us: us("2026-03-07T16:05:09Z"),
            stage: "telemetry",
            reason,
            detail: None,
            topic: None,
            position: None,
            payload: b"{",
        };
        letters.push(letter);
    }
    let letters = letters.take();
    let errors =
        LayoutText { error_prefix: Some("bad/!{firehose:error-output-type}/!{timestamp:yyyy}/"), ..text(None) };
    let layout = Layout::new(errors, Clock::Column(0), &letters.schema()).unwrap();
    let split = layout.split(vec![(letters.clone(), None)]).unwrap();
    let folders: Vec<_> = split.keys().map(|place| place.folder(b"")).collect();
    assert_eq!(folders, ["bad/%2E.%2Fx/2026/", "bad/invalid_json/2026/", "bad/range.temperature/2026/"]);
    let both = Layout::new(LayoutText { prefix: Some("x/"), ..errors }, Clock::Receipt, &letters.schema());
    assert_eq!(both.err().unwrap().key, "prefix");
}

#[test]
fn mistakes_name_the_key_and_the_place_in_it() {
    let prefix = |prefix| refusal(text(Some(prefix)));
    for (template, message, part) in [
        ("raw/!{timestamp:yyyy", "an expression is never closed", "!{timestamp:yyyy"),
        ("raw/!{time:yyyy}/", "\"time\" is no namespace of expressions", "!{time:yyyy}"),
        ("raw/!{yyyy}/", "\"!{yyyy}\" is no expression", "!{yyyy}"),
        ("!{firehose:uuid}/", "firehose has no value \"uuid\"", "!{firehose:uuid}"),
        (
            "!{firehose:error-output-type}/",
            "rows that are not refused have no error type",
            "!{firehose:error-output-type}",
        ),
        ("x/!{partitionKeyFromQuery:devise}/", "the input has no column \"devise\"", "!{partitionKeyFromQuery:devise}"),
        (
            "!{partitionKeyFromQuery:value}/",
            "column \"value\" is Float64, not text, a whole number or a bool",
            "!{partitionKeyFromQuery:value}",
        ),
    ] {
        let error = prefix(template);
        assert_eq!((error.key.as_str(), error.message.as_str()), ("prefix", message), "{template}");
        assert_eq!(&template[error.within.expect("a place")], part);
    }
    let week = prefix("!{timestamp:YYYY}/");
    assert!(week.message.contains("\"YYYY\"") && week.hint.unwrap().contains("write yyyy"));
    for (template, message) in [
        ("raw", "a prefix names folders, and this one ends without a slash"),
        ("/raw/", "a folder has no name, or one that leads elsewhere"),
        ("a//b/", "a folder has no name, or one that leads elsewhere"),
        ("../raw/", "a folder has no name, or one that leads elsewhere"),
        ("a\\b/", "a control character or a backslash is no part of a folder's name"),
        ("number=!{partitionKeyFromQuery:device}/", "column \"number\" has the name of a folder"),
    ] {
        let template = if template == "raw" { "raw!{firehose:random-string}" } else { template };
        assert_eq!(prefix(template).message, message, "{template}");
    }
    assert_eq!(prefix(&*format!("{}/", "x".repeat(256)).leak()).message, "the prefix is too long");
    let errors = |error_prefix| {
        refusal(LayoutText { error_prefix: Some(error_prefix), ..text(Some("!{partitionKeyFromQuery:device}/")) })
    };
    assert_eq!(errors("!{partitionKeyFromQuery:device}/").message, "an error prefix takes no values of columns");
    let nothing = refusal(LayoutText { error_prefix: Some("bad/"), ..text(None) });
    assert_eq!(nothing.key, "error_output_prefix");
}
