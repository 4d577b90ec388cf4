//! What a connection is opened with, as the program needs it: the configurations of source and sink
//! are made into this.

use std::time::Duration;

use pipeline_engine::CertificateStats;
use pipeline_engine::stage::{BuildContext, BuildError};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use super::address::Address;
use super::tls::TlsConfig;

/// The largest packet that MQTT can carry. Nothing smaller is told to the broker: it would discard
/// what is larger without a word, or (3.1.1) send it again after every reconnect.
pub(crate) const PACKET_BYTES_MAX: u32 = 268_435_455;

/// How long a connection may take until the broker has answered.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The version of MQTT that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Protocol {
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V3,
}

/// All that a connection needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) tls: TlsConfig,
    pub(crate) protocol: Protocol,
    pub(crate) client_id: String,
    pub(crate) login: Option<Login>,
    pub(crate) session: Session,
    pub(crate) keep_alive: Duration,
    pub(crate) direction: Direction,
    /// Where it is noted how long certificates are good.
    pub(crate) certificates: CertificateStats,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The broker may send so many messages before the first is acknowledged (MQTT 5).
    Receive { window: u16 },
    /// So many messages may be sent before the first is acknowledged.
    Send { in_flight_max: u16 },
}

impl Direction {
    /// How many messages a broker will surely send before the first is acknowledged.
    pub(crate) fn likely_window(self, protocol: Protocol) -> usize {
        match (self, protocol) {
            (Self::Receive { window }, Protocol::V5) => usize::from(window),
            // The default of Mosquitto, and no broker's is smaller.
            _ => 20,
        }
    }

    /// How many messages a broker can have sent before the first is acknowledged.
    pub(crate) fn unacked_max(self, protocol: Protocol) -> usize {
        match (self, protocol) {
            (Self::Receive { window }, Protocol::V5) => usize::from(window),
            _ => usize::from(u16::MAX),
        }
    }
    /// Slots for what we send. Each flush looks at all of them, so a receiver, which sends nothing but
    /// SUBSCRIBE, must have few: with the 65,535 of the library's default it acknowledges 20 times slower.
    pub(super) fn slots(self) -> u16 {
        match self {
            Self::Receive { .. } => 64,
            Self::Send { in_flight_max } => in_flight_max,
        }
    }

    /// Requests that may wait for the connection. What a receiver asks is bounded by what it has
    /// received, and an acknowledgement must never find the queue full.
    pub(super) fn queue_max(self) -> Option<usize> {
        match self {
            Self::Receive { .. } => None,
            Self::Send { in_flight_max } => Some(usize::from(in_flight_max)),
        }
    }
}

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: Option<SecretString>,
}

impl Login {
    /// A password needs a name; MQTT 5 would allow it alone, 3.1.1 and most brokers do not.
    pub(crate) fn new(username: Option<String>, password: Option<SecretString>) -> Result<Option<Self>, BuildError> {
        match (username, password) {
            (Some(username), password) => Ok(Some(Self { username, password })),
            (None, Some(_)) => {
                Err(BuildError::invalid("password", "a password without a user name").hint("Set `username` as well."))
            }
            (None, None) => Ok(None),
        }
    }
}

/// What the broker keeps while nobody is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// Nothing.
    Clean,
    /// Subscriptions and what they matched, for so long (MQTT 5; with 3.1.1 the broker decides).
    Persistent { expiry: Duration },
}

/// The client id: the configured one, or one that is the same after a restart.
pub(crate) fn client_id(configured: Option<String>, cx: &BuildContext) -> Result<String, BuildError> {
    let id = configured.unwrap_or_else(|| format!("pipeline-{}-{}", cx.pipeline, cx.stage));
    if id.is_empty() {
        return Err(BuildError::invalid("client_id", "an empty client id names no session")
            .hint("Remove the key for an id made of the pipeline's and the stage's name."));
    }
    if id.len() > usize::from(u16::MAX) || id.contains('\0') {
        return Err(BuildError::invalid("client_id", "MQTT can't carry this client id"));
    }
    Ok(id)
}

/// A duration that MQTT writes as whole seconds in 16 bits.
pub(crate) fn seconds(key: &str, duration: DurationText) -> Result<Duration, BuildError> {
    let secs = duration.0.as_secs();
    if (1..=u64::from(u16::MAX)).contains(&secs) && duration.0.subsec_nanos() == 0 {
        return Ok(duration.0);
    }
    Err(BuildError::invalid(key, format!("{duration} is not between 1s and 65535s in whole seconds")))
}
