//! The fleet: which device sends what, and when by the simulated clock.
//!
//! A pure sequence of messages, without a clock of its own: the same settings give the same bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::payload::{ClockFace, Flaw, head, quoted, write_reading};
use super::signal::{Draws, METRICS, Metric, Reading, Signals, add_spike, rounded};
use super::topic::Topic;
use super::truth::{Kind, Planted};

/// What a fleet is made of; checked already.
#[derive(Debug, Clone)]
pub(super) struct FleetSettings {
    pub(super) devices: u32,
    pub(super) prefix: String,
    pub(super) topic: Topic,
    pub(super) seed: u64,
    /// How long a device waits between two readings; at least 1000, so that two readings never have
    /// the same microsecond.
    pub(super) interval_ns: u64,
    /// How many messages to send in all.
    pub(super) count: Option<u64>,
    /// For how long readings are taken.
    pub(super) duration_us: Option<i64>,
    pub(super) ranges: [[f64; 2]; 2],
    pub(super) spike_factor: f64,
    pub(super) anomaly_probability: f64,
    pub(super) bad_probability: f64,
    pub(super) late_probability: f64,
    pub(super) duplicate_probability: f64,
    pub(super) late_by_us: i64,
}

/// A message on its way out.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    /// When it is sent, by the simulated clock.
    pub(super) sent_at_us: i64,
    /// What was planted in it, if anything.
    pub(super) planted: Option<Planted<'a>>,
}

/// Every device, and the messages that are held back for later.
#[derive(Debug)]
pub(super) struct Fleet {
    devices: Vec<Device>,
    topic: Topic,
    metrics: [Metric; 2],
    spike_factor: f64,
    odds: Odds,
    late_by_us: i64,
    interval_us: i64,
    turns: Turns,
    /// Messages that may still be made.
    left: u64,
    /// No reading is taken at or after this time.
    end_us: i64,
    held: BinaryHeap<Reverse<Held>>,
    face: ClockFace,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Device {
    signals: Signals,
    id_quoted: String,
    head: Vec<u8>,
    topic: Option<String>,
}

/// A message that is sent later than its reading was taken. Ordered by when that is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due_us: i64,
    reading: Reading,
    kind: Kind,
}

/// What becomes of a reading. Never two of these at once.
enum Fate {
    Normal,
    Spike,
    Bad,
    Late,
    Duplicate,
}

impl Fleet {
    /// A fleet whose first device takes its first reading at `start_us`.
    pub(super) fn new(settings: &FleetSettings, start_us: i64) -> Self {
        let metrics = settings.ranges.map(Metric::new);
        let device = |index: u32| {
            let id = format!("{}{}", settings.prefix, u64::from(index) + 1);
            Device {
                signals: Signals::new(settings.seed, index.into(), &metrics),
                head: head(&id),
                topic: settings.topic.of_device(&id),
                id_quoted: quoted(&id),
            }
        };
        Self {
            devices: (0..settings.devices).map(device).collect(),
            topic: settings.topic.clone(),
            metrics,
            spike_factor: settings.spike_factor,
            odds: Odds::new(settings),
            late_by_us: settings.late_by_us,
            interval_us: i64::try_from(settings.interval_ns / 1000).unwrap_or(i64::MAX),
            turns: Turns::new(start_us, settings.interval_ns, settings.devices),
            left: settings.count.unwrap_or(u64::MAX),
            end_us: settings.duration_us.map_or(i64::MAX, |duration_us| start_us.saturating_add(duration_us)),
            held: BinaryHeap::new(),
            face: ClockFace::new(),
            payload: Vec::with_capacity(256),
        }
    }

    /// When the next message is due, by the simulated clock; `None` once there is none.
    pub(super) fn due_us(&self) -> Option<i64> {
        let held_us = self.held.peek().map(|Reverse(held)| held.due_us);
        let reading_us = self.takes_readings().then(|| self.turns.time_us());
        match (held_us, reading_us) {
            (Some(held_us), Some(reading_us)) => Some(held_us.min(reading_us)),
            (held_us, reading_us) => held_us.or(reading_us),
        }
    }

    /// Takes no more readings: what is left are the messages that were held back.
    pub(super) fn stop(&mut self) {
        self.left = 0;
    }

    /// The message that is due next; `None` if its reading is held back for later, or there is none.
    pub(super) fn next(&mut self) -> Option<Outgoing<'_>> {
        let reading_us = if self.takes_readings() { self.turns.time_us() } else { i64::MAX };
        if self.held.peek().is_some_and(|Reverse(held)| held.due_us <= reading_us) {
            let Reverse(held) = self.held.pop()?;
            return Some(self.send(held.reading, held.due_us, Some((held.kind, None))));
        }
        if !self.takes_readings() {
            return None;
        }
        self.take_reading()
    }

    fn takes_readings(&self) -> bool {
        self.left > 0 && self.turns.time_us() < self.end_us
    }

    fn take_reading(&mut self) -> Option<Outgoing<'_>> {
        let (device, seq, time_us) = self.turns.take();
        let (mut values, Draws { fate, detail }) = self.devices[device].signals.measure(time_us, &self.metrics);
        self.left -= 1;
        let mut planted = None;
        let mut held = None;
        match self.odds.fate(fate) {
            Fate::Normal => {}
            Fate::Spike => {
                let metric = add_spike(&mut values, &self.metrics, self.spike_factor, detail);
                planted = Some((Kind::Anomaly { metric }, None));
            }
            Fate::Bad => {
                let flaw = Flaw::ALL[(detail >> 8) as usize % Flaw::ALL.len()];
                planted = Some((Kind::Bad, Some(flaw)));
            }
            Fate::Late => held = Some((Kind::Late, self.late_by_us)),
            // The second message counts as well: there must be room for it.
            Fate::Duplicate if self.left > 0 => {
                self.left -= 1;
                held = Some((Kind::Duplicate, self.interval_us));
            }
            Fate::Duplicate => {}
        }
        let reading = Reading { device, time_us, seq, values: rounded(values, &self.metrics) };
        if let Some((kind, delay_us)) = held {
            self.held.push(Reverse(Held { due_us: time_us.saturating_add(delay_us), reading, kind }));
            if kind == Kind::Late {
                return None;
            }
        }
        Some(self.send(reading, time_us, planted))
    }

    fn send(&mut self, reading: Reading, sent_at_us: i64, planted: Option<(Kind, Option<Flaw>)>) -> Outgoing<'_> {
        let device = &self.devices[reading.device];
        let decimals = [self.metrics[0].decimals, self.metrics[1].decimals];
        let timestamp = self.face.show(reading.time_us);
        write_reading(&mut self.payload, &device.head, timestamp, &reading, decimals);
        let planted = planted.map(|(kind, flaw)| {
            if let Some(flaw) = flaw {
                flaw.spoil(&mut self.payload);
            }
            let spike = match kind {
                Kind::Anomaly { metric } => Some((METRICS[metric], reading.values[metric], decimals[metric])),
                Kind::Bad | Kind::Late | Kind::Duplicate => None,
            };
            Planted {
                kind,
                flaw,
                device_id_quoted: &device.id_quoted,
                timestamp: self.face.text(),
                seq: reading.seq,
                spike,
            }
        });
        let topic = device.topic.as_deref().unwrap_or(self.topic.text());
        Outgoing { topic, payload: &self.payload, sent_at_us, planted }
    }
}

/// Whose turn it is. Turns are spread evenly over the interval: turn `n` falls on
/// `start + n * interval / devices`, rounded down to the nanosecond and then to the microsecond.
#[derive(Debug)]
struct Turns {
    start_us: i64,
    devices: u64,
    device: u64,
    round: u64,
    /// Since the start: whole nanoseconds, and the rest in parts of `devices`.
    elapsed_ns: u64,
    elapsed_rest: u64,
    step_ns: u64,
    step_rest: u64,
}

impl Turns {
    fn new(start_us: i64, interval_ns: u64, devices: u32) -> Self {
        let devices = u64::from(devices);
        let (step_ns, step_rest) = (interval_ns / devices, interval_ns % devices);
        Self { start_us, devices, device: 0, round: 0, elapsed_ns: 0, elapsed_rest: 0, step_ns, step_rest }
    }

    fn time_us(&self) -> i64 {
        self.start_us.saturating_add((self.elapsed_ns / 1000) as i64)
    }

    /// The device whose turn it is, the number of its reading from 1, and the time.
    fn take(&mut self) -> (usize, u64, i64) {
        let taken = (self.device as usize, self.round + 1, self.time_us());
        self.elapsed_ns = self.elapsed_ns.saturating_add(self.step_ns);
        self.elapsed_rest += self.step_rest;
        if self.elapsed_rest >= self.devices {
            self.elapsed_rest -= self.devices;
            self.elapsed_ns = self.elapsed_ns.saturating_add(1);
        }
        self.device += 1;
        if self.device == self.devices {
            self.device = 0;
            self.round += 1;
        }
        taken
    }
}

/// Probabilities as bounds of a random word. Anomalies come first, so that they stay the same when
/// other faults are planted as well.
#[derive(Debug)]
struct Odds {
    spike_below: u64,
    bad_below: u64,
    late_below: u64,
    duplicate_below: u64,
}

impl Odds {
    fn new(settings: &FleetSettings) -> Self {
        // Casts saturate, so a probability of 1 misses one word of 2^64.
        let bound = |probability: f64| (probability * 18_446_744_073_709_551_616.0) as u64;
        let spike = settings.anomaly_probability;
        let bad = spike + settings.bad_probability;
        let late = bad + settings.late_probability;
        let duplicate = late + settings.duplicate_probability;
        Self {
            spike_below: bound(spike),
            bad_below: bound(bad),
            late_below: bound(late),
            duplicate_below: bound(duplicate),
        }
    }

    fn fate(&self, draw: u64) -> Fate {
        match draw {
            _ if draw >= self.duplicate_below => Fate::Normal,
            _ if draw < self.spike_below => Fate::Spike,
            _ if draw < self.bad_below => Fate::Bad,
            _ if draw < self.late_below => Fate::Late,
            _ => Fate::Duplicate,
        }
    }
}
