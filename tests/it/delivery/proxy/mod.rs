//! Stands between the pipeline and one service, reads along, and breaks the connection where it is told.
//!
//! A fault is armed for a [`Moment`] of the protocol: at its first byte, inside it, or after its last.
//! There the connection is cut (reset on both sides), or held until the test has done what it wants to
//! do just then. It happens on the connection that comes to the moment first.

mod http;
mod mqtt;
mod postgres;
mod relay;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// What a proxy reads along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Mqtt,
    Postgres,
    /// Plain HTTP/1.1, one request after the other.
    S3,
}

/// A message, or a part of one, that passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// MQTT: the broker lets the pipeline in.
    ConnAck,
    /// MQTT: the broker sends a message.
    Publish,
    /// MQTT: the pipeline acknowledges one.
    PubAck,
    /// PostgreSQL: a transaction begins.
    Begin,
    /// PostgreSQL: rows on their way in.
    CopyData,
    /// PostgreSQL: the pipeline says COMMIT.
    Commit,
    /// PostgreSQL: the server says that the transaction has ended, one way or the other.
    Ended,
    /// S3: the bytes of a Parquet object.
    PutBody,
    /// S3: the store's answer to them.
    PutReply,
}

/// One watcher for each direction of a connection.
trait Watch: Send {
    /// Reads along. Gives the moments that begin in `bytes`, in order.
    fn read(&mut self, bytes: &[u8]) -> Vec<Seen>;
}

/// A moment in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    moment: Moment,
    /// Where it begins, in bytes since the beginning of the stream.
    at: u64,
    bytes: u64,
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub moment: Moment,
    /// How many such moments pass first, on whatever connection.
    pub after: u32,
    /// 0: before its first byte has passed; 1: after its last one has; else inside.
    pub inside: f64,
}

impl Point {
    /// Before the first byte of the next such moment.
    pub fn before(moment: Moment) -> Self {
        Self { moment, after: 0, inside: 0.0 }
    }

    /// Behind the last byte of the next such moment.
    pub fn behind(moment: Moment) -> Self {
        Self { moment, after: 0, inside: 1.0 }
    }
}

struct Fault {
    point: Point,
    /// Told when the point is reached. What is sent back goes on (`Then::Pass`) or breaks the connection;
    /// so does hearing nothing more.
    reached: oneshot::Sender<oneshot::Sender<Then>>,
}

enum Then {
    Pass,
}

/// A proxy. It ends with the runtime that it was started in.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    protocol: Protocol,
    target: Mutex<String>,
    fault: Mutex<Option<Fault>>,
    /// The last moment of each open connection.
    connections: Mutex<BTreeMap<u64, Option<Moment>>>,
    next: AtomicU64,
    /// How often each moment has passed.
    passed: Mutex<BTreeMap<Moment, u64>>,
    /// Grows with each order to cut everything.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// In front of `host:port`.
    pub async fn start(protocol: Protocol, target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            protocol,
            target: Mutex::new(target.to_owned()),
            fault: Mutex::default(),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            passed: Mutex::default(),
            cuts: watch::Sender::new(0),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            // Accepting fails where descriptors have run out: then the test can't go on either.
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay::serve(serving.clone(), client));
            }
        });
        Self { address, shared }
    }

    /// `127.0.0.1:PORT`, for the pipeline.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts the connection at a point. The answer says whether it got there within the time.
    pub async fn cut_at(&self, point: Point, patience: Duration) -> bool {
        // Dropping what is held breaks the connection.
        self.hold_at(point, patience).await.is_some()
    }

    /// Holds the connection at a point, until the answer is dropped (then it breaks) or let go. `None`
    /// if it did not get there within the time.
    pub async fn hold_at(&self, point: Point, patience: Duration) -> Option<Held> {
        let (reached, wait) = oneshot::channel();
        *locked(&self.shared.fault) = Some(Fault { point, reached });
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(then)) => Some(Held(then)),
            _ => {
                *locked(&self.shared.fault) = None;
                None
            }
        }
    }

    /// Breaks all connections now.
    pub fn cut_all(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The last moment of each open connection; `None` where there was none yet.
    pub fn now(&self) -> Vec<Option<Moment>> {
        locked(&self.shared.connections).values().copied().collect()
    }

    /// How often a moment has begun.
    pub fn passed(&self, moment: Moment) -> u64 {
        locked(&self.shared.passed).get(&moment).copied().unwrap_or(0)
    }
}

/// A connection that stands still at its point.
pub struct Held(oneshot::Sender<Then>);

impl Held {
    /// Lets it go on.
    pub fn release(self) {
        // It may have ended meanwhile: then there is nothing to go on with.
        self.0.send(Then::Pass).ok();
    }
}

impl Shared {
    /// Notes a moment of a connection, and takes the fault if this is where it strikes.
    fn note(&self, connection: u64, moment: Moment) -> Option<Fault> {
        locked(&self.connections).insert(connection, Some(moment));
        *locked(&self.passed).entry(moment).or_default() += 1;
        let mut fault = locked(&self.fault);
        let armed = fault.as_mut().filter(|fault| fault.point.moment == moment)?;
        if armed.point.after > 0 {
            armed.point.after -= 1;
            return None;
        }
        fault.take()
    }

    /// Watchers for what the pipeline says, and for what the service says.
    fn watchers(&self) -> (Box<dyn Watch>, Box<dyn Watch>) {
        match self.protocol {
            Protocol::Mqtt => (Box::new(mqtt::Packets::default()), Box::new(mqtt::Packets::default())),
            Protocol::Postgres => (Box::new(postgres::Messages::client()), Box::new(postgres::Messages::server())),
            Protocol::S3 => {
                let (requests, replies) = http::watchers();
                (Box::new(requests), Box::new(replies))
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
