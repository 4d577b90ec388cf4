//! What network and TLS say of a service before its own client is asked, for `pipeline doctor`: so that a dead host, a
//! closed port and a certificate that ends soon are told apart.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::now_us;
use pipeline_engine::stage::{Examination, StageError};
use pipeline_engine::time::format_us;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};

use crate::certificates;

/// How long one address may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever renews certificates by hand needs so long; whoever has it done by a machine has renewed by then.
const DAYS_LEFT_MIN: i64 = 30;
const DAY_US: i64 = 86_400_000_000;

/// Whether somebody accepts connections at one of these places, each a host and a port.
pub(crate) async fn network(places: &[String], report: &Examination) -> bool {
    report.begin("network");
    let mut refused = Vec::new();
    for place in places {
        match connect(place).await {
            Ok(address) => {
                let shown = if *place == address { String::new() } else { format!(" ({address})") };
                report.pass("network", format!("{place}{shown} accepts connections"));
                return true;
            }
            Err(error) => refused.push(error),
        }
    }
    if let Some(error) = refused.first() {
        report.fail("network", error);
    }
    refused.is_empty()
}

/// The address that a place has answered by.
async fn connect(place: &str) -> Result<String, StageError> {
    let addresses = tokio::net::lookup_host(place).await.map_err(|error| {
        StageError::permanent(format!("the name of \"{place}\" can't be resolved"))
            .because(error)
            .hint("Check the host in the pipeline file, and the name server of this machine.")
    })?;
    let mut outcome = Err(StageError::permanent(format!("the name of \"{place}\" has no address")));
    for address in addresses {
        outcome = match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(address.to_string()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(StageError::permanent(format!("nothing listens at \"{place}\": {address} refuses connections"))
                    .hint("Start the service, or correct the port in the pipeline file."))
            }
            Ok(Err(error)) => Err(StageError::permanent(format!("\"{place}\" ({address}) can't be reached"))
                .because(error)
                .hint("Look at the route to that network, and at firewalls.")),
            Err(_) => Err(StageError::permanent(format!(
                "\"{place}\" ({address}) gave no answer within {} s",
                PATIENCE.as_secs()
            ))
            .hint("The machine is off, or a firewall drops what is sent there.")),
        };
    }
    outcome
}

/// What is said in plain before TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preface {
    /// Nothing.
    None,
    /// PostgreSQL's question whether the server speaks TLS.
    PostgreSql,
}

/// Shakes hands and tells how long the certificates shown are still good. False where no hands were shaken: the
/// service's own client then says why, in its own words.
pub(crate) async fn certificates(
    place: &str,
    name: &str,
    config: Arc<ClientConfig>,
    preface: Preface,
    report: &Examination,
) -> bool {
    report.begin("tls");
    let (place, name) = (place.to_owned(), name.to_owned());
    let shaken = tokio::task::spawn_blocking(move || shake_hands(&place, name, config, preface)).await;
    match shaken {
        Ok(Ok((chain, version))) => {
            tell_validity("tls", &format!("{version}, the certificate is trusted"), &chain, report);
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS handshake");
            false
        }
        Err(_) => false,
    }
}

fn shake_hands(
    place: &str,
    name: String,
    config: Arc<ClientConfig>,
    preface: Preface,
) -> io::Result<(Vec<CertificateDer<'static>>, String)> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in place.to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if preface == Preface::PostgreSql {
            // Length and the number that stands for the question.
            stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            if answer != *b"S" {
                return Err(io::Error::other("the server speaks no TLS"));
            }
        }
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let version = connection.protocol_version().map_or_else(|| "TLS".to_owned(), |version| format!("{version:?}"));
        let chain = connection.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        connection.send_close_notify();
        // A goodbye that does not arrive changes nothing.
        connection.complete_io(&mut stream).ok();
        return Ok((chain, version.replace("TLSv1_", "TLS 1.")));
    }
    Err(last)
}

/// How long a chain of certificates is still good: as long as the first of them that ends.
pub(crate) fn tell_validity(check: &'static str, what: &str, chain: &[CertificateDer<'_>], report: &Examination) {
    let end = certificates::end(chain);
    let end = end.and_then(|(end_s, subject)| Some((i64::try_from(end_s).ok()?.checked_mul(1_000_000)?, subject)));
    let Some((ends_us, subject)) = end else {
        report.pass(check, format!("{what}; how long is not known"));
        return;
    };
    let day = format_us(ends_us);
    let day = day.split('T').next().unwrap_or_default();
    let left_us = ends_us.saturating_sub(now_us());
    let days = left_us / DAY_US;
    let renew = "Renew it; where that should happen by itself, look why it did not.";
    if left_us < 0 {
        let expired = StageError::permanent(format!("the certificate of \"{subject}\" has expired on {day}"));
        report.fail(check, &expired.hint(renew));
    } else if days < DAYS_LEFT_MIN {
        report.warn(check, format!("{what}, but that of \"{subject}\" expires in {days} days, on {day}"), renew);
    } else {
        report.pass(check, format!("{what} and good for {days} days, until {day}"));
    }
}
