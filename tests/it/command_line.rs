//! The command as a user meets it: the demo, exit codes, logs, signals.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use crate::process::{Process, root, wait_until};

fn pipeline(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(arguments).current_dir(root()).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn parquet_files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |path: std::path::PathBuf| match path.extension() {
        Some(ending) => usize::from(ending == "parquet"),
        None => parquet_files(&path),
    };
    entries.flatten().map(|entry| count(entry.path())).sum()
}

#[test]
fn the_demo_shows_telemetry_and_anomalies_leaves_parquet_behind_and_runs_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, lake) = (free_port().to_string(), folder.path().join("demo"));
    let variables = [("DEMO_PORT", port.as_str()), ("DEMO_DIR", lake.to_str().expect("a plain path"))];
    let mut demo = Process::start(&["run", "pipelines/demo.toml"], &variables, folder.path(), "demo");
    demo.wait_for_log("telemetry  device_id=");
    demo.wait_for_log("anomaly  detected_at=");
    wait_until("Parquet of telemetry", || (parquet_files(&lake.join("telemetry")) > 0).then_some(()));
    wait_until("Parquet of dead letters", || (parquet_files(&lake.join("dead_letters")) > 0).then_some(()));
    let (status, log) = demo.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");
    assert_eq!(parquet_files(&lake.join(".staging")), 0, "nothing half-written stays");

    let stored = parquet_files(&lake.join("telemetry"));
    let mut again = Process::start(&["run", "pipelines/demo.toml"], &variables, folder.path(), "demo-again");
    again.wait_for_log("telemetry  device_id=");
    wait_until("more Parquet of telemetry", || (parquet_files(&lake.join("telemetry")) > stored).then_some(()));
    let (status, log) = again.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");
}

#[test]
fn a_run_that_fails_exits_with_1_and_names_the_stage() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.toml");
    let stages = "[sources.readings]\ntype = \"file\"\nformat = \"jsonl\"\npath = \"/nowhere/readings.jsonl\"\n
                  [sinks.out]\ntype = \"console\"\ninputs = [\"readings\"]\n";
    std::fs::write(&file, stages).expect("writable");
    let output = pipeline(&["run", &file.display().to_string()]);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("error: source \"readings\" (file) stopped the run: "), "{shown}");
    assert!(shown.contains("/nowhere/readings.jsonl"), "{shown}");
}

#[test]
fn what_is_thrown_away_is_counted_and_accounted_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, readings) = (folder.path().join("p.toml"), folder.path().join("readings.jsonl"));
    std::fs::write(&readings, "{\"n\": 1}\nbad\n{\"n\": 2}\n").expect("writable");
    let stages = format!(
        "[schema.s]\nn = \"int64\"\n
         [sources.readings]\ntype = \"file\"\nformat = \"jsonl\"\nschema = \"s\"\npath = \"{}\"\n
         [sinks.nowhere]\ntype = \"discard\"\ninputs = [\"readings\"]\n
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\"]\n",
        readings.display()
    );
    std::fs::write(&file, stages).expect("writable");
    let output = pipeline(&["run", &file.display().to_string()]);
    let shown = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    for (sink, rows) in [("nowhere", 2), ("refused", 1)] {
        let line = shown.lines().find(|line| line.contains(sink) && line.contains(" received = "));
        assert!(line.is_some_and(|line| line.contains(&format!("{rows} received = {rows} stored"))), "{shown}");
    }
}

#[test]
fn a_wrong_command_line_and_a_missing_file_exit_with_2() {
    for arguments in
        [&["run"][..], &["run", "/nowhere.toml"], &["fly"], &["stages", "mqqt"], &["simulate", "--interval", "x"]]
    {
        let output = pipeline(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
    assert!(text(&pipeline(&["stages", "mqqt"]).stderr).contains("Did you mean \"mqtt\"?"));
}

#[test]
fn a_bounded_run_ends_by_itself_and_its_logs_can_be_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.toml");
    let stages = "[schema.t]\ndevice_id = \"text\"\ntimestamp = \"timestamp\"\n
                  [sources.fleet]\ntype = \"simulator\"\nschema = \"t\"\ncount = 100\npace = \"none\"\n
                  [sinks.out]\ntype = \"console\"\ninputs = [\"fleet\"]\n";
    std::fs::write(&file, stages).expect("writable");
    let output = pipeline(&["run", &file.display().to_string(), "--log-format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let rows = text(&output.stdout);
    assert_eq!(rows.lines().count(), 100);
    assert!(rows.lines().all(|row| serde_json::from_str::<serde_json::Value>(row).is_ok()), "rows are JSON lines");
    let logs = text(&output.stderr);
    let first: serde_json::Value = serde_json::from_str(logs.lines().next().expect("a log line")).expect("JSON");
    assert!(first["message"].is_string() && first["level"].is_string(), "{first}");
}

#[test]
fn a_stop_while_an_outside_is_away_ends_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.toml");
    let stages = "[sources.fleet]\ntype = \"simulator\"\n
                  [sinks.nowhere]\ntype = \"mqtt\"\ninputs = [\"fleet\"]\nurl = \"mqtt://127.0.0.1:${PORT}\"\n";
    std::fs::write(&file, stages).expect("writable");
    let port = free_port().to_string();
    let arguments = ["run".to_owned(), file.display().to_string()];
    let mut run = Process::start(&arguments, &[("PORT", port.as_str())], folder.path(), "run");
    run.wait_for_log("could not open");
    let (status, log) = run.stop();
    assert_eq!(status.code(), Some(0), "no source has started, so there is nothing to store: {log}");
}

#[test]
fn completions_and_the_manual_know_every_subcommand() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(arguments).output().expect("the binary runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let pages = folder.path().join("man1");
    run(&["man", pages.to_str().expect("text")]);
    let help = run(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(commands.contains(&"run") && commands.contains(&"completions"), "{help}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = run(&["completions", shell]);
        for command in &commands {
            assert!(text.contains(command), "{shell} does not know {command}");
        }
    }
    for command in commands.iter().filter(|command| **command != "help" && !command.is_empty()) {
        let page = std::fs::read_to_string(pages.join(format!("pipeline-{command}.1")));
        assert!(page.is_ok_and(|page| page.contains(".SH SYNOPSIS")), "{command} has no page");
    }
}
