//! `pipeline verify`: what arrives once, what is lost, what is there twice, and what is left behind.

use crate::process::Process;
use crate::services;
use crate::shipped::{Shipped, count, parsed, pipeline};

#[test]
fn each_message_arrives_once_in_table_and_lake_and_its_rows_are_removed() {
    let iot = Shipped::new("verified", |text| text);
    let _pipeline = iot.run();
    let (code, outcome) = iot.json("verify", &["--messages", "20", "--json"]);
    assert_eq!((code, &outcome["arrived_once"], &outcome["sent"]), (0, &true.into(), &20.into()), "{outcome:#}");
    let ends: Vec<&str> =
        outcome["ends"].as_array().expect("a list").iter().filter_map(|end| end["sink"].as_str()).collect();
    assert_eq!(ends, ["telemetry_table", "lake"], "the others keep no row, or the newest only");
    for end in outcome["ends"].as_array().expect("a list") {
        assert_eq!((&end["found"], &end["lost"], &end["duplicates"]), (&20.into(), &0.into(), &0.into()), "{end:#}");
        let of = |name: &str| end["latency"][name].as_u64().expect("milliseconds");
        assert!(
            of("p50_ms") <= of("p95_ms") && of("p95_ms") <= of("p99_ms") && of("p99_ms") <= of("max_ms"),
            "{end:#}"
        );
    }
    assert_eq!(outcome["removed"]["telemetry_table"]["removed"], 20, "{outcome:#}");
    assert!(outcome["removed"]["lake"]["stays"].is_string(), "{outcome:#}");
    for table in ["telemetry", "device_status", "anomalies"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE device_id LIKE 'pipeline-verify-%'");
        assert_eq!(iot.count(&sql), 0, "{table}");
    }
    let metrics = crate::http::get(iot.port, "/metrics", None).1;
    let known =
        metrics.lines().find(|line| line.starts_with("pipeline_devices_known{")).expect("silence follows devices");
    assert!(known.ends_with(" 0.0"), "nobody has this device: {known}");
}

#[test]
fn rows_that_are_kept_are_there_until_they_are_cleaned_away() {
    let iot = Shipped::new("cleaned", |text| text);
    let _pipeline = iot.run();
    let output = iot.pipeline("verify", &["--messages", "3", "--keep"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let sql = "SELECT count(*) FROM telemetry WHERE device_id LIKE 'pipeline-verify-%'";
    assert_eq!(iot.count(sql), 3);
    let output = iot.pipeline("verify", &["--clean"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("telemetry_table: 3 rows removed"), "{text}");
    assert_eq!(iot.count(sql), 0);
}

#[test]
fn what_a_rule_refuses_is_lost_and_the_rule_is_named() {
    let iot = Shipped::new("refused", |text| text);
    let _pipeline = iot.run();
    let (code, outcome) =
        iot.json("verify", &["--messages", "5", "--set", "temperature=1000", "--timeout", "4s", "--json"]);
    assert_eq!((code, &outcome["arrived_once"]), (1, &false.into()), "{outcome:#}");
    assert!(outcome["ends"].as_array().is_some_and(|ends| ends.iter().all(|end| end["lost"] == 5)), "{outcome:#}");
    let letters = outcome["dead_letters"].as_object().expect("reasons");
    assert_eq!(letters.values().map(|count| count.as_u64().expect("a count")).sum::<u64>(), 5, "{outcome:#}");
    assert!(letters.keys().all(|reason| reason.starts_with("valid: range")), "{outcome:#}");
}

/// A source whose rows come to a table without a key by two ways.
fn twice(folder: &std::path::Path) -> (std::path::PathBuf, String) {
    let (topic, database) = (services::unique("twice"), services::database("twice"));
    let text = format!(
        r#"
[pipeline]
name = "twice"
data_dir = {:?}
[http]
listen = "off"
[schema.reading]
device_id = {{ type = "text", required = true }}
timestamp = {{ type = "timestamp", required = true }}
[sources.messages]
type = "mqtt"
url = "{}"
topics = "{topic}/+"
client_id = "{topic}"
schema = "reading"
[transforms.same]
type = "validate"
inputs = ["messages"]
[sinks.table]
type = "timescaledb"
inputs = ["messages", "same"]
url = "{database}"
table = "readings"
create = true
time_column = "timestamp"
key = []
[sinks.refused]
type = "discard"
inputs = ["messages.rejected", "same.rejected", "table.rejected"]
"#,
        folder.join("state"),
        services::mqtt_url(),
    );
    let file = folder.join("twice.toml");
    std::fs::write(&file, text).expect("our own folder");
    (file, database)
}

#[test]
fn what_is_there_twice_is_told_and_a_pipeline_that_does_not_run_takes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, database) = twice(folder.path());
    let verify = || parsed(&pipeline("verify", &file, &["--messages", "4", "--timeout", "5s", "--json"], &[]));
    let (code, outcome) = verify();
    assert_eq!((code, &outcome["sent"], &outcome["arrived_once"]), (2, &0.into(), &false.into()), "{outcome:#}");
    let why = outcome["not_taken"].as_object().and_then(|reasons| reasons.keys().next()).expect("a reason");
    assert!(why.contains("nobody is subscribed"), "{why}");

    let mut running = Process::start(&["run".as_ref(), file.as_os_str()], &[], folder.path(), "pipeline");
    running.wait_for_log("subscribed");
    let (code, outcome) = verify();
    let end = &outcome["ends"][0];
    assert_eq!((code, &end["lost"], &end["duplicates"]), (1, &0.into(), &4.into()), "{outcome:#}");
    assert_eq!(outcome["removed"]["table"]["removed"], 8);
    assert_eq!(count(&database, "SELECT count(*) FROM readings"), 0);
}
