//! Receives messages from an MQTT broker, and acknowledges each one once every sink has stored it.
//!
//! Two halves with a queue of undecoded messages between them: the intake holds the connection and
//! never waits for the pipeline, the forward half decodes and does. A message that is not stored when
//! the pipeline stops or crashes is not acknowledged either, and comes again.
//!
//! **Danger:** what the broker may send unacknowledged is the only buffer. A sink that is slower than
//! `receive_maximum` messages allow stops the intake, and the broker's own queue has a limit too,
//! beyond which it drops silently.

mod forward;
mod intake;
mod resend;
mod subscriptions;
mod waiting;
mod window;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipeline_engine::dead_letter;
use pipeline_engine::dlq::Resender;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSource, Port, Source, SourceConfig, SourceContext, StageDoc, StageError,
};
use pipeline_engine::units::{DurationText, SizeText};
use rumqttc_v5::QoS;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::decode::{Decoder, Format};
use crate::mqtt_client::{self, Address, Direction, Login, Protocol, Session, Settings, TlsConfig, Topics};
use forward::{Forward, Resumed};
use intake::{Counters, Ended, Intake};
use resend::Resend;
use waiting::{Receiver, waiting};

/// `type = "mqtt"` in a `[sources.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MqttSourceConfig {
    /// The broker: `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for an encrypted connection (`tcp://` and
    /// `ssl://` mean the same). The ports are 1883 and 8883 if none is given.
    url: String,
    /// What to receive: one topic filter or a list, with the wildcards `+` and `#`. Pipelines that
    /// subscribe to `$share/GROUP/FILTER` with the same group divide the messages among them.
    topics: Topics,
    /// How often a message may arrive: 0 at most once (nothing is acknowledged or repeated), 1 at least
    /// once, 2 exactly once as long as the connection lasts.
    #[serde(default = "default_qos")]
    qos: u8,
    /// The version of MQTT: `"5"` or `"3.1.1"`.
    #[serde(default)]
    protocol: Protocol,
    /// By what name the broker knows our session. Must stay the same, and be used by nobody else; if not
    /// given it is made of the pipeline's and the stage's name.
    client_id: Option<String>,
    /// Let the broker forget us whenever we are not connected. What it receives meanwhile is lost.
    #[serde(default)]
    clean_session: bool,
    /// How long the broker keeps what it receives for us while we are away. With MQTT 3.1.1 the broker
    /// decides.
    #[serde(default = "default_session_expiry")]
    session_expiry: DurationText,
    /// How often to show the broker that we are there when there is nothing else to say.
    #[serde(default = "default_keep_alive")]
    keep_alive: DurationText,
    /// How many messages the broker may send before the first of them is stored and acknowledged. Rate
    /// times commit delay must fit: a sink that commits once a minute needs 60,000 for 1,000 messages a
    /// second. With MQTT 3.1.1 the broker decides (Mosquitto: 20).
    #[serde(default = "default_receive_maximum")]
    receive_maximum: u16,
    /// A larger payload is not decoded: its beginning leaves by `rejected`, with the reason `oversize`.
    #[serde(default = "default_payload_max")]
    payload_max: SizeText,
    /// The user to connect as.
    username: Option<String>,
    /// The user's password.
    #[schemars(with = "Option<String>")]
    password: Option<SecretString>,
    /// Certificates, for `mqtts://`.
    #[serde(default)]
    tls: TlsConfig,
    /// The schema that payloads are decoded by. Without one the rows are the messages themselves:
    /// `topic`, `payload` and `received_at`.
    schema: Option<String>,
    /// How payloads are encoded.
    #[serde(default)]
    format: Format,
    /// The most rows that travel together.
    #[serde(default = "default_batch_rows")]
    batch_rows: u32,
    /// How long the first row of a batch may wait for others.
    #[serde(default = "default_batch_linger")]
    batch_linger: DurationText,
}

fn default_qos() -> u8 {
    1
}

fn default_session_expiry() -> DurationText {
    DurationText::secs(24 * 3600)
}

fn default_keep_alive() -> DurationText {
    DurationText::secs(30)
}

fn default_receive_maximum() -> u16 {
    u16::MAX
}

fn default_payload_max() -> SizeText {
    SizeText(256 << 10)
}

fn default_batch_rows() -> u32 {
    8192
}

fn default_batch_linger() -> DurationText {
    DurationText::millis(5)
}

impl SourceConfig for MqttSourceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "mqtt",
        summary: "Receives messages from an MQTT broker and acknowledges each once every sink has stored it.",
        ports: &[("rejected", "messages that do not fit the schema, and the beginning of oversize ones")],
        failure: "Transient (connection lost, broker away): connects again after 0.5 to 30 s, as often as it takes; \
                  the session stays, so nothing is lost with QoS 1 and 2. \
                  Permanent (login refused, a filter refused or granted at a lower QoS, the client id used by another, \
                  a certificate not trusted at the first connect): the run stops. \
                  Duplicates: after a lost connection or a crash the broker sends again what was not acknowledged, at \
                  most `receive_maximum` messages; what still waits to be decoded is left out then. \
                  MQTT has no key for deduplication: use one of the payload, such as device and timestamp, as the \
                  sink's key. \
                  While the pipeline stands still longer than 1.5 times `keep_alive` with 64 MiB of messages waiting, \
                  the broker may hang up: QoS 0 messages are lost then, others come again.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let settings = self.settings(cx)?;
        let qos = match self.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            2 => QoS::ExactlyOnce,
            other => return Err(BuildError::invalid("qos", format!("there is no QoS {other}")).hint("Use 0, 1 or 2.")),
        };
        if self.topics.0.is_empty() {
            return Err(BuildError::invalid("topics", "nothing to subscribe to").hint("`#` is everything."));
        }
        for filter in &self.topics.0 {
            mqtt_client::check_filter(filter).map_err(|mistake| BuildError::invalid("topics", mistake))?;
        }
        if self.batch_rows == 0 {
            return Err(BuildError::invalid("batch_rows", "a batch has at least one row"));
        }
        let schema = self.schema.as_deref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoder = Decoder::new(schema.as_deref(), self.format, &cx.stage);
        let mut outputs = decoder.outputs();
        if !outputs.iter().any(|(port, _)| *port == Port::REJECTED) {
            // Without a schema every message is a row; an oversize one is none all the same.
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        let resend = ResendBy { schema: schema.clone(), format: self.format };
        let source = Mqtt {
            stage: cx.stage.clone(),
            resend,
            settings,
            filters: self.topics.0,
            qos,
            payload_bytes_max: self.payload_max.bytes(),
            decoder,
            batch_rows_max: self.batch_rows as usize,
            batch_linger: self.batch_linger.0,
        };
        Ok(BuiltSource { source: Box::new(source), outputs })
    }
}

impl MqttSourceConfig {
    fn settings(&self, cx: &BuildContext) -> Result<Settings, BuildError> {
        let address = Address::parse("url", &self.url)?;
        self.tls.check(&address)?;
        if self.receive_maximum == 0 {
            return Err(BuildError::invalid("receive_maximum", "with none allowed no message can arrive"));
        }
        let session =
            if self.clean_session { Session::Clean } else { Session::Persistent { expiry: self.session_expiry.0 } };
        Ok(Settings {
            address,
            tls: self.tls.clone(),
            protocol: self.protocol,
            client_id: mqtt_client::client_id(self.client_id.clone(), cx)?,
            login: Login::new(self.username.clone(), self.password.clone())?,
            session,
            keep_alive: mqtt_client::seconds("keep_alive", self.keep_alive)?,
            direction: Direction::Receive { window: self.receive_maximum },
        })
    }
}

/// What makes a message of a refused row.
struct ResendBy {
    schema: Option<Arc<DeclaredSchema>>,
    format: Format,
}

/// The source, ready to run.
struct Mqtt {
    stage: String,
    resend: ResendBy,
    settings: Settings,
    filters: Vec<String>,
    qos: QoS,
    payload_bytes_max: usize,
    decoder: Decoder,
    batch_rows_max: usize,
    batch_linger: Duration,
}

#[async_trait]
impl Source for Mqtt {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let resumed = Resumed::default();
        let finish = CancellationToken::new();
        let intake = Intake {
            stage: self.stage.clone(),
            settings: self.settings,
            filters: self.filters,
            qos: self.qos,
            payload_bytes_max: self.payload_bytes_max,
            stop: cx.stop_token(),
            finish: finish.clone(),
            resumed: resumed.clone(),
            counters: Counters {
                reconnects: cx.counter("reconnects"),
                session_lost: cx.counter("session_lost"),
                oversize: cx.counter("oversize"),
                redelivered: cx.counter("redelivered"),
            },
        };
        let mut forward = Forward {
            stage: self.stage,
            decoder: self.decoder,
            rows_max: self.batch_rows_max,
            linger: self.batch_linger,
            resumed,
            skipped: cx.counter("redelivered"),
        };
        let (sender, mut receiver) = waiting();
        // A set, since dropping it ends the task: at a hard stop nobody is left to tell it.
        let mut tasks = JoinSet::new();
        tasks.spawn(intake.run(sender));
        forward_all(&mut forward, &cx, &mut receiver, &mut tasks).await?;
        finish.cancel();
        end_of(&mut tasks, &cx).await
    }

    /// With another client id and no session: a pipeline that is running is not disturbed.
    async fn probe(&mut self) -> Result<String, StageError> {
        mqtt_client::probe(&self.settings).await?;
        Ok("the broker lets us in".to_owned())
    }

    fn resender(&self) -> Option<Box<dyn Resender>> {
        let ResendBy { schema, format } = &self.resend;
        Some(Box::new(Resend::new(&self.settings, &self.filters, schema.clone(), *format)))
    }
}

/// Forwards until reading has stopped and every promise is kept, while the intake goes on to poll.
async fn forward_all(
    forward: &mut Forward,
    cx: &SourceContext,
    waiting: &mut Receiver,
    tasks: &mut JoinSet<Result<(), Ended>>,
) -> Result<(), StageError> {
    let partitions = forward.run(cx, waiting).await?;
    if !cx.is_stopping() {
        // The queue ended because the intake did: it has the cause.
        return end_of(tasks, cx).await;
    }
    cx.close().await;
    for partition in &partitions {
        cx.drain(partition).await?;
    }
    Ok(())
}

/// Waits for the intake and says why it ended.
async fn end_of(tasks: &mut JoinSet<Result<(), Ended>>, cx: &SourceContext) -> Result<(), StageError> {
    match tasks.join_next().await {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(Ended::Failed(error)))) => Err(error),
        // The promise is broken, so this returns at once, with an error.
        Some(Ok(Err(Ended::Broken(partition)))) => cx.drain(&partition).await,
        Some(Err(error)) => Err(StageError::bug("the MQTT intake panicked").because(error)),
    }
}

#[cfg(test)]
mod tests;
