//! How a soak went: objectives held against what was measured, and what is missing or there twice.

use std::collections::BTreeMap;
use std::time::Duration;

use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::time::format_age;
use pipeline_engine::{Plan, Share, Within};
use serde::Serialize;

use super::Options;
use super::check::Checked;
use super::fleet::Load;
use crate::http::live::grouped;
use crate::slo::measure::{database, measure};
use crate::slo::show::table;
use crate::slo::{Line, Objective, Report, Tally, Unit, Verdict};
use crate::verify::{Kept, removed_text};

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub pipeline: String,
    pub seconds: f64,
    pub devices: usize,
    /// Messages that the broker has taken.
    pub sent: u64,
    /// Messages that were sent again, since nobody knew whether they had been taken.
    pub sent_again: u64,
    pub refused_by_broker: BTreeMap<String, u64>,
    pub objectives: Vec<Line>,
    pub ends: Vec<Checked>,
    pub removed: BTreeMap<String, Kept>,
}

/// What a soak comes to. Worse is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conclusion {
    /// Every objective is kept, and nothing is there twice.
    Holds,
    /// Nothing is missed, but something that the file asks for was not measured: that is no proof.
    NotShown,
    /// An objective is missed, or something is there twice, refused or out of sight.
    Fails,
}

impl Conclusion {
    /// As monitoring plugins have it, where 3 is *unknown*; 2 is taken by what could not begin.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Holds => 0,
            Self::Fails => 1,
            Self::NotShown => 3,
        }
    }
}

impl Outcome {
    pub fn new(
        pipeline: &str,
        load: Load,
        ends: Vec<Checked>,
        objectives: Vec<Line>,
        removed: BTreeMap<String, Kept>,
    ) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            seconds: load.duration.as_secs_f64(),
            devices: load.taken.len(),
            sent: load.messages,
            sent_again: load.sent_again,
            refused_by_broker: load.refused,
            objectives,
            ends,
            removed,
        }
    }

    /// No objective is missed or unmeasured, every far end could be looked at, and nothing is there twice that was sent once.
    pub fn conclusion(&self) -> Conclusion {
        let is_sound = |end: &Checked| end.failure.is_none() && end.duplicates <= self.sent_again && end.invented == 0;
        let is_missed = |line: &Line| line.verdict == Verdict::Missed;
        if !self.refused_by_broker.is_empty()
            || !self.ends.iter().all(is_sound)
            || self.objectives.iter().any(is_missed)
        {
            return Conclusion::Fails;
        }
        if self.unmeasured().next().is_some() { Conclusion::NotShown } else { Conclusion::Holds }
    }

    /// What the file asks for, and nothing was there to hold against it.
    fn unmeasured(&self) -> impl Iterator<Item = &Line> {
        self.objectives.iter().filter(|line| line.verdict == Verdict::Unmeasured)
    }

    pub fn text(&self) -> String {
        let verdict = match self.conclusion() {
            Conclusion::Holds => "holds",
            Conclusion::NotShown => "IS NOT SHOWN TO HOLD",
            Conclusion::Fails => "DOES NOT HOLD",
        };
        let over = format_age(Duration::from_secs_f64(self.seconds));
        let mut text = format!(
            "{} {verdict}: {} messages of {} devices within {over}\n\n{}\n",
            printable(&self.pipeline),
            grouped(self.sent),
            grouped(self.devices as u64),
            table(&self.objectives),
        );
        for line in self.unmeasured() {
            let why = line.note.as_deref().unwrap_or("nothing was counted");
            text.push_str(&format!("not measured: {}: {}\n", line.objective.word(), printable(why)));
        }
        for end in &self.ends {
            let (lost, duplicates) = (end.arrived.missed(), end.duplicates);
            text.push_str(&format!("{}: {} lost, {} duplicates", end.sink, grouped(lost), grouped(duplicates)));
            if end.invented > 0 {
                text.push_str(&format!(", {} that nobody has sent", grouped(end.invented)));
            }
            text.push('\n');
            for (device, first, last) in &end.gaps {
                text.push_str(&format!("  {device}: {first} to {last} are missing\n"));
            }
            if let Some(failure) = &end.failure {
                text.push_str(&format!("  it could not be looked at: {}\n", printable(failure)));
            }
        }
        if self.sent_again > 0 {
            text.push_str(&format!("{} messages were sent again after a lost connection\n", grouped(self.sent_again)));
        }
        for (why, count) in &self.refused_by_broker {
            text.push_str(&format!("the broker has refused {count}: {}\n", printable(why)));
        }
        text.push('\n');
        text.push_str(&removed_text(&self.removed));
        text
    }

    /// All on one line.
    pub fn json(&self) -> String {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["holds"] = (self.conclusion() == Conclusion::Holds).into();
        json["not_measured"] = self.unmeasured().map(|line| line.objective.word()).collect();
        printable_json(json.to_string())
    }
}

/// A line an objective, in the runbook's order.
pub async fn lines(
    plan: &Plan,
    options: &Options,
    load: &Load,
    ends: &[Checked],
    looks: Option<(&Report, &Report)>,
) -> Vec<Line> {
    let objectives = plan.objectives();
    let measured = measured(plan, options.measurements).await;
    let mut lines = vec![
        ingestion(objectives.ingestion_min, options, load),
        of_itself(Objective::Latency, objectives.latency, looks, load.duration),
        loss(objectives.loss_max, ends),
        connectivity(objectives.devices_min, ends),
    ];
    let [query, dashboard] = measured;
    lines.extend([query, of_itself(Objective::Anomaly, objectives.anomaly, looks, load.duration), dashboard]);
    lines
}

/// What the broker has taken in time against what was asked for: no more than was offered.
fn ingestion(min: Option<u64>, options: &Options, load: &Load) -> Line {
    let rate = min.map_or(options.rate, |min| options.rate.min(min as f64));
    let wanted = (rate * load.duration.as_secs_f64()).floor() as u64;
    let tally = Tally { good: load.in_time.min(wanted), total: wanted };
    let target = min.map(|min| (min as f64, Share::NONE));
    let mut line = Line::of(Objective::Ingestion, Unit::MessagesASecond, target, tally);
    line.counted = "messages".to_owned();
    let line = line.actual(Some(load.in_time as f64 / load.duration.as_secs_f64().max(1e-9)));
    if min.is_some_and(|min| options.rate < min as f64) {
        return line.note(format!("no more than {} a second were offered", options.rate));
    }
    line
}

/// The worst of all far ends, the first of those that are alike. Where the file says nothing, nothing may be lost.
fn loss(max: Option<Share>, ends: &[Checked]) -> Line {
    let worst = ends.iter().rev().max_by_key(|end| end.arrived.missed());
    let tally = worst.map_or_else(Tally::default, |end| end.arrived);
    let allowed = max.unwrap_or(Share::NONE);
    let line = Line::of_share(Objective::Loss, Some(allowed), Some(allowed), tally);
    let line = line.actual((tally.total > 0).then(|| tally.missed() as f64 / tally.total as f64));
    match worst {
        Some(end) => line.note(format!("from the broker's acknowledgement to {}", end.place)),
        None => line,
    }
}

fn connectivity(min: Option<Share>, ends: &[Checked]) -> Line {
    let tally = ends.iter().map(|end| end.devices).max_by_key(|devices| devices.missed()).unwrap_or_default();
    let line = Line::of_share(Objective::Connectivity, min, min.map(Share::rest), tally);
    let mut line = line.actual((tally.total > 0).then(|| tally.good as f64 / tally.total as f64));
    line.counted = "devices".to_owned();
    line.note("devices of the fleet whose newest message is there")
}

/// What the pipeline has counted between two looks.
fn of_itself(
    objective: Objective,
    within: Option<Within>,
    looks: Option<(&Report, &Report)>,
    between: Duration,
) -> Line {
    let of = |report: &Report| report.objectives.iter().find(|line| line.objective == objective).cloned();
    let unknown = || Line::unmeasured(objective, within, "the pipeline was asked what it measures, and did not say");
    let Some((before, after)) = looks else { return unknown() };
    let (Some(earlier), Some(line)) = (of(before), of(after)) else { return unknown() };
    // A second is lost in rounding at either look.
    if after.running_seconds + 2 < before.running_seconds + between.as_secs() {
        return Line { verdict: Verdict::Unmeasured, ..line }.note("the pipeline has started anew meanwhile");
    }
    let tally = line.since_start.since(earlier.since_start);
    let allowed = line.allowed_ppm.and_then(|ppm| Share::of(ppm / 1e6));
    let held = Line::of(objective, line.unit, line.target.zip(allowed), tally).actual(line.actual);
    if held.verdict == Verdict::Unmeasured {
        return held.note(format!("the pipeline has committed no {} meanwhile", line.counted));
    }
    match line.note {
        Some(note) => held.note(note),
        None => held,
    }
}

async fn measured(plan: &Plan, runs: u32) -> [Line; 2] {
    let (query, dashboard) = (plan.objectives().query, plan.objectives().dashboard);
    let unmeasured = |why: &str| {
        [(Objective::Query, query), (Objective::Dashboard, dashboard)]
            .map(|(objective, within)| Line::unmeasured(objective, within, why))
    };
    if runs == 0 {
        // Whoever leaves them out has decided so.
        return [Objective::Query, Objective::Dashboard]
            .map(|objective| Line::unmeasured(objective, None, "left out by --runs 0"));
    }
    if query.is_none() && dashboard.is_none() {
        return unmeasured("nothing asks for it");
    }
    let Some(mut database) = database(plan) else { return unmeasured("no sink stores in a database") };
    match measure(database.as_mut(), runs).await {
        Ok(measurement) => Line::of_measurement(&measurement, query, dashboard),
        Err(why) => unmeasured(&why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(rate: f64) -> Options {
        let minute = Duration::from_secs(60);
        Options { duration: minute, rate, devices: 1, sinks: Vec::new(), timeout: minute, measurements: 0, keep: false }
    }

    fn end(good: u64, total: u64, duplicates: u64) -> Checked {
        Checked {
            sink: "table".to_owned(),
            place: "here".to_owned(),
            arrived: Tally { good, total },
            devices: Tally { good: 1, total: 1 },
            duplicates,
            invented: 0,
            gaps: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn no_more_is_asked_for_than_was_offered() {
        let load = |in_time| Load { in_time, duration: Duration::from_secs(60), ..Load::default() };
        assert_eq!(ingestion(Some(1_000), &options(1_000.0), &load(60_000)).verdict, Verdict::Kept);
        assert_eq!(ingestion(Some(1_000), &options(1_000.0), &load(59_999)).verdict, Verdict::Missed);
        assert_eq!(ingestion(Some(1_000), &options(200.0), &load(12_000)).verdict, Verdict::Kept);
        assert_eq!(ingestion(Some(1_000), &options(5_000.0), &load(60_000)).verdict, Verdict::Kept);
        assert_eq!(ingestion(None, &options(1_000.0), &load(0)).verdict, Verdict::NoTarget);
    }

    #[test]
    fn a_loss_is_missed_beyond_what_the_file_allows_and_at_once_where_it_says_nothing() {
        let share = Share::of(1e-3);
        assert_eq!(loss(share, &[end(999, 1_000, 0), end(1_000, 1_000, 0)]).verdict, Verdict::Kept);
        assert_eq!(loss(share, &[end(1_000, 1_000, 0), end(998, 1_000, 0)]).verdict, Verdict::Missed);
        assert_eq!(loss(None, &[end(999, 1_000, 0)]).verdict, Verdict::Missed);
    }

    #[test]
    fn a_duplicate_that_its_publisher_may_have_made_is_not_ours() {
        let outcome = |sent_again, duplicates| {
            let load = Load { sent_again, ..Load::default() };
            Outcome::new("p", load, vec![end(1, 1, duplicates)], vec![loss(None, &[end(1, 1, 0)])], BTreeMap::new())
        };
        let conclusion = |sent_again, duplicates| outcome(sent_again, duplicates).conclusion();
        assert_eq!([conclusion(0, 0), conclusion(2, 2)], [Conclusion::Holds; 2]);
        assert_eq!([conclusion(0, 1), conclusion(2, 3)], [Conclusion::Fails; 2]);
        let text = outcome(0, 1).text();
        assert!(text.starts_with("p DOES NOT HOLD") && text.contains("table: 0 lost, 1 duplicates"), "{text}");
    }

    #[test]
    fn a_target_that_was_not_measured_is_named_and_proves_nothing_and_one_that_is_missed_is_worse() {
        let within = Some(Within { limit: Duration::from_secs(5), share: Share::NONE });
        let outcome = |lines| Outcome::new("p", Load::default(), vec![end(1, 1, 0)], lines, BTreeMap::new());
        let unmeasured = || of_itself(Objective::Latency, within, None, Duration::from_secs(60));
        let without_target = of_itself(Objective::Anomaly, None, None, Duration::from_secs(60));

        let not_shown = outcome(vec![loss(None, &[end(1, 1, 0)]), unmeasured(), without_target.clone()]);
        assert_eq!((not_shown.conclusion(), not_shown.conclusion().exit_code()), (Conclusion::NotShown, 3));
        let text = not_shown.text();
        assert!(text.starts_with("p IS NOT SHOWN TO HOLD") && text.contains("not measured: latency: "), "{text}");
        let json: serde_json::Value = serde_json::from_str(&not_shown.json()).expect("JSON");
        assert_eq!((&json["holds"], &json["not_measured"]), (&false.into(), &serde_json::json!(["latency"])));

        let missed = outcome(vec![loss(None, &[end(0, 1, 0)]), unmeasured()]);
        assert_eq!((missed.conclusion(), missed.conclusion().exit_code()), (Conclusion::Fails, 1));
        assert_eq!(outcome(vec![without_target]).conclusion().exit_code(), 0, "nobody asks for it");
    }
}
