//! What fits which column, in JSON.

use super::*;

/// Each payload's value for the column `v`, or the reason of its refusal.
fn values(kind: &str, cases: &[(&str, &str)]) {
    for (value, expected) in cases {
        let outcome = outcome(&format!("v = {kind}"), &format!("{{\"v\":{value}}}"));
        let expected = if expected.contains(": ") { (*expected).to_owned() } else { format!("{{\"v\":{expected}}}") };
        let short = if expected.ends_with(": ") { &outcome[..expected.len().min(outcome.len())] } else { &outcome };
        assert_eq!(short, expected, "{kind} from {value}");
    }
}

#[test]
fn whole_numbers_keep_to_their_type() {
    values(
        "\"int16\"",
        &[
            ("-32768", "-32768"),
            ("32767", "32767"),
            ("5.0", "5"),
            ("32768", "out_of_range: column \"v\" is int16 and can't hold 32768"),
            ("1e9", "out_of_range: "),
            ("5.5", "wrong_type: column \"v\" must be int16, found 5.5"),
            ("true", "wrong_type: column \"v\" must be int16, found true"),
            ("\"5\"", "wrong_type: column \"v\" must be int16, found \"5\""),
            ("[5]", "wrong_type: column \"v\" must be int16, found an array"),
            ("{}", "wrong_type: column \"v\" must be int16, found an object"),
        ],
    );
    values("\"int32\"", &[("2147483647", "2147483647"), ("-2147483649", "out_of_range: ")]);
    values(
        "\"int64\"",
        &[
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("9007199254740991.0", "9007199254740991"),
            ("9007199254740993.0", "out_of_range: column \"v\" is int64 and can't hold 9007199254740992"),
            ("9223372036854775808", "out_of_range: "),
            ("18446744073709551616", "out_of_range: "),
            ("9007199254740994.0", "out_of_range: "),
        ],
    );
}

#[test]
fn floats_take_every_finite_number() {
    values(
        "\"float64\"",
        &[
            ("1.5", "1.5"),
            ("-7", "-7.0"),
            ("18446744073709551615", "1.8446744073709552e19"),
            ("1e400", "not_finite: "),
            ("NaN", "invalid_json: "),
            ("Infinity", "invalid_json: "),
            ("\"1.5\"", "wrong_type: column \"v\" must be float64, found \"1.5\""),
        ],
    );
    values("\"float32\"", &[("1.5", "1.5"), ("16777217", "16777216.0"), ("1e39", "out_of_range: ")]);
}

#[test]
fn booleans_are_no_numbers() {
    values("\"bool\"", &[("true", "true"), ("false", "false"), ("1", "wrong_type: "), ("\"true\"", "wrong_type: ")]);
}

#[test]
fn text_is_what_a_database_can_store() {
    values(
        "\"text\"",
        &[
            ("\"grün\\n\\ud83d\\ude00\"", "\"grün\\n😀\""),
            ("\"\"", "\"\""),
            ("5", "wrong_type: column \"v\" must be text, found 5"),
            ("\"a\\u0000b\"", "nul: column \"v\" has the character U+0000 in its text"),
            ("\"\\ud800\"", "invalid_json: "),
            ("\"a\nb\"", "invalid_json: "),
        ],
    );
    let longest = format!("{{\"v\":\"{}\"}}", "x".repeat(TEXT_BYTES_MAX));
    assert!(outcome("v = \"text\"", &longest).starts_with("{\"v\":\"xxx"));
    let longer = format!("{{\"v\":\"{}\"}}", "x".repeat(TEXT_BYTES_MAX + 1));
    assert_eq!(outcome("v = \"text\"", &longer), "too_long: column \"v\" may hold 65536 bytes, found 65537");
}

#[test]
fn json_columns_keep_any_value_as_compact_text() {
    values(
        "\"json\"",
        &[
            ("{ \"b\" : [ 1 , 2.50 , null ] , \"a\" : { } }", "\"{\\\"b\\\":[1,2.5,null],\\\"a\\\":{}}\""),
            ("18446744073709551615", "\"18446744073709551615\""),
            ("\"x\"", "\"\\\"x\\\"\""),
            ("[]", "\"[]\""),
            ("false", "\"false\""),
            ("{\"a\":\"\\u0000\"}", "nul: "),
            ("{\"a\\u0000\":1}", "nul: "),
            ("[1e400]", "not_finite: "),
            ("[1,]", "invalid_json: "),
        ],
    );
    let columns = schema("v = \"json\"").arrow();
    assert!(pipeline_engine::schema::is_json(columns.field(0)));
}

#[test]
fn binary_columns_take_base64_of_any_dialect() {
    let hex = |text: &str| format!("\"{text}\"");
    values(
        "\"binary\"",
        &[
            ("\"+/8=\"", &hex("fbff")),
            ("\"+/8\"", &hex("fbff")),
            ("\"-_8\"", &hex("fbff")),
            ("\"\"", &hex("")),
            ("\"+_8\"", "bad_base64: "),
            ("\"a\"", "bad_base64: "),
            ("\"héllo\"", "bad_base64: "),
            ("5", "wrong_type: "),
        ],
    );
}

#[test]
fn timestamps_keep_to_the_declared_format() {
    values(
        "\"timestamp\"",
        &[
            ("\"2026-01-31T12:00:00.5+00:00\"", "\"2026-01-31T12:00:00.500Z\""),
            ("1769860800", "\"2026-01-31T12:00:00Z\""),
            ("1769860800123", "\"2026-01-31T12:00:00.123Z\""),
            ("1769860800.25", "\"2026-01-31T12:00:00.250Z\""),
            (
                "\"yesterday\"",
                "bad_timestamp: column \"v\" must be a time like 2026-01-31T12:00:00Z, found \"yesterday\"",
            ),
            ("\"1769860800\"", "bad_timestamp: "),
            ("\"9999-12-31T23:59:59-01:00\"", "out_of_range: "),
            ("true", "wrong_type: "),
        ],
    );
    values(
        "{ type = \"timestamp\", format = \"rfc3339\" }",
        &[
            ("\"2026-01-31 12:00:00\"", "\"2026-01-31T12:00:00Z\""),
            ("1769860800", "wrong_type: "),
            ("1769860800.5", "wrong_type: "),
        ],
    );
    values(
        "{ type = \"timestamp\", format = \"unix_ms\" }",
        &[
            ("1769860800123", "\"2026-01-31T12:00:00.123Z\""),
            ("5", "\"1970-01-01T00:00:00.005Z\""),
            ("-1", "\"1969-12-31T23:59:59.999Z\""),
            ("1e300", "out_of_range: "),
            ("\"2026-01-31T12:00:00Z\"", "wrong_type: "),
        ],
    );
}

#[test]
fn null_and_absence_are_refused_only_where_the_column_is_required() {
    let columns = "a = { type = \"int64\", required = true }\nb = \"text\"";
    assert_eq!(outcome(columns, "{\"a\":1}"), "{\"a\":1}");
    assert_eq!(outcome(columns, "{\"b\":null,\"a\":1}"), "{\"a\":1}");
    let missing = "missing: column \"a\" is required, and the message has no value for it";
    assert_eq!(outcome(columns, "{\"b\":\"x\"}"), missing);
    assert_eq!(outcome(columns, "{\"a\":null,\"b\":\"x\"}"), missing);
    assert_eq!(outcome(columns, "{}"), missing);
    assert_eq!(outcome("v = { type = \"json\", required = true }", "{\"v\":null}").split(':').next(), Some("missing"));
}

#[test]
fn paths_lead_into_nested_objects() {
    let columns = "temp = { type = \"float64\", path = \"state.reported.temp\" }\n\
                   hum = { type = \"float64\", path = \"state.reported.hum\" }\n\
                   v = { type = \"int64\", path = \"version\", required = true }";
    let nested = "{\"state\":{\"desired\":{\"temp\":9},\"reported\":{\"x\":[{}],\"hum\":2,\"temp\":1}},\"version\":7}";
    assert_eq!(outcome(columns, nested), "{\"temp\":1.0,\"hum\":2.0,\"v\":7}");
    assert_eq!(outcome(columns, "{\"version\":7,\"state\":null}"), "{\"v\":7}");
    assert_eq!(outcome(columns, "{\"version\":7,\"state\":{}}"), "{\"v\":7}");
    assert_eq!(
        outcome(columns, "{\"version\":7,\"state\":{\"reported\":5}}"),
        "wrong_type: the key \"state.reported\" must hold an object, found a number"
    );
}

#[test]
fn a_value_can_serve_several_columns() {
    let columns = "all = { type = \"json\", path = \"state\" }\n\
                   temp = { type = \"float64\", path = \"state.temp\" }\n\
                   text = { type = \"text\", path = \"state.at\" }\n\
                   time = { type = \"timestamp\", path = \"state.at\" }";
    assert_eq!(
        outcome(columns, "{\"state\":{\"temp\":1.5,\"at\":\"2026-01-31T12:00:00Z\"}}"),
        "{\"all\":\"{\\\"temp\\\":1.5,\\\"at\\\":\\\"2026-01-31T12:00:00Z\\\"}\",\"temp\":1.5,\
         \"text\":\"2026-01-31T12:00:00Z\",\"time\":\"2026-01-31T12:00:00Z\"}"
    );
    assert_eq!(outcome(columns, "{}"), "{}");
    assert_eq!(outcome(columns, "{\"state\":{\"at\":5}}"), "wrong_type: column \"text\" must be text, found 5");
}

#[test]
fn a_key_that_leads_to_a_column_stands_once() {
    let columns = "a = \"int64\"\nb = { type = \"int64\", path = \"n.b\" }";
    assert_eq!(outcome(columns, "{\"a\":1,\"x\":1,\"x\":2}"), "{\"a\":1}");
    assert_eq!(outcome(columns, "{\"a\":1,\"a\":1}"), "duplicate_key: the key \"a\" stands twice in one object");
    assert_eq!(outcome(columns, "{\"a\":null,\"a\":1}"), "duplicate_key: the key \"a\" stands twice in one object");
    assert_eq!(
        outcome(columns, "{\"n\":{},\"n\":{\"b\":1}}"),
        "duplicate_key: the key \"n\" stands twice in one object"
    );
}

#[test]
fn columns_come_from_the_message_as_well() {
    let columns = "device = { type = \"text\", topic_segment = 2 }\ntopic = { type = \"text\", message = \"topic\" }\n\
                   at = { type = \"timestamp\", message = \"received_at\" }\nv = \"int64\"";
    let row = "\"device\":\"d7\",\"topic\":\"fleet/d7/state\",\"at\":\"2026-01-31T12:00:00Z\"";
    assert_eq!(outcome(columns, "{\"v\":1}"), format!("{{{row},\"v\":1}}"));
    let far = "x = { type = \"text\", topic_segment = 4, required = true }";
    assert_eq!(outcome(far, "{}"), "missing: column \"x\" is required, and the message has no value for it");
    let mut decoder = Decoder::new(Some(&schema(columns)), Format::Json, "devices");
    decoder.push(Message { topic: None, ..message(b"{\"v\":1}", 1) });
    assert_eq!(lines(&decoder.take().rows), "{\"at\":\"2026-01-31T12:00:00Z\",\"v\":1}\n");
}

#[test]
fn an_array_is_stored_entirely_or_refused_once() {
    let decoded = decode(
        "a = \"int64\"",
        Format::Json,
        &["[{\"a\":1},{\"a\":2}]", "[{\"a\":3},{\"a\":\"x\"},{\"a\":5}]", "{\"a\":6}"],
    );
    assert_eq!(lines(&decoded.rows), "{\"a\":1}\n{\"a\":2}\n{\"a\":6}\n");
    assert_eq!(refusals(&decoded.rejected), ["wrong_type: element 2: column \"a\" must be int64, found \"x\""]);
    assert_eq!(outcome("a = \"int64\"", "[]"), "empty: the array holds no objects");
    assert_eq!(
        outcome("a = \"int64\"", "[{\"a\":1},5]"),
        "not_an_object: element 2: expected an object, found a number"
    );
    assert_eq!(
        outcome("a = \"int64\"", "[[{\"a\":1}]]"),
        "not_an_object: element 1: expected an object, found an array"
    );
}

#[test]
fn what_is_no_object_is_refused() {
    for payload in ["5", "-5", "1.5", "true", "null", "\"text\""] {
        let outcome = outcome("a = \"int64\"", payload);
        assert!(outcome.starts_with("not_an_object: expected an object or an array of objects, found "), "{outcome}");
    }
}

#[test]
fn nesting_ends_at_the_limit_even_in_fields_that_nobody_reads() {
    let nested = |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert_eq!(outcome("a = \"int64\"", &nested(DEPTH_MAX)), "{}");
    assert_eq!(outcome("a = \"json\"", &nested(DEPTH_MAX + 1)), "too_deep: arrays and objects may nest 32 deep");
    assert_eq!(outcome("a = \"int64\"", &nested(100_000)), "too_deep: arrays and objects may nest 32 deep");
    let brackets_in_text = format!("{{\"x\":\"\\\"{}\",\"a\":1}}", "[".repeat(100));
    assert_eq!(outcome("a = \"int64\"", &brackets_in_text), "{\"a\":1}");
    let wide = format!("[{}]", vec!["{\"a\":1}"; 100].join(","));
    assert_eq!(decode("a = \"int64\"", Format::Json, &[wide]).rows.num_rows(), 100);
}

#[test]
fn keys_are_found_in_any_order_and_among_strangers() {
    let columns = "a = \"int64\"\nb = \"int64\"\nc = \"int64\"";
    let long = "k".repeat(100);
    let strangers = format!("{{\"{long}\":0,\"c\":3,\"\":0,\"b\":2,\"a\":1}}");
    let decoded = decode(
        columns,
        Format::Json,
        &[
            "{\"a\":1,\"b\":2,\"c\":3}",
            "{\"c\":3,\"b\":2,\"a\":1}",
            "{\"x\":{\"a\":9},\"a\":1,\"y\":\"b\",\"b\":2,\"z\":null,\"c\":3}",
            "{\"\\u0061\":1,\"b\":2,\"c\":3}",
            &strangers,
            "{\"a\":1,\"b\":2,\"c\":3}",
        ],
    );
    assert_eq!(lines(&decoded.rows), "{\"a\":1,\"b\":2,\"c\":3}\n".repeat(6));
}

#[test]
fn a_dead_letter_says_where_the_message_came_from() {
    let decoded = decode("a = \"int64\"", Format::Json, &["{\"a\":1}", "{\"a\":"]);
    assert_eq!(
        lines(&decoded.rejected),
        "{\"received_at\":\"2026-01-31T12:00:00Z\",\"stage\":\"devices\",\"reason\":\"invalid_json\",\
         \"detail\":\"EOF while parsing a value at line 1 column 5\",\"topic\":\"fleet/d7/state\",\"position\":\"2\",\
         \"payload\":\"7b2261223a\"}\n"
    );
}

#[test]
fn without_a_schema_rows_are_the_messages() {
    let mut decoder = Decoder::new(None, Format::Json, "devices");
    assert_eq!(decoder.outputs().len(), 1);
    decoder.push(message(b"\xff", 1));
    decoder.push(Message { topic: None, ..message(b"", 2) });
    assert_eq!((decoder.rows(), decoder.bytes()), (2, 1));
    let Decoded { rows, rejected } = decoder.take();
    assert_eq!(rejected.num_rows(), 0);
    assert_eq!(rows.schema(), decoder.outputs()[0].1);
    assert_eq!(
        lines(&rows),
        "{\"topic\":\"fleet/d7/state\",\"payload\":\"ff\",\"received_at\":\"2026-01-31T12:00:00Z\"}\n\
         {\"payload\":\"\",\"received_at\":\"2026-01-31T12:00:00Z\"}\n"
    );
}

#[test]
fn taking_starts_over() {
    let columns = "a = \"int64\"\nt = \"text\"\nb = \"bool\"";
    let mut decoder = Decoder::new(Some(&schema(columns)), Format::Json, "devices");
    for round in 0..3 {
        for payload in ["{\"a\":1,\"t\":\"x\",\"b\":true}", "{\"t\":\"torn\",\"b\":true,\"a\":\"x\"}", "{\"b\":false}"]
        {
            decoder.push(message(payload.as_bytes(), 1));
        }
        assert_eq!(decoder.rows(), 3, "round {round}");
        let decoded = decoder.take();
        assert_eq!(lines(&decoded.rows), "{\"a\":1,\"t\":\"x\",\"b\":true}\n{\"b\":false}\n");
        assert_eq!(decoded.rejected.num_rows(), 1);
        assert_eq!((decoder.rows(), decoder.bytes()), (0, 0));
    }
    let nothing = decoder.take();
    assert_eq!((nothing.rows.num_rows(), nothing.rejected.num_rows()), (0, 0));
}
