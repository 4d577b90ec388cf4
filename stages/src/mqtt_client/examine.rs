//! Visits to a broker for `pipeline doctor`: by a client id of their own, and with no session that stays.

use pipeline_engine::stage::{Examination, StageError};
use tokio_util::task::AbortOnDropHandle;

use super::fault::{Lost, LostBy};
use super::link::{Commands, Event, Events, Terms, open};
use super::settings::{Session, Settings};
use crate::reach::{self, Preface};

/// What became of TLS on the way to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The connection is not encrypted.
    NotWanted,
    Done,
    /// The broker's own client has to say why.
    Failed,
}

/// Network and TLS up to the broker. `None` where it makes no sense to go on.
pub(crate) async fn reach(settings: &Settings, report: &Examination) -> Option<Handshake> {
    let place = settings.address.socket();
    if !reach::network(std::slice::from_ref(&place), report).await {
        return None;
    }
    if !settings.address.tls {
        if settings.login.as_ref().is_some_and(|login| login.password.is_some()) && !is_this_machine(settings) {
            report.warn(
                "tls",
                "the password goes over the network in plain",
                "Use mqtts:// in `url`, on the broker's port for encrypted connections.",
            );
        }
        return Some(Handshake::NotWanted);
    }
    let config = match settings.tls.read(&settings.address, &settings.certificates) {
        Ok(config) => config,
        Err(error) => {
            report.fail("tls", &error);
            return None;
        }
    };
    let name = settings.tls.server_name(&settings.address);
    let is_done = reach::certificates(&place, name, config, Preface::None, report).await;
    match settings.tls.own_certificates() {
        Ok(Some(chain)) => reach::tell_validity("client certificate", "it can be read", &chain, report),
        Ok(None) => {}
        Err(error) => report.fail("client certificate", &error),
    }
    Some(if is_done { Handshake::Done } else { Handshake::Failed })
}

fn is_this_machine(settings: &Settings) -> bool {
    let host = &settings.address.host;
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Comes in for the first time, and leaves no session. `None` where the broker does not let us in.
pub(crate) async fn let_in(
    settings: &Settings,
    client_id: &str,
    handshake: Handshake,
    report: &Examination,
) -> Option<Visit> {
    report.begin("login");
    match Visit::make(settings, client_id, Session::Clean).await {
        Ok(visit) => {
            let user = settings.login.as_ref().map(|login| format!(" as \"{}\"", login.username)).unwrap_or_default();
            let version = if settings.protocol == super::Protocol::V5 { "5" } else { "3.1.1" };
            report.pass("login", format!("the broker lets us in{user}, by MQTT {version}"));
            Some(visit)
        }
        Err(lost) => {
            match (lost.by, handshake) {
                (LostBy::Untrusted, _) => report.fail("tls", &lost.permanent()),
                // Brokers hang up on what is no MQTT, without a word that could be told.
                (LostBy::Away, Handshake::Failed) => {
                    let place = settings.address.socket();
                    let error = StageError::permanent(format!("no TLS came about with \"{place}\": {lost}"));
                    report.fail(
                        "tls",
                        &error.hint(
                            "Is this the port for encrypted connections? Without encryption write mqtt:// instead of \
                             mqtts://.",
                        ),
                    );
                }
                _ => report.fail("login", &lost.permanent()),
            }
            None
        }
    }
}

/// A connection that the broker has accepted, polled by a task of its own.
pub(crate) struct Visit {
    pub(crate) commands: Commands,
    pub(crate) session_present: bool,
    pub(crate) packet_bytes_max: u32,
    pub(crate) terms: Terms,
    polling: AbortOnDropHandle<Result<(), Lost>>,
}

impl Visit {
    /// Connects, once.
    pub(crate) async fn make(settings: &Settings, client_id: &str, session: Session) -> Result<Self, Lost> {
        let settings = Settings { client_id: client_id.to_owned(), session, ..settings.clone() };
        let not_opened = |error: StageError| Lost::new(LostBy::Refused, error.chain());
        let (commands, mut events) = open(&settings).map_err(not_opened)?;
        loop {
            if let Event::Connected { session_present, packet_bytes_max, terms } = events.poll().await? {
                let polling = AbortOnDropHandle::new(tokio::spawn(poll(events)));
                return Ok(Self { commands, session_present, packet_bytes_max, terms, polling });
            }
        }
    }

    /// Says goodbye, and waits until the broker has heard it.
    pub(crate) async fn leave(self) -> Result<(), Lost> {
        self.commands.disconnect();
        self.polling.await.unwrap_or_else(|_| Err(Lost::new(LostBy::Away, "the connection's task ended")))
    }
}

/// What the broker sends is not acknowledged: nobody wants it here.
async fn poll(mut events: Events) -> Result<(), Lost> {
    loop {
        if let Event::Closed = events.poll().await? {
            events.close().await;
            return Ok(());
        }
    }
}
