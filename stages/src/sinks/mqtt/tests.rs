//! The sink against a broker that the test plays itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use pipeline_engine::stage::{Batch, Fault};
use rumqttc_v5::mqttbytes::v5::{Packet, PubAckReason};

use super::*;
use crate::mqtt_client::fault_broker::{FaultBroker, Peer, within};

fn group(numbers: std::ops::Range<i64>) -> Group {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
    Group::new(vec![Batch::detached(RecordBatch::try_from_iter([("n", column)]).unwrap())])
}

fn sink(broker: &FaultBroker, inflight_max: u16) -> Box<dyn Sink> {
    let config = MqttSinkConfig { inflight_max, ..MqttSinkConfig::new(broker.url(), Some("out".to_owned())) };
    let cx = BuildContext::detached("out", BTreeMap::new());
    config.build(&group(0..1).batches()[0].rows.schema(), &cx).unwrap().sink
}

/// Opens a sink, and gives it back with the broker's side of its connection.
async fn open(broker: &FaultBroker, inflight_max: u16) -> (Box<dyn Sink>, Peer) {
    let mut sink = sink(broker, inflight_max);
    let (opened, peer) = tokio::join!(within(sink.open()), broker.welcome(false));
    opened.unwrap();
    (sink, peer)
}

async fn take(peer: &mut Peer, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    for _ in 0..count {
        let publish = peer.published().await;
        payloads.push(String::from_utf8(publish.payload.to_vec()).unwrap());
        peer.take(&publish, PubAckReason::Success).await;
    }
    payloads
}

#[tokio::test]
async fn a_group_is_stored_once_every_message_is_acknowledged() {
    let broker = FaultBroker::start().await;
    let (mut sink, mut peer) = open(&broker, 10).await;
    let group = group(0..3);
    let mut write = sink.write(&group);
    let broker_side = async {
        take(&mut peer, 2).await;
        peer.published().await
    };
    let last = tokio::select! {
        _ = &mut write => panic!("one message is not acknowledged"),
        last = broker_side => last,
    };
    assert!(futures::poll!(&mut write).is_pending());
    peer.take(&last, PubAckReason::NoMatchingSubscribers).await;
    within(write).await.unwrap();
    let (closed, ()) = tokio::join!(within(sink.close()), async move {
        assert!(matches!(peer.next().await, Some(Packet::Disconnect(_))));
        // Dropped here: it hangs up, as brokers do after a goodbye.
        drop(peer);
    });
    closed.unwrap();
}

#[tokio::test]
async fn a_lost_connection_costs_only_what_was_on_its_way() {
    let broker = FaultBroker::start().await;
    let (mut sink, mut peer) = open(&broker, 2).await;
    let group = group(0..5);
    let (written, ()) = tokio::join!(within(sink.write(&group)), async {
        assert_eq!(take(&mut peer, 3).await, [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#]);
        // Sent after the third acknowledgement was read.
        peer.published().await;
        drop(peer);
    });
    let error = written.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    let (written, ()) = tokio::join!(within(sink.write(&group)), async {
        let mut peer = broker.welcome(false).await;
        // The acknowledgements of 1 and 2 may have been lost with the connection, that of 0 was not:
        // 2 could only be sent after it.
        let first = peer.published().await;
        assert_ne!(first.payload, r#"{"n":0}"#);
        peer.take(&first, PubAckReason::Success).await;
        loop {
            let publish = peer.published().await;
            peer.take(&publish, PubAckReason::Success).await;
            if publish.payload == r#"{"n":4}"# {
                break;
            }
        }
    });
    written.unwrap();
}

#[tokio::test]
async fn another_group_of_the_same_size_is_published_whole() {
    let broker = FaultBroker::start().await;
    let (mut sink, mut peer) = open(&broker, 10).await;
    let (one, other) = (group(0..2), group(0..2));
    let (written, ()) = tokio::join!(within(sink.write(&one)), async {
        take(&mut peer, 1).await;
        drop(peer);
    });
    written.unwrap_err();
    let (written, payloads) = tokio::join!(within(sink.write(&other)), async {
        let mut peer = broker.welcome(false).await;
        take(&mut peer, 2).await
    });
    written.unwrap();
    assert_eq!(payloads, [r#"{"n":0}"#, r#"{"n":1}"#]);
}

#[tokio::test]
async fn a_refusal_is_whose_it_is() {
    for (reason, fault) in [
        (PubAckReason::NotAuthorized, Fault::Permanent),
        (PubAckReason::QuotaExceeded, Fault::Transient),
        (PubAckReason::PayloadFormatInvalid, Fault::Data),
    ] {
        let broker = FaultBroker::start().await;
        let (mut sink, mut peer) = open(&broker, 10).await;
        let group = group(0..1);
        let (written, ()) = tokio::join!(within(sink.write(&group)), async {
            let publish = peer.published().await;
            peer.take(&publish, reason).await;
        });
        assert_eq!(written.unwrap_err().fault(), fault);
    }
}

#[tokio::test]
async fn a_broker_that_is_away_is_a_matter_of_time() {
    let broker = FaultBroker::start().await;
    let mut sink = sink(&broker, 10);
    drop(broker);
    let error = within(sink.open()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    assert!(error.chain().contains("refused"), "{}", error.chain());
}
