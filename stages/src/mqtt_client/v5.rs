//! MQTT 5, through `rumqttc_v5`. The twin of `v3`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use pipeline_engine::stage::StageError;
use rumqttc_v5::{
    AckMode, AsyncClient, Broker, ConnAckProperties, ConnectReturnCode, ConnectionError, DisconnectReasonCode,
    EventLoop, IncomingPacketSizeLimit, ManualAck, MqttOptions, NetworkOptions, Outgoing, Packet, PersistedAckMode,
    PersistedSession, PubAck, PubAckReason, PubRec, PubRecReason, PublishNotice, PublishNoticeError, PublishOptions,
    PublishResult, QoS, RetainForwardRule, SessionStore, SessionStoreError, SessionStoreKey, StateError,
    SubscribeFilterInput, SubscribeReasonCode, TlsConfiguration, Transport,
};
use secrecy::ExposeSecret;

use super::fault::{self, Lost, LostBy};
use super::link::{Delivered, Event, Receipt, Refusal, Subscribed, Terms};
use super::settings::{CONNECT_TIMEOUT, Direction, PACKET_BYTES_MAX, Session, Settings};
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
        async move { Ok(sockets.next(rumqttc_v5::default_socket_connect(place, network).await?)) }
    });
    options.set_keep_alive(u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX));
    options.set_connect_timeout(CONNECT_TIMEOUT);
    if let Some(login) = &settings.login {
        match &login.password {
            Some(password) => options.set_credentials(&login.username, password.expose_secret().to_owned()),
            None => options.set_username(&login.username),
        };
    }
    options.set_ack_mode(AckMode::Manual);
    if let Direction::Receive { window } = settings.direction {
        options.set_receive_maximum(Some(window));
    }
    options.set_incoming_packet_size_limit(IncomingPacketSizeLimit::Unlimited);
    options.set_outgoing_inflight_upper_limit(settings.direction.slots());
    options.set_max_request_batch(WRITE_BATCH);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    match settings.session {
        Session::Clean => {
            options.set_clean_start(true);
        }
        Session::Persistent { expiry } => {
            options.set_clean_start(false);
            options.set_session_expiry_interval(Some(u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)));
            options.set_session_store(NothingInFlight { slots: settings.direction.slots() });
        }
    }
    let client = AsyncClient::builder(options);
    let built = match settings.direction.queue_max() {
        Some(requests) => client.capacity(requests),
        None => client.unbounded(),
    }
    .try_build();
    built.map_err(|error| StageError::bug("the MQTT library refused its options").because(error))
}

pub(super) fn encrypted(config: Arc<rustls::ClientConfig>) -> Transport {
    Transport::tls_with_config(TlsConfiguration::Rustls(config))
}

/// Tells the library, after a start of the process, that we know the session: nothing of ours is in
/// flight. Without that it would refuse the session, or (`AllowBrokerOnly`) every SUBSCRIBE in it, and
/// a filter that was added to the pipeline file would be ignored.
#[derive(Debug)]
struct NothingInFlight {
    slots: u16,
}

type Stored<'a, T> = BoxFuture<'a, Result<T, SessionStoreError>>;

impl SessionStore for NothingInFlight {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> Stored<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: None,
            outgoing_inflight_upper_limit: Some(self.slots),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(std::future::ready(Ok(Some(session))))
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> Stored<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> Stored<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

pub(super) async fn poll(events: &mut EventLoop, settings: &Settings) -> Result<Event, Lost> {
    let event = events.poll().await.map_err(|error| lost(error, settings))?;
    Ok(match event {
        rumqttc_v5::Event::Incoming(Packet::Publish(publish)) => {
            let receipt = (publish.qos != QoS::AtMostOnce)
                .then_some(Receipt { packet_id: publish.pkid, exactly_once: publish.qos == QoS::ExactlyOnce });
            let repeated = publish.dup;
            Event::Message(Delivered { topic: publish.topic, payload: publish.payload, receipt, repeated })
        }
        rumqttc_v5::Event::Incoming(Packet::ConnAck(accepted)) => {
            // It has done its work; with each acknowledgement it would cost a walk through the state.
            events.options.clear_session_store();
            let told = accepted.properties.as_ref().and_then(|properties| properties.max_packet_size);
            Event::Connected {
                session_present: accepted.session_present,
                packet_bytes_max: told.unwrap_or(PACKET_BYTES_MAX),
                terms: accepted.properties.map(terms).unwrap_or_default(),
            }
        }
        rumqttc_v5::Event::Outgoing(Outgoing::Disconnect) => Event::Closed,
        _ => Event::Other,
    })
}

fn terms(told: ConnAckProperties) -> Terms {
    let otherwise = Terms::default();
    Terms {
        in_flight_max: told.receive_max.unwrap_or(otherwise.in_flight_max),
        qos_max: told.max_qos.unwrap_or(otherwise.qos_max),
        session_expiry: told.session_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
        shares: told.shared_subscription_available != Some(0),
    }
}

pub(super) fn acknowledge(client: &AsyncClient, receipt: Receipt) {
    let ack = if receipt.exactly_once {
        ManualAck::PubRec(PubRec::new(receipt.packet_id, None))
    } else {
        ManualAck::PubAck(PubAck::new(receipt.packet_id, None))
    };
    if client.try_manual_ack(ack).is_err() {
        // The other end is polled by the caller and the queue is unbounded.
        tracing::error!("an acknowledgement found no connection to go out by");
    }
}

pub(super) fn subscribe(client: &AsyncClient, filter: &str, qos: QoS) -> Subscribed {
    let filter = SubscribeFilterInput::new(filter, qos).retain_forward_rule(RetainForwardRule::OnNewSubscribe);
    let notice = client.try_subscribe_many_tracked([filter]);
    async move {
        let answer = notice.ok()?.wait_async().await.ok()?;
        Some(match answer.return_codes.first()? {
            SubscribeReasonCode::Success(granted) => Ok(*granted),
            refused => Err(words(refused)),
        })
    }
    .boxed()
}

pub(super) async fn publish(client: &AsyncClient, topic: &str, payload: Bytes, qos: QoS) -> Option<PublishNotice> {
    client.publish_tracked(topic, payload, PublishOptions::new(qos)).await.ok()
}

pub(super) async fn taken(notice: PublishNotice) -> Result<(), Refusal> {
    let Err(error) = notice.wait_completion_async().await else { return Ok(()) };
    Err(match error {
        PublishNoticeError::V5PubAck(PubAckReason::NotAuthorized)
        | PublishNoticeError::V5PubRec(PubRecReason::NotAuthorized) => Refusal::NotAllowed("not authorized".to_owned()),
        PublishNoticeError::V5PubAck(
            reason @ (PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid),
        ) => Refusal::Message(words(&reason)),
        PublishNoticeError::V5PubRec(
            reason @ (PubRecReason::TopicNameInvalid | PubRecReason::PayloadFormatInvalid),
        ) => Refusal::Message(words(&reason)),
        PublishNoticeError::V5PubAck(reason) => Refusal::NotNow(words(&reason)),
        PublishNoticeError::V5PubRec(reason) => Refusal::NotNow(words(&reason)),
        PublishNoticeError::V5PubComp(reason) => Refusal::NotNow(words(&reason)),
        _ => Refusal::Lost,
    })
}

pub(super) async fn taken_for_somebody(notice: PublishNotice) -> Result<bool, Refusal> {
    match notice.wait_async().await {
        Ok(PublishResult::Qos1(ack)) => match ack.reason {
            PubAckReason::Success => Ok(true),
            PubAckReason::NoMatchingSubscribers => Ok(false),
            PubAckReason::NotAuthorized => Err(Refusal::NotAllowed("not authorized".to_owned())),
            reason @ (PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid) => {
                Err(Refusal::Message(words(&reason)))
            }
            reason => Err(Refusal::NotNow(words(&reason))),
        },
        Ok(_) => Ok(true),
        Err(_) => Err(Refusal::Lost),
    }
}

pub(super) fn disconnect(client: &AsyncClient) {
    if client.try_disconnect_with_timeout(GOODBYE_TIMEOUT).is_err() {
        tracing::debug!("there is no connection to say goodbye on");
    }
}

fn lost(error: ConnectionError, settings: &Settings) -> Lost {
    match error {
        ConnectionError::ConnectionRefused(code) => refused(code, settings),
        ConnectionError::MqttState(StateError::ConnFail { reason }) => refused(reason, settings),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            disconnected(reason_code, reason_string, settings)
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => fault::hung_up(settings),
        ConnectionError::MqttState(StateError::AwaitPingResp) | ConnectionError::Timeout(_) => {
            fault::timed_out(settings)
        }
        // Unwrapped, since the wrapping hides what lies underneath: the alert of a broker that refuses us.
        ConnectionError::MqttState(
            StateError::Deserialization(rumqttc_v5::Error::Io(error)) | StateError::Io(error),
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
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => {
            refused(format!("the broker at \"{place}\" does not speak MQTT 5")).hint("Set `protocol = \"3.1.1\"`.")
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => {
            refused(format!("the broker at \"{place}\" refuses the client id \"{}\"", settings.client_id))
        }
        Code::Banned
        | Code::BadAuthenticationMethod
        | Code::UseAnotherServer
        | Code::ServerMoved
        | Code::QoSNotSupported => {
            refused(format!("the broker at \"{place}\" refuses the connection: {}", words(&code)))
        }
        _ => Lost::new(
            LostBy::Away,
            format!("the broker at \"{place}\" did not accept the connection: {}", words(&code)),
        ),
    }
}

fn disconnected(code: DisconnectReasonCode, text: Option<String>, settings: &Settings) -> Lost {
    use DisconnectReasonCode as Code;

    let place = settings.address.socket();
    let by = match code {
        Code::SessionTakenOver => LostBy::TakenOver,
        Code::NotAuthorized
        | Code::SharedSubscriptionNotSupported
        | Code::WildcardSubscriptionsNotSupported
        | Code::QoSNotSupported => LostBy::Refused,
        _ => LostBy::Away,
    };
    let reason = text.unwrap_or_else(|| words(&code));
    Lost::new(by, format!("the broker at \"{place}\" ended the connection: {reason}"))
}

/// `NotAuthorized` as "not authorized".
pub(super) fn words(code: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}
