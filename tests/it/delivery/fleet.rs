//! Devices that publish with QoS 1, remember what the broker has acknowledged, and send the rest again.
//!
//! Each has a connection of its own. When it breaks, what was not acknowledged is sent again on the next
//! one, with the same number.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc_v5::{AsyncClient, ClientError, Event, EventLoop, Incoming, MqttOptions, PublishOptions};
use tokio::task::JoinHandle;

use super::record::{Id, Record};
use crate::services;

/// A broker takes one message a connection in each turn, and may sync its store after each turn.
const DEVICES: u16 = 50;
/// A device's readings that wait for their PUBACK. Beyond it the device makes none.
const OUTSTANDING_MAX: usize = 10;
const TICK: Duration = Duration::from_millis(20);
/// Between two connections.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// Publishing devices. Dropped: they stop at once.
pub struct Fleet {
    orders: Arc<Orders>,
    devices: Vec<JoinHandle<()>>,
}

struct Orders {
    /// `127.0.0.1:PORT` of the broker.
    broker: String,
    topic: String,
    record: Record,
    per_second: AtomicU32,
    stop: AtomicBool,
}

impl Fleet {
    /// Starts on the runtime that this is called in.
    pub fn start(broker: &str, topic: &str, record: &Record, per_second: u32) -> Self {
        let orders = Arc::new(Orders {
            broker: broker.to_owned(),
            topic: topic.to_owned(),
            record: record.clone(),
            per_second: per_second.into(),
            stop: AtomicBool::new(false),
        });
        let devices = (0..DEVICES).map(|device| tokio::spawn(publish(device, orders.clone()))).collect();
        Self { orders, devices }
    }

    /// Makes no more readings, and returns once the broker has acknowledged each that was made.
    pub async fn finish(mut self) {
        self.orders.stop.store(true, SeqCst);
        for device in &mut self.devices {
            device.await.expect("a device does not panic");
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.devices.iter().for_each(JoinHandle::abort);
    }
}

async fn publish(device: u16, orders: Arc<Orders>) {
    // Not all at once.
    tokio::time::sleep(TICK * u32::from(device) / u32::from(DEVICES)).await;
    let mut again = VecDeque::new();
    loop {
        let mut connection = Connection::open(device, &orders);
        if connection.serve(&orders, &mut again).await {
            return;
        }
        again.extend(connection.waiting.drain());
        // In the order they were made.
        again.make_contiguous().sort_unstable();
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

type Answer = futures::future::BoxFuture<'static, (Id, bool)>;

struct Connection {
    client: AsyncClient,
    /// Polls the connection until it breaks. A task of its own: polling must not be interrupted.
    polling: JoinHandle<()>,
    /// The broker has let us in.
    connected: Arc<AtomicBool>,
    answers: FuturesUnordered<Answer>,
    waiting: HashSet<Id>,
    device: u16,
}

impl Connection {
    fn open(device: u16, orders: &Orders) -> Self {
        let (host, port) = orders.broker.split_once(':').expect("host and port");
        let address = (host.to_owned(), port.parse::<u16>().expect("a port"));
        let mut options = MqttOptions::new(services::unique("fleet"), address);
        options.set_clean_start(true);
        let (client, events) = AsyncClient::builder(options).capacity(2 * OUTSTANDING_MAX).build();
        let connected = Arc::new(AtomicBool::new(false));
        let polling = tokio::spawn(poll(events, connected.clone()));
        let (answers, waiting) = (FuturesUnordered::new(), HashSet::new());
        Self { client, polling, connected, answers, waiting, device }
    }

    /// Publishes until the fleet has ended, with nothing left to say (`true`), or the connection has.
    async fn serve(&mut self, orders: &Orders, again: &mut VecDeque<Id>) -> bool {
        let (mut ticks, mut owed) = (tokio::time::interval(TICK), 0.0);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                _ = &mut self.polling => return false,
                Some((id, acknowledged)) = self.answers.next(), if !self.answers.is_empty() => {
                    self.waiting.remove(&id);
                    if acknowledged {
                        orders.record.acknowledge(id);
                    } else {
                        again.push_back(id);
                    }
                }
                _ = ticks.tick() => {
                    let stopping = orders.stop.load(SeqCst);
                    if stopping && self.waiting.is_empty() && again.is_empty() {
                        return true;
                    }
                    let rate = f64::from(orders.per_second.load(SeqCst)) / f64::from(DEVICES);
                    // What the broker was too slow for is not made up for beyond half a second.
                    owed = (owed + rate * last.elapsed().as_secs_f64()).min(rate / 2.0 + 1.0);
                    last = Instant::now();
                    if !self.connected.load(SeqCst) {
                        continue;
                    }
                    while self.waiting.len() < OUTSTANDING_MAX {
                        let id = match again.pop_front() {
                            Some(id) => id,
                            None if stopping || owed < 1.0 => break,
                            None => {
                                owed -= 1.0;
                                orders.record.make(self.device, now_us())
                            }
                        };
                        self.waiting.insert(id);
                        if !self.send(orders, id) {
                            return false;
                        }
                    }
                }
            }
        }
    }

    /// Whether it is on its way: not where the connection has ended just now.
    fn send(&mut self, orders: &Orders, id: Id) -> bool {
        let (message, at_us) = orders.record.send(id);
        let topic = format!("{}/{}", orders.topic, id.device_name());
        match self.client.try_publish_tracked(topic, message.payload(at_us), PublishOptions::at_least_once()) {
            Ok(notice) => {
                self.answers.push(Box::pin(async move { (id, notice.wait_completion_async().await.is_ok()) }));
                true
            }
            Err(ClientError::RequestChannelDisconnected(_)) => false,
            Err(error) => panic!("the queue is longer than what may be outstanding: {error}"),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

/// Ends with the connection: the next one starts anew, with nothing of this one's in its queues.
async fn poll(mut events: EventLoop, connected: Arc<AtomicBool>) {
    while let Ok(event) = events.poll().await {
        if matches!(event, Event::Incoming(Incoming::ConnAck(_))) {
            connected.store(true, SeqCst);
        }
    }
}

/// Microseconds since 1970.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_micros()).expect("before the year 292277")
}
