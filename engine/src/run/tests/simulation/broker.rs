//! A message broker with one subscriber: a session with a window of unacknowledged messages, packet ids
//! that are used again, redelivery on each new connection, connections that are lost at any packet,
//! sessions that are lost as a whole.
//!
//! It outlives the process, and knows what it was told: which messages were acknowledged, and which it
//! has lost by itself.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::climate::chance;
use super::invariants::Invariant;
use super::trace::Event;
use super::world::World;

/// Few, so that each is soon used again; more than the window holds.
const PACKET_IDS: u16 = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub number: i64,
    pub payload: Bytes,
}

/// A PUBLISH.
#[derive(Debug)]
pub(super) struct Delivery {
    pub id: u16,
    pub again: bool,
    pub message: Message,
}

pub(super) struct Broker {
    index: usize,
    name: String,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// Published, and not sent yet.
    queue: VecDeque<Message>,
    /// Sent, and not acknowledged; in order of sending.
    in_flight: VecDeque<(u16, Message)>,
    last_id: u16,
    generation: u64,
    link: Option<Link>,
    accounts: Accounts,
}

/// What became of messages, by number.
#[derive(Clone, Default)]
pub(super) struct Accounts {
    /// The client has acknowledged them.
    pub acknowledged: BTreeSet<i64>,
    /// They were gone with their session before.
    pub lost: BTreeSet<i64>,
}

/// The broker's end of a connection.
struct Link {
    deliveries: mpsc::UnboundedSender<(Instant, Delivery)>,
    cut: CancellationToken,
    packets_left: Option<u32>,
    /// The ids of what was sent by it, in order, each once: what acknowledgements may come for.
    owed: VecDeque<u16>,
    /// The ids of what was sent a second time by it: these may be acknowledged a second time.
    repeated: Vec<u16>,
}

/// The client's end of a connection. Dropping it cuts the connection.
pub(super) struct Connection {
    pub session_present: bool,
    world: Arc<World>,
    broker: usize,
    deliveries: mpsc::UnboundedReceiver<(Instant, Delivery)>,
    ahead: Option<(Instant, Delivery)>,
    acknowledgements: mpsc::UnboundedSender<(Instant, u16)>,
    cut: CancellationToken,
}

impl Broker {
    pub(super) fn new(seed: u64, index: usize) -> Self {
        let name = format!("broker {index}");
        let state = State {
            rng: chance(seed, &name),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            last_id: 0,
            generation: 0,
            link: None,
            accounts: Accounts::default(),
        };
        Self { index, name, state: Mutex::new(state) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn publish(&self, world: &World, message: Message) {
        world.trace.note(Event::Published { broker: self.index, number: message.number });
        let mut state = self.lock();
        state.queue.push_back(message);
        self.send_on(world, &mut state);
    }

    /// Everything that was published is acknowledged or lost.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.queue.is_empty() && state.in_flight.is_empty()
    }

    pub(super) fn accounts(&self) -> Accounts {
        self.lock().accounts.clone()
    }

    /// CONNECT, with a session that was meant to be kept. `None` if there is no answer.
    pub(super) fn connect(&self, world: &Arc<World>) -> Option<Connection> {
        let mut state = self.lock();
        let fails = world.trouble(&self.name).is_some() || world.happens(&mut state.rng, world.climate.connect_fails);
        if fails {
            world.trace.note(Event::Refused { broker: self.index });
            return None;
        }
        if let Some(link) = state.link.take() {
            link.cut.cancel();
        }
        let mut session_present = state.generation > 0;
        if session_present && world.happens(&mut state.rng, world.climate.session_lost) {
            session_present = false;
            state.lose_session(world, self.index);
        }
        state.generation += 1;
        let generation = state.generation;
        world.trace.note(Event::Connected { broker: self.index, generation, session_present });
        let (deliveries, delivered) = mpsc::unbounded_channel();
        let (acknowledgements, acknowledged) = mpsc::unbounded_channel();
        let cut = CancellationToken::new();
        let packets_max = world.climate.packets_max.filter(|_| !world.is_calm());
        let packets_left = packets_max.map(|max| state.rng.random_range(0..max));
        state.link =
            Some(Link { deliveries, cut: cut.clone(), packets_left, owed: VecDeque::new(), repeated: Vec::new() });
        for (id, message) in state.in_flight.clone() {
            self.send(world, &mut state, Delivery { id, again: true, message });
        }
        self.send_on(world, &mut state);
        drop(state);
        tokio::spawn(serve(world.clone(), self.index, generation, acknowledged));
        Some(Connection {
            session_present,
            world: world.clone(),
            broker: self.index,
            deliveries: delivered,
            ahead: None,
            acknowledgements,
            cut,
        })
    }

    /// Sends what the window has room for.
    fn send_on(&self, world: &World, state: &mut State) {
        while state.link.is_some() && state.in_flight.len() < world.climate.receive_maximum {
            let Some(message) = state.queue.pop_front() else { return };
            let id = state.free_id();
            state.in_flight.push_back((id, message.clone()));
            self.send(world, state, Delivery { id, again: false, message: message.clone() });
            if world.happens(&mut state.rng, world.climate.repeated) {
                self.send(world, state, Delivery { id, again: true, message });
                if let Some(link) = &mut state.link {
                    link.repeated.push(id);
                }
            }
        }
    }

    fn send(&self, world: &World, state: &mut State, delivery: Delivery) {
        if !self.crosses(world, state) {
            return;
        }
        let latency = Duration::from_millis(state.rng.random_range(0..5));
        let Some(link) = &mut state.link else { return };
        if link.owed.back() != Some(&delivery.id) {
            link.owed.push_back(delivery.id);
        }
        // The other end may have gone away: then nobody has received it.
        link.deliveries.send((Instant::now() + latency, delivery)).ok();
    }

    /// One more packet on the connection; false if that is lost with it.
    fn crosses(&self, world: &World, state: &mut State) -> bool {
        let Some(link) = &mut state.link else { return false };
        match &mut link.packets_left {
            Some(0) => {
                world.trace.note(Event::Cut { broker: self.index });
                link.cut.cancel();
                state.link = None;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    /// A PUBACK has arrived.
    fn acknowledge(&self, world: &World, id: u16) {
        let mut state = self.lock();
        if !self.crosses(world, &mut state) {
            return;
        }
        let Some(link) = &mut state.link else { return };
        let owed = link.owed.front().copied();
        if owed == Some(id) {
            link.owed.pop_front();
        } else if let Some(at) = link.repeated.iter().position(|repeated| *repeated == id) {
            link.repeated.swap_remove(at);
            return;
        } else {
            let how = format!("{} was to get an acknowledgement of {owed:?} next, and got {id}", self.name);
            world.violated(Invariant::AcknowledgedInOrder, how);
        }
        if let Some(at) = state.in_flight.iter().position(|(other, _)| *other == id) {
            let (_, message) = state.in_flight.remove(at).expect("found");
            world.trace.note(Event::Acknowledged { broker: self.index, id, number: message.number });
            state.accounts.acknowledged.insert(message.number);
        }
        self.send_on(world, &mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id % PACKET_IDS + 1;
            if self.in_flight.iter().all(|(id, _)| *id != self.last_id) {
                return self.last_id;
            }
        }
    }

    /// As a broker that was killed, and keeps nothing.
    fn lose_session(&mut self, world: &World, broker: usize) {
        let gone = self.in_flight.drain(..).map(|(_, message)| message).chain(self.queue.drain(..));
        let lost: Vec<i64> = gone.map(|message| message.number).collect();
        self.last_id = 0;
        world.trace.note(Event::SessionLost { broker, messages: lost.len() });
        self.accounts.lost.extend(lost);
    }
}

/// Takes acknowledgements in for as long as the connection lasts.
async fn serve(
    world: Arc<World>,
    broker: usize,
    generation: u64,
    mut acknowledged: mpsc::UnboundedReceiver<(Instant, u16)>,
) {
    let broker = &world.brokers[broker];
    while let Some((at, id)) = acknowledged.recv().await {
        sleep_until(at).await;
        let state = broker.lock();
        if state.link.is_none() || state.generation != generation {
            return;
        }
        drop(state);
        broker.acknowledge(&world, id);
    }
    // The client has gone away.
    let mut state = broker.lock();
    if state.generation == generation {
        state.link = None;
    }
}

impl Connection {
    /// The next message; `None` once the connection is lost. Cancel safe.
    pub(super) async fn receive(&mut self) -> Option<Delivery> {
        if self.ahead.is_none() {
            self.ahead = tokio::select! {
                biased;
                () = self.cut.cancelled() => return None,
                next = self.deliveries.recv() => Some(next?),
            };
        }
        let (at, _) = self.ahead.as_ref()?;
        tokio::select! {
            biased;
            () = self.cut.cancelled() => None,
            () = sleep_until(*at) => {
                let (_, delivery) = self.ahead.take()?;
                let (id, number, again) = (delivery.id, delivery.message.number, delivery.again);
                self.world.trace.note(Event::Delivered { broker: self.broker, id, number, again });
                Some(delivery)
            }
        }
    }

    /// Sends a PUBACK, which may get lost.
    pub(super) fn acknowledge(&self, id: u16) {
        let latency = Duration::from_millis(self.world.brokers[self.broker].lock().rng.random_range(0..5));
        // The other end may have gone away: then it comes to nobody.
        self.acknowledgements.send((Instant::now() + latency, id)).ok();
    }
}
