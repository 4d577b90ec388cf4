//! Whole runs whose table is away at the start, with the real binary.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use tokio::runtime::Runtime;

use super::door::Door;
use crate::process::{Process, root};
use crate::services;

const PIPELINE: &str = r#"
[http]
listen = "off"

[schema.telemetry]
device_id = { type = "text", required = true }

[sources.readings]
type = "file"
path = "FOLDER/readings.jsonl"
format = "jsonl"
schema = "telemetry"

[transforms.located]
type = "enrich"
inputs = ["readings"]
query = "SELECT 'dev-1' AS device_id, 'north' AS site"
url = "${DATABASE_URL}"
key = "device_id"
columns = ["site"]

[sinks.shown]
type = "console"
inputs = ["located"]
"#;

#[test]
fn a_database_that_is_away_at_the_start_is_waited_for_in_plain_words() {
    let url = services::database_url();
    let login = services::unique("waiting");
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the database");
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE ROLE {login} LOGIN PASSWORD 'hunter2'")).await.expect("a role");
    });
    let (_, place) = url.split_once('@').expect("a url with a user");
    let (door, url) = Door::before_url(&format!("postgres://{login}:hunter2@{place}"));
    door.shut();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a plain path");
    let file = folder.path().join("p.toml");
    fs::write(&file, PIPELINE.replace("FOLDER", path)).expect("the folder can be written");
    fs::write(folder.path().join("readings.jsonl"), "{\"device_id\":\"dev-1\"}\n").expect("the folder can be written");
    let file = file.to_str().expect("a plain path");

    let check = |code: i32, said: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["check", "--connect", file]).env("DATABASE_URL", &url).current_dir(root());
        let output = command.output().expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(said) && !text.contains("hunter2"), "{text}");
        assert_eq!(output.status.code(), Some(code), "{text}");
    };
    check(1, "located: FAILED, can't connect to ");
    let mut run = Process::start(&["run", file], &[("DATABASE_URL", url.as_str())], folder.path(), "run");
    run.wait_for_log("could not open: can't connect to ");
    run.wait_for_log("trying again in ");
    let mut other = Process::start(&["run", file], &[("DATABASE_URL", url.as_str())], folder.path(), "stopped");
    other.wait_for_log("trying again in ");
    let (status, log) = other.stop();
    assert_eq!(status.code(), Some(0), "who waits can be stopped: {log}");
    door.open();
    let status = run.wait();
    let log = run.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains(r#"{"device_id":"dev-1","site":"north"}"#), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    check(0, "located: ok, the query to ");
}

#[test]
fn a_stop_is_heard_while_a_database_takes_the_connection_and_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("postgres://reader@{}/iot", silent.local_addr().expect("a port"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.toml");
    let path = folder.path().to_str().expect("a plain path");
    fs::write(&file, PIPELINE.replace("FOLDER", path)).expect("the folder can be written");
    fs::write(folder.path().join("readings.jsonl"), "{\"device_id\":\"dev-1\"}\n").expect("the folder can be written");
    let run = Process::start(&["run".as_ref(), file.as_os_str()], &[("DATABASE_URL", &url)], folder.path(), "run");
    let (connection, _) = silent.accept().expect("it connects");
    let (status, log) = run.stop();
    drop(connection);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("could not open"), "it has waited until the attempt was over: {log}");
}
