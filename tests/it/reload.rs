//! `pipeline reload`, as the real binary: a running pipeline takes its file as it is now, or says why not.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{free_port, get};
use crate::process::{Process, root, wait_until};
use crate::services;

struct Running {
    folder: TempDir,
    file: PathBuf,
    port: u16,
    client_id: String,
    pipeline: Process,
}

impl Running {
    fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let (file, port, client_id) = (folder.path().join("p.toml"), free_port(), services::unique("reload"));
        std::fs::write(&file, stages(folder.path(), port, &client_id, "")).expect("writable");
        let mut pipeline = Process::start(&["run".as_ref(), file.as_os_str()], &[], folder.path(), "pipeline");
        pipeline.wait_for_log("subscribed");
        Self { folder, file, port, client_id, pipeline }
    }

    fn write(&self, port: u16, more: &str) {
        std::fs::write(&self.file, stages(self.folder.path(), port, &self.client_id, more)).expect("writable");
    }

    /// Exit code and what is said.
    fn reload(&self) -> (Option<i32>, String) {
        let url = format!("http://127.0.0.1:{}", self.port);
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["reload", "--url", &url]).env("PIPELINE_TOKEN", "secret").current_dir(root());
        let output = command.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    }

    fn health(&self, port: u16) -> Value {
        let (status, body) = get(port, "/healthz", Some("secret"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

fn stages(folder: &Path, port: u16, client_id: &str, more: &str) -> String {
    format!(
        "[pipeline]\nname = \"reloaded\"\ndata_dir = {:?}\n
         [http]\nlisten = \"127.0.0.1:{port}\"\ntoken = \"secret\"\n
         [sources.messages]\ntype = \"mqtt\"\nurl = {:?}\ntopics = \"{client_id}/#\"\nclient_id = \"{client_id}\"\n
         [sinks.nowhere]\ntype = \"discard\"\ninputs = [\"messages\"]\n{more}",
        folder.join("data"),
        services::mqtt_url()
    )
}

fn names(health: &Value) -> Vec<&str> {
    health["stages"].as_array().expect("stages").iter().filter_map(|stage| stage["name"].as_str()).collect()
}

#[test]
fn a_changed_file_takes_the_place_of_the_one_that_runs_and_a_bad_one_does_not() {
    let running = Running::start();
    let more = "[sinks.more]\ntype = \"discard\"\ninputs = [\"messages\"]\n";
    running.write(running.port, more);
    assert_eq!(running.reload(), (Some(0), "sink \"more\" is new\n".to_owned()));
    let health = running.health(running.port);
    assert_eq!(names(&health), ["messages", "nowhere", "more"]);
    assert_eq!(health["reloads"]["applied"], 1);
    // It reads again.
    wait_until("the new version to subscribe", || {
        (running.pipeline.log().matches("subscribed").count() == 2).then_some(())
    });

    for (mistake, said) in [
        ("[sinks.more]\ntype = \"discrad\"\ninputs = [\"messages\"]\n", "Did you mean \"discard\"?"),
        (
            "[transforms.t]\ntype = \"enrich\"\ninputs = [\"messages\"]\ntable = \"/nowhere.csv\"\nkey = \"topic\"\ncolumns = [\"x\"]\n[sinks.more]\ntype = \"discard\"\ninputs = [\"t\"]\n",
            "/nowhere.csv",
        ),
        (
            "[sources.file]\ntype = \"file\"\nformat = \"jsonl\"\npath = \"/dev/null\"\n[sinks.more]\ntype = \"discard\"\ninputs = [\"file\"]\n",
            "source \"file\" begins anew in each run",
        ),
    ] {
        running.write(running.port, mistake);
        let (code, told) = running.reload();
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("nothing has changed") && told.contains(said), "{told}");
        let health = running.health(running.port);
        assert_eq!(names(&health), ["messages", "nowhere", "more"]);
        assert!(health["reloads"]["last_refusal"].as_str().is_some_and(|text| text.contains(said)), "{health}");
    }
    let text = std::fs::read_to_string(&running.file).expect("readable").replace("\"reloaded\"", "\"another\"");
    std::fs::write(&running.file, text).expect("writable");
    assert!(running.reload().1.contains("another `name` or `data_dir`"));
    let (_, metrics) = get(running.port, "/metrics", Some("secret"));
    for line in [
        "pipeline_config_reloads_total{pipeline=\"reloaded\",outcome=\"applied\"} 1",
        "pipeline_config_reloads_total{pipeline=\"reloaded\",outcome=\"refused\"} 4",
        "pipeline_config_last_reload_successful{pipeline=\"reloaded\"} 0.0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let (status, log) = running.pipeline.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_new_version_may_answer_elsewhere_and_sighup_asks_for_it_too() {
    let mut running = Running::start();
    let (old, new) = (running.port, free_port());
    running.write(new, "");
    running.pipeline.signal("HUP");
    running.pipeline.wait_for_log("the pipeline file is reloaded: [http] has changed");
    assert_eq!(running.health(new)["reloads"]["applied"], 1);
    assert!(std::net::TcpStream::connect(("127.0.0.1", old)).is_err(), "nobody answers there any more");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    running.write(taken.local_addr().expect("an address").port(), "");
    running.pipeline.signal("HUP");
    running.pipeline.wait_for_log("is not reloaded, and nothing has changed");
    assert!(running.pipeline.log().contains("can't listen at"), "{}", running.pipeline.log());
    assert_eq!(running.health(new)["reloads"]["refused"], 1);
}

#[test]
fn nobody_reloads_without_the_token_and_no_page_of_somebody_else_does() {
    let running = Running::start();
    let post = |headers: &str| {
        use std::io::{Read, Write};
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", running.port)).expect("it listens");
        let request = format!(
            "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        connection.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("it answers");
        answer.split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(post(""), "401");
    assert_eq!(post("Authorization: Bearer secret\r\n"), "403");
    assert_eq!(post("Authorization: Bearer secret\r\nPipeline-Request: test\r\n"), "200");
    assert_eq!(running.health(running.port)["reloads"]["applied"], 1);
}
