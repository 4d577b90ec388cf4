//! A broker that a test plays itself, packet by packet: it hangs up midway, forgets sessions, refuses,
//! and sees in which order acknowledgements come. MQTT 5 only.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc_v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet, PubAck, PubAckReason, Publish, SubAck,
    SubscribeReasonCode,
};
use rumqttc_v5::{Error, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes long; a test that waits so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Much longer than a client takes to answer where it does.
const SILENCE: Duration = Duration::from_millis(200);

/// The listening end.
pub(crate) struct FaultBroker {
    listener: TcpListener,
}

impl FaultBroker {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.listener.local_addr().unwrap())
    }

    /// The next connection, its CONNECT read and not answered.
    pub(crate) async fn accept(&self) -> Peer {
        let (socket, _) = within(self.listener.accept()).await.unwrap();
        let mut peer = Peer { socket, read: BytesMut::new() };
        let first = peer.next().await.expect("a CONNECT");
        assert!(matches!(first, Packet::Connect(..)), "{first:?}");
        peer
    }

    /// The next connection, accepted.
    pub(crate) async fn welcome(&self, session_present: bool) -> Peer {
        let mut peer = self.accept().await;
        peer.answer(ConnectReturnCode::Success, session_present).await;
        peer
    }
}

/// The broker's side of one connection; dropping it hangs up.
pub(crate) struct Peer {
    socket: TcpStream,
    read: BytesMut,
}

impl Peer {
    /// The next packet of the client, pings left out; `None` once it has hung up.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.read, None) {
                Ok(Packet::PingReq) => self.send(Packet::PingResp).await,
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {
                    let count = within(self.socket.read_buf(&mut self.read))
                        .await
                        .expect("a client hangs up, and resets nothing");
                    if count == 0 {
                        return None;
                    }
                }
                Err(error) => panic!("the client sent something strange: {error}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        within(self.socket.write_all(&bytes)).await.unwrap();
    }

    pub(crate) async fn answer(&mut self, code: ConnectReturnCode, session_present: bool) {
        self.send(Packet::ConnAck(ConnAck { session_present, code, properties: None })).await;
    }

    /// Reads a SUBSCRIBE, answers it, and gives its filters.
    pub(crate) async fn subscribed(&mut self, reason: SubscribeReasonCode) -> Vec<String> {
        let Some(Packet::Subscribe(subscribe)) = self.next().await else { panic!("no SUBSCRIBE came") };
        let return_codes = vec![reason; subscribe.filters.len()];
        self.send(Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes, properties: None })).await;
        subscribe.filters.into_iter().map(|filter| filter.path).collect()
    }

    /// Sends a QoS 1 message.
    pub(crate) async fn publish(&mut self, packet_id: u16, payload: impl Into<Bytes>) {
        let mut publish = Publish::new("devices/1", QoS::AtLeastOnce, payload, None);
        publish.pkid = packet_id;
        self.send(Packet::Publish(publish)).await;
    }

    /// Sends a QoS 1 message that was sent on an earlier connection, as a broker does when it has no
    /// acknowledgement for it.
    pub(crate) async fn publish_again(&mut self, packet_id: u16, payload: impl Into<Bytes>) {
        let mut publish = Publish::new("devices/1", QoS::AtLeastOnce, payload, None);
        publish.pkid = packet_id;
        publish.dup = true;
        self.send(Packet::Publish(publish)).await;
    }

    /// Sends all messages at once and dies, as a broker that is killed: with a reset where it has not read what the
    /// client has sent.
    pub(crate) async fn publish_and_die(mut self, payloads: &[String], resets: bool) {
        let mut bytes = BytesMut::new();
        for (payload, packet_id) in payloads.iter().zip(1..) {
            let mut publish = Publish::new("devices/1", QoS::AtLeastOnce, payload.clone(), None);
            publish.pkid = packet_id;
            Packet::Publish(publish).write(&mut bytes, None).expect("a packet");
        }
        self.socket.write_all(&bytes).await.expect("the client listens");
        if resets {
            // The client's first acknowledgements are there and nobody reads them.
            self.socket.readable().await.expect("the client answers");
        }
    }

    /// Whether the client answers a PINGREQ's worth of time with nothing: it has nothing to say.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(SILENCE, self.next()).await.is_err()
    }

    /// The packet id of the next packet, which must be a PUBACK.
    pub(crate) async fn acked(&mut self) -> u16 {
        match self.next().await {
            Some(Packet::PubAck(ack)) => ack.pkid,
            other => panic!("not a PUBACK: {other:?}"),
        }
    }

    /// The next packet, which must be a PUBLISH.
    pub(crate) async fn published(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("not a PUBLISH: {other:?}"),
        }
    }

    /// Answers a PUBLISH.
    pub(crate) async fn take(&mut self, publish: &Publish, reason: PubAckReason) {
        self.send(Packet::PubAck(PubAck { pkid: publish.pkid, reason, properties: None })).await;
    }

    /// Ends the connection as a broker does when somebody else has come with the same client id.
    pub(crate) async fn take_over(mut self) {
        self.send(Packet::Disconnect(Disconnect::new(DisconnectReasonCode::SessionTakenOver))).await;
        // Hanging up at once could overtake the packet.
        while self.next().await.is_some() {}
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}
