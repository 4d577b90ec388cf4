//! A pipeline to look at: a broker, a database behind a gate, a fleet, and where its page is.

use tempfile::TempDir;

use super::gate::Gate;
use crate::http::free_port;
use crate::process::{Process, wait_until};
use crate::services;

/// Messages a second.
const RATE: u32 = 300;

pub struct Site {
    /// `host:port` of the page.
    pub place: String,
    pub database: Gate,
    pub topic: String,
    // In the order in which they have to end.
    _fleet: Process,
    pipeline: Process,
    _folder: TempDir,
}

impl Site {
    /// Everything runs on return; `http`: further lines of `[http]`.
    pub fn start(http: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = services::database("browser");
        let (head, rest) = url.split_once('@').expect("a url with a user");
        let (server, name) = rest.split_once('/').expect("a url with a database");
        let database = Gate::before(server);
        let url = format!("{head}@{}/{name}", database.address);
        let (topic, place) = (services::unique("browser"), format!("127.0.0.1:{}", free_port()));
        let broker = services::mqtt_url();
        let file = folder.path().join("seen.toml");
        let dir = folder.path().display().to_string();
        let text = include_str!("pipeline.toml");
        let values = [("PLACE", &place), ("DIR", &dir), ("BROKER", &broker), ("TOPIC", &topic), ("DATABASE", &url)];
        let values = values.map(|(name, value)| (name, value.as_str())).into_iter().chain([("HTTP", http)]);
        let text = values.fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value));
        std::fs::write(&file, text).expect("writable");
        let mut pipeline =
            Process::start(&["run".to_owned(), file.display().to_string()], &[], folder.path(), "pipeline");
        pipeline.wait_for_log("subscribed");
        let (rate, topic_of_fleet) = (RATE.to_string(), format!("{topic}/telemetry"));
        let fleet =
            ["simulate", "--mqtt-broker", &broker, "--rate", &rate, "--topic", &topic_of_fleet, "--bad", "0.01"];
        let fleet = Process::start(&fleet, &[], folder.path(), "fleet");
        Self { place, database, topic, _fleet: fleet, pipeline, _folder: folder }
    }

    /// The pipeline ends, and with it the answers.
    pub fn end(&mut self) {
        self.pipeline.kill();
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.place)
    }

    /// One device's readings: so many usual ones, and then one that nobody expects.
    pub fn send_with_an_anomaly(&self, device: &str, usual: u32) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let reading = |number: u32, temperature: f64| {
            let micros = u128::from(number) * 1_000;
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
            let at = (since.as_micros() + micros) / 1_000;
            serde_json::json!({ "device_id": device, "timestamp": at, "temperature": temperature }).to_string()
        };
        let mut payloads: Vec<String> =
            (0..usual).map(|number| reading(number, 20.0 + f64::from(number % 7) / 10.0)).collect();
        payloads.push(reading(usual, 90.0));
        let topic = format!("{}/telemetry", self.topic);
        runtime.block_on(services::publish(payloads.iter().map(|payload| (topic.clone(), payload.as_bytes()))));
    }
}

/// Waits for a figure of the page to be larger than a number.
pub fn wait_for_more_than(what: &str, least: u64, read: impl Fn() -> u64) -> u64 {
    wait_until(what, || Some(read()).filter(|figure| *figure > least))
}
