//! One connection, the same for both protocol versions.
//!
//! [`Events`] must be polled without a pause: it answers pings and writes what [`Commands`] ask for.
//! A poll must run to its end: dropping it midway can lose a packet that was half written.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use pipeline_engine::stage::StageError;
use rumqttc_v5::QoS;
use tokio_util::task::TaskTracker;

use super::acks::DirectAcks;
use super::fault::Lost;
use super::settings::{Session, Settings};
use super::socket::Sockets;
use super::{v3, v5};

/// What happens on a connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// The broker has accepted us.
    Connected {
        /// It still has our session: subscriptions, and what we have not acknowledged.
        session_present: bool,
        /// The largest packet it takes.
        packet_bytes_max: u32,
        /// What else it has told.
        terms: Terms,
    },
    /// A message has arrived.
    Message(Delivered),
    /// We have said goodbye: the last event.
    Closed,
    /// Nothing that anybody waits for.
    Other,
}

/// A broker's own limits, told when it accepts us. MQTT 3.1.1 has no words for them: all is then allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Messages that it takes before it has acknowledged the first.
    pub(crate) in_flight_max: u16,
    /// The highest QoS that it knows.
    pub(crate) qos_max: u8,
    /// How long it keeps our session, if that is not as long as we asked for.
    pub(crate) session_expiry: Option<Duration>,
    /// It knows shared subscriptions.
    pub(crate) shares: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { in_flight_max: u16::MAX, qos_max: 2, session_expiry: None, shares: true }
    }
}

/// A message as the broker delivers it.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    /// What the broker waits for; `None` for QoS 0.
    pub(crate) receipt: Option<Receipt>,
    /// The broker has tried to deliver it before (DUP).
    pub(crate) repeated: bool,
}

/// The acknowledgement that a message waits for. Good only on the connection it came by: on another
/// one the same number is another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) packet_id: u16,
    /// QoS 2: the first of its two rounds.
    pub(crate) exactly_once: bool,
}

/// The broker's answer to a subscription: the QoS it grants or the reason it refuses. `None` when the
/// connection went first.
pub(crate) type Subscribed = BoxFuture<'static, Option<Result<QoS, String>>>;

/// Why a broker did not take a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// For what it is: its topic or its payload.
    Message(String),
    /// Because we may not publish there.
    NotAllowed(String),
    /// For now.
    NotNow(String),
    /// The connection went before the answer.
    Lost,
}

/// Opens a connection, which is made by the first [`Events::poll`].
pub(crate) fn open(settings: &Settings) -> Result<(Commands, Events), StageError> {
    let acks = (!settings.address.tls).then(DirectAcks::default);
    let sockets = Sockets { lingering: TaskTracker::new(), direction: settings.direction, acks: acks.clone() };
    let (client, link) = if settings.protocol == super::Protocol::V5 {
        let (client, events) = v5::open(settings, &sockets)?;
        (Client::V5(client), Link::V5(Box::new(events)))
    } else {
        let (client, events) = v3::open(settings, &sockets)?;
        (Client::V3(client), Link::V3(Box::new(events)))
    };
    Ok((Commands { client, acks }, Events { settings: settings.clone(), link, lingering: sockets.lingering }))
}

/// Connects, says goodbye, and touches no session: what is wrong with an address or a login shows.
pub(crate) async fn probe(settings: &Settings) -> Result<(), StageError> {
    let client_id = format!("{}-check-{:08x}", settings.client_id, rand::random::<u32>());
    let settings = Settings { client_id, session: Session::Clean, ..settings.clone() };
    let (commands, mut events) = open(&settings)?;
    loop {
        match events.poll().await {
            Ok(Event::Connected { .. }) => commands.disconnect(),
            Ok(Event::Closed) => {
                events.close().await;
                return Ok(());
            }
            Ok(_) => {}
            Err(lost) => return Err(lost.permanent()),
        }
    }
}

/// Asks something of a connection. Nothing here waits for the network; clones ask the same one.
#[derive(Clone)]
pub(crate) struct Commands {
    client: Client,
    acks: Option<DirectAcks>,
}

#[derive(Clone)]
enum Client {
    V5(rumqttc_v5::AsyncClient),
    V3(rumqttc_v4::AsyncClient),
}

impl Commands {
    /// Acknowledges a message. Must be called in the order in which messages arrived, and by whoever
    /// polls, before the next poll: only so does no acknowledgement slip onto the next connection.
    pub(crate) fn acknowledge(&self, receipt: Receipt) {
        match (&self.acks, &self.client) {
            (Some(acks), _) if !receipt.exactly_once => acks.push(receipt.packet_id),
            (_, Client::V5(client)) => v5::acknowledge(client, receipt),
            (_, Client::V3(client)) => v3::acknowledge(client, receipt),
        }
    }

    /// Subscribes to one filter. `only_new`: retained messages are wanted only if the broker did not
    /// have this subscription before (MQTT 5; with 3.1.1 they always come).
    pub(crate) fn subscribe(&self, filter: &str, qos: QoS) -> Subscribed {
        match &self.client {
            Client::V5(client) => v5::subscribe(client, filter, qos),
            Client::V3(client) => v3::subscribe(client, filter, qos),
        }
    }

    /// Hands over a message, waiting only while the queue to the connection is full. The answer comes
    /// by the returned notice; `None` if there is no connection any more.
    pub(crate) async fn publish(&self, topic: &str, payload: Bytes, qos: QoS) -> Option<Notice> {
        match &self.client {
            Client::V5(client) => v5::publish(client, topic, payload, qos).await.map(Notice::V5),
            Client::V3(client) => v3::publish(client, topic, payload, qos).await.map(Notice::V3),
        }
    }

    /// Says goodbye once everything asked for before is done; the session stays.
    pub(crate) fn disconnect(&self) {
        match &self.client {
            Client::V5(client) => v5::disconnect(client),
            Client::V3(client) => v3::disconnect(client),
        }
    }
}

/// The broker's coming answer to a published message.
pub(crate) enum Notice {
    V5(rumqttc_v5::PublishNotice),
    V3(rumqttc_v4::PublishNotice),
}

impl Notice {
    /// Waits until the broker has the message: PUBACK, PUBCOMP, or (QoS 0) the socket has it.
    pub(crate) async fn taken(self) -> Result<(), Refusal> {
        match self {
            Self::V5(notice) => v5::taken(notice).await,
            Self::V3(notice) => v3::taken(notice).await,
        }
    }

    /// The same for a message of QoS 1, and whether anybody will read it. False: the broker has it from us
    /// and has thrown it away, since nobody is subscribed. MQTT 3.1.1 can't say so: there it is true.
    pub(crate) async fn taken_for_somebody(self) -> Result<bool, Refusal> {
        match self {
            Self::V5(notice) => v5::taken_for_somebody(notice).await,
            Self::V3(notice) => v3::taken(notice).await.map(|()| true),
        }
    }
}

/// The polling end of a connection.
pub(crate) struct Events {
    settings: Settings,
    link: Link,
    lingering: TaskTracker,
}

enum Link {
    V5(Box<rumqttc_v5::EventLoop>),
    V3(Box<rumqttc_v4::EventLoop>),
}

impl Events {
    /// The next event. After an error the next call connects again, at once: the caller waits.
    pub(crate) async fn poll(&mut self) -> Result<Event, Lost> {
        match &mut self.link {
            Link::V5(events) => v5::poll(events, &self.settings).await,
            Link::V3(events) => v3::poll(events, &self.settings).await,
        }
    }

    /// Lets go of the connection, and waits until the broker has read everything we wrote: to be called
    /// after [`Event::Closed`].
    pub(crate) async fn close(self) {
        drop(self.link);
        self.lingering.close();
        self.lingering.wait().await;
    }

    /// Reads the certificates again, for the next connect.
    pub(crate) fn read_certificates(&mut self) -> Result<(), StageError> {
        if !self.settings.address.tls {
            return Ok(());
        }
        let config = self.settings.tls.read(&self.settings.address, &self.settings.certificates)?;
        match &mut self.link {
            Link::V5(events) => {
                events.options.set_transport(v5::encrypted(config));
            }
            Link::V3(events) => {
                events.mqtt_options.set_transport(v3::encrypted(config));
            }
        }
        Ok(())
    }
}
