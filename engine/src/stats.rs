//! Counters of a run, kept by the engine and read while it runs.
//!
//! Reading takes no lock that a stage waits for, and nothing here costs a stage more than a few instructions a
//! batch; a sink's latency by event time, a comparison a row. The same counters make the status line, the final
//! report, health, metrics and the live page.

mod counter;
mod edge;
mod latency;
mod stopwatch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::batch::Batch;
use crate::spool::SpoolMeter;
use crate::stage::Port;
use crate::tap::Tap;
pub use counter::{CertificateStats, Counter, DeviceStats, Gauge, IntakeStats};
pub use edge::EdgeStats;
pub use latency::{LATENCY_BOUNDS_SECONDS, Latencies, LatencyCounts};
pub use stopwatch::{Running, Stopwatch};

/// Microseconds since 1970 by this machine's clock: when a row is received, when it is stored.
pub fn now_us() -> i64 {
    #[cfg(test)]
    if let Some(now) = crate::simulated::now_us() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Nothing is held: later than any time, so that the least of both is the time.
const NOTHING_HELD: i64 = i64::MAX;

/// Nothing was seen: before any time, so that the greatest of both is the time.
const NOTHING_SEEN: i64 = i64::MIN;

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
    /// The outside has failed it, and it will try again: a sink whose last write failed, a source that says so.
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
    /// Those that every stage of this type has.
    own_ports: Vec<PortStats>,
    /// Those that the configuration names.
    configured_ports: OnceLock<Vec<PortStats>>,
    rows_filtered: AtomicU64,
    rows_made: AtomicU64,
    rows_in_hand: AtomicI64,
    intake: OnceLock<IntakeStats>,
    devices: OnceLock<DeviceStats>,
    certificates: OnceLock<CertificateStats>,
    behind_ms: OnceLock<Gauge>,
    partitions: OnceLock<Gauge>,
    rows_stored: AtomicU64,
    groups_stored: AtomicU64,
    retries: AtomicU64,
    deliveries_failed: AtomicU64,
    /// How many things outside fail a source now.
    outside_failing: Mutex<usize>,
    /// Time spent in the stage's own code.
    pub busy: Stopwatch,
    /// Time spent waiting for those behind it: for room in a queue, or of a sink, for an outside that refuses.
    pub blocked: Stopwatch,
    /// From receipt to commit, one count a row. Of a sink.
    pub latency_received: Latencies,
    /// From when a row happened, by the device's clock, to its commit. Of a sink that knows a time column.
    pub latency_event: Latencies,
    /// The column that says when a row happened: of what a source sends, of what a sink is given.
    time_column: OnceLock<usize>,
    newest_event_at_us: AtomicI64,
    oldest_in_hand_at_us: AtomicI64,
    spool: OnceLock<SpoolMeter>,
    last_commit_lag_us: AtomicI64,
    last_commit_at_us: AtomicI64,
    state: AtomicU8,
    state_since_us: AtomicI64,
    last_error: Mutex<Option<(String, i64)>>,
    named: Mutex<BTreeMap<&'static str, Counter>>,
}

#[derive(Debug)]
struct PortStats {
    port: Port,
    rows: AtomicU64,
    /// Closed until somebody wants to look.
    tap: Tap,
}

impl PortStats {
    fn new(port: Port) -> Self {
        Self { port, rows: AtomicU64::new(0), tap: Tap::default() }
    }
}

impl StageStats {
    pub(crate) fn new(name: &str, type_name: &'static str, kind: &'static str, ports: &[Port]) -> Self {
        Self {
            name: name.to_owned(),
            type_name,
            kind,
            rows_in: AtomicU64::new(0),
            own_ports: ports.iter().copied().filter(|port| !port.is_placeholder()).map(PortStats::new).collect(),
            configured_ports: OnceLock::new(),
            rows_filtered: AtomicU64::new(0),
            rows_made: AtomicU64::new(0),
            rows_in_hand: AtomicI64::new(0),
            intake: OnceLock::new(),
            devices: OnceLock::new(),
            certificates: OnceLock::new(),
            behind_ms: OnceLock::new(),
            partitions: OnceLock::new(),
            rows_stored: AtomicU64::new(0),
            groups_stored: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            deliveries_failed: AtomicU64::new(0),
            outside_failing: Mutex::default(),
            busy: Stopwatch::default(),
            blocked: Stopwatch::default(),
            latency_received: Latencies::default(),
            latency_event: Latencies::default(),
            time_column: OnceLock::new(),
            newest_event_at_us: AtomicI64::new(NOTHING_SEEN),
            oldest_in_hand_at_us: AtomicI64::new(NOTHING_HELD),
            spool: OnceLock::new(),
            last_commit_lag_us: AtomicI64::new(-1),
            last_commit_at_us: AtomicI64::new(-1),
            state: AtomicU8::new(StageState::Starting as u8),
            state_since_us: AtomicI64::new(now_us()),
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
        self.port(port).map_or(0, |port| port.rows.load(Relaxed))
    }

    /// Every port with the rows that left by it.
    pub fn ports(&self) -> impl Iterator<Item = (Port, u64)> + '_ {
        self.all_ports().map(|port| (port.port, port.rows.load(Relaxed)))
    }

    /// Rows that left by the main port or one that the configuration names: those that the stage was given, on their way.
    pub fn rows_passed_on(&self) -> u64 {
        self.rows_out(Port::MAIN) + self.configured().iter().map(|port| port.rows.load(Relaxed)).sum::<u64>()
    }

    /// Whether rows that the stage was given leave by this port, as they are or refused, and not rows that it made of them.
    pub(crate) fn passes_on(&self, port: Port) -> bool {
        [Port::MAIN, Port::REJECTED].contains(&port) || self.configured().iter().any(|known| known.port == port)
    }

    /// Takes in the ports that the configuration names, once they are known.
    pub(crate) fn set_ports(&self, ports: impl Iterator<Item = Port>) {
        let is_new = |port: &Port| self.own_ports.iter().all(|known| known.port != *port);
        // A stage is built once for its statistics.
        self.configured_ports.set(ports.filter(is_new).map(PortStats::new).collect()).ok();
    }

    fn configured(&self) -> &[PortStats] {
        self.configured_ports.get().map_or(&[], Vec::as_slice)
    }

    fn all_ports(&self) -> impl Iterator<Item = &PortStats> {
        self.own_ports.iter().chain(self.configured())
    }

    fn port(&self, port: Port) -> Option<&PortStats> {
        self.all_ports().find(|known| known.port == port)
    }

    /// Rows that a transform was given and has passed on by neither the main port, `rejected`, nor one that the configuration names.
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

    /// The devices that a transform follows; `None` if it follows none.
    pub fn devices(&self) -> Option<&DeviceStats> {
        self.devices.get()
    }

    /// The certificates of its connections; `None` for a stage that has no such connections.
    pub fn certificates(&self) -> Option<&CertificateStats> {
        self.certificates.get()
    }

    /// How far what a source has read is behind the tip of its stream, by the stream's own clock; `None` where it can't
    /// know.
    pub fn behind(&self) -> Option<Duration> {
        self.behind_ms.get().map(|gauge| Duration::from_millis(gauge.get()))
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

    /// Attempts of a sink to store a group that came to nothing, for whatever is wrong outside.
    pub fn deliveries_failed(&self) -> u64 {
        self.deliveries_failed.load(Relaxed)
    }

    /// Age of the oldest row of the last committed group, from receipt to commit.
    pub fn commit_lag(&self) -> Option<Duration> {
        u64::try_from(self.last_commit_lag_us.load(Relaxed)).ok().map(Duration::from_micros)
    }

    /// When the last group was committed, in microseconds since 1970.
    pub fn last_commit_at_us(&self) -> Option<i64> {
        Some(self.last_commit_at_us.load(Relaxed)).filter(|at| *at >= 0)
    }

    /// Age of the oldest row that a sink was given and has not stored; zero if it holds none. Rows that it has
    /// not taken in yet are younger.
    pub fn lag(&self, now_us: i64) -> Duration {
        match self.oldest_in_hand_at_us.load(Relaxed) {
            NOTHING_HELD => Duration::ZERO,
            oldest => Duration::from_micros(u64::try_from(now_us - oldest).unwrap_or(0)),
        }
    }

    /// When the newest row happened that a source has sent, in microseconds since 1970; `None` where no time
    /// column is known. Clocks that are ahead of ours move it no further than to now.
    pub fn newest_event_at_us(&self) -> Option<i64> {
        Some(self.newest_event_at_us.load(Relaxed)).filter(|at| *at != NOTHING_SEEN)
    }

    /// The spool of a source that has one.
    pub fn spool(&self) -> Option<&SpoolMeter> {
        self.spool.get()
    }

    /// Where to look at the newest rows that leave by a port; `None` for a port that the stage does not have.
    pub fn tap(&self, port: Port) -> Option<&Tap> {
        self.port(port).map(|port| &port.tap)
    }

    /// The column of what a source sends, or of what a sink is given, that says when a row happened.
    pub fn time_column(&self) -> Option<usize> {
        self.time_column.get().copied()
    }

    /// What the stage is doing.
    pub fn state(&self) -> StageState {
        use StageState::{Ended, Failed, Paused, Retrying, Running, Starting};
        [Starting, Running, Retrying, Paused, Ended, Failed][usize::from(self.state.load(Relaxed))]
    }

    /// Since when it does that, in microseconds since 1970.
    pub fn state_since_us(&self) -> i64 {
        self.state_since_us.load(Relaxed)
    }

    /// The last error, also after it has passed.
    pub fn last_error(&self) -> Option<String> {
        self.last_error_and_time().map(|(error, _)| error)
    }

    /// The last error, and when it was noted, in microseconds since 1970.
    pub fn last_error_and_time(&self) -> Option<(String, i64)> {
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

    pub(crate) fn follow_certificates(&self) -> CertificateStats {
        self.certificates.get_or_init(CertificateStats::default).clone()
    }

    pub(crate) fn follow_devices(&self) -> DeviceStats {
        self.devices.get_or_init(DeviceStats::default).clone()
    }

    /// How many partitions a source has now that several workers share; `None` for any other.
    pub fn partitions(&self) -> Option<u64> {
        self.partitions.get().map(Gauge::get)
    }

    pub(crate) fn start_partitions(&self) -> Gauge {
        self.partitions.get_or_init(Gauge::default).clone()
    }

    pub(crate) fn start_behind(&self) -> Gauge {
        self.behind_ms.get_or_init(Gauge::default).clone()
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
        if let Some(port) = self.port(port) {
            port.rows.fetch_add(rows as u64, Relaxed);
        }
    }

    /// A source sends this by a port, or a transform, or a sink that refuses it.
    pub(crate) fn shows(&self, port: Port, batch: &Batch) {
        if let Some(tap) = self.tap(port) {
            tap.offer(&batch.rows);
        }
        if self.kind == "source"
            && port == Port::MAIN
            && let Some(column) = self.time_column()
            && let Some(newest) = latency::newest(batch.rows.column(column), now_us())
        {
            self.newest_event_at_us.fetch_max(newest, Relaxed);
        }
    }

    pub(crate) fn set_time_column(&self, column: usize) {
        // Set once, when the run is made.
        self.time_column.set(column).ok();
    }

    pub(crate) fn set_spool(&self, meter: SpoolMeter) {
        // A source has one spool.
        self.spool.set(meter).ok();
    }

    /// A sink has taken in rows that were received then.
    pub(crate) fn holds_since(&self, received_at_us: Option<i64>) {
        if let Some(at) = received_at_us {
            self.oldest_in_hand_at_us.fetch_min(at, Relaxed);
        }
    }

    /// All that the sink had taken in is stored or refused.
    pub(crate) fn holds_nothing(&self) {
        self.oldest_in_hand_at_us.store(NOTHING_HELD, Relaxed);
    }

    /// A sink has made these batches durable.
    pub(crate) fn stored(&self, batches: &[Batch]) {
        let now = now_us();
        let mut oldest: Option<i64> = None;
        for batch in batches {
            self.rows_stored.fetch_add(batch.rows.num_rows() as u64, Relaxed);
            if let Some(at) = batch.ack().received_at_us() {
                self.latency_received.observe(now - at, batch.rows.num_rows() as u64);
                oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
            }
            if let Some(column) = self.time_column() {
                self.latency_event.observe_times(batch.rows.column(column), now);
            }
        }
        self.groups_stored.fetch_add(1, Relaxed);
        self.last_commit_at_us.store(now, Relaxed);
        if let Some(received) = oldest {
            self.last_commit_lag_us.store((now - received).max(0), Relaxed);
        }
    }

    pub(crate) fn set_state(&self, state: StageState) {
        if self.state.swap(state as u8, Relaxed) != state as u8 {
            self.state_since_us.store(now_us(), Relaxed);
        }
    }

    pub(crate) fn set_state_if(&self, now: StageState, then: StageState) {
        // Whoever has set another state meanwhile knows better.
        if self.state.compare_exchange(now as u8, then as u8, Relaxed, Relaxed).is_ok() {
            self.state_since_us.store(now_us(), Relaxed);
        }
    }

    /// One more thing outside fails the stage, which asks it again.
    pub(crate) fn outside_fails(&self) {
        let mut failing = self.outside_failing.lock().unwrap_or_else(PoisonError::into_inner);
        *failing += 1;
        self.set_state_if(StageState::Running, StageState::Retrying);
    }

    /// One of them is back, or asked no more.
    pub(crate) fn outside_is_back(&self) {
        let mut failing = self.outside_failing.lock().unwrap_or_else(PoisonError::into_inner);
        *failing = failing.saturating_sub(1);
        if *failing == 0 {
            self.set_state_if(StageState::Retrying, StageState::Running);
        }
    }

    pub(crate) fn delivery_failed(&self) {
        self.deliveries_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed_once(&self, error: String) {
        self.retries.fetch_add(1, Relaxed);
        self.note_error(error);
    }

    pub(crate) fn note_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((error, now_us()));
    }
}
