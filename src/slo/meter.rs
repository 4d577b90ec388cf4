//! Looks at the counters of a run once a second, and makes of them what its objectives are about.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pipeline_engine::far_end::FarEnd;
use pipeline_engine::stage::Port;
use pipeline_engine::{Balance, Latencies, LatencyCounts, Objectives, Plan, RunStats, StageStats};
use tokio::time::MissedTickBehavior;

use super::measure::{self, Measurement};
use super::{Objective, Tally};

const TICK: Duration = Duration::from_secs(1);
/// Reports are about so long at most.
const WINDOW: Duration = Duration::from_secs(3_600);
/// Kept so often for that.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The rate of messages is that of so long.
const RATE_WINDOW: Duration = Duration::from_secs(300);
/// Whether a second is good is said of so long, so that a burst and a pause of a fleet are one.
const MINUTE: Duration = Duration::from_secs(60);
/// After the start, when tables are there as a rule.
const FIRST_MEASUREMENT: Duration = Duration::from_secs(30);
/// The port by which `anomaly` tells what it finds.
const ANOMALIES: &str = "anomalies";
/// What `gaps` counts.
const MISSING: &str = "missing_numbers";

/// What is taken of a plan before it becomes a run.
pub struct Outlook {
    objectives: Objectives,
    database: Option<Box<dyn FarEnd>>,
}

impl Outlook {
    pub fn of(plan: &Plan) -> Self {
        Self { objectives: plan.objectives().clone(), database: measure::database(plan) }
    }

    /// Holds a run against the objectives; to be called before its first row.
    pub fn meter(self, stats: &Arc<RunStats>) -> Meter {
        Meter::new(self, stats)
    }
}

/// See the module.
pub struct Meter {
    objectives: Objectives,
    stats: Arc<RunStats>,
    /// The sinks that the objectives are about, by their place among the stages.
    latency: Option<usize>,
    anomaly: Option<usize>,
    /// Until it is taken to measure with.
    database: Mutex<Option<Box<dyn FarEnd>>>,
    measured: Mutex<Measured>,
    counted: Mutex<Counted>,
    /// What stays missing though nothing moves.
    lost_rows: AtomicU64,
}

/// What measuring has come to.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) query: Tally,
    pub(super) dashboard: Tally,
    /// The last one, or why there was none.
    pub(super) last: Option<Result<Measurement, String>>,
}

/// What was counted, and how it was before.
struct Counted {
    started: Instant,
    ingestion: Tally,
    connectivity: Tally,
    /// Messages that came and are accounted for: never fewer than before, as a counter must be.
    kept: u64,
    /// Since when messages come: a fleet that starts later than the pipeline misses nothing by that.
    first_message: Option<Instant>,
    /// Messages by second, the oldest first.
    received: VecDeque<(Instant, u64)>,
    /// The oldest first.
    looks: VecDeque<Look>,
    balances: Vec<Balance>,
}

/// All counts of a moment.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) at: Instant,
    tallies: [Tally; Objective::ALL.len()],
    pub(super) latency: LatencyCounts,
    pub(super) anomaly: LatencyCounts,
}

impl Look {
    pub(super) fn tally(&self, objective: Objective) -> Tally {
        self.tallies[objective as usize]
    }
}

impl Meter {
    fn new(outlook: Outlook, stats: &Arc<RunStats>) -> Self {
        let Outlook { objectives, database } = outlook;
        let latency = sink(stats, objectives.latency_sink.as_deref(), |stage| stage.time_column().is_some());
        let reads_anomalies =
            |stage: &StageStats| stats.edges.iter().any(|edge| edge.to == stage.name && edge.port.name() == ANOMALIES);
        let anomaly = sink(stats, objectives.anomaly_sink.as_deref(), reads_anomalies);
        for (index, within) in [(latency, objectives.latency), (anomaly, objectives.anomaly)] {
            if let (Some(index), Some(within)) = (index, within) {
                latencies(&stats.stages[index]).hold_against(within.limit);
            }
        }
        let now = Instant::now();
        let counted = Counted {
            started: now,
            ingestion: Tally::default(),
            connectivity: Tally::default(),
            kept: 0,
            first_message: None,
            received: VecDeque::from([(now, 0)]),
            looks: VecDeque::new(),
            balances: Vec::new(),
        };
        let meter = Self {
            objectives,
            stats: stats.clone(),
            latency,
            anomaly,
            database: Mutex::new(database),
            measured: Mutex::default(),
            counted: Mutex::new(counted),
            lost_rows: AtomicU64::new(0),
        };
        let first = meter.look(&lock(&meter.counted), now);
        lock(&meter.counted).looks.push_back(first);
        meter
    }

    /// What the file asks for.
    pub fn objectives(&self) -> &Objectives {
        &self.objectives
    }

    /// Counts for as long as it is polled. Cancel safe.
    pub async fn watch(&self) {
        tokio::join!(self.count(), self.measure_now_and_then());
    }

    async fn count(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.tick(Instant::now());
        }
    }

    async fn measure_now_and_then(&self) {
        let database = lock(&self.database).take();
        let (Some(every), Some(mut database)) = (self.objectives.measure_every, database) else {
            return std::future::pending().await;
        };
        let mut wait = every.min(FIRST_MEASUREMENT);
        loop {
            tokio::time::sleep(wait).await;
            wait = every;
            let outcome = measure::measure(database.as_mut(), 1).await;
            if let Err(error) = &outcome {
                tracing::warn!("queries and dashboards could not be measured: {error}");
            }
            self.note(outcome);
        }
    }

    fn note(&self, outcome: Result<Measurement, String>) {
        let mut measured = lock(&self.measured);
        if let Ok(measurement) = &outcome {
            let add = |tally: &mut Tally, more: Tally| {
                *tally = Tally { good: tally.good + more.good, total: tally.total + more.total };
            };
            add(&mut measured.query, measurement.queries_within(self.objectives.query));
            add(&mut measured.dashboard, measurement.dashboards_within(self.objectives.dashboard));
        }
        measured.last = Some(outcome);
    }

    fn tick(&self, now: Instant) {
        let received = self.received();
        let (known, connected) = self.devices().unwrap_or_default();
        let mut counted = lock(&self.counted);
        counted.received.push_back((now, received));
        while counted.received.get(1).is_some_and(|(at, _)| now - *at >= RATE_WINDOW) {
            counted.received.pop_front();
        }
        counted.connectivity.total += known;
        counted.connectivity.good += connected.min(known);
        if let (Some(min), Some(first)) = (self.objectives.ingestion_min, counted.first_message) {
            counted.ingestion.total += 1;
            counted.ingestion.good += u64::from(counted.rate(MINUTE.min(now - first)).is_at_least(min));
        }
        if received > 0 {
            counted.first_message.get_or_insert(now);
        }
        if counted.looks.back().is_none_or(|last| now - last.at >= LOOK_EVERY) {
            self.audit(&mut counted);
            let look = self.look(&counted, now);
            counted.looks.push_back(look);
            while counted.looks.get(1).is_some_and(|look| now - look.at >= WINDOW) {
                counted.looks.pop_front();
            }
        }
        counted.kept = counted.kept.max(received.saturating_sub(self.lost_rows.load(Relaxed)));
    }

    /// What is not accounted for while nothing moves is lost.
    fn audit(&self, counted: &mut Counted) {
        let now: Vec<Balance> = self.stats.balances().into_iter().map(|(_, balance)| balance).collect();
        let is_still = |(balance, before): &(&Balance, &Balance)| balance == before && balance.in_flight == 0;
        if counted.balances.len() == now.len() && now.iter().zip(&counted.balances).all(|both| is_still(&both)) {
            let missing = now.iter().map(|balance| u64::try_from(balance.imbalance()).unwrap_or(0)).sum();
            self.lost_rows.fetch_max(missing, Relaxed);
        }
        counted.balances = now;
    }

    fn look(&self, counted: &Counted, at: Instant) -> Look {
        let measured = lock(&self.measured);
        let (missing, received) = (self.missing_numbers(), self.received());
        let tally = |objective| match objective {
            Objective::Ingestion => counted.ingestion,
            Objective::Latency => self.in_time(self.latency),
            Objective::Loss => Tally { good: counted.kept.min(received), total: received + missing },
            Objective::Connectivity => counted.connectivity,
            Objective::Query => measured.query,
            Objective::Anomaly => self.in_time(self.anomaly),
            Objective::Dashboard => measured.dashboard,
        };
        let latency = |index: Option<usize>| {
            index.map_or_else(LatencyCounts::default, |index| latencies(&self.stats.stages[index]).counts())
        };
        Look { at, tallies: Objective::ALL.map(tally), latency: latency(self.latency), anomaly: latency(self.anomaly) }
    }

    /// Now, the oldest look of the window, and when the run began.
    pub(super) fn looks(&self) -> (Look, Look, Instant) {
        let mut counted = lock(&self.counted);
        let received = self.received().saturating_sub(self.lost_rows.load(Relaxed));
        counted.kept = counted.kept.max(received);
        let now = self.look(&counted, Instant::now());
        let oldest = counted.looks.front().unwrap_or(&now).clone();
        (now, oldest, counted.started)
    }

    /// Since the run began.
    pub fn tally(&self, objective: Objective) -> Tally {
        self.looks().0.tally(objective)
    }

    /// The messages that came within the last five minutes.
    pub(super) fn rate(&self) -> Rate {
        lock(&self.counted).rate(RATE_WINDOW)
    }

    /// How many devices are known, and how many of these are not silent; `None` where no stage follows them.
    pub fn devices(&self) -> Option<(u64, u64)> {
        let devices = self.stats.stages.iter().find_map(|stage| stage.devices())?;
        let connected = devices.connected.get();
        Some((devices.known.get().max(connected), connected))
    }

    /// The last measurement, or why there was none; `None` if nothing was measured.
    pub fn last_measurement(&self) -> Option<Result<Measurement, String>> {
        lock(&self.measured).last.clone()
    }

    /// Whether somebody looks for numbers that never came.
    pub(super) fn looks_for_gaps(&self) -> bool {
        self.stats.stages.iter().any(|stage| stage.named().iter().any(|(name, _)| *name == MISSING))
    }

    /// The names of the sinks that latency and anomalies are measured at.
    pub(super) fn sinks(&self) -> [Option<&str>; 2] {
        [self.latency, self.anomaly].map(|index| index.map(|index| self.stats.stages[index].name.as_str()))
    }

    fn received(&self) -> u64 {
        let sources = self.stats.stages.iter().filter(|stage| stage.kind == "source");
        let count = |stage: &Arc<StageStats>| match stage.intake() {
            Some(intake) => intake.received.get(),
            None => stage.rows_out(Port::MAIN) + stage.rows_out(Port::REJECTED),
        };
        sources.map(count).sum()
    }

    fn missing_numbers(&self) -> u64 {
        let named = self.stats.stages.iter().flat_map(|stage| stage.named());
        named.filter(|(name, _)| *name == MISSING).map(|(_, count)| count).sum()
    }

    fn in_time(&self, sink: Option<usize>) -> Tally {
        let Some(index) = sink else { return Tally::default() };
        let latencies = latencies(&self.stats.stages[index]);
        // In this order: what comes in between is in the total alone for a moment, and never beyond it.
        let good = latencies.within();
        Tally { good, total: latencies.counts().count().max(good) }
    }
}

/// Messages within a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) messages: u64,
    pub(super) within: Duration,
}

impl Rate {
    pub(super) fn is_at_least(self, messages_a_second: u64) -> bool {
        u128::from(self.messages) * 1_000_000_000 >= u128::from(messages_a_second) * self.within.as_nanos()
    }

    pub(super) fn a_second(self) -> f64 {
        self.messages as f64 / self.within.as_secs_f64().max(1e-9)
    }

    /// How many messages so many a second would have been.
    pub(super) fn wanted(self, messages_a_second: u64) -> u64 {
        let wanted = (u128::from(messages_a_second) * self.within.as_nanos()).div_ceil(1_000_000_000);
        u64::try_from(wanted).unwrap_or(u64::MAX)
    }
}

impl Counted {
    fn rate(&self, window: Duration) -> Rate {
        let none = Rate { messages: 0, within: Duration::ZERO };
        let Some((now, received)) = self.received.back() else { return none };
        let first = self.received.iter().find(|(at, _)| *now - *at <= window);
        first.map_or(none, |(at, before)| Rate { messages: received.saturating_sub(*before), within: *now - *at })
    }
}

/// The sink of that name, or the first that is meant where none is named.
fn sink(stats: &RunStats, named: Option<&str>, is_meant: impl Fn(&StageStats) -> bool) -> Option<usize> {
    stats
        .stages
        .iter()
        .position(|stage| stage.kind == "sink" && named.map_or_else(|| is_meant(stage), |name| stage.name == name))
}

/// From when rows happened, where that is known.
fn latencies(stage: &StageStats) -> &Latencies {
    if stage.time_column().is_some() { &stage.latency_event } else { &stage.latency_received }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held_against_its_target_in_integers() {
        let rate = |messages, millis| Rate { messages, within: Duration::from_millis(millis) };
        assert!(rate(1_000, 1_000).is_at_least(1_000) && !rate(999, 1_000).is_at_least(1_000));
        assert!(!rate(1_000, 1_001).is_at_least(1_000));
        assert_eq!((rate(7, 1_500).wanted(1_000), rate(7, 2_000).a_second()), (1_500, 3.5));
    }

    #[test]
    fn the_rate_is_that_of_the_window_and_of_the_run_where_that_is_shorter() {
        let start = Instant::now();
        let second = |second: u64, received: u64| (start + Duration::from_secs(second), received);
        let mut counted = Counted {
            started: start,
            ingestion: Tally::default(),
            connectivity: Tally::default(),
            kept: 0,
            first_message: None,
            received: VecDeque::from([second(0, 0), second(1, 10)]),
            looks: VecDeque::new(),
            balances: Vec::new(),
        };
        assert_eq!(counted.rate(MINUTE), Rate { messages: 10, within: Duration::from_secs(1) });
        counted.received.extend([second(60, 600), second(61, 605)]);
        assert_eq!(counted.rate(MINUTE), Rate { messages: 595, within: MINUTE });
    }
}
