//! A way to a service that can be shut: connections break, and no new one comes through.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Lets connections through while it is open. Its threads end with the test's process.
pub struct Gate {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_shut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Gate {
    /// In front of `host:port`.
    pub fn before(place: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::<Shared>::default();
        let (place, gate) = (place.to_owned(), shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Whoever comes while it is shut is hung up on.
                if !gate.is_shut.load(Ordering::SeqCst) {
                    gate.let_through(client, &place);
                }
            }
        });
        Self { address, shared }
    }

    pub fn shut(&self) {
        self.shared.is_shut.store(true, Ordering::SeqCst);
        for connection in self.shared.open.lock().unwrap().drain(..) {
            // One that has ended by itself is shut already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    pub fn open(&self) {
        self.shared.is_shut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn let_through(&self, client: TcpStream, place: &str) {
        let server = TcpStream::connect(place).expect("the service is there");
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket");
        self.open.lock().unwrap().extend([copy(&client), copy(&server)]);
        for (mut from, mut to) in [(copy(&client), copy(&server)), (server, client)] {
            std::thread::spawn(move || {
                // However it ends, the other side hears of it.
                std::io::copy(&mut from, &mut to).ok();
                to.shutdown(Shutdown::Both).ok();
            });
        }
    }
}
