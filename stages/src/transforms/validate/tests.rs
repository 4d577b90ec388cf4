use pipeline_engine::stage::{Batch, BuiltTransform, Port};
use pipeline_engine::{Partition, Span, testing};
use proptest::prelude::*;

use super::ValidateConfig;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

const ALL_RULES: &str = r#"
    required = ["device_id"]
    range = { temperature = [-40, 85], floor = [-2, 40] }
    pattern = { device_id = "^[a-z0-9-]+$" }
    allowed = { status = ["ok", "warn"] }
    max_text_bytes = "12B"
    max_future = "5m"
    max_past = "30d"
"#;
const DAY_US: i64 = 86_400_000_000;
const RECEIVED_AT_US: i64 = 20_000 * DAY_US;

fn stage(text: &str) -> BuiltTransform {
    built::<ValidateConfig>(text, &context()).unwrap()
}

/// The outcome for readings received together at [`RECEIVED_AT_US`].
fn judge(text: &str, readings: &[Reading]) -> Outcome {
    let partition = Partition::new("p");
    let ack = partition.open(Span::new(7, 9), RECEIVED_AT_US);
    let mut stage = stage(text);
    let outcome = apply(stage.transform.as_mut(), Batch::new(rows(readings), ack));
    assert!(outcome.keeps(&stage.outputs));
    outcome
}

/// The reason and the detail with which one changed reading is rejected.
fn refusal(text: &str, change: impl Fn(&mut Reading)) -> (String, String) {
    let mut readings = vec![Reading::of("dev-1", RECEIVED_AT_US); 3];
    change(&mut readings[1]);
    let outcome = judge(text, &readings);
    assert_eq!((outcome.count(Port::MAIN), outcome.count(Port::REJECTED)), (2, 1));
    (outcome.texts(Port::REJECTED, "reason").remove(0), outcome.texts(Port::REJECTED, "detail").remove(0))
}

fn pair(reason: &str, detail: &str) -> (String, String) {
    (reason.to_owned(), detail.to_owned())
}

#[test]
fn each_rule_names_itself_and_states_the_value() {
    let told = |change: fn(&mut Reading)| refusal(ALL_RULES, change);
    assert_eq!(told(|r| r.device_id = None), pair("required.device_id", "device_id is null"));
    assert_eq!(told(|r| r.humidity = Some(f64::NAN)), pair("finite.humidity", "humidity is NaN, not a finite number"));
    assert_eq!(
        told(|r| r.temperature = Some(99.5)),
        pair("range.temperature", "temperature is 99.5, outside -40 to 85")
    );
    assert_eq!(told(|r| r.floor = Some(-3)), pair("range.floor", "floor is -3, outside -2 to 40"));
    assert_eq!(
        told(|r| r.device_id = Some("Dev\n".to_owned())),
        pair("pattern.device_id", "device_id is \"Dev\\n\", which does not match ^[a-z0-9-]+$")
    );
    assert_eq!(
        told(|r| r.status = Some("bad".to_owned())),
        pair("allowed.status", "status is \"bad\", not one of \"ok\", \"warn\"")
    );
    assert_eq!(
        told(|r| r.device_id = Some("thirteen-byte".to_owned())),
        pair("max_text_bytes.device_id", "device_id has 13 bytes, more than 12")
    );
}

#[test]
fn a_clock_is_judged_by_the_time_of_receipt() {
    let (reason, detail) = refusal(ALL_RULES, |r| r.timestamp = Some(RECEIVED_AT_US + 300_000_001));
    assert_eq!(reason, "future");
    assert_eq!(detail, "timestamp is 2024-10-04T00:05:00.000001Z, 5m 1us after receipt, more than 5m");
    let (reason, detail) = refusal(ALL_RULES, |r| r.timestamp = Some(RECEIVED_AT_US - 31 * DAY_US));
    assert_eq!(reason, "past");
    assert!(detail.contains("before receipt, more than 30d"), "{detail}");
}

#[test]
fn the_bounds_themselves_and_nulls_are_good() {
    let mut readings = vec![Reading::of("dev-1", RECEIVED_AT_US); 4];
    readings[0].temperature = Some(85.0);
    readings[0].timestamp = Some(RECEIVED_AT_US + 300_000_000);
    readings[1].temperature = Some(-40.0);
    readings[1].timestamp = Some(RECEIVED_AT_US - 30 * DAY_US);
    readings[2] = Reading {
        timestamp: None,
        temperature: None,
        humidity: None,
        status: None,
        floor: None,
        ..readings[2].clone()
    };
    readings[3].device_id = Some("twelve-bytes".to_owned());
    let outcome = judge(ALL_RULES, &readings);
    assert_eq!(outcome.port(Port::MAIN), Some(&rows(&readings)));
    assert_eq!(outcome.0.len(), 1, "nothing is sent by rejected");
}

#[test]
fn a_row_is_rejected_once_for_all_its_breaches() {
    let (reason, detail) = refusal(ALL_RULES, |r| {
        r.temperature = Some(f64::INFINITY);
        r.status = Some("bad".to_owned());
        r.timestamp = Some(0);
    });
    assert_eq!(reason, "finite.temperature");
    let details: Vec<&str> = detail.split("; ").collect();
    assert_eq!(details[0], "temperature is inf, not a finite number");
    assert_eq!(details[1], "temperature is inf, outside -40 to 85");
    assert_eq!(details[2], "status is \"bad\", not one of \"ok\", \"warn\"");
    assert!(details[3].starts_with("timestamp is 1970-01-01T00:00:00Z"));
    assert_eq!(details.len(), 4);
}

#[test]
fn a_dead_letter_holds_the_row_and_where_it_came_from() {
    let mut bad = Reading::of("dev-1", RECEIVED_AT_US);
    bad.temperature = Some(99.5);
    let outcome = judge(ALL_RULES, &[bad]);
    assert_eq!(outcome.count(Port::MAIN), 0);
    assert_eq!(outcome.0.len(), 1, "no empty batch is sent onward");
    assert_eq!(outcome.payloads()[0]["temperature"], 99.5);
    assert_eq!(outcome.payloads()[0]["device_id"], "dev-1");
    assert_eq!(outcome.texts(Port::REJECTED, "stage"), ["stage"]);
    assert_eq!(outcome.texts(Port::REJECTED, "position"), ["p 7..9"]);
    assert_eq!(outcome.texts(Port::REJECTED, "received_at"), ["2024-10-04T00:00:00Z"]);
}

#[test]
fn both_parts_carry_the_promise() {
    let partition = Partition::new("p");
    let mut readings = vec![Reading::of("dev-1", 0); 2];
    readings[0].device_id = None;
    let batch = Batch::new(rows(&readings), partition.open(Span::new(1, 2), 0));
    let mut stage = stage("required = [\"device_id\"]");
    let outcome = apply(stage.transform.as_mut(), batch);
    for (_, batch) in outcome.0 {
        assert!(!partition.progress().borrow().is_complete());
        testing::deliver(batch);
    }
    assert!(partition.progress().borrow().is_complete());
    assert!(!partition.progress().borrow().failed);
}

#[test]
fn without_a_time_of_receipt_no_clock_is_judged() {
    let mut stage = stage("max_future = \"5m\"\nmax_past = \"30d\"");
    let batch = Batch::detached(rows(&[Reading::of("dev-1", 0), Reading::of("dev-1", i64::MAX)]));
    assert_eq!(apply(stage.transform.as_mut(), batch).count(Port::MAIN), 2);
}

#[test]
fn whole_numbers_keep_all_their_digits() {
    // As floats, both bounds and the value would be the same number.
    let text = "allowed = { floor = [1, 3] }\nrange = { floor = [1.5, inf] }";
    let (reason, detail) = refusal(text, |r| r.floor = Some(1));
    assert_eq!((reason.as_str(), detail.as_str()), ("range.floor", "floor is 1, outside 2 to 9223372036854775807"));
    let (reason, _) = refusal(text, |r| r.floor = Some(2));
    assert_eq!(reason, "allowed.floor");
}

#[test]
fn truth_values_can_be_listed() {
    let (reason, detail) = refusal("allowed = { armed = [true] }", |r| r.armed = Some(false));
    assert_eq!((reason.as_str(), detail.as_str()), ("allowed.armed", "armed is false, not one of true"));
}

#[test]
fn not_finite_is_allowed_where_the_rule_is_off_but_is_in_no_range() {
    let mut reading = Reading::of("dev-1", 0);
    reading.humidity = Some(f64::NAN);
    assert_eq!(judge("finite = false", &[reading]).count(Port::MAIN), 1);
    let text = "finite = false\nrange = { humidity = [-inf, inf] }";
    assert_eq!(refusal(text, |r| r.humidity = Some(f64::NAN)).0, "range.humidity");
}

#[test]
fn a_long_value_is_cut_in_the_detail_and_whole_in_the_payload() {
    let long = "é".repeat(1000);
    let mut reading = Reading::of("dev-1", RECEIVED_AT_US);
    reading.status = Some(long.clone());
    let outcome = judge(ALL_RULES, &[reading]);
    assert!(outcome.texts(Port::REJECTED, "detail")[0].len() < 300);
    assert_eq!(outcome.payloads()[0]["status"], long);
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = example(include_str!("mod.rs"));
    assert!(text.lines().count() > 2, "{text}");
    built::<ValidateConfig>(&text, &context()).unwrap();
}

#[test]
fn mistakes_name_their_key_and_a_way_out() {
    let cases = [
        ("required = [\"devic_id\"]", "required", "Did you mean \"device_id\"?"),
        ("range = { temperatur = [0, 1] }", "range.temperatur", "Did you mean \"temperature\"?"),
        ("range = { temperature = [1, 0] }", "range.temperature", "minimum 1 is above maximum 0"),
        ("range = { temperature = [nan, 0] }", "range.temperature", "a bound is not a number"),
        ("range = { floor = [1.2, 1.8] }", "range.floor", "no whole number lies between 1.2 and 1.8"),
        ("range = { status = [0, 1] }", "range.status", "column \"status\" is Utf8, not a number"),
        ("pattern = { floor = \"a\" }", "pattern.floor", "not text"),
        ("pattern = { status = \"^[a-z\" }", "pattern.status", "at character 2: unclosed character class"),
        ("pattern = { status = \"é(\" }", "pattern.status", "at character 2: unclosed group"),
        ("allowed = { temperature = [1.5] }", "allowed.temperature", "not text, a whole number or a truth value"),
        ("allowed = { status = [] }", "allowed.status", "no value is allowed"),
        ("allowed = { status = [\"ok\", 2] }", "allowed.status", "2 can't be in column \"status\""),
        ("allowed = { floor = [1.5] }", "allowed.floor", "1.5 can't be in column \"floor\""),
        ("max_past = \"1d\"\ntime_column = \"tmestamp\"", "time_column", "Did you mean \"timestamp\"?"),
        ("max_future = \"1d\"\ntime_column = \"status\"", "time_column", "not a timestamp"),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<ValidateConfig>(text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

fn any_reading() -> impl Strategy<Value = Reading> {
    let device = prop::option::of(prop::sample::select(vec!["dev-1", "dev-2", "DEV", "", "much-too-long-a-name"]));
    let number = prop::option::of(prop_oneof![
        8 => -100.0..200.0f64,
        1 => Just(f64::NAN),
        1 => Just(f64::NEG_INFINITY),
    ]);
    let status = prop::option::of(prop::sample::select(vec!["ok", "warn", "bad"]));
    let time = prop::option::of(RECEIVED_AT_US - 40 * DAY_US..RECEIVED_AT_US + DAY_US);
    (device, time, number, prop::option::of(-10..50i32), status).prop_map(
        |(device, timestamp, number, floor, status)| Reading {
            device_id: device.map(str::to_owned),
            timestamp,
            temperature: number,
            humidity: Some(50.0),
            status: status.map(str::to_owned),
            floor,
            armed: None,
        },
    )
}

/// The rules once more, row by row and as plainly as they can be written.
fn is_good(reading: &Reading) -> bool {
    let text = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= 12);
    let name =
        |id: &str| !id.is_empty() && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    reading.device_id.as_deref().is_some_and(name)
        && reading.temperature.is_none_or(|value| (-40.0..=85.0).contains(&value))
        && reading.floor.is_none_or(|floor| (-2..=40).contains(&floor))
        && reading.status.as_deref().is_none_or(|status| status == "ok" || status == "warn")
        && text(&reading.device_id)
        && reading
            .timestamp
            .is_none_or(|time| (RECEIVED_AT_US - 30 * DAY_US..=RECEIVED_AT_US + 300_000_000).contains(&time))
}

proptest! {
    #[test]
    fn each_row_leaves_by_exactly_one_port(readings in prop::collection::vec(any_reading(), 0..200)) {
        let outcome = judge(ALL_RULES, &readings);
        let (good, bad): (Vec<Reading>, Vec<Reading>) = readings.iter().cloned().partition(is_good);
        prop_assert_eq!(outcome.count(Port::MAIN), good.len());
        prop_assert_eq!(outcome.count(Port::REJECTED), bad.len());
        // In the order in which they came.
        if let Some(kept) = outcome.port(Port::MAIN) {
            prop_assert_eq!(kept, &rows(&good));
        }
        let letters = outcome.payloads();
        for (letter, reading) in letters.iter().zip(&bad) {
            prop_assert_eq!(letter.get("device_id").and_then(|id| id.as_str()), reading.device_id.as_deref());
            prop_assert_eq!(letter.get("floor").and_then(serde_json::Value::as_i64), reading.floor.map(i64::from));
        }
    }
}
