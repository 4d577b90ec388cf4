//! Tells whoever supervises the process that it runs, by systemd's protocol: so that a service whose file is wrong, or whose
//! port is taken, has failed to start, and does not count as started first.

use std::ffi::OsStr;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where a supervisor listens; not set where there is none.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Says that the run has begun. Nobody who listens is no mistake; that one can't be told is a warning, as the supervisor
/// will end the process that it takes for stuck.
pub fn tell_ready() {
    let Some(name) = std::env::var_os(SOCKET).filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send(&name, b"READY=1") {
        tracing::warn!("can't tell the service manager at \"{}\" that the run has begun: {error}", name.display());
    }
}

/// A name that begins with `@` is one without a file, as Linux alone has them.
fn send(name: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).expect("a message");
        bytes[..length].to_vec()
    }

    #[test]
    fn a_supervisor_is_told_by_a_socket_with_a_file_and_by_one_without() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str(), b"READY=1").expect("somebody listens");
        assert_eq!(received(&by_path), b"READY=1");

        let name = format!("pipeline-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("a socket");
        send(OsStr::new(&format!("@{name}")), b"READY=1").expect("somebody listens");
        assert_eq!(received(&by_name), b"READY=1");
    }

    #[test]
    fn nobody_at_the_socket_is_an_error_and_no_panic() {
        for name in ["/nowhere/notify", "@pipeline-test-nobody", "@"] {
            assert!(send(OsStr::new(name), b"READY=1").is_err(), "{name}");
        }
    }
}
