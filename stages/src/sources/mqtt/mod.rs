//! Receives messages from an MQTT broker, keeps each on disk, and acknowledges it then.
//!
//! The intake holds the connection and appends to the spool; it never waits for the pipeline. The rest is
//! what every spooled source does: see `sources::spooled`. So the broker's own queue, beyond whose limit
//! it drops silently, only ever holds what a sync to disk takes.
//!
//! **Danger:** a message that the broker repeats is recognised by its DUP flag, its packet id and its
//! content. One that it repeats without the flag (AWS IoT may), or that its publisher repeats, is a
//! message of its own here: the sinks' keys make one row of it.

mod ceiling;
mod examine;
mod intake;
mod recent;
mod redelivery;
mod resend;
mod subscriptions;
mod window;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipeline_engine::dead_letter;
use pipeline_engine::dlq::Resender;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::secret::SecretText;
use pipeline_engine::spool::{RECORD_BYTES_MAX, SpoolOptions};
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSource, DiskBounds, Examination, Port, Source, SourceConfig, SourceContext,
    StageDoc, StageError,
};
use pipeline_engine::units::{DurationText, SizeText};
use rumqttc_v5::QoS;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use super::decoder;
use super::spooled::{self, Forward, Opened, SpoolConfig};
use crate::decode::{Decoder, Format, UnknownFields};
use crate::mqtt_client::{self, Address, Direction, Login, Protocol, Session, Settings, TlsConfig, Topics};
use intake::{Counters, Intake};
use redelivery::Redeliveries;
use resend::Resend;

/// `type = "mqtt"` in a `[sources.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MqttSourceConfig {
    /// The broker: `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for an encrypted connection (`tcp://` and
    /// `ssl://` mean the same). The ports are 1883 and 8883 if none is given.
    url: String,
    /// What to receive: one topic filter or a list, with the wildcards `+` and `#`. Pipelines that
    /// subscribe to `$share/GROUP/FILTER` with the same group divide the messages among them, each with a
    /// `client_id` and a `data_dir` of its own: docs/mqtt.md.
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
    /// How many messages the broker may send before the first of them is on disk and acknowledged. With
    /// MQTT 3.1.1 the broker decides (Mosquitto: 20). So many of the newest are looked through at a start, for the broker may send
    /// them again: where messages are large and the disk is slow, take less.
    #[serde(default = "default_receive_maximum")]
    receive_maximum: u16,
    /// A larger payload is not decoded: its beginning leaves by `rejected`, with the reason `oversize`.
    #[serde(default = "default_payload_max")]
    payload_max: SizeText,
    /// The user to connect as.
    username: Option<String>,
    /// The user's password.
    #[schemars(with = "Option<SecretText>")]
    password: Option<SecretString>,
    /// Certificates, for `mqtts://`.
    #[serde(default)]
    tls: TlsConfig,
    /// The schema that payloads are decoded by. Without one the rows are the messages themselves:
    /// `topic`, `payload` and `received_at`.
    schema: Option<String>,
    /// What becomes of a field that no column of the schema asks for; a column with `rest = true` keeps it as JSON. All are
    /// counted as `unknown_fields`, and the first one of its name is told.
    unknown_fields: Option<UnknownFields>,
    /// How payloads are encoded.
    #[serde(default)]
    format: Format,
    /// The most rows that travel together.
    #[serde(default = "default_batch_rows")]
    batch_rows: u32,
    /// Where messages wait until every sink has them.
    #[serde(default)]
    spool: SpoolConfig,
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

/// As many as there are packet ids. A broker with a queue then sends on while a group is synced, and the spool's
/// buffer bounds what that takes of memory.
fn default_receive_maximum() -> u16 {
    u16::MAX
}

fn default_payload_max() -> SizeText {
    SizeText(256 << 10)
}

fn default_batch_rows() -> u32 {
    8192
}

/// How long messages wait for others before they are synced together and acknowledged, unless the file says so. Of a thousand
/// messages a second ten are stored together then, and each costs the pipeline a quarter less than with five (benches/README.md).
const LINGER: Duration = Duration::from_millis(10);
/// The same where many come.
const LINGER_BUSY: Duration = Duration::from_millis(20);
/// What a topic and the spool's own bytes take of a record.
const PAYLOAD_MAX: SizeText = SizeText(RECORD_BYTES_MAX as u64 - (1 << 20));

impl SourceConfig for MqttSourceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "mqtt",
        summary: "Receives messages from an MQTT broker and acknowledges each once it is on disk.",
        ports: &[(
            "rejected",
            "messages that do not fit the schema, the beginning of oversize ones, and a note of what a damaged disk has lost",
        )],
        failure: "Transient (connection lost, broker away): connects again after 0.5 to 30 s, as often as it takes; \
                  the session stays, so nothing is lost with QoS 1 and 2. \
                  Disk full or failing: nothing is acknowledged until it can write again, which it tries by itself; \
                  what the broker has sent unacknowledged waits there. \
                  Permanent (login refused, a filter refused or granted at a lower QoS, the client id used by another, \
                  a certificate not trusted at the first connect, a spool that is another source's): the run stops. \
                  Duplicates: what the broker repeats after a lost connection or a crash is recognised by its DUP flag, \
                  packet id and content, and stored once. What comes again without the flag is not: use a key of \
                  the payload, such as device and timestamp, as the sink's key. \
                  After a start it goes on where every sink has stored everything, whether the broker is there or not.",
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
        for (place, filter) in self.topics.0.iter().enumerate() {
            mqtt_client::check_filter(filter)
                .map_err(|mistake| BuildError::invalid(format!("topics.{place}"), mistake))?;
        }
        if self.batch_rows == 0 {
            return Err(BuildError::invalid("batch_rows", "a batch has at least one row"));
        }
        if self.payload_max.0 > PAYLOAD_MAX.0 {
            return Err(BuildError::invalid("payload_max", format!("the spool holds payloads up to {PAYLOAD_MAX}")));
        }
        let mut spool = self.spool.options(cx, LINGER)?;
        // The broker waits for nothing but room in its window, which is not lingered for.
        spool.group_linger_busy = if spool.group_linger.is_zero() { Duration::ZERO } else { LINGER_BUSY };
        let schema = self.schema.as_deref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoder = decoder(cx, schema.as_deref(), self.format, self.unknown_fields)?;
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
            spool_dir: cx.state_dir().join("spool"),
            spool,
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
            certificates: cx.certificates(),
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
    spool_dir: PathBuf,
    spool: SpoolOptions,
}

#[async_trait]
impl Source for Mqtt {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let opened = spooled::open(&cx, &self.stage, self.spool_dir, self.spool).await?;
        let Some(Opened { spool, writer, report }) = opened else { return Ok(()) };
        let unacked_max = self.settings.direction.unacked_max(self.settings.protocol);
        let (mut redeliveries, mut last_run_received_us) = (Redeliveries::new(unacked_max), None);
        spooled::visit_newest(&spool, unacked_max, |lsn, record| {
            redeliveries.note_earlier(&record, lsn);
            last_run_received_us = Some(record.received_at_us);
        })
        .await?;
        let intake = Intake {
            stage: self.stage.clone(),
            settings: self.settings,
            filters: self.filters,
            qos: self.qos,
            payload_bytes_max: self.payload_bytes_max,
            stop: cx.stop_token(),
            last_run_received_us,
            counters: Counters {
                connections_lost: cx.counter("connections_lost"),
                reconnects: cx.counter("reconnects"),
                session_lost: cx.counter("session_lost"),
                oversize: cx.counter("oversize"),
                redelivered: cx.counter("redelivered"),
            },
            intake: cx.intake(),
            broker: cx.outside(),
        };
        let durable = spool.durable();
        let forward = Forward {
            stage: self.stage,
            decoder: self.decoder,
            rows_max: self.batch_rows_max,
            found_lsn: report.durable_lsn,
        };
        let receiving = intake.run(writer, durable, report.durable_lsn, redeliveries);
        spooled::forward_beside(forward, &cx, spool, receiving).await
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn divides_with(&self) -> Option<String> {
        let groups = self.filters.iter().filter_map(|filter| mqtt_client::shared(filter));
        let groups: BTreeSet<&str> = groups.map(|(group, _)| group).collect();
        (!groups.is_empty()).then(|| groups.into_iter().collect::<Vec<_>>().join("\", \""))
    }

    /// With another client id and no session: a pipeline that is running is not disturbed.
    async fn probe(&mut self) -> Result<String, StageError> {
        mqtt_client::probe(&self.settings).await?;
        Ok("the broker lets us in".to_owned())
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }

    fn disk_bounds(&self) -> Option<DiskBounds> {
        Some(DiskBounds { bytes_max: self.spool.bytes_max, free_bytes_min: self.spool.free_space_min })
    }

    fn resender(&self) -> Option<Box<dyn Resender>> {
        let ResendBy { schema, format } = &self.resend;
        Some(Box::new(Resend::new(&self.settings, &self.filters, schema.clone(), *format)))
    }
}

#[cfg(test)]
mod tests;
