//! `pipeline soak`: a fleet against a pipeline that keeps its promises, and against one that loses rows.

use serde_json::Value;

use crate::services;
use crate::shipped::{Shipped, count, execute, parsed, pipeline};

fn line<'a>(outcome: &'a Value, objective: &str) -> &'a Value {
    let lines = outcome["objectives"].as_array().expect("a list");
    lines.iter().find(|line| line["objective"] == objective).expect("all seven are there")
}

#[test]
fn a_pipeline_that_runs_holds_and_every_message_is_found_in_table_and_lake() {
    // How fast this machine is, is no matter of a test: what is found is.
    let lax = |text: String| {
        text.replace("latency_p99 = \"5s\"", "latency_p99 = \"10m\"")
            .replace("anomaly_p99 = \"30s\"", "anomaly_p99 = \"10m\"")
            .replace("query_p95 = \"2s\"", "query_p95 = \"10m\"")
            .replace("dashboard_p95 = \"3s\"", "dashboard_p95 = \"10m\"")
            .replace("ingestion_min = 1000", "ingestion_min = 1")
    };
    let iot = Shipped::new("soaked", lax);
    let _pipeline = iot.run();
    let arguments = ["--for", "10s", "--rate", "100", "--devices", "20", "--runs", "1", "--json"];
    let (code, outcome) = iot.json("soak", &arguments);
    assert_eq!((code, &outcome["holds"], &outcome["devices"]), (0, &true.into(), &20.into()), "{outcome:#}");
    let sent = outcome["sent"].as_u64().expect("a count");
    assert_eq!(sent, 1_000, "{outcome:#}");
    let ends = outcome["ends"].as_array().expect("a list");
    assert_eq!(ends.len(), 2, "table and lake");
    for end in ends {
        assert_eq!((&end["arrived"]["good"], &end["arrived"]["total"]), (&sent.into(), &sent.into()), "{end:#}");
        assert_eq!((&end["duplicates"], &end["invented"]), (&0.into(), &0.into()), "{end:#}");
    }
    for objective in ["ingestion", "latency", "loss", "connectivity", "query", "dashboard"] {
        assert_eq!(line(&outcome, objective)["verdict"], "kept", "{outcome:#}");
    }
    assert_eq!(line(&outcome, "latency")["total"], sent, "what the pipeline counted meanwhile: {outcome:#}");
    assert_eq!(iot.count("SELECT count(*) FROM telemetry WHERE device_id LIKE 'pipeline-verify-%'"), 0);
}

#[test]
fn a_pipeline_is_started_for_it_and_rows_that_its_table_swallows_are_told_device_by_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let (topic, database) = (services::unique("swallowed"), services::database("swallowed"));
    let text = format!(
        r#"
[pipeline]
name = "swallowed"
data_dir = {:?}
[http]
listen = "127.0.0.1:{}"
[slo]
loss_max = 1e-2
[schema.reading]
device_id   = {{ type = "text", required = true }}
timestamp   = {{ type = "timestamp", required = true }}
temperature = "float64"
humidity    = "float64"
seq         = "int64"
[sources.messages]
type = "mqtt"
url = "{}"
topics = "{topic}"
client_id = "{topic}"
schema = "reading"
[sinks.table]
type = "timescaledb"
inputs = ["messages"]
url = "{database}"
table = "readings"
time_column = "timestamp"
key = []
[sinks.refused]
type = "discard"
inputs = ["messages.rejected", "table.rejected"]
"#,
        folder.path().join("state"),
        crate::http::free_port(),
        services::mqtt_url(),
    );
    let file = folder.path().join("swallowed.toml");
    std::fs::write(&file, text).expect("our own folder");
    execute(
        &database,
        "CREATE TABLE readings (device_id text NOT NULL, timestamp timestamptz NOT NULL, temperature float8, \
         humidity float8, seq bigint);
         CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF NEW.seq IN (3, 4) THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON readings FOR EACH ROW EXECUTE FUNCTION swallow()",
    );
    let arguments = ["--for", "5s", "--rate", "20", "--devices", "10", "--timeout", "5s", "--keep", "--json"];
    let output = pipeline("soak", &file, &arguments, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the pipeline is started"));
    let (code, outcome) = parsed(&output);
    assert_eq!((code, &outcome["holds"]), (1, &false.into()), "{outcome:#}");
    let end = &outcome["ends"][0];
    assert_eq!((&end["arrived"]["good"], &end["arrived"]["total"]), (&80.into(), &100.into()), "{end:#}");
    let gaps = end["gaps"].as_array().expect("a list");
    assert!(gaps.len() == 10 && gaps.iter().all(|gap| gap[1] == 3 && gap[2] == 4), "{end:#}");
    let loss = line(&outcome, "loss");
    assert_eq!((&loss["verdict"], &loss["missed_ppm"]), (&"missed".into(), &200_000.0.into()), "{outcome:#}");
    assert_eq!(count(&database, "SELECT count(*) FROM readings"), 80, "--keep leaves them");
}
