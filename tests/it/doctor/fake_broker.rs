//! A broker that grants what a test wants it to grant, and forgets sessions if asked to: Mosquitto does neither.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// What is wrong with the broker.
#[derive(Clone, Copy)]
pub struct Faults {
    /// The answer to each subscription: a QoS, or 0x87 for "not authorized".
    pub granted: u8,
    /// Whether a session is there when its client comes again.
    pub keeps_sessions: bool,
    /// How long it keeps one, in seconds, if not as long as was asked for.
    pub session_expiry: Option<u32>,
}

/// Its address. It answers until the test process ends.
pub fn start(faults: Faults) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("mqtt://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || serve(connection, faults));
        }
    });
    url
}

/// Answers CONNECT and SUBSCRIBE of MQTT 5; `None` when the client is gone.
fn serve(mut connection: TcpStream, faults: Faults) -> Option<()> {
    loop {
        let (kind, body) = packet(&mut connection)?;
        let answer = match kind >> 4 {
            1 => {
                // Behind the protocol's name and version.
                let is_clean = body[7] & 2 != 0;
                let properties = faults
                    .session_expiry
                    .map_or(Vec::new(), |seconds| [&[0x11_u8][..], &seconds.to_be_bytes()].concat());
                let present = u8::from(faults.keeps_sessions && !is_clean);
                let length = u8::try_from(properties.len()).ok()?;
                [vec![0x20, 3 + length, present, 0, length], properties].concat()
            }
            8 => vec![0x90, 4, body[0], body[1], 0, faults.granted],
            _ => continue,
        };
        connection.write_all(&answer).ok()?;
    }
}

fn packet(connection: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    connection.read_exact(&mut byte).ok()?;
    let kind = byte[0];
    let (mut length, mut shift) = (0, 0);
    loop {
        connection.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).ok()?;
    Some((kind, body))
}
