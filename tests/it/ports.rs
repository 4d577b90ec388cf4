//! Ports that the configuration names: read by other stages, counted, and part of the balance.

use std::path::Path;

use pipeline_engine::stage::Port;
use pipeline_engine::{Plan, Report, Run, Variables};

const READINGS: usize = 1_000;
const DEVICES: usize = 20;

/// A plan that reads readings of 20 devices from a file, by these further stages.
fn plan(folder: &Path, stages: &str) -> Result<Plan, String> {
    let lines: String = (0..READINGS)
        .map(|n| format!("{{\"device_id\":\"device-{}\",\"temperature\":{}}}\n", n % DEVICES, n % 40))
        .collect();
    let file = folder.join("readings.jsonl");
    std::fs::write(&file, lines).expect("a folder of ours");
    let text = format!(
        "[pipeline]\ndata_dir = \"{}\"\n\
         [schema.telemetry]\ndevice_id = {{ type = \"text\", required = true }}\ntemperature = \"float64\"\n\
         [sources.readings]\ntype = \"file\"\npath = \"{}\"\nformat = \"jsonl\"\nschema = \"telemetry\"\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\"]\n{stages}",
        folder.join("data").display(),
        file.display()
    );
    let plan = Plan::parse(&text, "ports.toml", &pipeline_stages::registry(), &Variables::of_process());
    plan.map_err(|mistakes| mistakes.to_string())
}

fn run(plan: Plan) -> Report {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime
        .block_on(async { tokio::spawn(Run::new(plan).until(std::future::pending())).await })
        .expect("no panic")
        .expect("it runs")
}

fn discard(name: &str, input: &str) -> String {
    format!("[sinks.{name}]\ntype = \"discard\"\ninputs = [\"{input}\"]\n")
}

#[test]
fn routes_are_read_by_their_names_and_stand_in_the_balance() {
    let folder = tempfile::tempdir().expect("a folder");
    let route = "[transforms.sorted]\ntype = \"route\"\ninputs = [\"readings\"]\n\
                 [transforms.sorted.routes]\nhot = \"temperature >= 30\"\ncold = \"temperature < 10\"\n";
    let sinks = discard("hot", "sorted.hot") + &discard("cold", "sorted.cold") + &discard("rest", "sorted");
    let report = run(plan(folder.path(), &(route.to_owned() + &sinks)).expect("a plan"));
    let stored = ["hot", "cold", "rest"].map(|sink| report.stage(sink).expect("a sink").rows_stored());
    assert_eq!(stored, [250, 250, 500]);
    let sorted = report.stage("sorted").expect("a transform");
    let ports: Vec<(&str, u64)> = sorted.ports().map(|(port, rows)| (port.name(), rows)).collect();
    assert_eq!(ports, [("", 500), ("cold", 250), ("hot", 250)]);
    assert_eq!((sorted.rows_passed_on(), sorted.rows_filtered(), sorted.rows_made()), (1_000, 0, 0));
    let balances = report.balances();
    let (_, balance) = balances.iter().find(|(stage, _)| stage.name == "sorted").expect("a transform has one");
    assert_eq!((balance.received, balance.passed_on), (1_000, 1_000));
    assert!(sorted.tap(Port::configured("hot")).is_some(), "and can be looked at");

    let Err(mistakes) = plan(folder.path(), &(route.to_owned() + &discard("warm", "sorted.warm"))) else {
        panic!("there is no such route")
    };
    assert!(mistakes.contains("\"sorted\" has no port \"warm\" as it is configured"), "{mistakes}");
    assert!(mistakes.contains("Its ports: (main), cold, hot."), "{mistakes}");
}

#[test]
fn parts_have_every_row_between_them_and_each_device_is_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let split = "[transforms.split]\ntype = \"partition\"\ninputs = [\"readings\"]\nkey = [\"device_id\"]\nparts = 3\n";
    let sinks: String = (0..3).map(|part| discard(&format!("part_{part}"), &format!("split.{part}"))).collect();
    let report = run(plan(folder.path(), &(split.to_owned() + &sinks)).expect("a plan"));
    let stored: Vec<u64> =
        (0..3).map(|part| report.stage(&format!("part_{part}")).expect("a sink").rows_stored()).collect();
    let each = (READINGS / DEVICES) as u64;
    assert_eq!(stored.iter().sum::<u64>(), READINGS as u64);
    assert!(stored.iter().all(|rows| *rows > 0 && rows % each == 0), "whole devices: {stored:?}");
    let split_report = report.stage("split").expect("a transform");
    assert_eq!((split_report.rows_passed_on(), split_report.rows_filtered()), (READINGS as u64, 0));

    let Err(mistakes) = plan(folder.path(), &(split.to_owned() + &discard("all", "split"))) else {
        panic!("it has no main port")
    };
    assert!(mistakes.contains("\"split\" has no main port as it is configured"), "{mistakes}");
}
