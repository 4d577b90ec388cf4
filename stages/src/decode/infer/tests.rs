use proptest::prelude::*;
use serde_json::json;

use super::samples::{SampleFormat, Samples};
use super::*;
use crate::decode::{Decoder, Format, Message};

fn proposal(messages: &[Value]) -> Proposal {
    let mut observations = Observations::default();
    assert!(messages.iter().all(|message| observations.observe(message)));
    observations.propose()
}

fn read(format: SampleFormat, text: &[u8]) -> (Proposal, u64, Option<(u64, String)>) {
    let mut samples = Samples::default();
    samples.read(text, format, 1_000_000).unwrap();
    (samples.observations.propose(), samples.refused, samples.first_refused)
}

#[test]
fn a_reading_becomes_columns_with_types_paths_and_what_was_seen() {
    let messages = [
        json!({ "deviceId": "d1", "ts": 1_769_860_800_123_i64, "temp": 20, "ok": true, "state": { "reported": { "fan": "on", "rpm": 900 } }, "tags": [1], "note": null }),
        json!({ "deviceId": "d2", "ts": 1_769_860_801_123_i64, "temp": 20.5, "at": "2026-01-31T12:00:00Z", "state": { "reported": { "fan": "off" } }, "a.b": 1 }),
    ];
    assert_eq!(
        proposal(&messages).toml("telemetry"),
        r#"[schema.telemetry]
device_id          = { type = "text", required = true, path = "deviceId" }       # in all
ok                 = "bool"                                                      # in 1 of 2
state_reported_fan = { type = "text", path = "state.reported.fan" }              # in all
state_reported_rpm = { type = "int64", path = "state.reported.rpm" }             # in 1 of 2, 900 to 900
tags               = "json"                                                      # in 1 of 2, an array
temp               = "float64"                                                   # in all, 20 to 20.5
ts                 = { type = "timestamp", required = true, format = "unix_ms" } # in all
at                 = "timestamp"                                                 # in 1 of 2
# left out: "note" was always null
# left out: "a.b": no path leads to a key that is empty or has a dot in it
"#
    );
}

#[test]
fn a_field_of_two_kinds_is_json_and_a_map_of_devices_is_one_column() {
    let mut messages = vec![json!({ "x": 1 }), json!({ "x": "a" }), json!({ "x": { "y": 1 } })];
    messages.extend((0..100).map(|device| json!({ "by_device": { format!("d{device}"): device } })));
    let kinds: Vec<_> =
        proposal(&messages).columns.iter().map(|column| (column.column.name.clone(), column.column.kind)).collect();
    assert_eq!(kinds, [("x".to_owned(), ColumnType::Json), ("by_device".to_owned(), ColumnType::Json)]);
}

#[test]
fn numbers_are_times_only_if_they_are_called_so_and_lie_where_times_do() {
    let of = |key: &str, number: f64| proposal(&[json!({ key: number })]).columns[0].column.clone();
    for (key, number, format) in [
        ("timestamp", 1_769_860_800.0, TimestampFormat::UnixS),
        ("event_time", 1_769_860_800_000.0, TimestampFormat::UnixMs),
        ("createdTimestamp", 1_769_860_800_000_000.0, TimestampFormat::UnixUs),
        ("ts", 1.769_860_8e18, TimestampFormat::UnixNs),
    ] {
        let column = of(key, number);
        assert_eq!((column.kind, column.format), (ColumnType::Timestamp, format), "{key}");
    }
    assert_eq!(of("ts", 17.0).kind, ColumnType::Float64);
    assert_eq!(of("serial", 1_769_860_800.0).kind, ColumnType::Float64);
}

#[test]
fn names_are_plain_and_no_two_columns_have_one() {
    let names: Vec<String> = proposal(&[json!({ "Temp C": 1, "temp-c": 2, "TempC": 3, "9": 4, "": 5, "é": 6 })])
        .columns
        .iter()
        .map(|column| column.column.name.clone())
        .collect();
    assert_eq!(names, ["c9", "temp_c", "temp_c_2", "temp_c_3", "_"]);
}

#[test]
fn samples_come_as_lines_as_one_array_and_as_csv() {
    let lines = b"{\"a\":1}\n\n[{\"a\":2},{\"a\":3}]\nnot json\n7\n{\"a\":4}";
    let (found, refused, first) = read(SampleFormat::Json, lines);
    assert_eq!((found.messages, refused, first.map(|first| first.0)), (4, 2, Some(4)));
    let array = b"[\n {\"a\": 1,\n  \"b\": \"x\"},\n {\"a\": 2}\n]\n";
    assert_eq!(read(SampleFormat::Json, array).0.messages, 2);
    let csv = b"id,state.temp,on,when\nd1,20.5,true,2026-01-31T12:00:00Z\nd2,,false,\n";
    let (found, refused, _) = read(SampleFormat::Csv, csv);
    let columns: Vec<_> = found
        .columns
        .iter()
        .map(|column| (column.column.name.as_str(), column.column.kind, column.column.required))
        .collect();
    assert_eq!(
        columns,
        [
            ("id", ColumnType::Text, true),
            ("on", ColumnType::Bool, false),
            ("state_temp", ColumnType::Float64, false),
            ("when", ColumnType::Timestamp, false),
        ]
    );
    assert_eq!((found.messages, refused), (2, 0));
}

#[test]
fn gzip_is_known_by_its_first_bytes() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"{\"a\":1}\n{\"a\":2}\n").unwrap();
    assert_eq!(read(SampleFormat::Json, &gzip.finish().unwrap()).0.messages, 2);
    assert_eq!(read(SampleFormat::Json, b"").0.messages, 0);
}

/// Values that devices send, nested a little.
fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e12_f64..1e12).prop_map(Value::from),
        "[a-zé ]{0,6}".prop_map(Value::from),
        Just(json!("2026-01-31T12:00:00Z")),
        (1_600_000_000_000_i64..1_800_000_000_000).prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("ts".to_owned()), Just("id".to_owned()), Just("a.b".to_owned()), "[aB]{0,2}"]
}

proptest! {
    #[test]
    fn every_sample_decodes_by_the_schema_that_is_proposed(
        messages in prop::collection::vec(prop::collection::btree_map(key(), value(), 0..5), 1..8)
    ) {
        let messages: Vec<Value> = messages.into_iter().map(|map| Value::Object(map.into_iter().collect())).collect();
        let proposal = proposal(&messages);
        let mut decoder = Decoder::new(Some(&proposal.schema()), Format::Json, "samples");
        for (position, message) in (1_u64..).zip(&messages) {
            let payload = serde_json::to_vec(message).unwrap();
            decoder.push(Message { topic: None, payload: &payload, received_at_us: 0, position: position.into() });
        }
        let decoded = decoder.take();
        prop_assert_eq!(decoded.rows.num_rows(), messages.len(), "{:?}\n{}", decoded.rejected, proposal.toml("t"));
        // What is printed declares the same.
        let cx = pipeline_engine::testing::build_context("s", &proposal.toml("t"));
        if !proposal.columns.is_empty() {
            let declared = cx.schema("schema", "t").unwrap();
            prop_assert_eq!(&*declared, &proposal.schema());
        }
    }
}

#[test]
fn a_line_that_was_cut_off_is_told_as_such_and_not_by_its_newline() {
    let (_, refused, first) = read(SampleFormat::Json, b"{\"a\": 1}\n{\"a\": \"x\n{\"a\": 2}\n");
    assert_eq!((refused, first), (1, Some((2, "EOF while parsing a string at column 8".to_owned()))));
}
