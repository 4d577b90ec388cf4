//! The connection that the MQTT source and the MQTT sink share: where the broker is, how it is
//! trusted, and which errors will pass.
//!
//! Two libraries lie underneath, one a protocol version, with the same traps in both. [`open`] sets
//! every option that has cost somebody messages, and gives [`Commands`] and [`Events`] that look the
//! same for both versions. Nothing here reconnects by itself: each user has its own reasons to wait.

mod acks;
mod address;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod examine;
mod fault;
#[cfg(test)]
pub(crate) mod fault_broker;
mod link;
mod publisher;
mod settings;
mod socket;
mod tls;
mod topics;
mod v3;
mod v5;

pub(crate) use address::Address;
#[cfg(feature = "embedded-broker")]
pub(crate) use embedded::EmbeddedBroker;
pub(crate) use examine::{Visit, let_in, reach};
pub(crate) use fault::{Lost, LostBy};
pub(crate) use link::{Commands, Delivered, Event, Events, Receipt, Refusal, Subscribed, open, probe};
pub(crate) use publisher::Publisher;
pub use settings::Protocol;
pub(crate) use settings::{Direction, Login, Session, Settings, client_id, seconds};
pub use tls::TlsConfig;
pub(crate) use topics::{Topics, check_filter, check_topic, shared};
