//! A real Prometheus with the scrape file and the alerts that are shipped, but for the target's address and the pace.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::http::free_port;
use crate::process::{root, wait_until};

/// Runs in the foreground of the services script; ends when dropped.
pub struct Prometheus {
    place: String,
    child: Child,
    runtime: Runtime,
    client: reqwest::Client,
    _folder: TempDir,
}

/// A folder that holds what is shipped for Prometheus.
pub fn shipped() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(root().join("ops/prometheus")).expect("what is shipped").flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

/// The services script with `promtool` or `amtool`, which find the folder at `/data`.
pub fn check(tool: &str, folder: &Path, arguments: &[&str]) -> Output {
    services().arg(tool).arg(folder).args(arguments).output().expect("bash runs the services script")
}

fn services() -> Command {
    Command::new(root().join("tests/services/services"))
}

impl Prometheus {
    /// Scrapes the pipeline at this address once a second. Ready on return.
    pub fn of(pipeline: &str) -> Self {
        let folder = shipped();
        let file = folder.path().join("prometheus.yml");
        let text = std::fs::read_to_string(&file).expect("it is shipped");
        let ours = text.replace("127.0.0.1:9600", pipeline).replace("_interval: 15s", "_interval: 1s");
        assert!(ours.contains(pipeline) && ours.contains("scrape_interval: 1s"), "{text}");
        std::fs::write(&file, ours).expect("our own folder");
        let (port, log) = (free_port(), folder.path().join("log"));
        let output = std::fs::File::create(&log).expect("our own folder");
        let mut child = services()
            .arg("monitor")
            .arg(folder.path())
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("an open file"))
            .stderr(output)
            .spawn()
            .expect("bash runs the services script");
        let place = format!("127.0.0.1:{port}");
        wait_until("Prometheus to listen", || {
            let ended = child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "Prometheus ended: {}", std::fs::read_to_string(&log).unwrap_or_default());
            TcpStream::connect(&place).ok()
        });
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().expect("a client");
        let prometheus = Self { place, child, runtime: Runtime::new().expect("a runtime"), client, _folder: folder };
        wait_until("Prometheus to answer", || prometheus.query("vector(1)").ok());
        prometheus
    }

    /// The result of an expression now, series by series.
    ///
    /// # Errors
    /// What Prometheus says against it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let body = format!("query={}", encoded(expression));
        let request = self.client.post(format!("http://{}/api/v1/query", self.place)).body(body);
        let mut answer = self.ask(request.header("Content-Type", "application/x-www-form-urlencoded"));
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => match answer["data"]["result"].take() {
                Value::Array(series) => Ok(series),
                other => Err(format!("no list of series: {other}")),
            },
        }
    }

    /// Every rule with its health, and alerts with their state.
    pub fn rules(&self) -> Vec<Value> {
        let answer = self.ask(self.client.get(format!("http://{}/api/v1/rules", self.place)));
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect()
    }

    fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        let text = self.runtime.block_on(async { request.send().await?.text().await });
        // It listens a moment before it answers.
        serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Percent-encoded, for a form.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
