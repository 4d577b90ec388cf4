//! Objectives, target against actual: what `/slo` answers and `pipeline slo` shows.

use std::time::{Duration, Instant};

use pipeline_engine::{LatencyCounts, Share, Within};
use serde::{Deserialize, Serialize};

use super::measure::Measurement;
use super::meter::{Look, Rate};
use super::{Meter, Objective, Tally};

/// A rate that is younger says nothing.
const RATE_MIN: Duration = Duration::from_secs(10);

/// All seven, over the last hour or since the run began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// How long it runs.
    pub running_seconds: u64,
    /// What the lines are about: the last so many seconds.
    pub window_seconds: u64,
    /// In the runbook's order.
    pub objectives: Vec<Line>,
}

/// How one objective is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub objective: Objective,
    pub verdict: Verdict,
    /// What `target` and `actual` are: `messages/s`, `seconds` or `share`.
    pub unit: Unit,
    /// `None`: the file asks for nothing.
    pub target: Option<f64>,
    /// `None`: there is nothing to say it by.
    pub actual: Option<f64>,
    /// How many were as they should be, of how many, within the window. Exact.
    #[serde(flatten)]
    pub tally: Tally,
    /// What these are.
    pub counted: String,
    /// Parts of a million that were not.
    pub missed_ppm: Option<f64>,
    /// Parts of a million that need not be.
    pub allowed_ppm: Option<f64>,
    /// The same since the run began.
    pub since_start: Tally,
    /// Where it was measured, or why it was not.
    pub note: Option<String>,
}

/// In what a target is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    #[serde(rename = "messages/s")]
    MessagesASecond,
    #[serde(rename = "seconds")]
    Seconds,
    #[serde(rename = "share")]
    Share,
}

/// Whether an objective is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Kept,
    Missed,
    /// There is a target, and nothing to hold against it.
    Unmeasured,
    /// The file asks for nothing.
    NoTarget,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Missed => "MISSED",
            Self::Unmeasured => "not measured",
            Self::NoTarget => "no target",
        }
    }
}

impl Report {
    pub fn of(pipeline: &str, meter: &Meter) -> Self {
        let (now, oldest, started) = meter.looks();
        let lines = Lines { meter, now: &now, oldest: &oldest };
        Self {
            pipeline: pipeline.to_owned(),
            running_seconds: (Instant::now() - started).as_secs(),
            window_seconds: (now.at - oldest.at).as_secs(),
            objectives: Objective::ALL.map(|objective| lines.line(objective)).to_vec(),
        }
    }

    pub fn missed(&self) -> impl Iterator<Item = &Line> {
        self.objectives.iter().filter(|line| line.verdict == Verdict::Missed)
    }

    /// Puts lines in the place of those of the same objectives.
    pub fn replace(&mut self, lines: impl IntoIterator<Item = Line>) {
        for line in lines {
            if let Some(place) = self.objectives.iter_mut().find(|old| old.objective == line.objective) {
                *place = line;
            }
        }
    }
}

impl Line {
    /// Holds a tally against the share of it that may be missed.
    pub fn of(objective: Objective, unit: Unit, target: Option<(f64, Share)>, tally: Tally) -> Self {
        let verdict = match target {
            None => Verdict::NoTarget,
            Some(_) if tally.total == 0 => Verdict::Unmeasured,
            Some((_, allowed)) if allowed.admits(tally.missed(), tally.total) => Verdict::Kept,
            Some(_) => Verdict::Missed,
        };
        Self {
            objective,
            verdict,
            unit,
            target: target.map(|(target, _)| target),
            actual: None,
            tally,
            counted: objective.counts().to_owned(),
            missed_ppm: tally.missed_ppm(),
            allowed_ppm: target.map(|(_, allowed)| allowed.ppm()),
            since_start: tally,
            note: None,
        }
    }

    #[must_use]
    pub fn actual(self, actual: Option<f64>) -> Self {
        Self { actual, ..self }
    }

    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// So much of a share may be missed: loss, or devices that are away.
    pub fn of_share(objective: Objective, target: Option<Share>, allowed: Option<Share>, tally: Tally) -> Self {
        let target = target.map(Share::ratio).zip(allowed);
        Self::of(objective, Unit::Share, target, tally)
    }

    /// So large a share is done in time.
    pub fn of_times(objective: Objective, within: Option<Within>, tally: Tally) -> Self {
        let target = within.map(|within| (within.limit.as_secs_f64(), within.share.rest()));
        let mut line = Self::of(objective, Unit::Seconds, target, tally);
        // Without a limit none is in time, and none is late.
        line.missed_ppm = line.missed_ppm.filter(|_| within.is_some());
        line
    }

    /// What was measured of the database's queries and of whole dashboards.
    pub fn of_measurement(measurement: &Measurement, query: Option<Within>, dashboard: Option<Within>) -> [Self; 2] {
        let line = |objective, within, tally, p95: Option<Duration>| {
            let line = Self::of_times(objective, within, tally).actual(p95.map(|p95| p95.as_secs_f64()));
            match &measurement.slowest {
                Some((took, panel)) if objective == Objective::Query => {
                    line.note(format!("the slowest was {panel}, {} ms", took.as_millis()))
                }
                _ => line,
            }
        };
        [
            line(Objective::Query, query, measurement.queries_within(query), measurement.query_p95()),
            line(
                Objective::Dashboard,
                dashboard,
                measurement.dashboards_within(dashboard),
                measurement.dashboard_p95(),
            ),
        ]
    }

    /// The same without a tally, since it could not be had.
    pub fn unmeasured(objective: Objective, within: Option<Within>, why: &str) -> Self {
        Self::of_times(objective, within, Tally::default()).note(why)
    }
}

/// Makes the lines of a moment.
struct Lines<'a> {
    meter: &'a Meter,
    now: &'a Look,
    oldest: &'a Look,
}

impl Lines<'_> {
    fn line(&self, objective: Objective) -> Line {
        let objectives = self.meter.objectives();
        let all = self.now.tally(objective);
        let tally = all.since(self.oldest.tally(objective));
        let line = match objective {
            Objective::Ingestion => return ingestion(objectives.ingestion_min, self.meter.rate(), all),
            Objective::Latency => {
                let [sink, _] = self.meter.sinks();
                let counts = self.now.latency.since(&self.oldest.latency);
                latency(
                    Line::of_times(objective, objectives.latency, tally),
                    sink,
                    &counts,
                    "no sink knows when rows happened",
                )
            }
            Objective::Anomaly => {
                let [_, sink] = self.meter.sinks();
                let counts = self.now.anomaly.since(&self.oldest.anomaly);
                latency(Line::of_times(objective, objectives.anomaly, tally), sink, &counts, "no sink reads anomalies")
            }
            Objective::Loss => {
                let line = Line::of_share(objective, objectives.loss_max, objectives.loss_max, tally);
                let line = line.actual(share(tally.missed(), tally.total));
                if self.meter.looks_for_gaps() {
                    line
                } else {
                    line.note("from the receipt on; a transform `gaps` finds what was lost before it")
                }
            }
            Objective::Connectivity => {
                let target = objectives.devices_min;
                let line = Line::of_share(objective, target, target.map(Share::rest), tally);
                match self.meter.devices() {
                    Some((known, connected)) => line
                        .actual(share(connected, known))
                        .note(format!("now {connected} of {known} devices, as a transform `silence` finds it")),
                    None => line.note("no transform `silence` follows devices"),
                }
            }
            Objective::Query | Objective::Dashboard => self.measured(objective, tally),
        };
        Line { since_start: all, ..line }
    }

    fn measured(&self, objective: Objective, tally: Tally) -> Line {
        let objectives = self.meter.objectives();
        let within = if objective == Objective::Query { objectives.query } else { objectives.dashboard };
        match self.meter.last_measurement() {
            None => Line::unmeasured(objective, within, "`pipeline slo FILE --measure` measures it"),
            Some(Err(why)) => Line::of_times(objective, within, tally).note(why),
            Some(Ok(last)) => {
                let p95 = if objective == Objective::Query { last.query_p95() } else { last.dashboard_p95() };
                let line = Line::of_times(objective, within, tally).actual(p95.map(|p95| p95.as_secs_f64()));
                line.note("95 of 100 of the last time it was measured")
            }
        }
    }
}

/// The messages that came against those that so many a second would have been.
pub fn ingestion(min: Option<u64>, rate: Rate, seconds: Tally) -> Line {
    let wanted = min.map_or(rate.messages, |min| rate.wanted(min));
    let tally = Tally { good: rate.messages.min(wanted), total: wanted };
    let target = min.map(|min| (min as f64, Share::NONE));
    let mut line = Line::of(Objective::Ingestion, Unit::MessagesASecond, target, tally);
    line.counted = "messages".to_owned();
    line.since_start = seconds;
    if rate.within >= RATE_MIN {
        return line.actual(Some(rate.a_second())).note(format!("over the last {} s", rate.within.as_secs()));
    }
    if min.is_some() {
        line.verdict = Verdict::Unmeasured;
    }
    line.note(format!("the run is younger than {} s", RATE_MIN.as_secs()))
}

fn latency(line: Line, sink: Option<&str>, counts: &LatencyCounts, without: &str) -> Line {
    match sink {
        Some(sink) => line.actual(counts.quantile(0.99)).note(format!("to the commit of {sink}")),
        None => line.note(without),
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(allowed: &str, good: u64, total: u64) -> Verdict {
        let allowed = Share::of(allowed.parse().expect("a number"));
        Line::of_share(Objective::Loss, allowed, allowed, Tally { good, total }).verdict
    }

    #[test]
    fn one_too_many_is_missed_and_nothing_at_all_is_not_measured() {
        assert_eq!(verdict("1e-4", 99_990, 100_000), Verdict::Kept);
        assert_eq!(verdict("1e-4", 99_989, 100_000), Verdict::Missed);
        assert_eq!(verdict("0", u64::MAX - 1, u64::MAX), Verdict::Missed);
        assert_eq!(verdict("1e-4", 0, 0), Verdict::Unmeasured);
        assert_eq!(Line::of_share(Objective::Loss, None, None, Tally { good: 0, total: 9 }).verdict, Verdict::NoTarget);
    }

    #[test]
    fn a_rate_is_counted_in_messages_and_a_young_one_says_nothing() {
        let rate = |messages, seconds| Rate { messages, within: Duration::from_secs(seconds) };
        let line = ingestion(Some(1_000), rate(299_999, 300), Tally::default());
        assert_eq!((line.verdict, line.tally), (Verdict::Missed, Tally { good: 299_999, total: 300_000 }));
        assert_eq!(ingestion(Some(1_000), rate(300_000, 300), Tally::default()).verdict, Verdict::Kept);
        assert_eq!(ingestion(Some(1_000), rate(0, 3), Tally::default()).verdict, Verdict::Unmeasured);
        assert_eq!(ingestion(None, rate(5, 300), Tally::default()).verdict, Verdict::NoTarget);
    }
}
