//! `[slo]` held against what a run does: in `pipeline slo`, at `/slo` and in the metrics.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::http::{free_port, get};
use crate::process::{Process, root, wait_until};
use crate::shipped::{Shipped, parsed};

/// A fleet in the process that is stored in files, with this `[slo]`.
fn start(folder: &Path, port: u16, slo: &str) -> Process {
    let lake = folder.join("lake").display().to_string();
    let text = format!(
        r#"
[pipeline]
name = "kept"
[http]
listen = "127.0.0.1:{port}"
[slo]
{slo}
[schema.reading]
device_id   = {{ type = "text", required = true }}
timestamp   = {{ type = "timestamp", required = true }}
temperature = "float64"
seq         = "int64"
[sources.fleet]
type = "simulator"
devices = 10
rate = 500
schema = "reading"
[transforms.numbered]
type = "gaps"
inputs = ["fleet"]
counter = "seq"
[transforms.heard]
type = "silence"
inputs = ["numbered"]
[sinks.lake]
type = "parquet"
inputs = ["heard"]
url = "{lake}"
time_column = "timestamp"
roll_age = "200ms"
[sinks.others]
type = "discard"
inputs = ["numbered.gaps"]
[sinks.silent]
type = "discard"
inputs = ["heard.alerts"]
[sinks.refused]
type = "discard"
inputs = ["fleet.rejected"]
"#
    );
    let file = folder.join("kept.toml");
    std::fs::write(&file, text).expect("our own folder");
    let mut pipeline = Process::start(&["run".as_ref(), file.as_os_str()], &[], folder, "pipeline");
    pipeline.wait_for_log("status and metrics at");
    pipeline
}

fn slo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("slo").args(arguments).current_dir(root()).output().expect("the binary runs")
}

fn line<'a>(report: &'a Value, objective: &str) -> &'a Value {
    let lines = report["objectives"].as_array().expect("a list");
    lines.iter().find(|line| line["objective"] == objective).expect("all seven are there")
}

#[test]
fn the_runbooks_seven_are_shown_target_against_actual_in_exact_counts() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let targets = "ingestion_min = 100\nlatency_p99 = \"1m\"\nloss_max = 1e-4\ndevices_min = 0.9";
    let _pipeline = start(folder.path(), port, targets);
    let address = format!("127.0.0.1:{port}");
    let (code, report) = wait_until("something to be measured", || {
        let (code, report) = parsed(&slo(&[&address, "--json"]));
        let measured = ["ingestion", "latency", "loss", "connectivity"];
        measured.iter().all(|objective| line(&report, objective)["verdict"] == "kept").then_some((code, report))
    });
    assert_eq!((code, &report["pipeline"]), (0, &"kept".into()), "{report:#}");
    let names: Vec<&str> =
        report["objectives"].as_array().expect("a list").iter().filter_map(|line| line["objective"].as_str()).collect();
    assert_eq!(names, ["ingestion", "latency", "loss", "connectivity", "query", "anomaly", "dashboard"]);
    for line in report["objectives"].as_array().expect("a list") {
        let (good, total) = (line["good"].as_u64().expect("exact"), line["total"].as_u64().expect("exact"));
        assert!(good <= total, "{line:#}");
    }
    assert_eq!(line(&report, "query")["verdict"], "no_target");
    let loss = line(&report, "loss");
    assert_eq!((&loss["missed_ppm"], &loss["allowed_ppm"]), (&0.0.into(), &100.0.into()), "{loss:#}");
    assert_eq!(line(&report, "connectivity")["actual"], 1.0);

    // The file names the address; text says the same.
    let output = slo(&[folder.path().join("kept.toml").to_str().expect("a plain path")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("kept keeps 4 objectives, 3 without a target"), "{text}");
    assert!(text.contains("99 % within 60.0s") || text.contains("99 % within 1m"), "{text}");

    let metrics = get(port, "/metrics", None).1;
    let value = |series: &str| {
        let line =
            metrics.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series}\n{metrics}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    let of = |name: &str, slo: &str| value(&format!("pipeline_slo_{name}{{pipeline=\"kept\",slo=\"{slo}\"}}"));
    assert_eq!((of("objective_ratio", "latency"), of("objective_ratio", "loss")), (0.99, 0.9999));
    assert_eq!(of("threshold_seconds", "latency"), 60.0);
    let rows = value(
        "pipeline_end_to_end_latency_seconds_count{pipeline=\"kept\",component=\"lake\",component_type=\"parquet\",clock=\"event\"}",
    );
    assert!(of("events_total", "latency") >= rows * 0.5 && of("good_events_total", "latency") > 0.0, "{metrics}");
    assert!(!metrics.contains("slo=\"query\""), "what the file does not ask for is not there");
    assert_eq!(value("pipeline_devices_known{pipeline=\"kept\",component=\"heard\""), 10.0);
    assert_eq!(value("pipeline_devices_connected{pipeline=\"kept\",component=\"heard\""), 10.0);
}

#[test]
fn an_objective_that_is_missed_is_named_and_is_the_exit_code() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    // A file that is rolled five times a second can't keep this, and the fleet sends 500.
    let _pipeline = start(folder.path(), port, "ingestion_min = 5000\nlatency_p99 = \"1ms\"\nlatency_sink = \"lake\"");
    let address = format!("http://127.0.0.1:{port}");
    let (code, text) = wait_until("both to be missed", || {
        let output = slo(&[&address]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("misses 2 (ingestion, latency)").then_some((output.status.code(), text))
    });
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("MISSED") && text.contains("to the commit of lake"), "{text}");
}

#[test]
fn who_does_not_answer_is_no_objective_kept() {
    let output = slo(&[&format!("127.0.0.1:{}", free_port())]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.starts_with("unreachable: no answer from"), "{text}");
    let output = slo(&["127.0.0.1:1", "--measure"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--measure needs the pipeline file"));
}

#[test]
fn queries_and_dashboards_are_measured_in_the_database_of_the_file() {
    let iot = Shipped::new("slo", |text| text.replace("measure_every = \"5m\"", "measure_every = \"10s\""));
    let _pipeline = iot.run();
    // It reads before its tables are made.
    let report = wait_until("queries to be answered", || {
        let (_, report) = iot.json("slo", &["--measure", "--runs", "2", "--json"]);
        line(&report, "query")["actual"].is_number().then_some(report)
    });
    for objective in ["query", "dashboard"] {
        let line = line(&report, objective);
        assert!(line["total"].as_u64().is_some_and(|total| total > 0), "{line:#}");
        assert!(line["actual"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line:#}");
    }
    assert_eq!(line(&report, "dashboard")["total"], 8, "four dashboards, twice");
    assert!(line(&report, "query")["note"].as_str().is_some_and(|note| note.starts_with("the slowest was \"")));
    wait_until("the pipeline to measure by itself", || {
        let metrics = get(iot.port, "/metrics", None).1;
        metrics.contains("pipeline_slo_measured_seconds{pipeline=\"iot\",slo=\"dashboard\"}").then_some(())
    });
    let (_, report) = iot.json("slo", &["--json"]);
    assert!(line(&report, "query")["total"].as_u64().is_some_and(|total| total > 0), "{report:#}");
}
