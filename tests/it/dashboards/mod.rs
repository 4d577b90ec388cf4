//! Every panel of every dashboard, on a real run: PromQL in a real Prometheus, SQL in a real TimescaleDB.
//!
//! `DASHBOARD_ROWS=10000000 tests/run --test it dashboards:: -- --nocapture` measures them on a large table.

mod panels;
mod rows;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use self::panels::{Dashboard, Panel, dashboards, expanded_promql, expanded_sql};
use crate::http::{free_port, get};
use crate::process::{Process, root, wait_until};
use crate::prometheus::{expression, server::Prometheus};
use crate::services;

/// `pipelines/iot.toml` as it ships, but for where its page is; a fleet that publishes to it, some of it bad.
struct Run {
    port: u16,
    database: String,
    _fleet: Process,
    _pipeline: Process,
    _folder: TempDir,
}

impl Run {
    fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let (database, broker, topic) =
            (services::database("dashboards"), services::mqtt_url(), services::unique("dashboards"));
        let shipped = std::fs::read_to_string(root().join("pipelines/iot.toml")).expect("it is shipped");
        let file = folder.path().join("iot.toml");
        std::fs::write(&file, format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n{shipped}")).expect("our own folder");
        let place = |name: &str| folder.path().join(name).display().to_string();
        let (lake, state) = (place("lake"), place("state"));
        let variables = [
            ("MQTT_URL", broker.as_str()),
            ("MQTT_TOPIC", &topic),
            ("MQTT_CLIENT_ID", &topic),
            ("DATABASE_URL", &database),
            ("S3_URL", &lake),
            ("PIPELINE_DATA_DIR", &state),
        ];
        let arguments = ["run".to_owned(), file.display().to_string()];
        let mut pipeline = Process::start(&arguments, &variables, folder.path(), "pipeline");
        pipeline.wait_for_log("subscribed");
        let fleet = ["simulate", "--mqtt-broker", &broker, "--rate", "200", "--topic", &topic, "--bad", "0.02"];
        let fleet = Process::start(&fleet, &[], folder.path(), "fleet");
        Self { port, database, _fleet: fleet, _pipeline: pipeline, _folder: folder }
    }
}

#[test]
fn the_dashboards_are_what_their_builder_says() {
    let output =
        Command::new("python3").arg(root().join("ops/grafana/build.py")).arg("--check").output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<String> = dashboards().into_iter().map(|dashboard| dashboard.uid).collect();
    assert_eq!(names, ["data-ingestion", "device-health", "iot-overview", "slo"]);
}

#[test]
fn every_panel_shows_something_of_a_real_run() {
    let run = Run::start();
    let prometheus = Prometheus::of(&format!("127.0.0.1:{}", run.port));
    let all = dashboards();
    for_each_query(
        &all,
        |panel| &panel.promql,
        |of, expression| {
            let expression = expanded_promql(expression);
            wait_until(&format!("{of} to show something: {expression}"), || {
                let series =
                    prometheus.query(&expression).unwrap_or_else(|error| panic!("{of}: {error}: {expression}"));
                series.iter().any(is_number).then_some(())
            });
        },
    );
    let exposed = get(run.port, "/metrics", None).1;
    for_each_query(
        &all,
        |panel| &panel.promql,
        |of, query| {
            for metric in expression::metrics(query) {
                let is_there = exposed.lines().any(|line| line.split(['{', ' ']).next() == Some(metric));
                assert!(is_there, "{of}: there is no {metric}");
            }
        },
    );

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (client, connection) = runtime.block_on(tokio_postgres::connect(&run.database, NoTls)).expect("the database");
    let serving = runtime.spawn(connection);
    let given = std::env::var("DASHBOARD_ROWS").ok().map(|rows| rows.parse().expect("DASHBOARD_ROWS is a number"));
    let readings = given.unwrap_or(200_000);
    runtime.block_on(rows::generate(&client, readings));
    let to_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
    let from_ms = to_ms - (readings / rows::DEVICES * 1_000).max(3_600_000);
    // Once is enough to see that a panel shows something; a percentile needs more.
    let times = if given.is_some() { 40 } else { 1 };
    for dashboard in &all {
        let mut whole = Duration::ZERO;
        for panel in &dashboard.panels {
            for sql in &panel.sql {
                let sql = expanded_sql(sql, from_ms, to_ms, "generated-7");
                let mut took: Vec<Duration> =
                    (0..times).map(|_| runtime.block_on(shown(&client, panel, &sql))).collect();
                took.sort_unstable();
                let p95 = took[(took.len() * 95).div_ceil(100) - 1];
                whole += p95;
                if given.is_some() {
                    println!("{:14} {:40} p95 {:8.1} ms", dashboard.uid, panel.title, p95.as_secs_f64() * 1e3);
                }
            }
        }
        if given.is_some() {
            println!("{:14} {:40}     {:8.1} ms", dashboard.uid, "all of them", whole.as_secs_f64() * 1e3);
        }
    }
    drop(client);
    // How the connection ends says nothing about a panel.
    serving.abort();
}

/// Every query of a kind, with the names of dashboard and panel.
fn for_each_query(all: &[Dashboard], of: impl Fn(&Panel) -> &[String], mut look: impl FnMut(&str, &str)) {
    for dashboard in all {
        for panel in &dashboard.panels {
            let name = format!("\"{}\" of {}", panel.title, dashboard.uid);
            of(panel).iter().for_each(|query| look(&name, query));
        }
    }
}

fn is_number(series: &Value) -> bool {
    series["value"][1].as_str().is_some_and(|value| value.parse::<f64>().is_ok_and(f64::is_finite))
}

/// How long a panel's query took, which must have given rows; a figure must be one number.
async fn shown(client: &Client, panel: &Panel, sql: &str) -> Duration {
    let started = Instant::now();
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{}: {error:?}: {sql}", panel.title));
    let took = started.elapsed();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let rows: Vec<_> = rows.collect();
    assert!(!rows.is_empty(), "{} shows nothing: {sql}", panel.title);
    if panel.is_stat {
        let value = rows[0].get("value").and_then(|value| value.parse::<f64>().ok());
        assert!(rows.len() == 1 && value.is_some(), "{} is no figure: {sql}", panel.title);
    }
    took
}
