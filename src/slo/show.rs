//! A report as text for people and as JSON for programs.

use std::time::Duration;

use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::time::format_age;

use super::report::Unit;
use super::{Line, Report, Verdict};
use crate::commands::watched::{aligned, seconds};
use crate::http::live::grouped;

/// One line that says it all, then a line an objective.
pub fn text(report: &Report) -> String {
    let over = format_age(Duration::from_secs(report.window_seconds));
    let mut text = format!("{}, over the last {over}\n\n{}", summary(report), table(&report.objectives));
    if report.objectives.iter().all(|line| line.verdict == Verdict::NoTarget) {
        text.push_str("\nThe pipeline file has no [slo]: `pipeline stages pipeline` shows its keys.\n");
    }
    text
}

/// All on one line.
pub fn json(report: &Report) -> String {
    // Numbers, texts and lists: there is nothing that JSON does not know.
    printable_json(serde_json::to_string(report).unwrap_or_default())
}

/// `iot keeps 5 objectives, misses 1 (latency), 1 not measured`.
pub fn summary(report: &Report) -> String {
    let count = |verdict| report.objectives.iter().filter(|line| line.verdict == verdict).count();
    let missed: Vec<&str> = report.missed().map(|line| line.objective.word()).collect();
    let kept = count(Verdict::Kept);
    let s = if kept == 1 { "" } else { "s" };
    let mut text = format!("{} keeps {kept} objective{s}", printable(&report.pipeline));
    if !missed.is_empty() {
        text.push_str(&format!(", misses {} ({})", missed.len(), missed.join(", ")));
    }
    for (verdict, words) in [(Verdict::Unmeasured, "not measured"), (Verdict::NoTarget, "without a target")] {
        if count(verdict) > 0 {
            text.push_str(&format!(", {} {words}", count(verdict)));
        }
    }
    text
}

/// A line an objective, with its note below it.
pub fn table(lines: &[Line]) -> String {
    let heads = ["objective", "", "target", "actual", "counted", "missed", "allowed"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(heads).chain(lines.iter().map(cells)).collect();
    let mut table = aligned(&rows, 5).into_iter();
    let mut text = format!("{}\n", table.next().unwrap_or_default());
    for (row, line) in table.zip(lines) {
        text.push_str(&format!("{row}\n"));
        if let Some(note) = &line.note {
            text.push_str(&format!("  {}\n", printable(note)));
        }
    }
    text
}

fn cells(line: &Line) -> Vec<String> {
    let ppm = |ppm: Option<f64>| ppm.map_or_else(|| "-".to_owned(), |ppm| format!("{} ppm", thousandths(ppm)));
    let counted = match line.tally.total {
        0 => "-".to_owned(),
        total if line.missed_ppm.is_none() => format!("{} {}", grouped(total), line.counted),
        total => format!("{} of {} {}", grouped(line.tally.good), grouped(total), line.counted),
    };
    vec![
        line.objective.word().to_owned(),
        line.verdict.words().to_owned(),
        line.target.map_or_else(|| "-".to_owned(), |target| target_text(line, target)),
        line.actual.map_or_else(|| "-".to_owned(), |actual| actual_text(line, actual)),
        counted,
        ppm(line.missed_ppm),
        ppm(line.allowed_ppm),
    ]
}

fn target_text(line: &Line, target: f64) -> String {
    let is_loss = line.objective == super::Objective::Loss;
    match line.unit {
        Unit::MessagesASecond => format!("at least {} a second", grouped(target as u64)),
        Unit::Seconds => {
            let share = 100.0 - line.allowed_ppm.unwrap_or(0.0) / 1e4;
            format!("{share} % within {}", seconds(target))
        }
        Unit::Share if is_loss => format!("at most {} ppm", thousandths(target * 1e6)),
        Unit::Share => format!("at least {} %", thousandths(target * 100.0)),
    }
}

fn actual_text(line: &Line, actual: f64) -> String {
    let is_loss = line.objective == super::Objective::Loss;
    match line.unit {
        Unit::MessagesASecond => format!("{actual:.1} a second"),
        Unit::Seconds => {
            let share = 100.0 - line.allowed_ppm.unwrap_or(1e4) / 1e4;
            format!("{share} % within {}", seconds(actual))
        }
        Unit::Share if is_loss => format!("{} ppm", thousandths(actual * 1e6)),
        Unit::Share => format!("{} %", thousandths(actual * 100.0)),
    }
}

/// To three places, without zeros that say nothing.
fn thousandths(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use pipeline_engine::{Share, Within};

    use super::super::{Objective, Tally};
    use super::*;

    fn report() -> Report {
        let within = Some(Within { limit: Duration::from_secs(5), share: Share::percent(99) });
        let loss = Share::of(1e-4);
        let objectives = vec![
            Line::of_times(Objective::Latency, within, Tally { good: 599_988, total: 600_000 })
                .actual(Some(0.412))
                .note("to the commit of a\u{1b}[2Jb"),
            Line::of_share(Objective::Loss, loss, loss, Tally { good: 599_000, total: 600_000 })
                .actual(Some(1.0 / 600.0)),
            Line::unmeasured(Objective::Query, within, "why"),
        ];
        Report { pipeline: "iot".to_owned(), running_seconds: 700, window_seconds: 600, objectives }
    }

    #[test]
    fn a_table_shows_target_against_actual_and_hostile_text_moves_nothing() {
        let expected = "\
iot keeps 1 objective, misses 1 (loss), 1 not measured, over the last 10m

objective                target           actual              counted                         missed     allowed
latency    kept          99 % within 5.0s  99 % within 412ms  599,988 of 600,000 rows         20 ppm  10000 ppm
  to the commit of a\\u{1b}[2Jb
loss       MISSED        at most 100 ppm   1666.667 ppm       599,000 of 600,000 messages  1666.666 ppm    100 ppm
query      not measured  99 % within 5.0s  -                  -                                   -  10000 ppm
  why
";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text(&report())), words(expected));
    }

    #[test]
    fn json_is_one_line_and_reads_back_as_it_was() {
        let line = json(&report());
        assert!(!line.contains(['\n', '\u{1b}']), "{line}");
        assert_eq!(serde_json::from_str::<Report>(&line).expect("JSON"), report());
    }
}
