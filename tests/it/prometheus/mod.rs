//! The alerts that are shipped, in a real Prometheus that scrapes a real run.

pub mod expression;
pub mod server;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use self::server::{Prometheus, check, shipped};
use crate::http::{free_port, get};
use crate::mqtt::{self, Certificates, Mosquitto};
use crate::process::{Process, root, wait_until};
use crate::services;

#[test]
fn what_is_shipped_passes_the_checks_of_its_own_tools_and_every_alert_has_a_test() {
    let folder = shipped();
    let checks: [(&str, &[&str]); 4] = [
        ("promtool", &["check", "rules", "/data/rules.yml"]),
        ("promtool", &["check", "config", "/data/prometheus.yml"]),
        ("promtool", &["test", "rules", "/data/rules.test.yml", "/data/burn.test.yml"]),
        ("amtool", &["check-config", "/data/alertmanager.yml"]),
    ];
    for (tool, arguments) in checks {
        let output = check(tool, folder.path(), arguments);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{tool} {arguments:?}: {said}");
    }
    let read = |name: &str| std::fs::read_to_string(root().join(name)).expect("it is shipped");
    let tests = read("ops/prometheus/rules.test.yml") + &read("ops/prometheus/burn.test.yml");
    let rules = read("ops/prometheus/rules.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 36, "{alerts:?}");
    for alert in alerts {
        let [fires, quiet] = looks_at(&tests, alert);
        assert!(fires > 0, "{alert} has no test in which it fires");
        // This one says that alerts arrive, and always does.
        assert!(quiet > 0 || alert == "Watchdog", "{alert} has no test in which it does not fire");
    }
}

/// How often `promtool` looks whether an alert fires and expects that it does, and that it does not.
fn looks_at(tests: &str, alert: &str) -> [usize; 2] {
    let expression = format!("alertname=\"{alert}\", alertstate=\"firing\"");
    let mut counts = [0, 0];
    for look in tests.split("expr: '").skip(1).filter(|look| look.contains(&expression)) {
        // Up to where the next look or the next test begins.
        let expects_samples = look.split("\n  - name:").next().is_some_and(|look| look.contains("exp_samples: [{"));
        counts[usize::from(!expects_samples)] += 1;
    }
    counts
}

/// A broker with certificates, in a folder of the pipeline's; and its port.
fn secure_broker(folder: &Path) -> (Mosquitto, String) {
    Certificates::make(folder);
    let port = mqtt::free_port();
    let conf = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\ncafile /data/ca.crt\ncertfile /data/good.crt\nkeyfile /data/good.key\n"
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    (runtime.block_on(Mosquitto::start(folder, &conf, &[port])), port.to_string())
}

/// Runs this folder's pipeline, and a fleet that publishes to it; the place of its metrics.
fn run(folder: &Path, secure: &str) -> (Process, Process, String) {
    let place = format!("127.0.0.1:{}", free_port());
    let (broker, topic, dir) = (services::mqtt_url(), services::unique("alarmed"), folder.display().to_string());
    let database = services::database("alarmed");
    let mut text = include_str!("pipeline.toml").to_owned();
    for (name, value) in [
        ("PLACE", place.as_str()),
        ("DIR", &dir),
        ("BROKER", &broker),
        ("TOPIC", &topic),
        ("DATABASE", &database),
        ("SECURE", secure),
    ] {
        text = text.replace(&format!("@{name}@"), value);
    }
    // As `pipeline db backup` leaves it.
    let taken_at_us = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_micros();
    let record = format!(r#"{{"name":"b","place":"p","taken_at_us":{taken_at_us},"bytes":1,"rows":1}}"#);
    std::fs::create_dir_all(folder.join("state/alarmed")).expect("the test's own folder");
    std::fs::write(folder.join("state/alarmed/backup.json"), record).expect("the test's own folder");
    let file = folder.join("alarmed.toml");
    std::fs::write(&file, text).expect("the test's own folder");
    let mut pipeline = Process::start(&["run".to_owned(), file.display().to_string()], &[], folder, "pipeline");
    pipeline.wait_for_log("subscribed");
    let fleet = ["simulate", "--mqtt-broker", &broker, "--rate", "200", "--topic", &topic];
    (pipeline, Process::start(&fleet, &[], folder, "fleet"), place)
}

/// Alerts that are pending or fire.
fn active(prometheus: &Prometheus) -> BTreeSet<String> {
    let rules = prometheus.rules();
    let active = rules.iter().filter(|rule| rule["type"] == "alerting" && rule["state"] != "inactive");
    active.filter_map(|rule| rule["name"].as_str()).map(str::to_owned).collect()
}

#[test]
fn every_alert_is_about_what_a_run_exposes_and_is_evaluated_by_a_real_prometheus() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_broker, secure) = secure_broker(folder.path());
    let (mut pipeline, _fleet, place) = run(folder.path(), &secure);
    let prometheus = Prometheus::of(&place);
    let rules = wait_until("every rule to be evaluated", || {
        let rules = prometheus.rules();
        let is_known = |rule: &Value| rule["health"].as_str().is_some_and(|health| health != "unknown");
        (!rules.is_empty() && rules.iter().all(is_known)).then_some(rules)
    });
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
    }

    let port = place.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let exposed = wait_until("queries to be measured", || {
        let exposed = get(port, "/metrics", None).1;
        exposed.contains("pipeline_slo_measured_seconds{").then_some(exposed)
    });
    for whose in ["own", "server"] {
        let series = format!("component=\"onward\",component_type=\"mqtt\",certificate=\"{whose}\"}}");
        assert!(exposed.contains(&series), "{whose}: {exposed}");
    }
    let names: BTreeSet<&str> = exposed.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let recorded: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
    let handbook = std::fs::read_to_string(root().join("docs/operations.md")).expect("the handbook");
    for rule in &rules {
        let (name, expression) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("PromQL"));
        for metric in expression::metrics(expression) {
            assert!(names.contains(metric) || recorded.contains(metric), "{name}: there is no {metric}");
        }
        for selector in expression::selectors(expression) {
            assert!(exposed.contains(&selector), "{name}: nothing has {selector}");
        }
        if rule["type"] == "alerting" {
            let anchor = format!("docs/operations.md#{}", name.to_lowercase());
            assert_eq!(rule["annotations"]["runbook"], anchor.as_str(), "{name}");
            assert!(handbook.contains(&format!("\n### {name}\n")), "{name} is not in docs/operations.md");
            let severity = rule["labels"]["severity"].as_str().expect("a severity");
            assert!(["P0", "P1", "P2", "P3"].contains(&severity) || name == "Watchdog", "{name}: {severity}");
        }
    }

    let only = |alert: &str| BTreeSet::from([alert.to_owned()]);
    wait_until("the objectives to be measured, and nothing to be wrong", || {
        let burning = prometheus.query("pipeline:slo_burn:ratio_rate5m").expect("an expression");
        // Anomalies need not have come twice within a look.
        (burning.len() >= 6 && active(&prometheus) == only("Watchdog")).then_some(())
    });
    pipeline.kill();
    wait_until("the pipeline's end to be noticed", || active(&prometheus).contains("PipelineDown").then_some(()));
}
