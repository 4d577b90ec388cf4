//! What devices send is text and nothing else in logs and terminals: it moves no cursor, and makes no line of its own.

use std::process::Command;

use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions};

use crate::process::{Process, root, wait_until};
use crate::services;

/// Clears the screen, sets a title, turns the direction of writing and begins a line that looks like one of a log.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}\n2026-01-01T00:00:00Z ERROR forged line\r";

/// Publishes these payloads and waits until the broker has them.
fn publish(topic: &str, payloads: &[String]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let url = services::mqtt_url();
        let (host, port) = url.trim_start_matches("mqtt://").split_once(':').expect("host and port");
        let place = (host.to_owned(), port.parse::<u16>().expect("a port"));
        let (client, mut events) =
            AsyncClient::builder(MqttOptions::new(services::unique("hostile"), place)).capacity(16).build();
        let polling = tokio::spawn(async move { while events.poll().await.is_ok() {} });
        for payload in payloads {
            let options = PublishOptions::at_least_once();
            let notice = client.publish_tracked(topic, payload.clone(), options).await.expect("a connection");
            notice.wait_completion_async().await.expect("the broker has it");
        }
        polling.abort();
    });
}

fn assert_is_inert(what: &str, said: &str) {
    let moves = |letter: char| (letter.is_control() && letter != '\n') || ('\u{202a}'..='\u{202e}').contains(&letter);
    if let Some(at) = said.find(moves) {
        panic!(
            "{what} holds {:?}: {:?}",
            said[at..].chars().next(),
            &said[at.saturating_sub(200)..].chars().take(400).collect::<String>()
        );
    }
    assert!(
        !said.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR")),
        "{what} holds a forged line: {said}"
    );
}

fn say(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(arguments).current_dir(root()).output();
    let output = output.expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    said.into_owned()
}

#[test]
fn what_a_hostile_device_sends_moves_nothing_in_logs_and_on_terminals() {
    let folder = tempfile::tempdir().expect("a folder");
    let topic = services::unique("hostile");
    let port = crate::http::free_port();
    let text = format!(
        r#"
[pipeline]
name = "hostile"
data_dir = {:?}
[http]
listen = "127.0.0.1:{port}"
[schema.reading]
device_id   = {{ type = "text", required = true }}
timestamp   = {{ type = "timestamp", required = true }}
temperature = "float64"
[sources.messages]
type = "mqtt"
url = "{}"
topics = "{topic}"
client_id = "{topic}"
schema = "reading"
[transforms.heard]
type = "silence"
inputs = ["messages"]
[sinks.shown]
type = "console"
inputs = ["heard"]
format = "pretty"
[sinks.lines]
type = "console"
inputs = ["heard"]
[sinks.alerts]
type = "discard"
inputs = ["heard.alerts"]
[sinks.refused]
type = "parquet"
inputs = ["messages.rejected"]
url = {:?}
time_column = "received_at"
roll_age = "100ms"
"#,
        folder.path().join("state"),
        services::mqtt_url(),
        folder.path().join("refused").display().to_string(),
    );
    let file = folder.path().join("hostile.toml");
    std::fs::write(&file, text).expect("our own folder");
    let mut pipeline =
        Process::start(&["run".as_ref(), file.as_os_str()], &[("PIPELINE_LOG", "debug")], folder.path(), "pipeline");
    pipeline.wait_for_log("subscribed");
    let name = serde_json::Value::from(HOSTILE).to_string();
    let now = "2026-01-31T12:00:00Z";
    publish(
        &topic,
        &[
            // A device of that name, a field, a value that is none, and what is no JSON at all.
            format!("{{\"device_id\": {name}, \"timestamp\": \"{now}\", \"temperature\": 1}}"),
            format!("{{\"device_id\": \"a\", \"timestamp\": \"{now}\", {name}: 1}}"),
            format!("{{\"device_id\": \"a\", \"timestamp\": {name}}}"),
            format!("{{\"device_id\": \"a\", \"timestamp\": \"{now}\", \"temperature\": {name}}}"),
            HOSTILE.to_owned(),
        ],
    );
    let file = file.display().to_string();
    wait_until("what is refused to be stored", || say(&["dlq", "list", &file]).contains("invalid_json").then_some(()));
    pipeline.wait_for_log("device_id=a");
    for arguments in [
        &["dlq", "list", &file][..],
        &["dlq", "list", &file, "--json"],
        &["status", &file],
        &["status", &file, "--json"],
        &["spool", &file],
        &["slo", &file],
    ] {
        assert_is_inert(&format!("{arguments:?}"), &say(arguments));
    }
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("owned"), "what was sent is shown: {log}");
    assert_is_inert("log and console", &log);
}
