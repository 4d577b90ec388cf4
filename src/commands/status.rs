//! `pipeline status`: one look at a running pipeline.

use std::time::Duration;

use clap::Args;
use pipeline_engine::now_us;
use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::time::{format_age, parse_us};
use serde::Deserialize;
use serde_json::Value;

use super::watched::{Watched, WatchedArguments, aligned, seconds};
use super::{Failure, runtime};
use crate::http::live::grouped;

/// Look once at a running pipeline.
///
/// Exits with 0 if all is well, 1 if it starts or what a source or sink depends on is away (the others go on), 2 if a stage has failed or
/// nobody answers.
#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    watched: WatchedArguments,
    /// Print what it answers at /healthz, as JSON on one line.
    #[arg(long)]
    json: bool,
}

/// The part of `/healthz` that is shown.
#[derive(Debug, Deserialize)]
struct Health {
    pipeline: String,
    status: String,
    running_seconds: u64,
    bottleneck: Words,
    stages: Vec<Stage>,
    edges: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Words {
    words: String,
}

#[derive(Debug, Deserialize)]
struct Stage {
    name: String,
    kind: String,
    #[serde(rename = "type")]
    type_name: String,
    state: String,
    since: String,
    last_error: Option<String>,
    last_error_at: Option<String>,
    rows_in: u64,
    rows_out: std::collections::BTreeMap<String, u64>,
    lag_seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    to: String,
    rows_waiting: u64,
    overflow_rows: u64,
}

pub fn run(arguments: &StatusArguments) -> Result<(), Failure> {
    let watched = Watched::find(&arguments.watched)?;
    let text = match runtime()?.block_on(watched.ask("/healthz")) {
        Ok(text) => text,
        Err(error) => {
            println!("unreachable: {error}");
            return Err(Failure::Told(2));
        }
    };
    let parsed = serde_json::from_str::<Value>(&text).and_then(|json| Ok((Health::deserialize(&json)?, json)));
    let (health, json) = match parsed {
        Ok(both) => both,
        Err(error) => {
            println!("unreachable: {} answers otherwise than a pipeline of this version: {error}", watched.url);
            return Err(Failure::Told(2));
        }
    };
    if arguments.json {
        println!("{}", printable_json(json.to_string()));
    } else {
        print!("{}", as_text(&health, now_us()));
    }
    match health.status.as_str() {
        "ok" => Ok(()),
        "degraded" | "starting" => Err(Failure::Told(1)),
        _ => Err(Failure::Told(2)),
    }
}

fn as_text(health: &Health, now_us: i64) -> String {
    let running = format_age(Duration::from_secs(health.running_seconds));
    let mut text = format!("{} is {}, running for {running}\n", printable(&health.pipeline), printable(&health.status));
    text.push_str(&format!("{}\n\n", printable(&health.bottleneck.words)));
    let heads = ["stage", "type", "state", "since", "rows", "refused", "wait for it", "oldest"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(health.stages.iter().map(|stage| stage_cells(stage, &health.edges, now_us)));
    for line in aligned(&rows, 4) {
        text.push_str(&line);
        text.push('\n');
    }
    for stage in &health.stages {
        if let Some(error) = &stage.last_error {
            let is_well = matches!(stage.state.as_str(), "running" | "ended");
            let passed = if is_well { ", which has passed" } else { "" };
            let when = stage.last_error_at.as_deref().map(|at| age(at, now_us)).unwrap_or_default();
            text.push_str(&format!("\n{}: error {when} ago{passed}: {}\n", printable(&stage.name), printable(error)));
        }
    }
    text
}

fn stage_cells(stage: &Stage, edges: &[Edge], now_us: i64) -> Vec<String> {
    let waiting: u64 =
        edges.iter().filter(|edge| edge.to == stage.name).map(|edge| edge.rows_waiting + edge.overflow_rows).sum();
    let out = |port: &str| stage.rows_out.get(port).copied().unwrap_or(0);
    let rows = if stage.kind == "source" { out("main") } else { stage.rows_in };
    vec![
        printable(&stage.name).into_owned(),
        printable(&stage.type_name).into_owned(),
        printable(&stage.state).into_owned(),
        age(&stage.since, now_us),
        grouped(rows),
        grouped(out("rejected")),
        if stage.kind == "source" { String::new() } else { grouped(waiting) },
        stage.lag_seconds.map(seconds).unwrap_or_default(),
    ]
}

/// How long ago a time was, in words; nothing for what is no time.
fn age(at: &str, now_us: i64) -> String {
    let Ok(at_us) = parse_us(at, now_us) else { return String::new() };
    let past = Duration::from_micros(u64::try_from(now_us - at_us).unwrap_or(0));
    format_age(past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_that_is_away_is_told_with_its_error_and_nothing_moves_the_cursor() {
        let json = r#"{
            "pipeline": "iot", "status": "degraded", "running_seconds": 3700, "bottleneck": {"stage": "db", "words": "Sink can't store."},
            "stages": [
                {"name": "in", "kind": "source", "type": "mqtt", "state": "running", "since": "1970-01-01T00:00:10Z", "last_error": null,
                 "last_error_at": null, "rows_in": 0, "rows_out": {"main": 1234567, "rejected": 3}, "lag_seconds": null},
                {"name": "db", "kind": "sink", "type": "timescaledb", "state": "retrying", "since": "1970-01-01T01:00:10Z",
                 "last_error": "could not connect\u001b[2J", "last_error_at": "1970-01-01T01:00:40Z", "rows_in": 5, "rows_out": {"rejected": 0},
                 "lag_seconds": 61.0}
            ],
            "edges": [{"to": "db", "rows_waiting": 10, "overflow_rows": 990}]
        }"#;
        let shown = as_text(&serde_json::from_str(json).unwrap(), 3_650_000_000);
        let expected = [
            "iot is degraded, running for 1h 1m",
            "Sink can't store.",
            "",
            "stage  type         state     since       rows  refused  wait for it  oldest",
            "in     mqtt         running   1h     1,234,567        3",
            "db     timescaledb  retrying  40s            5        0        1,000   1m 1s",
            "",
            "db: error 10s ago: could not connect\\u{1b}[2J",
            "",
        ];
        assert_eq!(shown, expected.join("\n"));
    }
}
