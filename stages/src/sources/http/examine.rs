//! What `pipeline doctor` asks of an address and of who may post there.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use pipeline_engine::stage::{Examination, StageError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::HttpSource;
use super::server::SERVER;

/// A server on this machine answers by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// What is looked at of an answer.
const ANSWER_BYTES_MAX: u64 = 4096;

pub(super) async fn examine(source: &HttpSource, report: &Examination) {
    report.begin("address");
    match address(source.address).await {
        Ok(found) => report.pass("address", found),
        Err(error) => report.fail("address", &error),
    }
    if source.access.is_guarded() {
        report.pass("access", "posts need a token");
    } else if source.address.ip().is_loopback() {
        report.pass("access", "whoever is on this machine may post, without a token");
    } else {
        report.warn(
            "access",
            "insecure = true: whoever reaches the address may post",
            "Set `tokens`, unless the network keeps others out.",
        );
    }
}

/// Whether the address can be had, or is answered by a pipeline: this one, if it runs.
///
/// # Errors
/// It is taken by another program, or can't be used.
pub(super) async fn address(address: SocketAddr) -> Result<String, StageError> {
    match TcpListener::bind(address).await {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_answered_by_us(address).await => {
            Ok(format!("{address} is answered by a pipeline: this one, if it runs"))
        }
        Err(error) => Err(unusable(address, error)),
    }
}

/// Why nothing can be taken in there.
pub(super) fn unusable(address: SocketAddr, error: std::io::Error) -> StageError {
    let hint = match error.kind() {
        ErrorKind::AddrInUse => "Another program has it: name another one by `address`, or end that program.",
        ErrorKind::PermissionDenied => "Ports below 1024 are for the administrator: use a higher one behind a proxy.",
        _ => "Use an address that this machine has.",
    };
    StageError::permanent(format!("can't listen at {address}")).because(error).hint(hint)
}

/// By the name that it gives itself where nobody posts.
async fn is_answered_by_us(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let Ok(Ok(answer)) = timeout(PATIENCE, ask).await else { return false };
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    answer.lines().any(|line| line.trim() == format!("server: {SERVER}"))
}
