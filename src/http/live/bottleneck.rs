//! Names what holds a pipeline up, from its figures, in words.
//!
//! As Flink's job graph is read: the bottleneck is the busy stage whose writers wait for it. A stage whose outside is
//! away comes first: a sink holds up nobody else, but its rows wait; a source has none to give.

use super::snapshot::{Bottleneck, EdgeView, StageView};

/// A stage this busy has no time left worth the name.
const BUSY: f64 = 0.7;
/// Writers that wait this long, or a queue this full, show that a stage is too slow.
const HELD_UP: f64 = 0.3;

/// What holds it up. Stages are in the order of the plan, each after those it reads.
pub fn find(stages: &[StageView], edges: &[EdgeView]) -> Bottleneck {
    failed(stages)
        .or_else(|| away(stages, edges))
        .or_else(|| slow(stages, edges))
        .or_else(|| catching_up(stages))
        .or_else(|| starting(stages))
        .unwrap_or_else(|| nothing(stages))
}

fn failed(stages: &[StageView]) -> Option<Bottleneck> {
    let stage = stages.iter().find(|stage| stage.state == "failed")?;
    let why = stage.last_error.as_ref().map(|error| format!(": {}", error.text)).unwrap_or_default();
    Some(of(stage, format!("{} \u{201c}{}\u{201d} has failed{why}.", capital(&stage.kind), stage.name)))
}

fn away(stages: &[StageView], edges: &[EdgeView]) -> Option<Bottleneck> {
    let is_away = |stage: &&StageView| stage.state == "retrying" || stage.state == "paused";
    let stage = stages.iter().filter(is_away).max_by_key(|stage| waiting(stage, edges))?;
    let others = stages.iter().filter(is_away).count() - 1;
    let others = if others > 0 { format!(" So it is with {others} more.") } else { String::new() };
    if stage.kind == "source" {
        let why = stage.last_error.as_ref().map(|error| format!(": {}", error.text)).unwrap_or_default();
        return Some(of(stage, format!("Source \u{201c}{}\u{201d} can\u{2019}t go on{why}.{others}", stage.name)));
    }
    let what =
        if stage.state == "paused" { "is paused until somebody mends its outside" } else { "can\u{2019}t store" };
    let wait = match waiting(stage, edges) {
        0 => String::new(),
        rows if edges.iter().any(|edge| on_disk(edge, stage)) => {
            format!(" {} rows wait for it on disk; nobody else waits.", grouped(rows))
        }
        rows => format!(" {} rows wait for it.", grouped(rows)),
    };
    Some(of(stage, format!("Sink \u{201c}{}\u{201d} {what}.{wait}{others}", stage.name)))
}

fn slow(stages: &[StageView], edges: &[EdgeView]) -> Option<Bottleneck> {
    let held_up = |stage: &StageView| {
        let readers = edges.iter().filter(|edge| edge.to == stage.name);
        let writers = readers.filter_map(|edge| stages.iter().find(|writer| writer.name == edge.from));
        writers.max_by(|one, other| one.blocked.total_cmp(&other.blocked)).filter(|writer| writer.blocked >= HELD_UP)
    };
    // The last one: those before it may be busy, but wait for it.
    let is_slow = |stage: &&StageView| {
        let is_full = edges.iter().any(|edge| edge.to == stage.name && fill(edge) >= HELD_UP || on_disk(edge, stage));
        stage.kind != "source" && stage.busy >= BUSY && (is_full || held_up(stage).is_some())
    };
    let stage = stages.iter().rfind(is_slow)?;
    let busy =
        format!("{} \u{201c}{}\u{201d} is busy {} of the time", capital(&stage.kind), stage.name, percent(stage.busy));
    let words = match held_up(stage) {
        Some(writer) => {
            let waits = percent(writer.blocked);
            format!("{busy}, and \u{201c}{}\u{201d} waits for it {waits} of the time.", writer.name)
        }
        None => format!("{busy}, and {} rows wait for it.", grouped(waiting(stage, edges))),
    };
    Some(of(stage, words))
}

fn catching_up(stages: &[StageView]) -> Option<Bottleneck> {
    let behind = stages.iter().filter_map(|stage| stage.backlog.map(|backlog| (stage, backlog)));
    let (stage, backlog) = behind.max_by_key(|(_, backlog)| backlog.rows)?;
    let what = if stage.kind == "source" { "messages" } else { "rows" };
    let when = match backlog.eta_seconds {
        Some(seconds) => format!(", done in about {}", duration(seconds)),
        None => ", and they don\u{2019}t become fewer".to_owned(),
    };
    let name = &stage.name;
    let rows = grouped(backlog.rows);
    Some(of(stage, format!("{} \u{201c}{name}\u{201d} has {rows} {what} to catch up{when}.", capital(&stage.kind))))
}

fn starting(stages: &[StageView]) -> Option<Bottleneck> {
    let stage = stages.iter().find(|stage| stage.state == "starting")?;
    Some(of(stage, format!("{} \u{201c}{}\u{201d} is starting.", capital(&stage.kind), stage.name)))
}

fn nothing(stages: &[StageView]) -> Bottleneck {
    let busiest =
        stages.iter().max_by(|one, other| one.busy.total_cmp(&other.busy)).filter(|stage| stage.busy >= 0.005);
    let busiest = busiest
        .map(|stage| format!(" Busiest is \u{201c}{}\u{201d}, {} of the time.", stage.name, percent(stage.busy)));
    Bottleneck { stage: None, words: format!("Nothing is held up.{}", busiest.unwrap_or_default()) }
}

fn of(stage: &StageView, words: String) -> Bottleneck {
    Bottleneck { stage: Some(stage.name.clone()), words }
}

fn fill(edge: &EdgeView) -> f64 {
    edge.waiting as f64 / f64::from(edge.waiting_max.max(1))
}

fn on_disk(edge: &EdgeView, stage: &StageView) -> bool {
    edge.to == stage.name && edge.on_disk > 0
}

fn waiting(stage: &StageView, edges: &[EdgeView]) -> u64 {
    edges.iter().filter(|edge| edge.to == stage.name).map(|edge| edge.waiting + edge.on_disk).sum()
}

fn capital(kind: &str) -> String {
    let mut chars = kind.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn duration(seconds: u64) -> String {
    // Years mean nothing here, and more than that can't be told.
    pipeline_engine::time::format_age(std::time::Duration::from_secs(seconds.clamp(1, 86_400 * 365)))
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{BacklogView, ErrorView};
    use super::*;

    fn stage(name: &str, kind: &str, busy: f64, blocked: f64) -> StageView {
        StageView {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: "running".to_owned(),
            busy,
            blocked,
            ..StageView::default()
        }
    }

    fn edge(from: &str, to: &str, waiting: u64) -> EdgeView {
        EdgeView { from: from.to_owned(), to: to.to_owned(), waiting, waiting_max: 100, ..EdgeView::default() }
    }

    fn run() -> (Vec<StageView>, Vec<EdgeView>) {
        let stages = vec![
            stage("in", "source", 0.1, 0.0),
            stage("valid", "transform", 0.1, 0.0),
            stage("scored", "transform", 0.3, 0.0),
            stage("table", "sink", 0.2, 0.0),
        ];
        (stages, vec![edge("in", "valid", 0), edge("valid", "scored", 0), edge("scored", "table", 0)])
    }

    #[test]
    fn a_quiet_pipeline_is_told_so() {
        let (stages, edges) = run();
        let found = find(&stages, &edges);
        assert_eq!(found.stage, None);
        assert_eq!(found.words, "Nothing is held up. Busiest is \u{201c}scored\u{201d}, 30% of the time.");
        assert_eq!(find(&[], &[]).words, "Nothing is held up.");
    }

    #[test]
    fn the_bottleneck_is_the_busy_stage_that_others_wait_for() {
        let (mut stages, edges) = run();
        stages[1] = stage("valid", "transform", 0.05, 0.9);
        stages[0] = stage("in", "source", 0.0, 0.95);
        stages[2].busy = 0.97;
        let found = find(&stages, &edges);
        assert_eq!(found.stage.as_deref(), Some("scored"));
        assert_eq!(
            found.words,
            "Transform \u{201c}scored\u{201d} is busy 97% of the time, and \u{201c}valid\u{201d} waits for it 90% of the time."
        );
    }

    #[test]
    fn of_two_busy_stages_it_is_the_one_behind() {
        let (mut stages, mut edges) = run();
        (stages[2].busy, stages[2].blocked, stages[3].busy) = (0.8, 0.0, 0.9);
        stages[1].blocked = 0.5;
        edges[2].waiting = 90;
        let found = find(&stages, &edges);
        assert_eq!(found.words, "Sink \u{201c}table\u{201d} is busy 90% of the time, and 90 rows wait for it.");
    }

    #[test]
    fn a_sink_that_is_away_is_named_with_what_waits_for_it() {
        let (mut stages, mut edges) = run();
        stages[3].state = "retrying".to_owned();
        edges[2].on_disk = 1_234_000;
        let found = find(&stages, &edges);
        let words =
            "Sink \u{201c}table\u{201d} can\u{2019}t store. 1,234,000 rows wait for it on disk; nobody else waits.";
        assert_eq!((found.stage.as_deref(), found.words.as_str()), (Some("table"), words));
    }

    #[test]
    fn a_source_whose_outside_fails_is_named_with_what_is_wrong_unless_a_sink_has_rows_to_store() {
        let (mut stages, mut edges) = run();
        stages[0].state = "retrying".to_owned();
        stages[0].last_error = Some(ErrorView { text: "the leases were not read".to_owned(), at_us: 0 });
        let words = "Source \u{201c}in\u{201d} can\u{2019}t go on: the leases were not read.";
        assert_eq!(find(&stages, &edges).words, words);
        stages[3].state = "retrying".to_owned();
        edges[2].waiting = 5;
        assert!(find(&stages, &edges).words.starts_with("Sink \u{201c}table\u{201d} can\u{2019}t store. 5 rows"));
    }

    #[test]
    fn what_is_caught_up_is_told_with_its_end() {
        let (mut stages, edges) = run();
        stages[3].backlog = Some(BacklogView { rows: 50_000, eta_seconds: Some(80) });
        assert_eq!(
            find(&stages, &edges).words,
            "Sink \u{201c}table\u{201d} has 50,000 rows to catch up, done in about 1m 20s."
        );
    }

    #[test]
    fn a_failure_is_worse_than_all_else() {
        let (mut stages, edges) = run();
        stages[3].state = "paused".to_owned();
        stages[1].state = "failed".to_owned();
        stages[1].last_error = Some(ErrorView { text: "the stage panicked".to_owned(), at_us: 0 });
        assert_eq!(find(&stages, &edges).words, "Transform \u{201c}valid\u{201d} has failed: the stage panicked.");
    }
}
