//! The whole: text as people see it, a pipeline that runs, and secrets in every place that can hold one.

use std::process::Command;

use super::{DISCARD, Patient, SIMULATOR};
use crate::http::free_port;
use crate::process::{Process, root};

#[test]
fn text_begins_with_a_line_for_monitoring_and_has_no_colours_where_nobody_sees_them() {
    let patient = Patient::new(&format!("{SIMULATOR}{DISCARD}")).with("inputs = [\"in\"]", "inputs = [\"\\u001b[2J\"]");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    let output =
        command.arg("doctor").arg(patient.folder.path().join("examined.toml")).current_dir(root()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.starts_with("CRITICAL: pipeline ") && text.contains("\nFAIL  file  file\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_pipeline_that_runs_is_recognised_and_its_directory_is_rightly_in_use() {
    let address = format!("127.0.0.1:{}", free_port());
    let source = "[sources.in]\ntype = \"mqtt\"\nurl = \"URL\"\ntopics = \"doctor/runs\"\n\
                  [sources.in.spool]\nmax = \"1MiB\"\nsegment = \"64KiB\"\nmin_free = \"1MiB\"\n"
        .replace("URL", &crate::services::mqtt_url());
    let patient =
        Patient::new(&format!("{source}{DISCARD}")).with("listen = \"off\"", &format!("listen = \"{address}\""));
    let file = patient.folder.path().join("examined.toml").display().to_string();
    let mut running = Process::start(&["run".to_owned(), file], &[], patient.folder.path(), "run");
    running.wait_for_log("live page");
    crate::process::wait_until("the run to take its directory", || patient.data().join("lock").exists().then_some(()));
    let found = patient.examine();
    found
        .says("http", "address", "pass", &["answered by this very pipeline"])
        .says("data directory", "in use", "pass", &["is in use by a run of this pipeline"])
        .blames_only("nobody");
    assert!(running.status().is_none(), "it is not disturbed: {}", running.log());
    let (status, log) = running.stop();
    assert!(status.success() && !log.contains("another client may use this client id"), "{log}");
}

#[test]
fn no_secret_is_ever_shown() {
    let stages = r#"
[sources.in]
type = "mqtt"
url = "mqtt://127.0.0.1:1"
topics = "x"
username = "user"
password = "canary-1"
schema = "reading"
[sinks.db]
type = "timescaledb"
inputs = ["in"]
url = "postgres://user:canary-2@127.0.0.1:1/iot"
table = "t"
[sinks.lake]
type = "parquet"
inputs = ["in"]
url = "s3://bucket/x"
[sinks.out]
type = "mqtt"
inputs = ["in"]
url = "mqtts://127.0.0.1:1"
topic = "y"
username = "user"
password = "canary-3"
"#;
    let variables = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", "canary-4"),
        ("AWS_SECRET_ACCESS_KEY", "canary-5"),
        ("AWS_SESSION_TOKEN", "canary-6"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let patient =
        Patient::new(stages).with("listen = \"off\"", "listen = \"off\"\ntoken = \"canary-7\"").set(variables);
    let found = patient.examine();
    for stage in ["in", "db", "lake", "out"] {
        found.says(stage, "network", "fail", &[]);
    }
    assert!(!found.text.contains("canary"), "{}", found.text);
    // Nor where the file has a mistake right there.
    let found = patient.with("topics = \"x\"", "topics = 7").examine();
    assert!(found.code == 2 && !found.text.contains("canary"), "{}", found.text);
}
