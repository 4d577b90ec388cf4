//! The live status line of a run: rows per second, queue fill, lag.
//!
//! On a terminal only; a service's logs stay quiet. Where a console sink writes to the same terminal,
//! lines that move would garble its rows, so the status is then an ordinary line every few seconds.

use std::io::{self, IsTerminal};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pipeline_engine::stage::Port;
use pipeline_engine::{BacklogMeter, RunStats, StageState};

static LINE: OnceLock<ProgressBar> = OnceLock::new();

const LINE_EVERY: Duration = Duration::from_secs(1);
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Writes something while the status line is out of the way.
pub fn above<T>(write: impl FnOnce() -> T) -> T {
    match LINE.get() {
        Some(line) => line.suspend(write),
        None => write(),
    }
}

/// Shows the status until the future is dropped. Does nothing where stderr is no terminal.
pub async fn show(stats: Arc<RunStats>) {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let shares_terminal = io::stdout().is_terminal() && stats.stages.iter().any(|stage| stage.type_name == "console");
    let mut last = (Instant::now(), Counts::of(&stats));
    let mut backlogs = BacklogMeter::default();
    let mut ticks = tokio::time::interval(if shares_terminal { PLAIN_EVERY } else { LINE_EVERY });
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = (Instant::now(), Counts::of(&stats));
        let mut text = describe(&stats, &last, &now);
        for backlog in backlogs.measure(&stats, now.0) {
            text.push_str(", ");
            text.push_str(&backlog.to_string());
        }
        last = now;
        if shares_terminal {
            eprintln!("-- {text}");
        } else {
            LINE.get_or_init(new_line).set_message(text);
        }
    }
}

/// Takes the line away, for good.
pub fn clear() {
    if let Some(line) = LINE.get() {
        line.finish_and_clear();
    }
}

fn new_line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        line.set_style(style);
    }
    line.enable_steady_tick(Duration::from_millis(250));
    line
}

#[derive(Clone, Copy)]
struct Counts {
    read: u64,
    stored: u64,
}

impl Counts {
    fn of(stats: &RunStats) -> Self {
        let sources = stats.stages.iter().filter(|stage| stage.kind == "source");
        let sinks = stats.stages.iter().filter(|stage| stage.kind == "sink");
        Self {
            read: sources.map(|stage| stage.rows_out(Port::MAIN)).sum(),
            stored: sinks.map(|stage| stage.rows_stored()).sum(),
        }
    }
}

fn describe(stats: &RunStats, last: &(Instant, Counts), now: &(Instant, Counts)) -> String {
    let seconds = (now.0 - last.0).as_secs_f64().max(0.001);
    let rate = |before: u64, after: u64| (after - before) as f64 / seconds;
    let fullest = stats.edges.iter().max_by_key(|edge| edge.rows_waiting() * 1000 / u64::from(edge.rows_max().max(1)));
    let fill = fullest.map_or(String::new(), |edge| {
        let percent = edge.rows_waiting() * 100 / u64::from(edge.rows_max().max(1));
        format!(", fullest queue {} -> {} {percent}%", edge.from, edge.to)
    });
    let lag = stats.stages.iter().filter_map(|stage| stage.commit_lag()).max();
    let lag = lag.map_or(String::new(), |lag| format!(", lag {:.1} s", lag.as_secs_f64()));
    let troubled: Vec<&str> = stats
        .stages
        .iter()
        .filter(|stage| stage.state() == StageState::Retrying)
        .map(|stage| stage.name.as_str())
        .collect();
    let trouble = if troubled.is_empty() { String::new() } else { format!(", retrying: {}", troubled.join(", ")) };
    format!(
        "{:.0} rows/s read, {:.0} rows/s stored, {} read in all{fill}{lag}{trouble}",
        rate(last.1.read, now.1.read),
        rate(last.1.stored, now.1.stored),
        now.1.read,
    )
}
