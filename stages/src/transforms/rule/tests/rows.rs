//! Rules over typed rows.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use pipeline_engine::schema::{is_json, timestamp_type};
use pipeline_engine::stage::{Batch, Port};

use super::{RECEIVED_AT_US, build, over_rows, row_schema};
use crate::transforms::rule::RuleConfig;
use crate::transforms::testing::{apply, example};

/// Three rows: one with everything, one hot, one with nothing but its id.
fn sample() -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["dev-1", "dev-2", "dev-3"])),
        Arc::new(Float64Array::from(vec![Some(21.5), Some(40.0), None])),
        Arc::new(Float32Array::from(vec![Some(0.5), Some(0.25), None])),
        Arc::new(Int32Array::from(vec![Some(7), Some(-7), None])),
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
        Arc::new(StringArray::from(vec![Some(r#"{"v":[1,{"w":2.5}],"n":null}"#), Some("17"), None])),
        Arc::new(BinaryArray::from_opt_vec(vec![Some(b"hello".as_slice()), Some(b"\xff".as_slice()), None])),
        Arc::new(
            TimestampMicrosecondArray::from(vec![Some(RECEIVED_AT_US + 999), Some(-1), None]).with_timezone("UTC"),
        ),
        Arc::new(StringArray::from(vec![Some("iot/a"), Some("iot/b"), None])),
    ];
    RecordBatch::try_new(row_schema(), columns).unwrap()
}

fn column(sql_expression: &str) -> Vec<String> {
    over_rows(&format!("SELECT {sql_expression} AS x"), "", sample()).texts(Port::MAIN, "x")
}

fn output(sql: &str, keys: &str) -> Schema {
    build(sql, keys, &row_schema()).unwrap().outputs[0].1.as_ref().clone()
}

#[test]
fn the_example_in_the_header_filters_and_adds() {
    let text = example(include_str!("../mod.rs"));
    assert!(toml::from_str::<RuleConfig>(&text).is_ok(), "{text}");
    let outcome = over_rows("SELECT *, timestamp() AS ts FROM 'iot/+' WHERE temperature > 30", "", sample());
    assert_eq!(outcome.texts(Port::MAIN, "device_id"), ["dev-2"]);
    assert_eq!(outcome.texts(Port::MAIN, "ts"), ["0"], "a detached batch has no time of receipt");
    assert_eq!(outcome.port(Port::MAIN).unwrap().num_columns(), 10);
}

#[test]
fn a_result_has_the_type_that_its_expression_has() {
    for (expression, wanted) in [
        ("count + 1", DataType::Int64),
        ("count / 2", DataType::Int64),
        ("count + 0.5", DataType::Float64),
        ("count + device_id", DataType::Utf8),
        ("device_id * 2", DataType::Float64),
        ("floor(temperature)", DataType::Int64),
        ("temperature > 30", DataType::Boolean),
        ("reading.v > 1", DataType::Boolean),
        ("time - 1", DataType::Int64),
        ("CASE armed WHEN true THEN 1 ELSE 2.5 END", DataType::Float64),
        ("CASE armed WHEN true THEN 'a' END", DataType::Utf8),
        ("raw", DataType::Binary),
        ("time", timestamp_type()),
        ("count", DataType::Int32),
    ] {
        let schema = output(&format!("SELECT {expression} AS x"), "");
        assert_eq!(*schema.field(0).data_type(), wanted, "{expression}");
        assert!(!is_json(schema.field(0)), "{expression}");
    }
    for expression in
        ["reading.v", "reading", "[count]", "CASE armed WHEN true THEN 1 ELSE 'a' END", "reading + 1", "null"]
    {
        let schema = output(&format!("SELECT {expression} AS x"), "");
        assert!(is_json(schema.field(0)), "{expression}");
    }
    assert!(!output("SELECT device_id AS id", "").field(0).is_nullable(), "a column keeps what it is");
}

#[test]
fn null_is_undefined_and_each_type_counts_as_its_json() {
    assert_eq!(column("temperature + 1"), ["22.5", "41.0", ""]);
    assert_eq!(column("isUndefined(temperature)"), ["false", "false", "true"]);
    assert_eq!(column("temperature > 30"), ["false", "true", ""]);
    assert_eq!(column("NOT armed"), ["false", "true", ""]);
    assert_eq!(column("time"), ["2026-01-31T12:00:00.000999Z", "1969-12-31T23:59:59.999999Z", ""]);
    assert_eq!(column("time + 0"), ["1769860800000", "-1", ""]);
    assert_eq!(column("decode(raw, 'base64')"), ["\"hello\"", "null", ""]);
    assert_eq!(column("'' + raw"), ["aGVsbG8=", "/w==", ""]);
    assert_eq!(column("reading.v[1].w"), ["2.5", "", ""]);
    assert_eq!(column("reading + 1"), ["", "18", ""]);
    assert_eq!(column("isNull(reading.n)"), ["true", "false", "false"]);
    assert_eq!(column("get(*, 'count')"), ["7", "-7", ""]);
    assert_eq!(column("topic(2)"), ["a", "b", ""]);
}

#[test]
fn a_named_result_takes_the_place_of_the_star_column_of_its_name() {
    let outcome = over_rows("SELECT *, upper(device_id) AS device_id, 1 AS v.a, 2 AS v.b.c", "", sample());
    let rows = outcome.port(Port::MAIN).unwrap();
    assert_eq!(rows.schema().index_of("device_id").unwrap(), 0);
    assert_eq!(outcome.texts(Port::MAIN, "device_id"), ["DEV-1", "DEV-2", "DEV-3"]);
    assert_eq!(outcome.texts(Port::MAIN, "v")[0], r#"{"a":1,"b":{"c":2}}"#);
}

#[test]
fn declared_types_hold_or_the_row_is_a_dead_letter() {
    let keys = "types = { n = \"int16\", at = \"timestamp\", ratio = \"float32\" }";
    let sql = "SELECT device_id, temperature * 1000 AS n, time + 0.5 AS at, temperature AS ratio, reading.v AS v";
    let outcome = over_rows(sql, keys, sample());
    assert_eq!(outcome.texts(Port::MAIN, "device_id"), ["dev-1", "dev-3"]);
    assert_eq!(outcome.texts(Port::MAIN, "n"), ["21500", ""]);
    assert_eq!(outcome.texts(Port::MAIN, "at"), ["2026-01-31T12:00:00.000500Z", ""]);
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["type.n"]);
    assert_eq!(outcome.texts(Port::REJECTED, "detail"), ["n: 40000 does not fit its type"]);
    // The row as it came, so that it can be sent again.
    assert_eq!(outcome.payloads()[0]["temperature"], 40.0);

    for (keys, key, part) in [
        ("types = { y = \"text\" }", "types.y", "gives no column \"y\""),
        ("types = { x = \"bool\" }", "types.x", "can be bool"),
    ] {
        let error = build("SELECT temperature + 1 AS x", keys, &row_schema()).err().unwrap();
        assert_eq!(error.key, key);
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn every_declared_type_takes_what_is_it_and_nothing_else() {
    for (expression, kind, wanted) in [
        ("count", "int64", "7"),
        ("count", "int16", "7"),
        ("temperature", "text", "21.5"),
        ("reading", "text", r#"{"v":[1,{"w":2.5}],"n":null}"#),
        ("device_id", "json", "\"dev-1\""),
        ("reading.v[0] = 1", "bool", "true"),
        ("'TRUE'", "bool", "true"),
        ("'2026-01-31T12:00:00Z'", "timestamp", "2026-01-31T12:00:00Z"),
        ("raw", "text", "aGVsbG8="),
        ("'aGVsbG8='", "binary", "68656c6c6f"),
        ("reading.v[1].w", "float64", "2.5"),
    ] {
        let keys = format!("types = {{ x = \"{kind}\" }}");
        let outcome = over_rows(&format!("SELECT {expression} AS x"), &keys, sample().slice(0, 1));
        assert_eq!(outcome.texts(Port::MAIN, "x"), [wanted], "{expression} as {kind}");
    }
    for (expression, kind) in [
        ("temperature", "int32"),
        ("device_id", "float64"),
        ("device_id", "bool"),
        ("device_id", "timestamp"),
        ("device_id", "binary"),
        ("reading", "int64"),
        ("1E200", "float32"),
    ] {
        let keys = format!("types = {{ x = \"{kind}\" }}");
        let outcome = over_rows(&format!("SELECT {expression} AS x"), &keys, sample().slice(0, 1));
        assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["type.x"], "{expression} as {kind}");
    }
}

#[test]
fn from_is_held_against_the_topic_unless_told_otherwise() {
    let ids = |sql: &str, keys: &str| over_rows(sql, keys, sample()).texts(Port::MAIN, "device_id");
    assert_eq!(ids("SELECT * FROM 'iot/b'", ""), ["dev-2"]);
    assert_eq!(ids("SELECT * FROM 'iot/b'", "check_topic = false").len(), 3);
    assert_eq!(ids("SELECT *", "").len(), 3);
    let without = row_schema().project(&[0, 1]).unwrap();
    let error = build("SELECT * FROM 'iot/b'", "", &Arc::new(without.clone())).err().unwrap();
    assert!(error.message.contains("to hold FROM against"), "{error}");
    assert!(error.hint.unwrap().contains("check_topic = false"));
    let mut transform = build("SELECT * FROM '#'", "", &Arc::new(without.clone())).unwrap().transform;
    let outcome = apply(transform.as_mut(), Batch::detached(sample().project(&[0, 1]).unwrap()));
    assert_eq!(outcome.count(Port::MAIN), 3, "every topic, also one that is not known");
    let error = build("SELECT topic(1) AS t", "", &Arc::new(without)).err().unwrap();
    assert!(error.hint.unwrap().contains("topic_column"));
}

#[test]
fn clients_and_times_of_receipt_come_from_the_columns_that_are_named() {
    let keys = "client_id_column = \"topic\"\nreceived_at_column = \"time\"";
    let outcome = over_rows(
        "SELECT clientid() AS c, timestamp() AS t, parse_time('yyyy-MM-dd', timestamp()) AS d",
        keys,
        sample(),
    );
    assert_eq!(outcome.texts(Port::MAIN, "c"), ["iot/a", "iot/b", "n/a"]);
    assert_eq!(outcome.texts(Port::MAIN, "t")[..2], ["1769860800000", "-1"]);
    assert_eq!(outcome.texts(Port::MAIN, "d")[..2], ["2026-01-31", "1969-12-31"]);
}

#[test]
fn columns_of_the_usual_names_are_found_where_they_fit() {
    let fields = |client: DataType| {
        Arc::new(Schema::new(vec![
            Field::new("client_id", client, true),
            Field::new("received_at", timestamp_type(), true),
        ]))
    };
    let times = TimestampMicrosecondArray::from(vec![5_000_000]).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec!["c-1"])), Arc::new(times)];
    let schema = fields(DataType::Utf8);
    let mut transform = build("SELECT clientid() AS c, timestamp() AS t", "", &schema).unwrap().transform;
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    let outcome = apply(transform.as_mut(), Batch::detached(rows));
    assert_eq!(outcome.texts(Port::MAIN, "c"), ["c-1"]);
    assert_eq!(outcome.texts(Port::MAIN, "t"), ["5000"]);
    assert!(build("SELECT clientid() AS c", "", &fields(DataType::Int64)).is_err(), "a number is no client's name");
}

#[test]
fn a_variable_is_computed_once_and_survives_the_filter() {
    let sql = "SET @t = temperature * 2, @id = newuuid() SELECT @t AS t, @id AS a, @id AS b WHERE @t > 50";
    let outcome = over_rows(sql, "", sample());
    assert_eq!(outcome.texts(Port::MAIN, "t"), ["80.0"]);
    assert_eq!(outcome.texts(Port::MAIN, "a"), outcome.texts(Port::MAIN, "b"));
}
