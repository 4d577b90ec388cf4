//! The source against a broker that the test plays itself.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use pipeline_engine::stage::{Batch, BuildError, Fault};
use pipeline_engine::testing::{self, Outlet, deliver};
use rumqttc_v5::mqttbytes::v5::{ConnectReturnCode, Packet, SubscribeReasonCode};
use tokio::task::JoinHandle;

use super::*;
use crate::mqtt_client::fault_broker::{FaultBroker, Peer, within};

const GRANTED: SubscribeReasonCode = SubscribeReasonCode::Success(QoS::AtLeastOnce);

fn config(text: &str) -> MqttSourceConfig {
    serde_json::from_str(text).unwrap()
}

fn build(text: &str) -> Result<BuiltSource, BuildError> {
    config(text).build(&BuildContext::detached("in", BTreeMap::new()))
}

type Run = JoinHandle<Result<(), StageError>>;

/// A source of one row a batch, and what reads it.
fn run(broker: &FaultBroker, more: &str, rows_max: u32) -> (Outlet, Run) {
    let url = broker.url();
    let text = format!(r#"{{"url": "{url}", "topics": ["devices/#"], "batch_rows": 1 {more}}}"#);
    let built = build(&text).unwrap();
    let (cx, outlet) = testing::source(rows_max);
    (outlet, tokio::spawn(built.source.run(cx)))
}

async fn next(outlet: &mut Outlet) -> Batch {
    within(outlet.next()).await.expect("a batch")
}

fn payloads(batch: &Batch) -> Vec<String> {
    let column = batch.rows.column_by_name("payload").unwrap().as_binary::<i32>();
    column.iter().map(|payload| String::from_utf8(payload.unwrap().to_vec()).unwrap()).collect()
}

/// Asks the source to stop when it has nothing left to store, and sees it say goodbye.
async fn stop(outlet: Outlet, mut peer: Peer, run: Run) {
    outlet.stop();
    assert!(matches!(peer.next().await, Some(Packet::Disconnect(_))), "it says goodbye");
    drop(peer);
    within(run).await.unwrap().unwrap();
}

async fn failure(run: Run) -> StageError {
    within(run).await.unwrap().expect_err("the source must end with an error")
}

async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn acks_leave_in_the_order_of_arrival_whatever_order_the_sinks_finish_in() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    for (packet_id, payload) in [(9, "a"), (2, "b"), (5, "c")] {
        peer.publish(packet_id, payload).await;
    }
    let (a, b, c) = (next(&mut outlet).await, next(&mut outlet).await, next(&mut outlet).await);
    deliver(c);
    deliver(b);
    deliver(a);
    assert_eq!([peer.acked().await, peer.acked().await, peer.acked().await], [9, 2, 5]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn acks_of_a_lost_connection_are_dropped_with_it() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    peer.publish(7, "b").await;
    let (a, b) = (next(&mut outlet).await, next(&mut outlet).await);
    drop(peer);
    let mut peer = broker.welcome(true).await;
    deliver(a);
    deliver(b);
    // Another message by the number of an old one: an old ack would acknowledge it unseen.
    peer.publish(7, "other").await;
    let other = next(&mut outlet).await;
    assert_eq!(payloads(&other), ["other"]);
    peer.publish(8, "last").await;
    deliver(next(&mut outlet).await);
    deliver(other);
    assert_eq!([peer.acked().await, peer.acked().await], [7, 8], "and no SUBSCRIBE, since the session is there");
    assert_eq!(outlet.counter("reconnects"), 1);
    assert_eq!(outlet.counter("session_lost"), 0);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_lost_session_is_counted_and_subscribed_anew() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    assert_eq!(outlet.counter("session_lost"), 0, "the first start has no session to lose");
    drop(peer);
    let mut peer = broker.welcome(false).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    assert_eq!((outlet.counter("reconnects"), outlet.counter("session_lost")), (1, 1));
    peer.publish(1, "a").await;
    deliver(next(&mut outlet).await);
    assert_eq!(peer.acked().await, 1);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_session_of_an_earlier_run_is_subscribed_for_what_the_file_says_now() {
    let broker = FaultBroker::start().await;
    let (outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(true).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn what_still_waits_when_the_broker_sends_it_again_is_not_doubled() {
    let broker = FaultBroker::start().await;
    // Room for one row: the first batch is in the queue, the second waits to get in.
    let (mut outlet, run) = run(&broker, r#", "payload_max": "1KiB""#, 1);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    let messages = [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "5")];
    for (packet_id, payload) in messages {
        peer.publish(packet_id, payload).await;
    }
    // Counted when it is received, so all before it were.
    peer.publish(6, vec![b'x'; 2048]).await;
    until(|| outlet.counter("oversize") == 1).await;
    drop(peer);
    let mut peer = broker.welcome(true).await;
    until(|| outlet.counter("reconnects") == 1).await;
    for (packet_id, payload) in messages {
        peer.publish(packet_id, payload).await;
    }
    let mut got = Vec::new();
    while got.len() < 7 {
        let batch = next(&mut outlet).await;
        got.extend(payloads(&batch));
        deliver(batch);
    }
    assert_eq!(got, ["1", "2", "1", "2", "3", "4", "5"], "only what had left twice");
    assert_eq!(outlet.counter("redelivered"), 4, "three rows and the oversize one");
    for (packet_id, _) in messages {
        assert_eq!(peer.acked().await, packet_id);
    }
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_message_sent_twice_on_one_connection_is_one_message() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    for (packet_id, payload) in [(1, "a"), (1, "a"), (2, "b")] {
        peer.publish(packet_id, payload).await;
    }
    let (a, b) = (next(&mut outlet).await, next(&mut outlet).await);
    assert_eq!((payloads(&a), payloads(&b)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    deliver(a);
    deliver(b);
    assert_eq!([peer.acked().await, peer.acked().await], [1, 2]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn an_oversize_payload_leaves_its_beginning_and_holds_nothing_up() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, r#", "payload_max": "10KiB""#, 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, vec![b'x'; 1 << 20]).await;
    peer.publish(2, "small").await;
    let letter = within(outlet.next_rejected()).await.unwrap();
    let text = |name: &str| letter.rows.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!((text("reason").as_str(), text("topic").as_str()), ("oversize", "devices/1"));
    assert!(text("detail").contains("1048576 bytes"));
    let payload = letter.rows.column_by_name("payload").unwrap().as_binary::<i32>().value(0).to_vec();
    assert_eq!(payload, [b'x'; 1024]);
    assert_eq!(outlet.counter("oversize"), 1);
    let small = next(&mut outlet).await;
    assert_eq!(payloads(&small), ["small"]);
    deliver(small);
    deliver(letter);
    assert_eq!([peer.acked().await, peer.acked().await], [1, 2], "it is acknowledged as any other");
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_refused_filter_is_named() {
    for (answer, text) in [
        (SubscribeReasonCode::NotAuthorized, "refuses the topic filter \"devices/#\": not authorized"),
        (SubscribeReasonCode::Success(QoS::AtMostOnce), "grants QoS 0 instead of 1 for the topic filter \"devices/#\""),
    ] {
        let broker = FaultBroker::start().await;
        let (_outlet, run) = run(&broker, "", 100);
        let mut peer = broker.welcome(false).await;
        peer.subscribed(answer).await;
        let error = failure(run).await;
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains(text), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_refused_login_ends_the_run_in_plain_words() {
    for (code, text) in [
        (ConnectReturnCode::BadUserNamePassword, "does not accept the user name or the password"),
        (ConnectReturnCode::NotAuthorized, "does not authorize this client"),
        (ConnectReturnCode::UnsupportedProtocolVersion, "does not speak MQTT 5. Set `protocol = \"3.1.1\"`"),
    ] {
        let broker = FaultBroker::start().await;
        let (_outlet, run) = run(&broker, "", 100);
        let mut peer = broker.accept().await;
        peer.answer(code, false).await;
        let error = failure(run).await;
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains(text), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_busy_broker_is_asked_again() {
    let broker = FaultBroker::start().await;
    let (outlet, run) = run(&broker, "", 100);
    broker.accept().await.answer(ConnectReturnCode::ServerBusy, false).await;
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    assert_eq!(outlet.counter("reconnects"), 0, "there was no connection to lose");
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_fight_over_the_client_id_is_given_up() {
    let broker = FaultBroker::start().await;
    let (_outlet, run) = run(&broker, r#", "client_id": "twin""#, 100);
    for _ in 0..3 {
        broker.welcome(true).await.take_over().await;
    }
    let error = failure(run).await;
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(error.chain().starts_with("another client uses the client id \"twin\""), "{}", error.chain());
}

#[tokio::test]
async fn a_stop_waits_for_what_was_read_and_acknowledges_it() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    let a = next(&mut outlet).await;
    outlet.stop();
    assert!(within(outlet.next()).await.is_none(), "its ports are closed");
    // Comes too late: neither stored nor acknowledged.
    peer.publish(2, "b").await;
    deliver(a);
    assert_eq!(peer.acked().await, 1);
    match peer.next().await {
        Some(Packet::Disconnect(goodbye)) => assert_eq!(goodbye.properties, None, "which leaves the session alone"),
        other => panic!("not a DISCONNECT: {other:?}"),
    }
    assert!(peer.next().await.is_none());
    drop(peer);
    within(run).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broker_that_goes_on_sending_gets_the_last_acks_all_the_same() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    let a = next(&mut outlet).await;
    outlet.stop();
    assert!(within(outlet.next()).await.is_none());
    deliver(a);
    assert_eq!(peer.acked().await, 1);
    assert!(matches!(peer.next().await, Some(Packet::Disconnect(_))));
    // Unread bytes in a closed socket would reset it, and a real broker then drops what it has not read.
    for packet_id in 2..200 {
        peer.publish(packet_id, vec![b'x'; 1000]).await;
    }
    assert!(peer.next().await.is_none(), "it hangs up and does not reset");
    drop(peer);
    within(run).await.unwrap().unwrap();
}

#[tokio::test]
async fn rows_that_are_stored_nowhere_are_not_acknowledged() {
    let broker = FaultBroker::start().await;
    let (mut outlet, run) = run(&broker, "", 100);
    let mut peer = broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    peer.publish(2, "b").await;
    let (a, b) = (next(&mut outlet).await, next(&mut outlet).await);
    deliver(b);
    drop(a);
    let _consequence = failure(run).await;
    assert_eq!(peer.next().await.map(|packet| packet.packet_type()), None, "it hangs up without a word");
}

#[test]
fn mistakes_are_found_while_the_plan_is_built() {
    let refused = |text: &str| match build(text) {
        Ok(_) => panic!("{text} must be refused"),
        Err(mistake) => mistake,
    };
    for (more, key) in [
        (r#""topics": "a/#/b""#, "topics"),
        (r#""topics": []"#, "topics"),
        (r#""topics": "a", "qos": 3"#, "qos"),
        (r#""topics": "a", "client_id": """#, "client_id"),
        (r#""topics": "a", "receive_maximum": 0"#, "receive_maximum"),
        (r#""topics": "a", "keep_alive": "1500ms""#, "keep_alive"),
        (r#""topics": "a", "batch_rows": 0"#, "batch_rows"),
        (r#""topics": "a", "password": "x""#, "password"),
        (r#""topics": "a", "schema": "none""#, "schema"),
        (r#""topics": "a", "tls": {"ca": "ca.pem"}"#, "tls"),
    ] {
        assert_eq!(refused(&format!(r#"{{"url": "mqtt://broker", {more}}}"#)).key, key, "{more}");
    }
    assert_eq!(refused(r#"{"url": "broker", "topics": "a"}"#).key, "url");
}

#[test]
fn the_session_has_a_name_that_is_the_same_after_a_restart() {
    let cx = BuildContext::detached("in", BTreeMap::new());
    let settings = config(r#"{"url": "mqtt://broker", "topics": "a"}"#).settings(&cx).unwrap();
    assert_eq!(settings.client_id, "pipeline-detached-in");
}
