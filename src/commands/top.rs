//! `pipeline top`: a running pipeline in the terminal, a second at a time.
//!
//! Plain ANSI: the other screen, the cursor home, lines cut to the terminal's width. All text of the pipeline and its
//! devices is made inert before it is cut, so no part of an escape is left over.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use console::Term;
use pipeline_engine::terminal::printable;
use pipeline_engine::time::format_age;

use super::watched::{Watched, WatchedArguments, aligned, compact, seconds};
use super::{Failure, runtime};
use crate::http::live::snapshot::{EdgeView, Snapshot, StageView};

const INTERVAL: Duration = Duration::from_secs(1);
/// Of what was refused and found.
const ROWS_SHOWN: usize = 4;

/// Columns that a narrow terminal goes without.
const LEFT_OUT_FIRST: [&str; 5] = ["type", "stored/s", "waits", "queue", "p50"];

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const BOLD: &str = "\x1b[1m";
const FAINT: &str = "\x1b[2m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// Watch a running pipeline in the terminal. Ctrl-C ends it.
///
/// Where the output is no terminal, one second is printed.
#[derive(Debug, Args)]
pub struct TopArguments {
    #[command(flatten)]
    watched: WatchedArguments,
}

pub fn run(arguments: &TopArguments) -> Result<(), Failure> {
    let watched = Watched::find(&arguments.watched)?;
    runtime()?.block_on(async {
        if io::stdout().is_terminal() {
            // So that the terminal is given back however this ends.
            let screen = Screen::enter().map_err(Failure::failed)?;
            return tokio::select! {
                outcome = watch(&watched, &screen) => outcome,
                interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::failed),
            };
        }
        // The first answer makes it look through rows; the next second has them.
        ask(&watched).await.map_err(Failure::failed)?;
        tokio::time::sleep(INTERVAL + INTERVAL / 2).await;
        let snapshot = ask(&watched).await.map_err(Failure::failed)?;
        for line in frame(&snapshot, usize::MAX) {
            println!("{}", line.text);
        }
        Ok(())
    })
}

async fn watch(watched: &Watched, screen: &Screen) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut last: Vec<Line> = Vec::new();
    loop {
        ticks.tick().await;
        match ask(watched).await {
            Ok(snapshot) => {
                last = frame(&snapshot, usize::from(Term::stdout().size().1));
                screen.show(&last).map_err(Failure::failed)?;
            }
            Err(error) => {
                // What was seen last stays, below what is wrong.
                let mut lines = vec![Line::new(RED, error), Line::new("", String::new())];
                lines.extend(last.iter().map(|line| Line::new(FAINT, line.text.clone())));
                screen.show(&lines).map_err(Failure::failed)?;
            }
        }
    }
}

async fn ask(watched: &Watched) -> Result<Snapshot, String> {
    let text = watched.ask("/snapshot").await?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{} answers otherwise than a pipeline of this version: {error}", watched.url))
}

/// A line with one look; its text moves no cursor.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    look: &'static str,
    text: String,
}

impl Line {
    fn new(look: &'static str, text: impl AsRef<str>) -> Self {
        Self { look, text: printable(text.as_ref()).into_owned() }
    }
}

/// The terminal's other screen.
struct Screen {
    has_colour: bool,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Self { has_colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) })
    }

    fn show(&self, lines: &[Line]) -> io::Result<()> {
        let (rows, columns) = Term::stdout().size();
        let mut text = String::from(HOME);
        let shown = lines.iter().take(usize::from(rows).saturating_sub(1));
        for line in shown {
            let cut: String = line.text.chars().take(usize::from(columns)).collect();
            let has_look = self.has_colour && !line.look.is_empty();
            if has_look {
                text.push_str(line.look);
            }
            text.push_str(&cut);
            if has_look {
                text.push_str(PLAIN);
            }
            text.push_str(CLEAR_LINE);
            text.push_str("\r\n");
        }
        text.push_str(CLEAR_BELOW);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        // A terminal that is gone needs nothing back.
        out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush()).ok();
    }
}

/// One second of a run, line by line. The table of stages has as many columns as there is room for.
fn frame(snapshot: &Snapshot, width: usize) -> Vec<Line> {
    let running = format_age(Duration::from_secs_f64(snapshot.running_seconds.clamp(0.0, 1e10)));
    let well = if snapshot.status == "ok" { BOLD } else { RED };
    let mut lines = vec![
        Line::new(well, format!("{}  {}  for {running}", snapshot.pipeline, snapshot.status)),
        Line::new(if snapshot.bottleneck.stage.is_some() { YELLOW } else { "" }, &snapshot.bottleneck.words),
        Line::new("", ""),
    ];
    let heads =
        ["stage", "type", "state", "rows/s", "stored/s", "busy", "waits", "queue", "on disk", "oldest", "p50", "p99"];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    cells.extend(snapshot.stages.iter().map(|stage| stage_cells(stage, &snapshot.edges)));
    for (index, line) in fitted(cells, width).into_iter().enumerate() {
        let look = match index.checked_sub(1).map(|stage| snapshot.stages[stage].state.as_str()) {
            None => FAINT,
            Some("retrying" | "paused" | "failed") => RED,
            Some("starting") => YELLOW,
            Some(_) => "",
        };
        lines.push(Line::new(look, line));
    }
    let ago = |at_us: i64| seconds((snapshot.at_us - at_us).max(0) as f64 / 1e6);
    let troubled = snapshot.stages.iter().filter(|stage| !matches!(stage.state.as_str(), "running" | "ended"));
    section(
        &mut lines,
        "errors",
        troubled.filter_map(|stage| {
            let error = stage.last_error.as_ref()?;
            Some(format!("{}, {} ago: {}", stage.name, ago(error.at_us), error.text))
        }),
    );
    section(
        &mut lines,
        "refused lately",
        snapshot.rejects.iter().take(ROWS_SHOWN).map(|reject| {
            let detail = reject.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("{} ago, {} by {}{detail}  {}", ago(reject.at_us), reject.reason, reject.stage, reject.payload)
        }),
    );
    section(
        &mut lines,
        "anomalies lately",
        snapshot.anomalies.iter().take(ROWS_SHOWN).map(|found| {
            format!(
                "{} ago, {} {}: {} where {:.4} was expected, score {:.1}, {}",
                ago(found.at_us),
                found.device,
                found.metric,
                found.value,
                found.expected,
                found.score,
                found.severity
            )
        }),
    );
    if let Some(devices) = &snapshot.devices {
        let [now, minute, minutes, longer] = devices.by_age;
        let words = format!("{now} within 10s, {minute} within 1m, {minutes} within 5m, {longer} longer ago");
        section(&mut lines, "devices heard", [words].into_iter());
    }
    lines
}

/// Leaves out what says least, column by column, until the rest fits.
fn fitted(mut cells: Vec<Vec<String>>, width: usize) -> Vec<String> {
    let mut table = aligned(&cells, 3);
    for head in LEFT_OUT_FIRST {
        if table.iter().all(|line| line.chars().count() <= width) {
            break;
        }
        let Some(column) = cells[0].iter().position(|cell| cell == head) else { continue };
        cells.iter_mut().for_each(|row| drop(row.remove(column)));
        // The words before the figures.
        let texts = cells[0].iter().take_while(|head| ["stage", "type", "state"].contains(&head.as_str())).count();
        table = aligned(&cells, texts);
    }
    table
}

fn section(lines: &mut Vec<Line>, title: &str, rows: impl Iterator<Item = String>) {
    let mut rows = rows.peekable();
    if rows.peek().is_some() {
        lines.push(Line::new("", ""));
        lines.push(Line::new(FAINT, title));
        lines.extend(rows.map(|row| Line::new("", format!("  {row}"))));
    }
}

fn stage_cells(stage: &StageView, edges: &[EdgeView]) -> Vec<String> {
    let inputs: Vec<&EdgeView> = edges.iter().filter(|edge| edge.to == stage.name).collect();
    let fill = inputs.iter().map(|edge| edge.waiting as f64 / f64::from(edge.waiting_max.max(1))).fold(0.0, f64::max);
    let on_disk: u64 = inputs.iter().map(|edge| edge.on_disk).sum();
    let on_disk = on_disk + stage.spool.map_or(0, |spool| spool.records);
    let oldest = inputs.iter().filter_map(|edge| edge.lag_seconds).chain(stage.lag_seconds).fold(0.0, f64::max);
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    let is_sink = stage.kind == "sink";
    // Before columns are aligned, so that what is written out has its room.
    let text = |text: &str| printable(text).into_owned();
    vec![
        text(&stage.name),
        text(&stage.type_name),
        text(&stage.state),
        compact(stage.rows_per_second),
        if is_sink { compact(stage.stored_per_second) } else { String::new() },
        percent(stage.busy),
        percent(stage.blocked),
        if inputs.is_empty() { String::new() } else { percent(fill) },
        compact(on_disk as f64),
        if inputs.is_empty() { String::new() } else { seconds(oldest) },
        stage.latency.map(|latency| seconds(latency.p50)).unwrap_or_default(),
        stage.latency.map(|latency| seconds(latency.p99)).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::live::snapshot::{Bottleneck, ErrorView, LatencyView, RejectView};

    fn snapshot() -> Snapshot {
        let stage = |name: &str, kind: &str, state: &str| StageView {
            name: name.to_owned(),
            kind: kind.to_owned(),
            type_name: "test".to_owned(),
            state: state.to_owned(),
            rows_per_second: 1_234.0,
            busy: 0.25,
            ..StageView::default()
        };
        Snapshot {
            pipeline: "iot".to_owned(),
            version: String::new(),
            status: "degraded".to_owned(),
            at_us: 100_000_000,
            running_seconds: 61.0,
            bottleneck: Bottleneck { stage: Some("db".to_owned()), words: "Sink can't store.".to_owned() },
            stages: vec![
                stage("in", "source", "running"),
                StageView {
                    last_error: Some(ErrorView { text: "refused\u{1b}[31m".to_owned(), at_us: 97_000_000 }),
                    latency: Some(LatencyView { p50: 0.012, p99: 2.5 }),
                    ..stage("db", "sink", "retrying")
                },
            ],
            edges: vec![EdgeView {
                from: "in".to_owned(),
                to: "db".to_owned(),
                waiting: 50,
                waiting_max: 100,
                on_disk: 45_600,
                lag_seconds: Some(7.0),
                ..EdgeView::default()
            }],
            rejects: vec![RejectView {
                at_us: 99_000_000,
                stage: "in".to_owned(),
                reason: "invalid_json".to_owned(),
                detail: None,
                topic: None,
                payload: "\u{1b}]0;owned\u{7}\u{202e}".to_owned(),
            }],
            anomalies: Vec::new(),
            devices: None,
        }
    }

    #[test]
    fn a_second_is_shown_with_what_waits_and_why() {
        let lines: Vec<String> = frame(&snapshot(), usize::MAX).into_iter().map(|line| line.text).collect();
        let expected = [
            "iot  degraded  for 1m 1s",
            "Sink can't store.",
            "",
            "stage  type  state     rows/s  stored/s  busy  waits  queue  on disk  oldest   p50   p99",
            "in     test  running    1.23k             25%     0%               0",
            "db     test  retrying   1.23k         0   25%     0%    50%    45.6k    7.0s  12ms  2.5s",
            "",
            "errors",
            "  db, 3.0s ago: refused\\u{1b}[31m",
            "",
            "refused lately",
            "  1.0s ago, invalid_json by in  \\u{1b}]0;owned\\u{7}\\u{202e}",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_narrow_terminal_has_what_says_most() {
        let lines: Vec<String> = frame(&snapshot(), 60).into_iter().map(|line| line.text).collect();
        let expected = [
            "stage  state     rows/s  busy  on disk  oldest   p50   p99",
            "in     running    1.23k   25%        0",
            "db     retrying   1.23k   25%    45.6k    7.0s  12ms  2.5s",
        ];
        assert_eq!(&lines[3..6], expected);
        assert!(frame(&snapshot(), 0)[3].text.starts_with("stage  state "), "it never goes without these");
    }

    #[test]
    fn no_text_of_a_device_moves_the_cursor() {
        assert!(frame(&snapshot(), 80).iter().all(|line| !line.text.chars().any(char::is_control)));
    }
}
