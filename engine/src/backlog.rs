//! How much a stage has to catch up, and when it will have: after an outage of its outside, or of ours.

use std::fmt;
use std::time::{Duration, Instant};

use crate::stats::{RunStats, StageState, StageStats};

/// Rows that wait for a source's turn are a backlog beyond this; below, they are a moment's load.
const RECORDS_MIN: u64 = 10_000;

/// What one stage has to catch up.
#[derive(Debug, Clone, PartialEq)]
pub struct Backlog {
    /// The stage's name: a sink, or a source whose messages wait in its spool.
    pub stage: String,
    /// Rows (of a source: records) that wait for it.
    pub rows: u64,
    /// By how many a second that becomes less; below 0 it grows.
    pub decrease_per_second: f64,
}

impl Backlog {
    /// When nothing will wait any more, if it goes on like this; `None` if it does not become less.
    pub fn eta(&self) -> Option<Duration> {
        let seconds = self.rows as f64 / self.decrease_per_second;
        (self.decrease_per_second > 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has {} rows to catch up", self.stage, self.rows)?;
        match self.eta() {
            Some(eta) => {
                let eta = Duration::from_secs(eta.as_secs().max(1).min(u64::from(u32::MAX)));
                write!(f, ", done in about {}", humantime::format_duration(eta))
            }
            None if self.decrease_per_second < 0.0 => {
                write!(f, ", and {:.0} more each second", -self.decrease_per_second)
            }
            None => Ok(()),
        }
    }
}

/// Measures backlogs between one call and the next.
#[derive(Debug, Default)]
pub struct BacklogMeter {
    last: Option<(Instant, Vec<u64>)>,
}

impl BacklogMeter {
    /// The stages that have something to catch up. Of the first call nothing is known about the pace.
    pub fn measure(&mut self, stats: &RunStats, now: Instant) -> Vec<Backlog> {
        let waiting: Vec<u64> = stats.stages.iter().map(|stage| waiting(stats, stage)).collect();
        let before = self.last.replace((now, waiting.clone()));
        let behind = stats.stages.iter().enumerate().filter(|(index, stage)| is_behind(stats, stage, waiting[*index]));
        let backlog = |(index, stage): (usize, &std::sync::Arc<StageStats>)| {
            let rows = waiting[index];
            let decrease_per_second = before.as_ref().map_or(0.0, |(then, waiting)| {
                let seconds = now.saturating_duration_since(*then).as_secs_f64();
                if seconds > 0.0 { (waiting[index] as f64 - rows as f64) / seconds } else { 0.0 }
            });
            Backlog { stage: stage.name.clone(), rows, decrease_per_second }
        };
        behind.map(backlog).collect()
    }
}

impl RunStats {
    /// Age of the oldest row that a sink has still to store: in its hand, or waiting for it in memory or on disk. Zero if
    /// there is none.
    pub fn freshness(&self, sink: &StageStats, now_us: i64) -> Duration {
        let held = sink.lag(now_us);
        // A sink at work takes what comes at once, and what it holds is older than what waits for it.
        let waits = |rows: u64| rows > 0 && (held.is_zero() || sink.state() != StageState::Running);
        let edges = self.edges.iter().filter(|edge| edge.to == sink.name);
        let waiting = edges.filter(|edge| {
            waits(if sink.state() == StageState::Running { edge.overflow_rows() } else { edge.rows_in_flight() })
        });
        waiting.filter_map(|edge| edge.lag(now_us)).fold(held, Duration::max)
    }
}

fn waiting(stats: &RunStats, stage: &StageStats) -> u64 {
    match stage.intake() {
        Some(intake) => intake.waiting(),
        None => stats.edges.iter().filter(|edge| edge.to == stage.name).map(|edge| edge.rows_in_flight()).sum(),
    }
}

/// A sink is behind once rows wait on disk for it: memory has no room for them any more.
fn is_behind(stats: &RunStats, stage: &StageStats, waiting: u64) -> bool {
    match stage.kind {
        "source" => waiting > RECORDS_MIN,
        "sink" => stats.edges.iter().any(|edge| edge.to == stage.name && edge.overflow_rows() > 0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::stage::Port;
    use crate::stats::EdgeStats;

    fn run() -> RunStats {
        let stage = |name, kind| Arc::new(StageStats::new(name, "test", kind, &[Port::MAIN]));
        RunStats {
            stages: vec![stage("in", "source"), stage("db", "sink")],
            edges: vec![Arc::new(EdgeStats::new("in", Port::MAIN, "db"))],
        }
    }

    #[test]
    fn a_sink_with_rows_on_disk_is_behind_until_they_are_gone() {
        let (run, mut meter, start) = (run(), BacklogMeter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        run.edges[0].entered(5_000);
        assert_eq!(meter.measure(&run, at(0)), [], "memory has room for them");
        run.edges[0].set_overflow(95_000, 1);
        let shown = |backlogs: Vec<Backlog>| backlogs.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(meter.measure(&run, at(10))), ["db has 100000 rows to catch up, and 9500 more each second"]);
        run.edges[0].set_overflow(45_000, 1);
        assert_eq!(shown(meter.measure(&run, at(20))), ["db has 50000 rows to catch up, done in about 10s"]);
        assert_eq!(shown(meter.measure(&run, at(30))), ["db has 50000 rows to catch up"]);
        run.edges[0].set_overflow(0, 0);
        assert_eq!(meter.measure(&run, at(40)), []);
    }

    #[test]
    fn a_source_is_behind_with_what_waits_in_its_spool() {
        let (run, mut meter, start) = (run(), BacklogMeter::default(), Instant::now());
        let intake = run.stages[0].start_intake();
        intake.taken_to.set(1_010_000);
        intake.passed_to.set(10_000);
        meter.measure(&run, start);
        intake.passed_to.set(510_000);
        let backlogs = meter.measure(&run, start + Duration::from_secs(1));
        assert_eq!(
            (backlogs[0].stage.as_str(), backlogs[0].rows, backlogs[0].eta()),
            ("in", 500_000, Some(Duration::from_secs(1)))
        );
        intake.passed_to.set(1_009_000);
        assert_eq!(meter.measure(&run, start + Duration::from_secs(2)), [], "a moment's load");
    }
}
