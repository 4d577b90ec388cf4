//! `pipeline schema`, as the real binary: a schema proposed from samples that takes them, and rows held against a real table,
//! a real bucket and a folder.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::root;
use crate::services;

fn pipeline(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(arguments).envs(variables.iter().copied()).current_dir(root());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // It may end before it has read everything.
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).ok();
    child.wait_with_output().expect("a child of ours")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

const SAMPLES: &str = "{\"deviceId\":\"d1\",\"ts\":1769860800123,\"temp\":20,\"state\":{\"fan\":\"on\"}}\n\
                       {\"deviceId\":\"d2\",\"ts\":1769860801123,\"temp\":20.5,\"state\":{\"fan\":\"off\",\"rpm\":900}}\n";

#[test]
fn the_schema_that_is_proposed_takes_the_samples() {
    let proposed = pipeline(&["schema", "infer", "-", "--name", "readings"], &[], SAMPLES);
    assert_eq!(proposed.status.code(), Some(0), "{}", text(&proposed.stderr));
    let folder = TempDir::new().expect("a folder");
    let (file, samples) = (folder.path().join("p.toml"), folder.path().join("samples.jsonl"));
    std::fs::write(&samples, SAMPLES).expect("writable");
    let stages = format!(
        "{}[sources.samples]\ntype = \"file\"\nformat = \"jsonl\"\nschema = \"readings\"\nunknown_fields = \"reject\"\npath = {samples:?}\n
         [sinks.out]\ntype = \"console\"\ninputs = [\"samples\"]\n
         [sinks.refused]\ntype = \"console\"\ninputs = [\"samples.rejected\"]\n",
        text(&proposed.stdout)
    );
    std::fs::write(&file, stages).expect("writable");
    let run = pipeline(&["run", &file.display().to_string()], &[], "");
    let rows: Vec<Value> = text(&run.stdout).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(
        rows,
        [
            serde_json::json!({ "device_id": "d1", "state_fan": "on", "temp": 20.0, "ts": "2026-01-31T12:00:00.123Z" }),
            serde_json::json!({ "device_id": "d2", "state_fan": "off", "state_rpm": 900, "temp": 20.5, "ts": "2026-01-31T12:00:01.123Z" }),
        ],
        "{}",
        text(&run.stderr)
    );
}

#[test]
fn samples_that_hold_no_message_are_named_with_their_line() {
    let none = pipeline(&["schema", "infer", "-"], &[], "7\nnothing\n");
    assert_eq!(none.status.code(), Some(1));
    let said = text(&none.stderr);
    assert!(
        said.contains("2 lines hold no message, the first of them line 1") && said.contains("no message"),
        "{said}"
    );
    assert_eq!(pipeline(&["schema", "infer", "/nowhere"], &[], "").status.code(), Some(1));
    assert_eq!(pipeline(&["schema", "infer", "-", "--name", "a b"], &[], SAMPLES).status.code(), Some(2));
}

/// A pipeline of these columns from a file of samples into a sink.
fn write_pipeline(folder: &Path, columns: &str, sink: &str) -> String {
    let (file, samples) = (folder.join("p.toml"), folder.join("samples.jsonl"));
    std::fs::write(&samples, SAMPLES).expect("writable");
    let stages = format!(
        "[pipeline]\nname = \"drift\"\ndata_dir = {:?}\n
         [schema.s]\nts = {{ type = \"timestamp\", required = true }}\n{columns}\n
         [sources.samples]\ntype = \"file\"\nformat = \"jsonl\"\nschema = \"s\"\npath = {samples:?}\n
         [sinks.out]\ninputs = [\"samples\"]\ntime_column = \"ts\"\n{sink}\n
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"samples.rejected\"]\n",
        folder.join("data")
    );
    std::fs::write(&file, stages).expect("writable");
    file.display().to_string()
}

fn diff(file: &str, variables: &[(&str, &str)]) -> (Option<i32>, String, Value) {
    let shown = pipeline(&["schema", "diff", file], variables, "");
    let json = pipeline(&["schema", "diff", "--json", file], variables, "");
    assert_eq!(shown.status, json.status);
    let parsed = serde_json::from_slice(&json.stdout).expect("JSON");
    (shown.status.code(), text(&shown.stdout), parsed)
}

const BEFORE: &str = "temp = \"float64\"\nfan = { type = \"text\", path = \"state.fan\" }";
const AFTER: &str = "temp = \"float32\"\nrpm = { type = \"int64\", path = \"state.rpm\" }";

/// Runs the pipeline as it was, compares, changes the schema, and compares again.
fn drift(sink: &str, variables: &[(&str, &str)]) -> (String, Value) {
    let folder = TempDir::new().expect("a folder");
    let file = write_pipeline(folder.path(), BEFORE, sink);
    let (code, shown, _) = diff(&file, variables);
    assert_eq!(code, Some(0), "nothing is stored yet: {shown}");
    let run = pipeline(&["run", &file], variables, "");
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let (code, shown, json) = diff(&file, variables);
    assert_eq!((code, &json["differing"]), (Some(0), &0.into()), "{shown}");
    assert!(shown.contains("nothing differs"), "{shown}");

    let file = write_pipeline(folder.path(), AFTER, sink);
    let (code, shown, json) = diff(&file, variables);
    assert_eq!((code, &json["differing"]), (Some(1), &1.into()), "{shown}");
    (shown, json)
}

fn expect(shown: &str, lines: &[&str]) {
    for line in lines {
        assert!(shown.lines().any(|found| found.trim() == *line), "{line}: {shown}");
    }
}

#[test]
fn rows_are_held_against_the_newest_file_of_a_folder_and_the_newest_object_of_a_bucket() {
    let folder = TempDir::new().expect("a folder");
    let bucket = services::s3().new_bucket();
    let environment = services::s3().environment();
    let variables: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for url in [folder.path().join("lake").display().to_string(), format!("s3://{bucket}/lake")] {
        let (shown, json) = drift(&format!("type = \"parquet\"\nurl = {url:?}"), &variables);
        assert!(shown.starts_with("out: against the newest of 1 object, year=2026/month=01/day=31/"), "{shown}");
        expect(
            &shown,
            &[
                "~ temp (float32, stored float64) has another type in older objects: who reads both must cast it",
                "+ rpm (int64) is new: in older objects it reads as null",
                "- fan (text) is written no more: in newer objects it reads as null",
            ],
        );
        assert_eq!(json["sinks"][0]["differences"][0]["stored"], "float64");
    }
}

#[test]
fn rows_are_held_against_the_live_table_and_what_mends_it_is_sql() {
    let (url, table) = (services::database_url(), services::unique("drift"));
    let sink = format!("type = \"timescaledb\"\nurl = {url:?}\ntable = {table:?}\ncreate = true\nkey = []");
    let (shown, json) = drift(&sink, &[]);
    expect(
        &shown,
        &[
            &format!("out: against table \"{table}\""),
            "~ temp (real, stored double precision) is double precision, the input's is real",
            &format!("ALTER TABLE \"{table}\" ALTER COLUMN \"temp\" TYPE real USING \"temp\"::real;"),
            "+ rpm (bigint) is missing",
            &format!("ALTER TABLE \"{table}\" ADD COLUMN \"rpm\" bigint;"),
            "- fan (text) is filled by no row",
        ],
    );
    assert_eq!(json["sinks"][0]["differences"][2]["mend"], Value::Null);
    let away = url.replace("127.0.0.1", "127.0.0.2");
    let folder = TempDir::new().expect("a folder");
    let file = write_pipeline(folder.path(), BEFORE, &sink.replace(&url, &away));
    let (code, shown, json) = diff(&file, &[]);
    assert_eq!((code, &json["failed"]), (Some(1), &1.into()), "{shown}");
}
