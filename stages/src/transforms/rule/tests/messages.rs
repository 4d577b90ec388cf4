//! Rules over messages that have not been decoded.

use arrow::array::AsArray;
use pipeline_engine::stage::{Batch, Port};
use pipeline_engine::{Partition, Span};

use super::{build, message_schema, messages, over_messages, payloads};
use crate::transforms::testing::apply;

#[test]
fn a_message_leaves_with_its_topic_and_the_payload_of_the_rule() {
    let outcome = over_messages(
        "SELECT *, timestamp() AS ts, topic(2) AS site FROM 'iot/+' WHERE temperature > 30",
        &[
            (Some("iot/a"), br#"{"temperature":31,"unit":"C"}"#),
            (Some("iot/b"), br#"{"temperature":29}"#),
            (Some("other"), br#"{"temperature":99}"#),
            (Some("iot/c"), br#"{"humidity":99}"#),
            (Some("iot/d"), br#"{"temperature":"45.5"}"#),
            (None, br#"{"temperature":45}"#),
        ],
    );
    assert_eq!(outcome.texts(Port::MAIN, "topic"), ["iot/a", "iot/d"]);
    assert_eq!(
        payloads(&outcome),
        [
            r#"{"temperature":31,"unit":"C","ts":1769860800000,"site":"a"}"#,
            r#"{"temperature":"45.5","ts":1769860800000,"site":"d"}"#
        ]
    );
    assert_eq!(outcome.count(Port::REJECTED), 0);
}

#[test]
fn a_message_that_is_no_json_is_a_dead_letter_with_its_payload_and_its_neighbours_go_on() {
    let outcome =
        over_messages("SELECT a FROM 'x'", &[(Some("x"), b"{\"a\":1}"), (Some("x"), b"\xff{"), (Some("y"), b"{")]);
    assert_eq!(payloads(&outcome), [r#"{"a":1}"#]);
    let letters = outcome.port(Port::REJECTED).unwrap();
    assert_eq!(letters.column_by_name("payload").unwrap().as_binary::<i32>().value(0), b"\xff{");
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["invalid_json"]);
    assert_eq!(outcome.texts(Port::REJECTED, "topic"), ["x"]);
}

#[test]
fn a_rule_that_does_not_look_into_messages_takes_any_bytes() {
    let of: &[(Option<&str>, &[u8])] = &[(Some("x"), b"\xff\x00")];
    assert_eq!(payloads(&over_messages("SELECT * FROM 'x' WHERE timestamp() % 2 = 0", of)).len(), 1);
    assert_eq!(payloads(&over_messages("SELECT encode(*, 'base64') AS data FROM 'x'", of)), [r#"{"data":"/wA="}"#]);
}

#[test]
fn a_batch_of_which_nothing_passes_goes_on_empty() {
    let outcome = over_messages("SELECT * FROM 'x' WHERE a > 1", &[(Some("x"), b"{}")]);
    assert_eq!(outcome.0.len(), 1, "the promise needs one share");
    assert_eq!(outcome.count(Port::MAIN), 0);
}

#[test]
fn what_is_random_is_the_same_in_a_replay_and_differs_between_rows_and_batches() {
    let draw = |span: Span, received_at_us: i64| {
        let mut transform =
            build("SELECT newuuid() AS id, rand() AS r WHERE n <> 2", "", &message_schema()).unwrap().transform;
        let of: &[(Option<&str>, &[u8])] = &[(None, b"{\"n\":1}"), (None, b"{\"n\":2}"), (None, b"{\"n\":3}")];
        let ack = Partition::new("telemetry/1").open(span, received_at_us);
        payloads(&apply(transform.as_mut(), Batch::new(messages(of), ack)))
    };
    let first = draw(Span::new(1, 3), 5);
    assert_eq!(first, draw(Span::new(1, 3), 5));
    let others = [draw(Span::new(4, 6), 5), draw(Span::new(1, 3), 6)].concat();
    let mut all = [first.clone(), others].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6);
    // A row keeps its draw whichever of its neighbours are filtered out.
    let mut transform =
        build("SELECT newuuid() AS id, rand() AS r WHERE n = 3", "", &message_schema()).unwrap().transform;
    let of: &[(Option<&str>, &[u8])] = &[(None, b"{\"n\":1}"), (None, b"{\"n\":2}"), (None, b"{\"n\":3}")];
    let ack = Partition::new("telemetry/1").open(Span::new(1, 3), 5);
    assert_eq!(payloads(&apply(transform.as_mut(), Batch::new(messages(of), ack))), first[1..]);
}

#[test]
fn every_element_of_an_array_draws_for_itself() {
    let sql = "SELECT VALUE (SELECT VALUE (SELECT VALUE newuuid() FROM inner) FROM e)";
    let all = payloads(&over_messages(sql, &[(None, br#"{"e":[{"inner":[1,2]},{"inner":[1,2,3]}]}"#)]));
    let lists: Vec<Vec<String>> = serde_json::from_str(&all[0]).unwrap();
    let mut ids = lists.concat();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:?}");
}

#[test]
fn types_and_versions_that_mean_nothing_here_are_refused() {
    for (keys, key, part) in [
        ("types = { a = \"text\" }", "types.a", "no columns"),
        ("sql_version = \"2015-10-08\"", "sql_version", "is not known"),
        ("topic_column = \"tpic\"", "topic_column", "no column \"tpic\""),
        ("client_id_column = \"payload\"", "client_id_column", "not text"),
    ] {
        let error = build("SELECT * FROM 'x'", keys, &message_schema()).err().unwrap();
        assert_eq!(error.key, key);
        assert!(error.message.contains(part), "{error}");
    }
}
