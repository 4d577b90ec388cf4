//! A door before a service: shut, the service is away.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes connections on while it is open.
pub struct Door {
    /// Host and port on this side of it.
    pub address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_shut: AtomicBool,
    bytes_down: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Door {
    /// Before a service at this host and port. Its threads end with the tests.
    pub fn before(service: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (state, service) = (Arc::new(State::default()), service.to_owned());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Dropped while the door is shut: the client is cut off.
                if !shared.is_shut.load(Ordering::SeqCst) {
                    let server = TcpStream::connect(&service).expect("the service is there");
                    pass_on(&shared, client, server);
                }
            }
        });
        Self { address, state }
    }

    /// Before the service of a URL, with the same URL through the door.
    pub fn before_url(url: &str) -> (Self, String) {
        let (head, rest) = url.rsplit_once('@').unwrap_or_else(|| url.split_at(url.find("://").expect("a url") + 3));
        let place = rest.split('/').next().expect("a host");
        let door = Self::before(place);
        let separator = if url.contains('@') { "@" } else { "" };
        let through = format!("{head}{separator}{}{}", door.address, &rest[place.len()..]);
        (door, through)
    }

    /// Cuts what is open, and lets nobody in.
    pub fn shut(&self) {
        self.state.is_shut.store(true, Ordering::SeqCst);
        for connection in self.state.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    pub fn open(&self) {
        self.state.is_shut.store(false, Ordering::SeqCst);
    }

    /// Bytes that the service has sent so far.
    pub fn bytes_down(&self) -> u64 {
        self.state.bytes_down.load(Ordering::SeqCst)
    }
}

fn pass_on(state: &Arc<State>, client: TcpStream, server: TcpStream) {
    let of = |stream: &TcpStream| stream.try_clone().expect("an open socket");
    state.open.lock().unwrap().extend([of(&client), of(&server)]);
    let (up, down) = ((of(&client), of(&server)), (server, client));
    thread::spawn(move || relay(up.0, up.1, |_| {}));
    let state = state.clone();
    thread::spawn(move || {
        relay(down.0, down.1, |bytes| {
            state.bytes_down.fetch_add(bytes, Ordering::SeqCst);
        });
    });
}

fn relay(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64)) {
    use std::io::{Read, Write};
    let mut buffer = [0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        count(bytes as u64);
    }
    // Whoever is still there hears of the end.
    to.shutdown(Shutdown::Write).ok();
}
