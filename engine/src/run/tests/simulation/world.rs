//! The outside of a pipeline, which outlives its process: disk, brokers, database, object store; and
//! what is known of all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::broker::{Broker, Message};
use super::climate::{Climate, DiskFault, Trouble, When, chance};
use super::invariants::{Invariant, Violation};
use super::planted::Bug;
use super::trace::{Event, Trace};
use crate::position::Position;
use crate::spool::testing::SimulatedDisk;

/// How many devices each broker has.
pub(super) const DEVICES: i64 = 3;
/// Messages of the second broker have numbers from here on.
pub(super) const NUMBERS: i64 = 1_000_000;
/// A value that the table refuses.
pub(super) const REFUSED: i64 = 666;
/// A window of the aggregate, in the devices' own time.
pub(super) const WINDOW: i64 = 6;

/// The columns of a reading: `number`, `device`, `at`, `value`.
pub(super) type Row = Vec<i64>;

pub(super) struct World {
    pub seed: u64,
    pub bug: Option<Bug>,
    pub climate: Climate,
    pub disk: SimulatedDisk,
    pub brokers: [Broker; 2],
    pub trace: Trace,
    database: Mutex<Database>,
    store: Mutex<ObjectStore>,
    /// Every reading that was published, in order; `None` for a payload that is none.
    published: Mutex<BTreeMap<i64, Option<Row>>>,
    violations: Mutex<Vec<Violation>>,
    mortality: Mortality,
}

/// Tables, and the positions that transactional sinks keep beside them.
#[derive(Default)]
pub(super) struct Database {
    pub tables: BTreeMap<&'static str, Vec<Row>>,
    /// By table, input and partition.
    pub positions: BTreeMap<(&'static str, String, String), Position>,
}

/// Objects by name.
pub(super) type ObjectStore = BTreeMap<String, Vec<Row>>;

/// When the process is to die in the midst of what it does.
#[derive(Default)]
struct Mortality {
    /// Counts down; 0: not at a step.
    steps_left: AtomicU64,
    /// Counts down; 0: not at a checkpoint.
    checkpoints_left: AtomicU64,
    died: Notify,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        Self {
            seed,
            bug,
            climate: Climate::of(seed),
            disk: SimulatedDisk::new(seed),
            brokers: [Broker::new(seed, 0), Broker::new(seed, 1)],
            trace: Trace::new(),
            database: Mutex::default(),
            store: Mutex::default(),
            published: Mutex::default(),
            violations: Mutex::default(),
            mortality: Mortality::default(),
        }
    }

    pub(super) fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store(&self) -> MutexGuard<'_, ObjectStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> MutexGuard<'_, BTreeMap<i64, Option<Row>>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Something that must never be, and how it shows.
    pub(super) fn violated(&self, invariant: Invariant, how: String) {
        let violation = Violation { invariant, how };
        self.trace.note(Event::Violated { violation: violation.clone() });
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_calm(&self) -> bool {
        self.trace.now() >= self.climate.calm_at
    }

    /// Whether something that goes wrong with this probability does so now.
    pub(super) fn happens(&self, rng: &mut StdRng, probability: f64) -> bool {
        rng.random_bool(probability) && !self.is_calm()
    }

    /// What a part of the outside suffers now.
    pub(super) fn trouble(&self, of: &str) -> Option<Trouble> {
        let now = self.trace.now();
        let outages = if self.is_calm() { &[][..] } else { &self.climate.outages };
        outages.iter().find(|outage| outage.of == of && outage.during.contains(&now)).map(|outage| outage.trouble)
    }

    /// A place between two dealings with the outside, where the process may die.
    pub(super) async fn step(&self) {
        self.count_down(&self.mortality.steps_left).await;
    }

    /// A checkpoint is kept.
    pub(super) async fn checkpoint(&self) {
        self.count_down(&self.mortality.checkpoints_left).await;
    }

    async fn count_down(&self, left: &AtomicU64) {
        let before = left.load(Relaxed);
        left.store(before.saturating_sub(1), Relaxed);
        if before == 1 && !self.is_calm() {
            self.mortality.died.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// The process dies when it comes to that.
    pub(super) fn die(&self, when: When) {
        match when {
            When::AtStep(steps) => self.mortality.steps_left.store(steps, Relaxed),
            When::AtCheckpoint(checkpoints) => self.mortality.checkpoints_left.store(checkpoints, Relaxed),
            When::AtDiskOperation(operations) => self.disk.stop_at(self.disk.operations() + operations),
            When::After(_) => {}
        }
    }

    /// The process dies at nothing any more. A death that nobody has waited for is no longer one.
    pub(super) fn live(&self) {
        self.mortality.died.notified().now_or_never();
        self.mortality.steps_left.store(0, Relaxed);
        self.mortality.checkpoints_left.store(0, Relaxed);
        self.disk.stop_at(u64::MAX);
    }

    /// Resolves when the process has come to the step or checkpoint that it dies at.
    pub(super) async fn died(&self) {
        self.mortality.died.notified().await;
    }

    /// How many messages there will be in all.
    pub(super) fn messages(&self) -> usize {
        self.brokers.len() * (self.climate.messages as usize + DEVICES as usize)
    }

    /// Publishes all that this seed has for one broker, within the period; at the end a message of each
    /// device that closes its last window.
    pub(super) async fn publish_all(self: Arc<Self>, broker: usize) {
        let mut rng = chance(self.seed, &format!("publisher {broker}"));
        let mut clocks = [0; DEVICES as usize];
        let count = i64::from(self.climate.messages);
        for number in 0..count {
            if !rng.random_bool(self.climate.in_burst) {
                let wait = self.climate.period.mul_f64(rng.random_range(0.0..2.0)) / self.climate.messages;
                sleep(wait.div_f64(1.0 - self.climate.in_burst)).await;
            }
            let device = rng.random_range(0..DEVICES);
            let clock = &mut clocks[usize::try_from(device).expect("small")];
            *clock += rng.random_range(1..6);
            let value = if rng.random_bool(self.climate.refused) { REFUSED } else { rng.random_range(-100..100) };
            let decodable = !rng.random_bool(self.climate.undecodable);
            self.publish(broker, number, decodable.then_some([device, *clock, value]));
        }
        for (device, clock) in (0..).zip(clocks) {
            self.publish(broker, count + device, Some([device, clock + 10 * WINDOW, 0]));
        }
    }

    fn publish(&self, broker: usize, number: i64, reading: Option<[i64; 3]>) {
        let first = i64::try_from(broker).expect("two");
        let number = first * NUMBERS + number;
        let row = reading.map(|[device, at, value]| vec![number, first * DEVICES + device, at, value]);
        let payload = match &row {
            Some(row) => row.iter().map(i64::to_string).collect::<Vec<_>>().join(" "),
            None => format!("{number} is no reading"),
        };
        self.published().insert(number, row);
        self.brokers[broker].publish(self, Message { number, payload: payload.into() });
    }

    /// Lets the disk fail as this seed says, and no more once all is calm.
    pub(super) async fn trouble_disk(self: Arc<Self>) {
        let mut full_until = None;
        for (at, fault) in &self.climate.disk_faults {
            sleep(at.saturating_sub(self.trace.now())).await;
            if full_until.is_some_and(|until| until <= self.trace.now()) {
                self.disk.set_capacity(1 << 30);
                full_until = None;
            }
            let name = match *fault {
                DiskFault::Syncs(count) => {
                    self.disk.fail_syncs(count);
                    "syncs fail"
                }
                DiskFault::Writes(count) => {
                    self.disk.fail_writes(count);
                    "writes fail"
                }
                DiskFault::Reads(count) => {
                    self.disk.fail_reads(count);
                    "reads fail"
                }
                DiskFault::Full { left_bytes, lasts } => {
                    self.disk.set_capacity(self.disk.used_bytes() + left_bytes);
                    full_until = Some(self.trace.now() + lasts);
                    "full"
                }
            };
            self.trace.note(Event::Disk { fault: name });
        }
        if let Some(until) = full_until {
            sleep(until.min(self.climate.calm_at).saturating_sub(self.trace.now())).await;
            self.disk.set_capacity(1 << 30);
        }
        sleep(self.climate.calm_at.saturating_sub(self.trace.now()) + Duration::from_millis(1)).await;
        self.disk.set_capacity(1 << 30);
        self.disk.fail_syncs(0);
        self.disk.fail_writes(0);
        self.disk.fail_reads(0);
        self.disk.stop_at(u64::MAX);
        self.trace.note(Event::Calm);
    }
}
