//! CBOR and MessagePack next to JSON: the same rows from all three, and no payload that breaks them.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const COLUMNS: &str = "i = \"int64\"\ns = \"int16\"\nf = \"float64\"\nb = \"bool\"\nt = { type = \"text\", required = true }\n\
                       at = \"timestamp\"\nj = \"json\"\nn = { type = \"int32\", path = \"deep.er.n\" }";
const FORMATS: [Format; 3] = [Format::Json, Format::Cbor, Format::MessagePack];

fn encode(format: Format, value: &Value) -> Vec<u8> {
    match format {
        Format::Json => serde_json::to_vec(value).unwrap(),
        Format::Cbor => cbor4ii::serde::to_vec(Vec::new(), &WithNull(value)).unwrap(),
        Format::MessagePack => rmp_serde::to_vec(value).unwrap(),
    }
}

/// The encoder writes serde's unit, which serde_json takes for null, as an empty array.
struct WithNull<'a>(&'a Value);

impl serde::Serialize for WithNull<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_none(),
            Value::Array(items) => serializer.collect_seq(items.iter().map(WithNull)),
            Value::Object(entries) => serializer.collect_map(entries.iter().map(|(key, value)| (key, WithNull(value)))),
            scalar => scalar.serialize(serializer),
        }
    }
}

fn reason_of(columns: &str, format: Format, payload: &[u8]) -> String {
    let decoded = decode(columns, format, &[payload]);
    assert_eq!(decoded.rows.num_rows(), 0, "{}", lines(&decoded.rows));
    refusals(&decoded.rejected).concat().split(':').next().unwrap().to_owned()
}

#[test]
fn floats_that_are_no_numbers_are_refused_in_every_format() {
    for (format, nan) in [
        (Format::Cbor, b"\xa1\x61f\xfb\x7f\xf8\0\0\0\0\0\0".as_slice()),
        (Format::Cbor, b"\xa1\x61f\xfa\x7f\x80\0\0"),
        (Format::Cbor, b"\xa1\x61f\xf9\x7e\0"),
        (Format::MessagePack, b"\x81\xa1f\xcb\x7f\xf0\0\0\0\0\0\0"),
        (Format::MessagePack, b"\x81\xa1f\xca\xff\xc0\0\0"),
    ] {
        for columns in ["f = \"float64\"", "f = \"float32\"", "f = \"int64\"", "f = \"timestamp\"", "f = \"json\""] {
            assert_eq!(reason_of(columns, format, nan), "not_finite", "{columns} {nan:x?}");
        }
        assert_eq!(reason_of("f = \"text\"", format, nan), "wrong_type");
    }
}

#[test]
fn cbor_tags_and_small_floats_are_read_through() {
    let columns = "a = \"float64\"\nat = \"timestamp\"\nb = \"binary\"";
    // 55799({"a": 1.5_1, "at": 0("2026-01-31T12:00:00Z"), "b": h'01ff'})
    let first = b"\xd9\xd9\xf7\xa3\x61a\xf9\x3e\x00\x62at\xc0\x742026-01-31T12:00:00Z\x61b\x42\x01\xff";
    // {_ "at": 1(1769860800), "a": 2(h'0100'), "x": 5([])}
    let second = b"\xbf\x62at\xc1\x1a\x69\x7d\xee\xc0\x61a\xc2\x42\x01\x00\x61x\xc5\x80\xff";
    let decoded = decode(columns, Format::Cbor, &[first.as_slice(), second, b"\xa1\x61a\x01"]);
    assert_eq!(refusals(&decoded.rejected), [""; 0]);
    assert_eq!(
        lines(&decoded.rows),
        "{\"a\":1.5,\"at\":\"2026-01-31T12:00:00Z\",\"b\":\"01ff\"}\n{\"a\":256.0,\"at\":\"2026-01-31T12:00:00Z\"}\n{\"a\":1.0}\n"
    );
}

#[test]
fn what_becomes_of_cbor_does_not_depend_on_what_came_before() {
    let tagged = b"\xa1\x62at\xc1\x01".as_slice();
    let tag_behind = [tagged, b"\xc1"].concat();
    let tags_in_a_stranger = [b"\xa1\x61x".as_slice(), &[0xc1; 200], b"\x01"].concat();
    for (payload, reason) in [
        (b"\xa1\x61x\x01\xc1".as_slice(), Some("trailing_data")),
        (&tag_behind, Some("invalid_cbor")),
        (b"\xa1\x61j\x9f\x01\xc1\xff", Some("invalid_cbor")),
        (b"\xa1\x61j\xc2\xc1\x41\x01", Some("invalid_cbor")),
        (b"\xa1\x61t\x7f\xc1\x61x\xff", Some("invalid_cbor")),
        (&tags_in_a_stranger, None),
    ] {
        let columns = "at = \"timestamp\"\nj = \"json\"\nt = \"text\"";
        for before in [b"\xa0".as_slice(), tagged] {
            let decoded = decode(columns, Format::Cbor, &[before, payload]);
            let found = refusals(&decoded.rejected).concat();
            assert_eq!(found.split(':').next().filter(|found| !found.is_empty()), reason, "{payload:x?} {found}");
        }
    }
}

#[test]
fn cbor_large_integers_are_what_they_hold() {
    let value = |columns: &str, bignum: &[u8]| {
        let payload = [b"\xa1\x61v", bignum].concat();
        lines(&decode(columns, Format::Cbor, &[payload]).rows)
    };
    // 2(h'07'), 3(h'07'), 2(h''), and both ends of 64 bits.
    assert_eq!(value("v = \"int16\"", b"\xc2\x41\x07"), "{\"v\":7}\n");
    assert_eq!(value("v = \"int16\"", b"\xc3\x41\x07"), "{\"v\":-8}\n");
    assert_eq!(value("v = \"int16\"", b"\xc2\x40"), "{\"v\":0}\n");
    assert_eq!(
        value("v = \"int64\"", b"\xc2\x48\x7f\xff\xff\xff\xff\xff\xff\xff"),
        format!("{{\"v\":{}}}\n", i64::MAX)
    );
    assert_eq!(
        value("v = \"int64\"", b"\xc3\x48\x7f\xff\xff\xff\xff\xff\xff\xff"),
        format!("{{\"v\":{}}}\n", i64::MIN)
    );
    let seventeen_bytes = [b"\xa1\x61v\xc2\x51".as_slice(), &[1; 17]].concat();
    assert_eq!(reason_of("v = \"int64\"", Format::Cbor, &seventeen_bytes), "out_of_range");
    let rfc3339 = "v = { type = \"timestamp\", format = \"rfc3339\" }";
    assert_eq!(reason_of(rfc3339, Format::Cbor, b"\xa1\x61v\x1b\xff\xff\xff\xff\xff\xff\xff\xff"), "wrong_type");
}

#[test]
fn msgpack_timestamps_are_timestamps() {
    let at = |extension: &[u8]| [b"\x81\xa2at".as_slice(), extension].concat();
    let payloads = [
        at(b"\xd6\xff\x69\x7d\xee\xc0"),
        at(&[b"\xd7\xff".as_slice(), &(500_000_000_u64 << 34 | 1_769_860_800).to_be_bytes()].concat()),
        at(&[b"\xc7\x0c\xff".as_slice(), &999_999_999_u32.to_be_bytes(), &(-1_i64).to_be_bytes()].concat()),
    ];
    let decoded = decode("at = \"timestamp\"", Format::MessagePack, &payloads);
    assert_eq!(
        lines(&decoded.rows),
        "{\"at\":\"2026-01-31T12:00:00Z\"}\n{\"at\":\"2026-01-31T12:00:00.500Z\"}\n{\"at\":\"1969-12-31T23:59:59.999999Z\"}\n"
    );
    assert_eq!(reason_of("at = \"timestamp\"", Format::MessagePack, &at(b"\xd6\x05\x69\x7d\xee\xc0")), "wrong_type");
    assert_eq!(reason_of("at = \"int64\"", Format::MessagePack, &at(b"\xd6\xff\x69\x7d\xee\xc0")), "wrong_type");
}

#[test]
fn bytes_are_bytes_where_the_format_has_them() {
    for (format, bytes, text) in [
        (Format::Cbor, b"\xa1\x61v\x43\x00\x01\xff".as_slice(), b"\xa1\x61v\x62AA".as_slice()),
        (Format::MessagePack, b"\x81\xa1v\xc4\x03\x00\x01\xff", b"\x81\xa1v\xa2AA"),
    ] {
        let decoded = decode("v = \"binary\"", format, &[bytes]);
        assert_eq!(lines(&decoded.rows), "{\"v\":\"0001ff\"}\n");
        assert_eq!(lines(&decode("v = \"json\"", format, &[bytes]).rows), "{\"v\":\"\\\"AAH/\\\"\"}\n");
        assert_eq!(reason_of("v = \"binary\"", format, text), "wrong_type", "text is base64 only in JSON");
        assert_eq!(reason_of("v = \"text\"", format, bytes), "wrong_type");
    }
}

#[test]
fn whole_numbers_may_be_keys() {
    let columns = "v = { type = \"int64\", path = \"-2\" }";
    assert_eq!(lines(&decode(columns, Format::Cbor, &[b"\xa2\x21\x07\x42ab\x08"]).rows), "{\"v\":7}\n");
    assert_eq!(lines(&decode(columns, Format::MessagePack, &[b"\x82\xfe\x07\x05\x08"]).rows), "{\"v\":7}\n");
}

#[test]
fn text_that_is_no_utf_8_is_not_stored_as_bytes() {
    for columns in ["v = \"json\"", "v = \"binary\"", "v = \"text\"", "v = \"int16\""] {
        for text in
            [b"\x81\xa1v\xa2\xff\xfe".as_slice(), b"\x81\xa1v\xd9\x02\xff\xfe", b"\x81\xa1v\xda\x00\x02\xff\xfe"]
        {
            assert_eq!(reason_of(columns, Format::MessagePack, text), "invalid_utf8", "{columns} {text:x?}");
        }
    }
    let bytes_beside_text = b"\x81\xa1v\x92\xc4\x02\xff\xfe\xa2\xff\xfe";
    assert_eq!(reason_of("v = \"json\"", Format::MessagePack, bytes_beside_text), "invalid_utf8");
    let bytes = decode("v = \"json\"", Format::MessagePack, &[b"\x81\xa1v\x92\xc4\x02\xff\xfe\xc5\x00\x01\xff"]);
    assert_eq!(lines(&bytes.rows), "{\"v\":\"[\\\"//4=\\\",\\\"/w==\\\"]\"}\n");
    // What nobody reads may hold anything.
    assert_eq!(decode("v = \"json\"", Format::MessagePack, &[b"\x81\xa1x\xa1\xff"]).rows.num_rows(), 1);
}

#[test]
fn a_key_that_is_neither_text_nor_a_number_leads_nowhere() {
    // true, null, 1.5, [1], {1: 2}, h'01', and what only one of the formats has.
    let cbor = ["f5", "f6", "fa3fc00000", "8101", "a10102", "4101", "c249010000000000000000", "3bffffffffffffffff"];
    let msgpack = ["c3", "c0", "ca3fc00000", "9101", "810102", "c40101", "d40501", "d6ff00000000"];
    for (format, keys, map, text) in [(Format::Cbor, cbor, 0xa0, 0x61), (Format::MessagePack, msgpack, 0x80, 0xa1)] {
        for key in keys {
            let key = (0..key.len()).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap());
            let key: Vec<u8> = key.collect();
            // {KEY: 0, "v": 7} and {"j": {KEY: 0}}
            let stranger = [[map | 2].as_slice(), &key, &[0, text, b'v', 7]].concat();
            assert_eq!(lines(&decode("v = \"int16\"", format, &[stranger]).rows), "{\"v\":7}\n", "{format:?} {key:x?}");
            let in_json = [[map | 1, text, b'j', map | 1].as_slice(), &key, &[0]].concat();
            let whole_number = matches!(key[0], 0xc2 | 0x3b);
            if !whole_number {
                assert_eq!(reason_of("j = \"json\"", format, &in_json), "wrong_type", "{format:?} {key:x?}");
            }
        }
    }
}

#[test]
fn nesting_ends_in_binary_formats_too() {
    for (format, open, close) in [(Format::Cbor, 0x81, 0x01), (Format::MessagePack, 0x91, 0x01)] {
        let head: &[u8] = if format == Format::Cbor { b"\xa1\x61v" } else { b"\x81\xa1v" };
        let nested = |depth: usize| [head, &vec![open; depth - 1], &[close]].concat();
        assert_eq!(decode("v = \"json\"", format, &[nested(DEPTH_MAX)]).rows.num_rows(), 1, "{format:?}");
        for columns in ["v = \"json\"", "x = \"json\""] {
            assert_eq!(reason_of(columns, format, &nested(100_000)), "too_deep", "{format:?} {columns}");
        }
        assert_eq!(reason_of("v = \"json\"", format, &nested(DEPTH_MAX + 1)), "too_deep", "{format:?}");
    }
}

/// A device's reading: some keys missing, some null, strangers among them, in an order of its own.
fn reading() -> impl Strategy<Value = Map<String, Value>> {
    let micros = -60_000_000_000_000_000..250_000_000_000_000_000_i64;
    let time = micros.prop_map(|micros| chrono::DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339());
    let some = |value: BoxedStrategy<Value>| {
        proptest::option::weighted(0.8, value).prop_map(|value| value.unwrap_or(Value::Null))
    };
    let value = (
        some(any::<i64>().prop_map(Value::from).boxed()),
        some(any::<i16>().prop_map(Value::from).boxed()),
        some(any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(Value::from).boxed()),
        some(any::<bool>().prop_map(Value::from).boxed()),
        "[^\u{0}]{0,20}".prop_map(Value::from),
        some(time.prop_map(Value::from).boxed()),
        some(any_json().boxed()),
        some(any::<i32>().prop_map(Value::from).boxed()),
    );
    (value, any::<bool>(), vec((any::<proptest::sample::Index>(), any_json()), 0..3)).prop_map(
        |((i, s, f, b, t, at, j, n), deep, strangers)| {
            let deep = if deep { json!({ "x": [1], "er": { "n": n } }) } else { Value::Null };
            let mut entries: Vec<(String, Value)> =
                [("i", i), ("s", s), ("f", f), ("b", b), ("t", t), ("at", at), ("j", j), ("deep", deep)]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into();
            for (index, (place, value)) in strangers.into_iter().enumerate() {
                entries.insert(place.index(entries.len()), (format!("stranger {index}"), value));
            }
            entries.into_iter().collect()
        },
    )
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        "[^\u{0}]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("[a-z]{1,3}", inner), 0..4).prop_map(|all| all.into_iter().collect::<Map<_, _>>().into())
        ]
    })
}

/// What the row of a reading is as JSON, told by serde_json's own tree.
fn expected(reading: &Map<String, Value>) -> Value {
    let mut row = Map::new();
    for (key, value) in reading {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("i" | "s" | "b" | "t", value) => drop(row.insert(key.clone(), value.clone())),
            ("at", value) => {
                let time = chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
                row.insert(key.clone(), json!(time.timestamp_micros()));
            }
            ("j", value) => drop(row.insert(key.clone(), json!(value.to_string()))),
            ("deep", value) if !value["er"]["n"].is_null() => {
                drop(row.insert("n".to_owned(), value["er"]["n"].clone()))
            }
            _ => {}
        }
    }
    row.into()
}

/// The rows with times as microseconds, since JSON lines cut them to what they need, and without
/// the floats, which serde_json does not read back to the bit.
fn actual(rows: &RecordBatch) -> Vec<Value> {
    let times = rows.column_by_name("at").unwrap().as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let parsed = lines(rows);
    let parsed = parsed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let with_time = parsed.enumerate().map(|(row, mut value)| {
        if let Some(at) = value.get_mut("at") {
            *at = json!(times.value(row));
        }
        value.as_object_mut().unwrap().remove("f");
        value
    });
    with_time.collect()
}

proptest! {
    #[test]
    fn rows_come_back_from_every_format(readings in vec(reading(), 1..6), as_array in any::<bool>()) {
        for format in FORMATS {
            let payloads: Vec<Vec<u8>> = match as_array {
                true => vec![encode(format, &Value::from_iter(readings.iter().cloned().map(Value::from)))],
                false => readings.iter().map(|reading| encode(format, &reading.clone().into())).collect(),
            };
            let decoded = decode(COLUMNS, format, &payloads);
            prop_assert_eq!(refusals(&decoded.rejected), Vec::<String>::new());
            let floats = decoded.rows.column_by_name("f").unwrap().as_primitive::<arrow::datatypes::Float64Type>();
            for (found, sent) in floats.iter().zip(readings.iter().map(|reading| reading["f"].as_f64())) {
                let (Some(found), Some(sent)) = (found, sent) else {
                    prop_assert_eq!(found, sent);
                    continue;
                };
                // Of 17 digits of JSON the parser may get the last bits wrong.
                let slack = if format == Format::Json { 4 } else { 0 };
                prop_assert!(found.to_bits().abs_diff(sent.to_bits()) <= slack, "{} from {} in {:?}", found, sent, format);
            }
            prop_assert_eq!(actual(&decoded.rows), readings.iter().map(expected).collect::<Vec<_>>(), "{:?}", format);
        }
    }

    #[test]
    fn any_bytes_have_one_outcome_and_leave_their_neighbours_alone(bytes in vec(any::<u8>(), 0..60)) {
        for format in FORMATS {
            check_one_outcome(format, &bytes)?;
        }
    }

    #[test]
    fn a_damaged_payload_has_one_outcome(reading in reading(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        for format in FORMATS {
            let mut payload = encode(format, &reading.clone().into());
            let at = at.index(payload.len());
            if cut { payload.truncate(at) } else { payload[at] = byte }
            check_one_outcome(format, &payload)?;
        }
    }
}

fn check_one_outcome(format: Format, payload: &[u8]) -> Result<(), TestCaseError> {
    let good = encode(format, &json!({ "t": "good", "i": 1 }));
    let decoded = decode(COLUMNS, format, &[good.as_slice(), payload, &good]);
    let (rows, letters) = (decoded.rows.num_rows(), decoded.rejected.num_rows());
    prop_assert!((letters == 1 && rows == 2) || (letters == 0 && rows > 2), "{} rows, {} dead letters", rows, letters);
    let text = lines(&decoded.rows);
    let good = "{\"i\":1,\"t\":\"good\"}\n";
    prop_assert!(text.starts_with(good) && text.ends_with(good), "{}", text);
    if letters == 1 {
        let kept = decoded.rejected.column_by_name("payload").unwrap().as_binary::<i32>().value(0).to_vec();
        prop_assert_eq!(kept, payload);
    }
    Ok(())
}
