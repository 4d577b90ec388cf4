//! The source against a broker that the test plays itself.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::AsArray;
use pipeline_engine::spool::testing::SimulatedDisk;
use pipeline_engine::stage::{Batch, BuildError, Fault};
use pipeline_engine::storage::{FsStorage, Storage};
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

/// What a pipeline keeps between its runs, and the broker that its source talks to.
struct House {
    broker: FaultBroker,
    data: tempfile::TempDir,
    disk: Arc<dyn Storage>,
}

impl House {
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self { broker: FaultBroker::start().await, data, disk: Arc::new(FsStorage) }
    }

    /// The same with what it keeps on another disk.
    async fn on(disk: &SimulatedDisk) -> Self {
        Self { disk: disk.mount(), ..Self::new().await }
    }

    /// A source of one row a batch, and what reads it.
    fn run(&self, more: &str, rows_max: u32) -> (Outlet, Run) {
        let url = self.broker.url();
        let text = format!(r#"{{"url": "{url}", "topics": ["devices/#"], "batch_rows": 1 {more}}}"#);
        let cx = BuildContext::detached("in", BTreeMap::new()).with_data_dir(self.data.path());
        let built = config(&text).build(&cx).unwrap();
        let (cx, outlet) = testing::resumed_source(rows_max, BTreeMap::new(), self.disk.clone());
        (outlet, tokio::spawn(built.source.run(cx)))
    }
}

/// Messages come to disk when the source stops or has many of them, and not before.
const SYNCED_LATE: &str = r#", "receive_maximum": 100, "spool": {"linger": "1h"}"#;

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
async fn acks_leave_in_the_order_of_arrival_and_wait_for_no_sink() {
    let house = House::new().await;
    let (mut outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    for (packet_id, payload) in [(9, "a"), (2, "b"), (5, "c")] {
        peer.publish(packet_id, payload).await;
    }
    assert_eq!([peer.acked().await, peer.acked().await, peer.acked().await], [9, 2, 5]);
    let mut got = Vec::new();
    while got.len() < 3 {
        let batch = next(&mut outlet).await;
        got.extend(payloads(&batch));
        deliver(batch);
    }
    assert_eq!(got, ["a", "b", "c"]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_on_disk() {
    let disk = SimulatedDisk::new(1);
    let house = House::on(&disk).await;
    let (mut outlet, run) = house.run(r#", "spool": {"min_free": "1MiB"}"#, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    assert_eq!(peer.acked().await, 1);
    deliver(next(&mut outlet).await);
    disk.set_capacity(0);
    peer.publish(2, "b").await;
    peer.publish(3, "c").await;
    assert!(peer.is_silent().await, "the disk is full");
    disk.set_capacity(1 << 30);
    assert_eq!([peer.acked().await, peer.acked().await], [2, 3], "by itself, once there is room");
    assert_eq!(outlet.counter("spool_pauses"), 1);
    let mut got = Vec::new();
    while got.len() < 2 {
        let batch = next(&mut outlet).await;
        got.extend(payloads(&batch));
        deliver(batch);
    }
    assert_eq!(got, ["b", "c"]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn half_a_receive_window_is_synced_at_once() {
    let house = House::new().await;
    let (outlet, run) = house.run(r#", "receive_maximum": 4, "spool": {"linger": "1h"}"#, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    assert!(peer.is_silent().await);
    peer.publish(2, "b").await;
    assert_eq!([peer.acked().await, peer.acked().await], [1, 2], "or the broker would have to wait");
    outlet.stop();
    drop((outlet, peer));
    run.abort();
}

#[tokio::test]
async fn acks_of_a_lost_connection_are_dropped_with_it() {
    let house = House::new().await;
    let (mut outlet, run) = house.run(r#", "receive_maximum": 6, "spool": {"linger": "1h"}"#, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    peer.publish(7, "b").await;
    // Counted when it arrives, so those before it have.
    peer.publish(7, "b").await;
    until(|| outlet.counter("redelivered") == 1).await;
    drop(peer);
    let mut peer = house.broker.welcome(true).await;
    // Another message by the number of an old one: an old ack would acknowledge it unseen.
    peer.publish(7, "other").await;
    assert!(peer.is_silent().await, "nothing is on disk yet");
    for packet_id in [8, 9] {
        peer.publish(packet_id, "more").await;
    }
    assert_eq!([peer.acked().await, peer.acked().await, peer.acked().await], [7, 8, 9], "once, and no SUBSCRIBE");
    assert!(peer.is_silent().await, "nor anything of the connection before");
    assert_eq!(outlet.counter("reconnects"), 1);
    assert_eq!(outlet.counter("session_lost"), 0);
    let batch = next(&mut outlet).await;
    assert_eq!(payloads(&batch), ["a", "b", "other", "more", "more"], "a frame is not parted");
    deliver(batch);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_lost_session_is_counted_and_subscribed_anew() {
    let house = House::new().await;
    let (mut outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    assert_eq!(outlet.counter("session_lost"), 0, "the first start has no session to lose");
    drop(peer);
    let mut peer = house.broker.welcome(false).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    assert_eq!((outlet.counter("reconnects"), outlet.counter("session_lost")), (1, 1));
    assert_eq!(outlet.counter("connections_lost"), 1);
    peer.publish(1, "a").await;
    deliver(next(&mut outlet).await);
    assert_eq!(peer.acked().await, 1);
    stop(outlet, peer, run).await;
    let (outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    assert_eq!(outlet.counter("session_lost"), 1, "the run before had one");
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_session_of_an_earlier_run_is_subscribed_for_what_the_file_says_now() {
    let house = House::new().await;
    let (outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(true).await;
    assert_eq!(peer.subscribed(GRANTED).await, ["devices/#"]);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn what_the_broker_repeats_is_stored_once() {
    let house = House::new().await;
    let (mut outlet, run) = house.run(r#", "payload_max": "1KiB""#, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    let oversize = vec![b'x'; 2048];
    peer.publish(1, "1").await;
    peer.publish(2, "2").await;
    peer.publish(3, oversize.clone()).await;
    assert_eq!([peer.acked().await, peer.acked().await, peer.acked().await], [1, 2, 3]);
    drop(peer);
    // The acknowledgements never came to it.
    let mut peer = house.broker.welcome(true).await;
    peer.publish_again(1, "1").await;
    peer.publish_again(2, "2").await;
    peer.publish_again(3, oversize).await;
    // It was lost on its way.
    peer.publish_again(4, "4").await;
    for packet_id in [1, 2, 3, 4] {
        assert_eq!(peer.acked().await, packet_id);
    }
    // Others, one of them by a number that is free again: whatever they hold, they are new.
    peer.publish(5, "1").await;
    peer.publish(1, "1").await;
    assert_eq!([peer.acked().await, peer.acked().await], [5, 1]);
    let mut got = Vec::new();
    while got.len() < 5 {
        let batch = next(&mut outlet).await;
        got.extend(payloads(&batch));
        deliver(batch);
    }
    assert_eq!(got, ["1", "2", "4", "1", "1"]);
    assert_eq!(outlet.counter("redelivered"), 3);
    deliver(within(outlet.next_rejected()).await.unwrap());
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn what_was_not_stored_is_sent_by_the_next_run_and_stored_once_though_the_broker_repeats_it() {
    let house = House::new().await;
    let (mut outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    for (packet_id, payload) in [(1, "a"), (2, "b")] {
        peer.publish(packet_id, payload).await;
        assert_eq!(peer.acked().await, packet_id);
    }
    let a = next(&mut outlet).await;
    assert_eq!(payloads(&a), ["a"]);
    // As kill -9 does.
    run.abort();
    drop((run.await, a, outlet, peer));

    let (mut outlet, run) = house.run("", 100);
    let (a, b) = (next(&mut outlet).await, next(&mut outlet).await);
    assert_eq!((payloads(&a), payloads(&b)), (vec!["a".to_owned()], vec!["b".to_owned()]), "without the broker");
    let mut peer = house.broker.welcome(true).await;
    peer.subscribed(GRANTED).await;
    peer.publish_again(2, "b").await;
    peer.publish(3, "c").await;
    assert_eq!([peer.acked().await, peer.acked().await], [2, 3]);
    let c = next(&mut outlet).await;
    assert_eq!(payloads(&c), ["c"]);
    [a, b, c].into_iter().for_each(deliver);
    stop(outlet, peer, run).await;

    let (outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(true).await;
    peer.subscribed(GRANTED).await;
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_message_sent_twice_on_one_connection_is_one_message() {
    let house = House::new().await;
    let (mut outlet, run) = house.run(SYNCED_LATE, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    for (packet_id, payload) in [(1, "a"), (1, "a"), (2, "b")] {
        peer.publish(packet_id, payload).await;
    }
    until(|| outlet.counter("redelivered") == 1).await;
    assert!(peer.is_silent().await);
    outlet.stop();
    assert_eq!([peer.acked().await, peer.acked().await], [1, 2]);
    let both = next(&mut outlet).await;
    assert_eq!(payloads(&both), ["a", "b"]);
    deliver(both);
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn an_oversize_payload_leaves_its_beginning_and_holds_nothing_up() {
    let house = House::new().await;
    let (mut outlet, run) = house.run(r#", "payload_max": "10KiB""#, 100);
    let mut peer = house.broker.welcome(false).await;
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
async fn what_a_damaged_disk_has_lost_is_a_dead_letter_that_says_so() {
    let house = House::new().await;
    let (outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    for (packet_id, payload) in [(1, "first"), (2, "second"), (3, "third")] {
        peer.publish(packet_id, payload).await;
        assert_eq!(peer.acked().await, packet_id);
    }
    run.abort();
    drop((run.await, outlet, peer));
    let segment = house.data.path().join("in/spool").join(format!("{:020}.seg", 1));
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(6).position(|window| window == b"second").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let (mut outlet, run) = house.run("", 100);
    let letter = within(outlet.next_rejected()).await.unwrap();
    let text = |name: &str| letter.rows.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(text("reason"), "spool_damaged");
    assert!(text("detail").starts_with("1 received messages, numbers 2 to 2 of the spool,"), "{}", text("detail"));
    let mut got = Vec::new();
    while got.len() < 2 {
        let batch = next(&mut outlet).await;
        got.extend(payloads(&batch));
        deliver(batch);
    }
    assert_eq!(got, ["first", "third"], "its neighbours are there");
    deliver(letter);
    outlet.stop();
    within(run).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_filter_is_named() {
    for (answer, text) in [
        (SubscribeReasonCode::NotAuthorized, "refuses the topic filter \"devices/#\": not authorized"),
        (SubscribeReasonCode::Success(QoS::AtMostOnce), "grants QoS 0 instead of 1 for the topic filter \"devices/#\""),
    ] {
        let house = House::new().await;
        let (_outlet, run) = house.run("", 100);
        let mut peer = house.broker.welcome(false).await;
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
        let house = House::new().await;
        let (_outlet, run) = house.run("", 100);
        let mut peer = house.broker.accept().await;
        peer.answer(code, false).await;
        let error = failure(run).await;
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains(text), "{}", error.chain());
    }
}

#[tokio::test]
async fn what_a_broker_has_sent_before_it_died_is_kept() {
    for resets in [false, true] {
        let house = House::new().await;
        let (mut outlet, run) = house.run("", 1_000);
        let mut peer = house.broker.welcome(false).await;
        peer.subscribed(GRANTED).await;
        let sent: Vec<String> = (1..=200).map(|number| format!("message {number}")).collect();
        peer.publish_and_die(&sent, resets).await;
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let batch = next(&mut outlet).await;
            got.extend(payloads(&batch));
            deliver(batch);
        }
        assert_eq!(got, sent);
        let mut peer = house.broker.welcome(true).await;
        outlet.stop();
        // It may leave before it has seen that it was let in.
        while peer.next().await.is_some_and(|packet| !matches!(packet, Packet::Disconnect(_))) {}
        drop(peer);
        within(run).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_busy_broker_is_asked_again() {
    let house = House::new().await;
    let (outlet, run) = house.run("", 100);
    house.broker.accept().await.answer(ConnectReturnCode::ServerBusy, false).await;
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    assert_eq!(outlet.counter("reconnects"), 0, "there was no connection to lose");
    stop(outlet, peer, run).await;
}

#[tokio::test]
async fn a_fight_over_the_client_id_is_given_up() {
    let house = House::new().await;
    let (_outlet, run) = house.run(r#", "client_id": "twin""#, 100);
    for _ in 0..3 {
        house.broker.welcome(true).await.take_over().await;
    }
    let error = failure(run).await;
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(error.chain().starts_with("another client uses the client id \"twin\""), "{}", error.chain());
}

#[tokio::test]
async fn a_stop_syncs_what_was_read_and_acknowledges_it_whatever_the_sinks_do() {
    let house = House::new().await;
    let (mut outlet, run) = house.run(SYNCED_LATE, 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    // Counted when it arrives, so the one before it has.
    peer.publish(1, "a").await;
    until(|| outlet.counter("redelivered") == 1).await;
    outlet.stop();
    assert_eq!(peer.acked().await, 1);
    match peer.next().await {
        Some(Packet::Disconnect(goodbye)) => assert_eq!(goodbye.properties, None, "which leaves the session alone"),
        other => panic!("not a DISCONNECT: {other:?}"),
    }
    // Comes too late: neither stored nor acknowledged.
    peer.publish(2, "b").await;
    assert!(peer.next().await.is_none());
    drop(peer);
    let a = next(&mut outlet).await;
    assert_eq!(payloads(&a), ["a"]);
    assert!(within(outlet.next()).await.is_none(), "its ports are closed");
    assert!(!run.is_finished(), "the sinks may still store it");
    deliver(a);
    within(run).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broker_that_goes_on_sending_gets_the_last_acks_all_the_same() {
    let house = House::new().await;
    let (mut outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    deliver(next(&mut outlet).await);
    outlet.stop();
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
async fn rows_that_are_stored_nowhere_end_the_run_and_come_again() {
    let house = House::new().await;
    let (mut outlet, run) = house.run("", 100);
    let mut peer = house.broker.welcome(false).await;
    peer.subscribed(GRANTED).await;
    peer.publish(1, "a").await;
    assert_eq!(peer.acked().await, 1);
    drop(next(&mut outlet).await);
    let _consequence = failure(run).await;
    assert_eq!(peer.next().await.map(|packet| packet.packet_type()), None, "it hangs up without a word");
    let (mut outlet, run) = house.run("", 100);
    let a = next(&mut outlet).await;
    assert_eq!(payloads(&a), ["a"]);
    run.abort();
}

#[test]
fn mistakes_are_found_while_the_plan_is_built() {
    let refused = |text: &str| match build(text) {
        Ok(_) => panic!("{text} must be refused"),
        Err(mistake) => mistake,
    };
    for (more, key) in [
        (r#""topics": "a/#/b""#, "topics.0"),
        (r#""topics": []"#, "topics"),
        (r#""topics": "a", "qos": 3"#, "qos"),
        (r#""topics": "a", "client_id": """#, "client_id"),
        (r#""topics": "a", "receive_maximum": 0"#, "receive_maximum"),
        (r#""topics": "a", "keep_alive": "1500ms""#, "keep_alive"),
        (r#""topics": "a", "batch_rows": 0"#, "batch_rows"),
        (r#""topics": "a", "payload_max": "16MiB""#, "payload_max"),
        (r#""topics": "a", "spool": {"segment": "1KiB"}"#, "spool.segment"),
        (r#""topics": "a", "spool": {"max": "100MiB"}"#, "spool.max"),
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

#[test]
fn a_shared_subscription_tells_with_whom_it_is_shared() {
    let divides_with = |topics: &str| {
        let config = config(&format!(r#"{{"url": "mqtt://broker", "topics": {topics}}}"#));
        config.build(&BuildContext::detached("in", BTreeMap::new())).unwrap().source.divides_with()
    };
    assert_eq!(divides_with(r#"["a/#", "b/#"]"#), None);
    assert_eq!(divides_with(r#"["a/#", "$share/workers/b/#", "$share/workers/c"]"#).as_deref(), Some("workers"));
}
