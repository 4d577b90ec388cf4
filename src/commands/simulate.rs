//! `pipeline simulate`: a fleet of devices, or a recorded data set, published to a broker.
//!
//! A pipeline of two stages made in code: the simulator as source, the broker as sink.

use pipeline_engine::{HttpSettings, Plan};
use pipeline_stages::sinks::mqtt::{MqttSinkConfig, TlsConfig};

use super::run::run_plan;
use super::{Failure, run_to_the_end};
use crate::simulate::{Broker, Settings, SimulateArgs};

pub fn run(arguments: SimulateArgs) -> Result<(), Failure> {
    let Settings { simulator, broker } =
        arguments.resolve().map_err(|error| Failure::Wrong(format!("error: {error:#}")))?;
    let plan = Plan::builder("simulate")
        // The address of the live page is the pipeline's that it sends to, whichever of the two starts first.
        .http(HttpSettings { listen: None, ..HttpSettings::default() })
        .source("fleet", simulator)
        .sink("broker", &["fleet"], sink(broker))
        .build();
    run_to_the_end(run_plan(plan.map_err(|mistakes| Failure::Wrong(mistakes.to_string()))?))
}

fn sink(broker: Broker) -> MqttSinkConfig {
    let text = |path: std::path::PathBuf| path.display().to_string();
    MqttSinkConfig {
        qos: broker.qos,
        client_id: Some(broker.client_id.unwrap_or_else(|| format!("pipeline-simulate-{}", std::process::id()))),
        username: broker.username,
        password: broker.password,
        tls: TlsConfig {
            ca: broker.ca.map(text),
            cert: broker.cert.map(text),
            key: broker.key.map(text),
            ..TlsConfig::default()
        },
        ..MqttSinkConfig::new(broker.url, None)
    }
}
