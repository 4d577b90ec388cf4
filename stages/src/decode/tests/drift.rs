//! What payloads hold that no column asks for.

use pipeline_engine::Counter;

use super::*;
use crate::decode::UnknownFields;

const COLUMNS: &str = "id = \"text\"\ntemp = { type = \"float64\", path = \"state.reported.temp\" }\n";
const REST: &str = "rest = { type = \"json\", rest = true }\n";

/// Decodes the payloads, and returns what becomes of them, how many unknown fields were counted, and what is told.
fn drifted<P: AsRef<[u8]>>(
    columns: &str,
    policy: UnknownFields,
    format: Format,
    payloads: &[P],
) -> (Decoded, u64, Vec<String>) {
    let count = Counter::default();
    let mut decoder =
        Decoder::new(Some(&schema(columns)), format, "devices").with_unknown_fields(policy, count.clone());
    for (position, payload) in (1..).zip(payloads) {
        decoder.push(message(payload.as_ref(), position));
    }
    let Rows::Typed(table, _) = &mut decoder.rows else { panic!("there is a schema") };
    let news = table.drift.flush();
    (decoder.take(), count.get(), news)
}

#[test]
fn an_unknown_field_is_counted_each_time_and_told_once() {
    let payloads = [
        r#"{"id":"a","fan":1,"state":{"reported":{"temp":2.5,"unit":"C"},"v":[1]}}"#,
        r#"{"fan":2.5,"id":"b","state":{"v":null,"reported":{"unit":"F"}}}"#,
        r#"[{"id":"c","fan":true},{"id":"d"}]"#,
    ];
    let (decoded, count, news) = drifted(COLUMNS, UnknownFields::Ignore, Format::Json, &payloads);
    assert_eq!(refusals(&decoded.rejected), [""; 0]);
    assert_eq!(lines(&decoded.rows), "{\"id\":\"a\",\"temp\":2.5}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n{\"id\":\"d\"}\n");
    assert_eq!(count, 7);
    assert_eq!(
        news,
        [
            r#"messages have a field "fan" that no column asks for: it is left out"#,
            r#"messages have a field "state.reported.unit" that no column asks for: it is left out"#,
            r#"messages have a field "state.v" that no column asks for: it is left out"#,
        ]
    );
}

#[test]
fn twins_tell_of_a_field_once_and_count_together() {
    let count = Counter::default();
    let mut decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices")
        .with_unknown_fields(UnknownFields::Ignore, count.clone());
    let mut twin = decoder.twin();
    let mut news = Vec::new();
    for decoder in [&mut twin, &mut decoder] {
        decoder.push(message(br#"{"id":"a","fan":1}"#, 1));
        decoder.push(message(br#"{"id":"a","fan":1,"v":"hot"}"#, 2));
        let Rows::Typed(table, _) = &mut decoder.rows else { panic!("there is a schema") };
        news.extend(table.drift.flush());
        assert_eq!(decoder.take().rows.num_rows(), 2);
    }
    assert_eq!(count.get(), 6);
    assert_eq!(news.len(), 2, "one for each name: {news:?}");
}

#[test]
fn a_column_keeps_what_no_other_asks_for_at_its_place() {
    let payloads = [
        r#"{"fan":1,"id":"a","state":{"reported":{"unit":"C","temp":2.5,"x":{"y":[1, null]}},"v":-0.5},"on":true}"#,
        r#"[{"id":"b"},{"id":"c","later":"\u00e9"}]"#,
        r#"{"id":"d","state":{"reported":{"temp":1}}}"#,
    ];
    let columns = format!("{REST}{COLUMNS}");
    let (decoded, count, news) = drifted(&columns, UnknownFields::Ignore, Format::Json, &payloads);
    assert_eq!(refusals(&decoded.rejected), [""; 0]);
    let rest = decoded.rows.column_by_name("rest").unwrap().as_string::<i32>().clone();
    assert_eq!(
        rest.iter().collect::<Vec<_>>(),
        [
            Some(r#"{"fan":1,"state":{"reported":{"unit":"C","x":{"y":[1,null]}},"v":-0.5},"on":true}"#),
            None,
            Some(r#"{"later":"é"}"#),
            None,
        ]
    );
    assert_eq!((count, news.len()), (6, 6));
    assert!(news[0].ends_with("\"fan\" that no column asks for: column \"rest\" keeps it"), "{}", news[0]);
}

#[test]
fn all_formats_keep_the_same() {
    let value =
        serde_json::json!({ "id": "a", "n": 7, "state": { "reported": { "temp": 1.5, "unit": "C" }, "z": [1] } });
    let columns = format!("{REST}{COLUMNS}");
    let kept = |format, payload: Vec<u8>| {
        let (decoded, count, _) = drifted(&columns, UnknownFields::Ignore, format, &[payload]);
        assert_eq!(refusals(&decoded.rejected), [""; 0]);
        (lines(&decoded.rows), count)
    };
    let json = kept(Format::Json, serde_json::to_vec(&value).unwrap());
    assert_eq!(json.1, 3);
    assert_eq!(kept(Format::Cbor, cbor4ii::serde::to_vec(Vec::new(), &value).unwrap()), json);
    assert_eq!(kept(Format::MessagePack, rmp_serde::to_vec(&value).unwrap()), json);
}

#[test]
fn a_refused_message_keeps_nothing_for_the_next_one() {
    let payloads =
        [r#"{"fan":1,"id":7}"#, r#"{"id":"b"}"#, r#"[{"id":"c","x":1},{"x":2,"id":null,"state":3}]"#, r#"{"id":"d"}"#];
    let (decoded, ..) = drifted(&format!("{COLUMNS}{REST}"), UnknownFields::Ignore, Format::Json, &payloads);
    assert_eq!(lines(&decoded.rows), "{\"id\":\"b\"}\n{\"id\":\"d\"}\n");
    assert_eq!(decoded.rejected.num_rows(), 2);
}

#[test]
fn by_policy_an_unknown_field_is_a_dead_letter_and_its_neighbours_are_rows() {
    let payloads =
        [r#"{"id":"a"}"#, r#"{"id":"b","state":{"reported":{"unit":"C"}}}"#, r#"{"id":"c","x":1}"#, r#"{"id":"d"}"#];
    let (decoded, count, news) = drifted(COLUMNS, UnknownFields::Reject, Format::Json, &payloads);
    assert_eq!(lines(&decoded.rows), "{\"id\":\"a\"}\n{\"id\":\"d\"}\n");
    assert_eq!(
        refusals(&decoded.rejected),
        [
            r#"unknown_field: no column asks for the field "state.reported.unit""#,
            r#"unknown_field: no column asks for the field "x""#,
        ]
    );
    assert_eq!((count, news.len()), (2, 2));
    assert!(news[1].ends_with("\"x\" that no column asks for: its messages are dead letters"));
}

#[test]
fn what_stands_inside_an_object_that_a_column_takes_whole_is_known() {
    let columns = "state = \"json\"\ntemp = { type = \"float64\", path = \"state.temp\" }\n";
    for policy in [UnknownFields::Ignore, UnknownFields::Reject] {
        let (decoded, count, news) =
            drifted(&format!("{columns}{REST}"), policy, Format::Json, &[r#"{"state":{"temp":1,"unit":"C"}}"#]);
        assert_eq!(lines(&decoded.rows), "{\"state\":\"{\\\"temp\\\":1,\\\"unit\\\":\\\"C\\\"}\",\"temp\":1.0}\n");
        assert_eq!((count, news.len()), (0, 0));
    }
}

#[test]
fn a_value_of_another_kind_is_told_once_a_kind() {
    let payloads = [
        r#"{"id":1}"#,
        r#"{"id":2}"#,
        r#"{"id":[1]}"#,
        r#"{"id":"a"}"#,
        r#"{"id":true}"#,
        r#"{"state":{"reported":{"temp":"warm"}}}"#,
    ];
    let (decoded, _, news) = drifted(COLUMNS, UnknownFields::Ignore, Format::Json, &payloads);
    assert_eq!((decoded.rows.num_rows(), decoded.rejected.num_rows()), (1, 5));
    assert_eq!(
        news,
        [
            "column \"id\" must be text, and messages have a number: they are dead letters",
            "column \"id\" must be text, and messages have an array: they are dead letters",
            "column \"id\" must be text, and messages have true: they are dead letters",
            "column \"temp\" must be float64, and messages have text: they are dead letters",
        ]
    );
}

#[test]
fn names_without_end_are_told_up_to_a_bound_and_counted_beyond() {
    let payloads: Vec<String> = (0..3_000).map(|number| format!("{{\"f{number}\":1}}")).collect();
    let (_, count, news) = drifted(COLUMNS, UnknownFields::Ignore, Format::Json, &payloads);
    assert_eq!((count, news.len()), (3_000, 1_001));
    assert!(news[1_000].ends_with("no more are told"));
}

#[test]
fn a_name_as_long_as_a_message_is_cut_where_it_is_told() {
    let payload = format!("{{\"{}\":1}}", "é".repeat(100_000));
    let (decoded, count, news) = drifted(COLUMNS, UnknownFields::Reject, Format::Json, &[&payload]);
    assert_eq!((count, news.len()), (1, 0));
    let refusal = &refusals(&decoded.rejected)[0];
    assert!(refusal.len() < 200 && refusal.ends_with("é…\""), "{refusal}");
}

#[test]
fn no_name_of_a_device_breaks_the_line_that_it_is_told_on() {
    let (_, _, news) = drifted(COLUMNS, UnknownFields::Ignore, Format::Json, &[r#"{"a\n\u001b[2Jb\u202e":1}"#]);
    assert!(news[0].contains(r#"a\n\u{1b}[2Jb\u{202e}"#), "{}", news[0]);
}

#[test]
fn a_field_of_a_csv_file_that_no_column_asks_for_is_kept_as_text() {
    let read = |columns: &str, policy, records: &[&[&[u8]]]| {
        let count = Counter::default();
        let mut decoder =
            Decoder::new(Some(&schema(columns)), Format::Json, "file").with_unknown_fields(policy, count.clone());
        let header = decoder.bind_header(["id", "fan", "state.reported.temp", "x"].into_iter()).unwrap();
        let verdicts: Vec<_> = (1..)
            .zip(records)
            .map(|(position, fields)| {
                decoder
                    .push_record(&message(b"", position), &header, fields.iter().copied())
                    .err()
                    .map(|fault| fault.reason)
            })
            .collect();
        let rows = decoder.take().rows;
        (verdicts, lines(&rows), count.get())
    };
    let records: [&[&[u8]]; 3] = [&[b"a", b"1", b"2.5", b""], &[b"b", b"", b"", b""], &[b"c", b"", b"", b"q\"q"]];
    let (verdicts, rows, count) = read(&format!("{COLUMNS}{REST}"), UnknownFields::Ignore, &records);
    assert_eq!((verdicts, count), (vec![None; 3], 2));
    assert_eq!(
        rows,
        "{\"id\":\"a\",\"temp\":2.5,\"rest\":\"{\\\"fan\\\":\\\"1\\\"}\"}\n{\"id\":\"b\"}\n{\"id\":\"c\",\"rest\":\"{\\\"x\\\":\\\"q\\\\\\\"q\\\"}\"}\n"
    );
    let (verdicts, rows, _) = read(COLUMNS, UnknownFields::Reject, &records);
    assert_eq!(verdicts, [Some("unknown_field"), None, Some("unknown_field")]);
    assert_eq!(rows, "{\"id\":\"b\"}\n");
}
