//! `pipeline tap`, as the real binary: rows of a running pipeline, which does not notice.

use std::process::Command;

use serde_json::Value;

use crate::http::free_port;
use crate::process::{Process, root};

/// 500 rows a second, of which many are refused.
const STAGES: &str = r#"
[schema.reading]
device_id   = { type = "text", required = true }
temperature = "float64"
[sources.fleet]
type = "simulator"
devices = 10
rate = 500
schema = "reading"
[transforms.valid]
type = "validate"
inputs = ["fleet"]
range = { temperature = [-40, 25] }
[sinks.lake]
type = "discard"
inputs = ["valid"]
[sinks.refused]
type = "discard"
inputs = ["fleet.rejected", "valid.rejected"]
"#;

fn tap(port: u16, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(["tap", "--for", "60s", "--url", &url]).args(arguments).current_dir(root());
    let output = command.output().expect("the binary runs");
    let rows = String::from_utf8(output.stdout).expect("text");
    let rows = rows.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (output.status.code(), rows, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn rows_are_shown_as_they_pass_by_port_edge_and_condition() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, format!("[http]\nlisten = \"127.0.0.1:{port}\"\n{STAGES}")).expect("writable");
    let mut pipeline = Process::start(&["run".as_ref(), file.as_os_str()], &[], folder.path(), "pipeline");
    pipeline.wait_for_log("live page, status and metrics at");

    let (code, rows, said) = tap(port, &["valid", "--count", "30", "--rate", "10"]);
    assert_eq!((code, rows.len()), (Some(0), 30), "{said}");
    assert!(rows.iter().all(|row| row["device_id"].is_string() && row["temperature"].is_number()), "{rows:?}");
    assert!(said.contains("more rows, not shown"), "500 a second pass, and 10 are shown: {said}");

    let (code, rows, said) = tap(port, &["fleet->valid", "--count", "5", "--where", "temperature > 20"]);
    assert_eq!((code, rows.len()), (Some(0), 5), "{said}");
    assert!(rows.iter().all(|row| row["temperature"].as_f64() > Some(20.0)), "{rows:?}");

    let (code, rows, said) = tap(port, &["valid.rejected", "--count", "1"]);
    assert_eq!((code, rows.len()), (Some(0), 1), "{said}");
    assert!(rows[0]["reason"].is_string() && rows[0]["payload"].is_string(), "{rows:?}");

    for (arguments, why) in [
        (&["valdi"][..], "Did you mean \"valid\"?"),
        (&["valid.rejcted"], "Did you mean \"rejected\"?"),
        (&["fleet->lake"], "\"lake\" does not read \"fleet\""),
        (&["valid", "--where", "temperature >"], "the text ends too early"),
        (&["valid", "--where", "temprature > 3"], "temprature"),
    ] {
        let (code, rows, said) = tap(port, arguments);
        assert_eq!((code, rows.len()), (Some(1), 0), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let (status, log) = pipeline.stop();
    assert!(status.success() && !log.contains("NOT accounted for"), "{log}");
    assert_eq!(tap(port, &["valid"]).0, Some(1), "nobody answers any more");
}
