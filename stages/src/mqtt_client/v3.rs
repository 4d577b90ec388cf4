//! MQTT 3.1.1, through `rumqttc_v4`. The twin of `v5`: no reasons, no receive maximum, no goodbye from
//! the broker.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use pipeline_engine::stage::StageError;
use rumqttc_v4::{
    AckMode, AsyncClient, Broker, ConnectReturnCode, ConnectionError, EventLoop, ManualAck, MqttOptions,
    NetworkOptions, Outgoing, Packet, PubAck, PubRec, PublishNotice, PublishOptions, QoS, StateError,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use secrecy::ExposeSecret;

use super::fault::{self, Lost, LostBy};
use super::link::{Delivered, Event, Receipt, Refusal, Subscribed, Terms};
use super::settings::{CONNECT_TIMEOUT, PACKET_BYTES_MAX, Session, Settings};
use super::socket::Sockets;

/// How many packets are written before the socket is flushed.
const WRITE_BATCH: usize = 128;
/// How long a goodbye waits for answers that are still owed to us.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn open(settings: &Settings, sockets: &Sockets) -> Result<(AsyncClient, EventLoop), StageError> {
    let name = settings.tls.server_name(&settings.address);
    let mut options = MqttOptions::new(&settings.client_id, Broker::tcp(name, settings.address.port));
    if settings.address.tls {
        options.set_transport(encrypted(settings.tls.read(&settings.address, &settings.certificates)?));
    }
    // The library resolves the name that TLS checks; ours may be another one.
    let place = settings.address.socket();
    let sockets = sockets.clone();
    options.set_socket_connector(move |_, network| {
        let (place, sockets) = (place.clone(), sockets.clone());
        async move { Ok(sockets.next(rumqttc_v4::default_socket_connect(place, network).await?)) }
    });
    options.set_keep_alive(u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX));
    if let Some(login) = &settings.login {
        match &login.password {
            Some(password) => options.set_credentials(&login.username, password.expose_secret().to_owned()),
            None => options.set_username(&login.username),
        };
    }
    options.set_ack_mode(AckMode::Manual);
    options.set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize);
    options.set_inflight(settings.direction.slots());
    options.set_max_request_batch(WRITE_BATCH);
    options.set_clean_session(settings.session == Session::Clean);
    let client = AsyncClient::builder(options);
    let built = match settings.direction.queue_max() {
        Some(requests) => client.capacity(requests),
        None => client.unbounded(),
    }
    .try_build();
    let (client, mut events) =
        built.map_err(|error| StageError::bug("the MQTT library refused its options").because(error))?;
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    events.set_network_options(network);
    Ok((client, events))
}

pub(super) fn encrypted(config: Arc<rustls::ClientConfig>) -> Transport {
    Transport::tls_with_config(TlsConfiguration::Rustls(config))
}

pub(super) async fn poll(events: &mut EventLoop, settings: &Settings) -> Result<Event, Lost> {
    let event = events.poll().await.map_err(|error| lost(error, settings))?;
    Ok(match event {
        rumqttc_v4::Event::Incoming(Packet::Publish(publish)) => {
            let receipt = (publish.qos != QoS::AtMostOnce)
                .then_some(Receipt { packet_id: publish.pkid, exactly_once: publish.qos == QoS::ExactlyOnce });
            let repeated = publish.dup;
            Event::Message(Delivered { topic: publish.topic, payload: publish.payload, receipt, repeated })
        }
        rumqttc_v4::Event::Incoming(Packet::ConnAck(accepted)) => {
            let session_present = accepted.session_present;
            Event::Connected { session_present, packet_bytes_max: PACKET_BYTES_MAX, terms: Terms::default() }
        }
        rumqttc_v4::Event::Outgoing(Outgoing::Disconnect) => Event::Closed,
        _ => Event::Other,
    })
}

pub(super) fn acknowledge(client: &AsyncClient, receipt: Receipt) {
    let ack = if receipt.exactly_once {
        ManualAck::PubRec(PubRec::new(receipt.packet_id))
    } else {
        ManualAck::PubAck(PubAck::new(receipt.packet_id))
    };
    if client.try_manual_ack(ack).is_err() {
        // The other end is polled by the caller and the queue is unbounded.
        tracing::error!("an acknowledgement found no connection to go out by");
    }
}

pub(super) fn subscribe(client: &AsyncClient, filter: &str, qos: QoS) -> Subscribed {
    let notice = client.try_subscribe_tracked(filter, qos);
    async move {
        let answer = notice.ok()?.wait_async().await.ok()?;
        Some(match answer.return_codes.first()? {
            SubscribeReasonCode::Success(granted) => Ok(*granted),
            SubscribeReasonCode::Failure => Err("no reason given".to_owned()),
        })
    }
    .boxed()
}

pub(super) async fn publish(client: &AsyncClient, topic: &str, payload: Bytes, qos: QoS) -> Option<PublishNotice> {
    client.publish_tracked(topic, payload, PublishOptions::new(qos)).await.ok()
}

pub(super) async fn taken(notice: PublishNotice) -> Result<(), Refusal> {
    // The only other answer that 3.1.1 knows is to hang up.
    notice.wait_async().await.map(drop).map_err(|_| Refusal::Lost)
}

pub(super) fn disconnect(client: &AsyncClient) {
    if client.try_disconnect_with_timeout(GOODBYE_TIMEOUT).is_err() {
        tracing::debug!("there is no connection to say goodbye on");
    }
}

fn lost(error: ConnectionError, settings: &Settings) -> Lost {
    match error {
        ConnectionError::ConnectionRefused(code) => refused(code, settings),
        ConnectionError::MqttState(StateError::ConnectionAborted) => fault::hung_up(settings),
        ConnectionError::MqttState(StateError::AwaitPingResp) | ConnectionError::NetworkTimeout => {
            fault::timed_out(settings)
        }
        // Unwrapped, since the wrapping hides what lies underneath: the alert of a broker that refuses us.
        ConnectionError::MqttState(
            StateError::Deserialization(rumqttc_v4::Error::Io(error)) | StateError::Io(error),
        ) => fault::network(error, settings),
        other => fault::network(other, settings),
    }
}

fn refused(code: ConnectReturnCode, settings: &Settings) -> Lost {
    use ConnectReturnCode as Code;

    let place = settings.address.socket();
    let refused = |text: String| Lost::new(LostBy::Refused, text);
    match code {
        Code::BadUserNamePassword => {
            refused(format!("the broker at \"{place}\" does not accept the user name or the password"))
        }
        Code::NotAuthorized => refused(format!("the broker at \"{place}\" does not authorize this client")).hint(
            "Check `username` and `password`, the client certificate, and what the broker allows this `client_id`.",
        ),
        Code::RefusedProtocolVersion => {
            refused(format!("the broker at \"{place}\" does not speak MQTT 3.1.1")).hint("Set `protocol = \"5\"`.")
        }
        Code::BadClientId => {
            refused(format!("the broker at \"{place}\" refuses the client id \"{}\"", settings.client_id))
        }
        Code::ServiceUnavailable | Code::Success => {
            Lost::new(LostBy::Away, format!("the broker at \"{place}\" was not available"))
        }
    }
}
