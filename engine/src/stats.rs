//! Counters of a run, kept by the engine and read while it runs.
//!
//! Reading takes no lock that a stage waits for. The same counters make the status line, the final
//! report and, later, the metrics endpoint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::stage::Port;

/// Microseconds since 1970 by this machine's clock: when a row is received, when it is stored.
pub fn now_us() -> i64 {
    #[cfg(test)]
    if let Some(now) = crate::simulated::now_us() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// All counters of one run.
#[derive(Debug)]
pub struct RunStats {
    /// One entry a stage, in the order of the plan: sources first, sinks last.
    pub stages: Vec<Arc<StageStats>>,
    /// One entry an edge.
    pub edges: Vec<Arc<EdgeStats>>,
}

/// What a stage is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StageState {
    /// Not started, or a sink that is not reachable yet.
    Starting,
    /// At work, or waiting for it.
    Running,
    /// A sink whose last write failed and that will try again.
    Retrying,
    /// A sink that waits for a person to mend its outside, and tries now and then.
    Paused,
    /// Finished.
    Ended,
    /// Ended by an error.
    Failed,
}

impl StageState {
    /// The word used in logs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }
}

/// Counters of one stage.
#[derive(Debug)]
pub struct StageStats {
    /// The stage's name in the pipeline file.
    pub name: String,
    /// The word behind `type`.
    pub type_name: &'static str,
    /// `source`, `transform` or `sink`.
    pub kind: &'static str,
    rows_in: AtomicU64,
    rows_out: Vec<(Port, AtomicU64)>,
    rows_filtered: AtomicU64,
    rows_made: AtomicU64,
    rows_in_hand: AtomicI64,
    intake: OnceLock<IntakeStats>,
    rows_stored: AtomicU64,
    groups_stored: AtomicU64,
    retries: AtomicU64,
    busy_us: AtomicU64,
    last_commit_lag_us: AtomicI64,
    last_commit_at_us: AtomicI64,
    state: AtomicU8,
    last_error: Mutex<Option<String>>,
    named: Mutex<BTreeMap<&'static str, Counter>>,
}

impl StageStats {
    pub(crate) fn new(name: &str, type_name: &'static str, kind: &'static str, ports: &[Port]) -> Self {
        Self {
            name: name.to_owned(),
            type_name,
            kind,
            rows_in: AtomicU64::new(0),
            rows_out: ports.iter().map(|port| (*port, AtomicU64::new(0))).collect(),
            rows_filtered: AtomicU64::new(0),
            rows_made: AtomicU64::new(0),
            rows_in_hand: AtomicI64::new(0),
            intake: OnceLock::new(),
            rows_stored: AtomicU64::new(0),
            groups_stored: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            last_commit_lag_us: AtomicI64::new(-1),
            last_commit_at_us: AtomicI64::new(-1),
            state: AtomicU8::new(StageState::Starting as u8),
            last_error: Mutex::default(),
            named: Mutex::default(),
        }
    }

    /// Rows that came in by all edges.
    pub fn rows_in(&self) -> u64 {
        self.rows_in.load(Relaxed)
    }

    /// Rows that left by a port, whether or not anybody reads it.
    pub fn rows_out(&self, port: Port) -> u64 {
        self.rows_out.iter().find(|(name, _)| *name == port).map_or(0, |(_, rows)| rows.load(Relaxed))
    }

    /// Every port with the rows that left by it.
    pub fn ports(&self) -> impl Iterator<Item = (Port, u64)> + '_ {
        self.rows_out.iter().map(|(port, rows)| (*port, rows.load(Relaxed)))
    }

    /// Rows that a transform was given and has passed on by neither the main port nor `rejected`.
    pub fn rows_filtered(&self) -> u64 {
        self.rows_filtered.load(Relaxed)
    }

    /// Rows that a transform has passed on beyond those it was given.
    pub fn rows_made(&self) -> u64 {
        self.rows_made.load(Relaxed)
    }

    /// Rows of the group that a sink is about to store.
    pub fn rows_in_hand(&self) -> u64 {
        u64::try_from(self.rows_in_hand.load(Relaxed)).unwrap_or(0)
    }

    /// What a source has taken in; `None` if it does not count that.
    pub fn intake(&self) -> Option<&IntakeStats> {
        self.intake.get()
    }

    /// Rows that a sink has made durable.
    pub fn rows_stored(&self) -> u64 {
        self.rows_stored.load(Relaxed)
    }

    /// Groups that a sink has committed.
    pub fn groups_stored(&self) -> u64 {
        self.groups_stored.load(Relaxed)
    }

    /// Attempts that failed for a transient reason.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// Time spent inside the stage's own code.
    pub fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Relaxed))
    }

    /// Age of the oldest row of the last committed group, from receipt to commit.
    pub fn commit_lag(&self) -> Option<Duration> {
        u64::try_from(self.last_commit_lag_us.load(Relaxed)).ok().map(Duration::from_micros)
    }

    /// When the last group was committed, in microseconds since 1970.
    pub fn last_commit_at_us(&self) -> Option<i64> {
        Some(self.last_commit_at_us.load(Relaxed)).filter(|at| *at >= 0)
    }

    /// What the stage is doing.
    pub fn state(&self) -> StageState {
        use StageState::{Ended, Failed, Paused, Retrying, Running, Starting};
        [Starting, Running, Retrying, Paused, Ended, Failed][usize::from(self.state.load(Relaxed))]
    }

    /// The last error, also after it has passed.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counters of the stage's own, such as `reconnects`.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.iter().map(|(name, counter)| (*name, counter.get())).collect()
    }

    /// A counter of the stage's own; the same one for the same name.
    pub(crate) fn counter(&self, name: &'static str) -> Counter {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone()
    }

    /// A counter of the stage's own, 0 if it has none of that name.
    pub(crate) fn named_count(&self, name: &str) -> u64 {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).get(name).map_or(0, Counter::get)
    }

    pub(crate) fn start_intake(&self) -> IntakeStats {
        self.intake.get_or_init(IntakeStats::default).clone()
    }

    /// A transform was given so many rows and has passed on so many of them.
    pub(crate) fn transformed(&self, given: usize, passed_on: usize) {
        self.rows_filtered.fetch_add(given.saturating_sub(passed_on) as u64, Relaxed);
        self.rows_made.fetch_add(passed_on.saturating_sub(given) as u64, Relaxed);
    }

    pub(crate) fn taken_in_hand(&self, rows: usize) {
        self.rows_in_hand.fetch_add(rows as i64, Relaxed);
    }

    pub(crate) fn out_of_hand(&self, rows: usize) {
        self.rows_in_hand.fetch_sub(rows as i64, Relaxed);
    }

    /// Shows a counter that somebody else has made.
    pub(crate) fn show_counter(&self, name: &'static str, counter: &Counter) {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).insert(name, counter.clone());
    }

    pub(crate) fn entered(&self, rows: usize) {
        self.rows_in.fetch_add(rows as u64, Relaxed);
    }

    pub(crate) fn left(&self, port: Port, rows: usize) {
        if let Some((_, count)) = self.rows_out.iter().find(|(name, _)| *name == port) {
            count.fetch_add(rows as u64, Relaxed);
        }
    }

    pub(crate) fn stored(&self, rows: usize, oldest_received_at_us: Option<i64>) {
        let now = now_us();
        self.rows_stored.fetch_add(rows as u64, Relaxed);
        self.groups_stored.fetch_add(1, Relaxed);
        self.last_commit_at_us.store(now, Relaxed);
        if let Some(received) = oldest_received_at_us {
            self.last_commit_lag_us.store((now - received).max(0), Relaxed);
        }
    }

    pub(crate) fn busy_for(&self, spent: Duration) {
        self.busy_us.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn set_state(&self, state: StageState) {
        self.state.store(state as u8, Relaxed);
    }

    pub(crate) fn set_state_if(&self, now: StageState, then: StageState) {
        // Whoever has set another state meanwhile knows better.
        self.state.compare_exchange(now as u8, then as u8, Relaxed, Relaxed).ok();
    }

    pub(crate) fn failed_once(&self, error: String) {
        self.retries.fetch_add(1, Relaxed);
        self.note_error(error);
    }

    pub(crate) fn note_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// A counter that a stage keeps by name. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts some more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A figure that goes up and down. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is so much now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// How much it is.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a source has taken in from outside and passed on, in records of its own: messages, lines. Clones
/// count together.
#[derive(Debug, Clone, Default)]
pub struct IntakeStats {
    /// Taken in by this run, or kept for it by an earlier one.
    pub received: Counter,
    /// Decoded or refused, and sent into the pipeline.
    pub passed_on: Counter,
    /// The number of the last record that was taken in.
    pub taken_to: Gauge,
    /// The number of the last record that was passed on.
    pub passed_to: Gauge,
}

impl IntakeStats {
    /// Records received and not passed on yet: by their numbers, not as the difference of the counts.
    pub fn waiting(&self) -> u64 {
        self.taken_to.get().saturating_sub(self.passed_to.get())
    }
}

/// Counters of one edge.
#[derive(Debug)]
pub struct EdgeStats {
    /// The stage that writes.
    pub from: String,
    /// The port it writes by.
    pub port: Port,
    /// The stage that reads.
    pub to: String,
    rows_max: AtomicU32,
    rows_sent: AtomicU64,
    rows_waiting: AtomicI64,
    /// The queue before the disk, on an edge that has one.
    before_overflow: OnceLock<Arc<EdgeStats>>,
    rows_passed: AtomicU64,
    overflow_rows: AtomicU64,
    overflow_bytes: AtomicU64,
    shed_rows: AtomicU64,
}

impl EdgeStats {
    pub(crate) fn new(from: &str, port: Port, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            port,
            to: to.to_owned(),
            rows_max: AtomicU32::new(0),
            rows_sent: AtomicU64::new(0),
            rows_waiting: AtomicI64::new(0),
            before_overflow: OnceLock::new(),
            rows_passed: AtomicU64::new(0),
            overflow_rows: AtomicU64::new(0),
            overflow_bytes: AtomicU64::new(0),
            shed_rows: AtomicU64::new(0),
        }
    }

    /// Rows that wait on disk for a sink that is slow or away.
    pub fn overflow_rows(&self) -> u64 {
        self.overflow_rows.load(Relaxed)
    }

    /// What they take on disk.
    pub fn overflow_bytes(&self) -> u64 {
        self.overflow_bytes.load(Relaxed)
    }

    /// Rows that an optional sink went without.
    pub fn shed_rows(&self) -> u64 {
        self.shed_rows.load(Relaxed)
    }

    /// Rows that the writing stage has given to this edge.
    pub fn rows_sent(&self) -> u64 {
        self.rows_sent.load(Relaxed)
    }

    /// Rows that the reading stage has not taken yet, in memory and on disk.
    pub fn rows_in_flight(&self) -> u64 {
        let before = self.before_overflow.get().map_or(0, |queue| queue.rows_waiting());
        before + self.overflow_rows() + self.rows_waiting()
    }

    pub(crate) fn sent(&self, rows: usize) {
        self.rows_sent.fetch_add(rows as u64, Relaxed);
    }

    pub(crate) fn set_before_overflow(&self, queue: Arc<EdgeStats>) {
        // Set once, when the edge is made.
        self.before_overflow.set(queue).ok();
    }

    pub(crate) fn set_overflow(&self, rows: u64, bytes: u64) {
        self.overflow_rows.store(rows, Relaxed);
        self.overflow_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn shed(&self, rows: usize) {
        self.shed_rows.fetch_add(rows as u64, Relaxed);
    }

    /// The bound of the queue.
    pub fn rows_max(&self) -> u32 {
        self.rows_max.load(Relaxed)
    }

    /// Rows in the queue now.
    pub fn rows_waiting(&self) -> u64 {
        u64::try_from(self.rows_waiting.load(Relaxed)).unwrap_or(0)
    }

    /// Rows that were taken out of the queue.
    pub fn rows_passed(&self) -> u64 {
        self.rows_passed.load(Relaxed)
    }

    pub(crate) fn set_rows_max(&self, rows_max: u32) {
        self.rows_max.store(rows_max, Relaxed);
    }

    pub(crate) fn entered(&self, rows: usize) {
        self.rows_waiting.fetch_add(rows as i64, Relaxed);
    }

    pub(crate) fn left(&self, rows: usize) {
        self.rows_waiting.fetch_sub(rows as i64, Relaxed);
        self.rows_passed.fetch_add(rows as u64, Relaxed);
    }
}
