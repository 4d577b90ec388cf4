//! Publishes rows to an MQTT broker: for other systems, for demos, and as the load of tests.
//!
//! A group counts as stored once the broker has acknowledged every message of it. At least once: when
//! the connection goes midway, only what is not acknowledged is published again, and some of that may
//! have arrived.

mod examine;
mod messages;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pipeline_engine::dead_letter;
use pipeline_engine::secret::SecretText;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSink, Examination, Group, Grouping, Port, Sink, SinkConfig, StageDoc, StageError,
};
use pipeline_engine::units::DurationText;
use rumqttc_v5::QoS;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use super::same_rows::SameRows;
use crate::mqtt_client::{self, Address, Direction, Login, Publisher, Refusal, Session, Settings};
pub use crate::mqtt_client::{Protocol, TlsConfig};
use messages::{Outgoing, Shape};

/// `type = "mqtt"` in a `[sinks.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MqttSinkConfig {
    /// The broker: `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for an encrypted connection (`tcp://` and
    /// `ssl://` mean the same). The ports are 1883 and 8883 if none is given.
    pub url: String,
    /// Where to publish. Rows with the columns `topic` and `payload` are published as they are, and this
    /// is for those whose topic is null; all others become JSON objects and go here.
    pub topic: Option<String>,
    /// How often a message may arrive: 0 at most once, 1 at least once, 2 exactly once as long as the
    /// connection lasts.
    #[serde(default = "default_qos")]
    pub qos: u8,
    /// The version of MQTT: `"5"` or `"3.1.1"`.
    #[serde(default)]
    pub protocol: Protocol,
    /// By what name the broker knows us; nobody else may use it. If not given it is made of the
    /// pipeline's and the stage's name.
    pub client_id: Option<String>,
    /// The user to connect as.
    pub username: Option<String>,
    /// The user's password.
    #[schemars(with = "Option<SecretText>")]
    pub password: Option<SecretString>,
    /// Certificates, for `mqtts://`.
    #[serde(default)]
    pub tls: TlsConfig,
    /// How often to show the broker that we are there when there is nothing else to say.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: DurationText,
    /// How many messages may be on their way before the first is acknowledged. A broker with a smaller
    /// receive maximum wins; QoS 2 of MQTT 3.1.1, where a broker can't tell its own, never has more than 20.
    #[serde(default = "default_inflight_max")]
    pub inflight_max: u16,
    /// Start a broker inside this process at the address of `url`, for demos and tests. It keeps
    /// nothing, lets everybody in, and ends with this sink.
    #[cfg(feature = "embedded-broker")]
    #[serde(default)]
    pub embedded_broker: bool,
}

fn default_qos() -> u8 {
    1
}

fn default_keep_alive() -> DurationText {
    DurationText::secs(30)
}

fn default_inflight_max() -> u16 {
    1000
}

impl MqttSinkConfig {
    /// The defaults of a pipeline file, for a broker and a topic.
    pub fn new(url: impl Into<String>, topic: Option<String>) -> Self {
        Self {
            url: url.into(),
            topic,
            qos: default_qos(),
            protocol: Protocol::default(),
            client_id: None,
            username: None,
            password: None,
            tls: TlsConfig::default(),
            keep_alive: default_keep_alive(),
            inflight_max: default_inflight_max(),
            #[cfg(feature = "embedded-broker")]
            embedded_broker: false,
        }
    }

    /// Mosquitto hangs up on whoever exceeds its limit, which is 20 by default, and 3.1.1 has no word for it.
    fn in_flight_max(&self) -> u16 {
        if self.protocol == Protocol::V3 && self.qos == 2 { self.inflight_max.min(20) } else { self.inflight_max }
    }

    fn settings(&self, cx: &BuildContext) -> Result<Settings, BuildError> {
        let address = Address::parse("url", &self.url)?;
        self.tls.check(&address)?;
        if self.inflight_max == 0 {
            return Err(BuildError::invalid("inflight_max", "with none allowed no message can leave"));
        }
        Ok(Settings {
            address,
            tls: self.tls.clone(),
            protocol: self.protocol,
            client_id: mqtt_client::client_id(self.client_id.clone(), cx)?,
            login: Login::new(self.username.clone(), self.password.clone())?,
            session: Session::Clean,
            keep_alive: mqtt_client::seconds("keep_alive", self.keep_alive)?,
            direction: Direction::Send { in_flight_max: self.in_flight_max() },
            certificates: cx.certificates(),
        })
    }
}

impl SinkConfig for MqttSinkConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "mqtt",
        summary: "Publishes rows to an MQTT broker, as they are or as JSON objects.",
        ports: &[("rejected", "rows that can't be a message: no topic, no payload, too large for the broker")],
        failure: "Transient (connection lost, broker away or over its quota): the group is tried again until the broker \
                  has it. Permanent (login refused, a topic not allowed, a certificate not trusted at the first \
                  connect): the run stops. \
                  Duplicates: what was on its way when the connection went is published again, at most `inflight_max` \
                  messages; after a crash, the last group. MQTT has no key for deduplication: the reader needs one in \
                  the payload. \
                  QoS 0: handed to the socket is all that is known, and messages on their way are lost with the \
                  connection.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let settings = self.settings(cx)?;
        #[cfg(feature = "embedded-broker")]
        if self.embedded_broker && settings.address.tls {
            return Err(BuildError::invalid("embedded_broker", "the embedded broker speaks no TLS")
                .hint("Write mqtt:// in `url`."));
        }
        let qos = match self.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            2 => QoS::ExactlyOnce,
            other => return Err(BuildError::invalid("qos", format!("there is no QoS {other}")).hint("Use 0, 1 or 2.")),
        };
        let sink = Mqtt {
            shape: Shape::of(input, self.topic)?,
            settings,
            qos,
            publisher: None,
            connected_before: false,
            unfinished: None,
            #[cfg(feature = "embedded-broker")]
            broker: Broker { wanted: self.embedded_broker, running: None },
        };
        let outputs = vec![(Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSink { sink: Box::new(sink), grouping: Grouping::default(), outputs })
    }
}

/// The sink, ready to run.
struct Mqtt {
    settings: Settings,
    shape: Shape,
    qos: QoS,
    publisher: Option<Publisher>,
    connected_before: bool,
    /// What the broker has of the group that is being written.
    unfinished: Option<Unfinished>,
    #[cfg(feature = "embedded-broker")]
    broker: Broker,
}

#[cfg(feature = "embedded-broker")]
struct Broker {
    wanted: bool,
    running: Option<mqtt_client::EmbeddedBroker>,
}

/// How far a group has come whose connection went. Kept so that the engine's next attempt publishes
/// only the rest.
struct Unfinished {
    rows: SameRows,
    taken: Vec<bool>,
}

impl Unfinished {
    fn of(group: &Group) -> Self {
        Self { rows: SameRows::of(group), taken: vec![false; group.rows()] }
    }
}

#[async_trait]
impl Sink for Mqtt {
    async fn probe(&mut self) -> Result<String, StageError> {
        #[cfg(feature = "embedded-broker")]
        if self.broker.wanted {
            return Ok("its broker starts with the run".to_owned());
        }
        mqtt_client::probe(&self.settings).await?;
        Ok("the broker lets us in".to_owned())
    }

    async fn examine(&mut self, report: &Examination) {
        #[cfg(feature = "embedded-broker")]
        if self.broker.wanted {
            return report.pass("broker", "it starts with the run");
        }
        examine::examine(&self.settings, self.qos, report).await;
    }

    async fn open(&mut self) -> Result<(), StageError> {
        #[cfg(feature = "embedded-broker")]
        if self.broker.wanted && self.broker.running.is_none() {
            self.broker.running = Some(mqtt_client::EmbeddedBroker::start(&self.settings.address).await?);
        }
        self.connect().await
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        self.connect().await?;
        let Some(publisher) = &self.publisher else {
            return Err(StageError::bug("a connection that came about is gone"));
        };
        let mut messages = Vec::with_capacity(group.rows());
        for batch in group.batches() {
            messages.extend(self.shape.messages(&batch.rows, publisher.packet_bytes_max)?);
        }
        let mut unfinished =
            self.unfinished.take().filter(|last| last.rows.are_of(group)).unwrap_or_else(|| Unfinished::of(group));
        match publish_all(publisher, &messages, &mut unfinished.taken, self.qos).await {
            Ok(()) => Ok(()),
            Err(Refusal::Lost) => {
                self.unfinished = Some(unfinished);
                Err(match self.publisher.take() {
                    Some(publisher) => publisher.why().await,
                    None => StageError::transient("the connection to the broker was lost"),
                })
            }
            Err(Refusal::NotNow(reason)) => {
                self.unfinished = Some(unfinished);
                Err(StageError::transient(format!("the broker did not take a message: {reason}")))
            }
            Err(Refusal::NotAllowed(reason)) => {
                Err(StageError::permanent(format!("the broker refuses messages: {reason}"))
                    .hint("Check what the broker allows this user or client id to publish to."))
            }
            Err(Refusal::Message(reason)) => {
                Err(StageError::data(format!("the broker refuses a message: {reason}")).code(reason))
            }
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
        #[cfg(feature = "embedded-broker")]
        if let Some(broker) = self.broker.running.take() {
            broker.stop().await;
        }
        Ok(())
    }
}

impl Mqtt {
    /// Connects unless there is a connection. One attempt: the engine waits between two.
    async fn connect(&mut self) -> Result<(), StageError> {
        if self.publisher.as_ref().is_some_and(Publisher::has_ended) {
            self.publisher = None;
        }
        if self.publisher.is_none() {
            self.publisher = Some(Publisher::connect(&self.settings, !self.connected_before).await?);
            self.connected_before = true;
        }
        Ok(())
    }
}

/// Publishes what the broker does not have yet, and notes what it takes. All messages are handed over
/// without waiting for one another; the library keeps `inflight_max` of them on their way.
async fn publish_all(
    publisher: &Publisher,
    messages: &[Outgoing],
    taken: &mut [bool],
    qos: QoS,
) -> Result<(), Refusal> {
    let mut answers = FuturesUnordered::new();
    let mut first_refusal = None;
    let rest: Vec<usize> = (0..messages.len()).filter(|index| !taken[*index]).collect();
    for index in rest {
        let Outgoing { topic, payload } = &messages[index];
        let Some(notice) = publisher.publish(topic, payload.clone(), qos).await else {
            first_refusal = Some(Refusal::Lost);
            break;
        };
        answers.push(async move { (index, notice.taken().await) });
    }
    // All of them, also after a refusal: what the broker has taken must not be published again.
    while let Some((index, answer)) = answers.next().await {
        match answer {
            Ok(()) => taken[index] = true,
            Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
        }
    }
    match first_refusal {
        None => Ok(()),
        Some(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests;
