//! Every command that docs/db.md shows, in its order, on the pipeline that it shows it on.

use std::process::Command;

use super::{Said, said, tools};
use crate::process::{Process, root, wait_until};
use crate::services::{self, unique};

/// The lines of all `sh` blocks.
fn commands(text: &str) -> Vec<&str> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn every_command_of_the_handbook_does_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (s3, bucket) = (services::s3(), services::bucket());
    let url = services::database("handbook");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let topic = unique("handbook");
    let mut variables: Vec<(String, String)> = s3.environment().into_iter().collect();
    for (name, value) in [
        ("PIPELINE_DATA_DIR", path("data")),
        ("MQTT_URL", services::mqtt_url()),
        ("MQTT_TOPIC", format!("{topic}/#")),
        ("MQTT_CLIENT_ID", topic.clone()),
        ("DATABASE_URL", url),
        ("S3_URL", format!("s3://{bucket}/lake")),
    ] {
        variables.push((name.to_owned(), value));
    }

    // Programs as a reader has them: `pipeline` and PostgreSQL's own.
    let bin = tools(folder.path());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pipeline"), format!("{bin}/pipeline")).expect("our own folder");
    std::fs::copy(format!("{bin}/pg_dump"), format!("{bin}/psql")).expect("our own folder");
    let psql = std::fs::read_to_string(format!("{bin}/psql")).expect("text").replace("pg_dump", "psql");
    std::fs::write(format!("{bin}/psql"), psql).expect("our own folder");
    let search = format!("{bin}:{}", std::env::var("PATH").expect("a PATH"));
    let run = |line: &str| -> Said {
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", line]).current_dir(root()).env("PATH", &search).envs(variables.clone());
        said(shell.stdin(std::process::Stdio::null()).output().expect("a shell"))
    };

    let text = std::fs::read_to_string(root().join("docs/db.md")).expect("the handbook");
    let lines = commands(&text);
    assert!(lines.len() > 15, "{lines:?}");
    for command in
        ["init", "status", "optimize", "retention", "compress", "rollups", "backup", "restore", "archive", "drill"]
    {
        assert!(lines.iter().any(|line| line.contains(&format!("pipeline db {command} "))), "{command} is not shown");
    }
    let mut stored = false;
    for line in lines {
        if line.contains("db optimize") && !stored {
            store(&variables, &topic, folder.path());
            stored = true;
        }
        let line = line
            .replace("/var/backups/pipeline", &path("backups"))
            .replace("s3://iot-backups", &format!("s3://{bucket}"))
            .replace("ROLE collector", &format!("ROLE {}", unique("collector")))
            .replace("ROLE grafana", &format!("ROLE {}", unique("grafana")));
        let said = run(&line);
        let allowed: &[i32] = match line.split_whitespace().nth(2) {
            // Without a backup, or with tables that are not there, it warns.
            Some("status") => &[0, 1],
            // On the Apache edition.
            Some("compress") => &[1],
            _ => &[0],
        };
        assert!(allowed.contains(&said.code), "{line}: {}\n{}{}", said.code, said.out, said.err);
        if line.contains("db drill") && line.contains("--json") {
            let report: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
            assert_eq!(report["missing"], 0, "{report:#}");
        }
    }
}

/// Has the pipeline store a thousand messages.
fn store(variables: &[(String, String)], topic: &str, folder: &std::path::Path) {
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let url = variables.iter().find(|(name, _)| *name == "DATABASE_URL").expect("it was set").1;
    let mut run = Process::start(&["run", "pipelines/iot.toml"], &variables, folder, "run");
    run.wait_for_log("subscribed");
    let topic = format!("{topic}/fleet");
    let fleet =
        ["simulate", "--mqtt-broker", &services::mqtt_url(), "--topic", &topic, "--count", "1000", "--rate", "500"];
    assert!(Process::start(&fleet, &[], folder, "fleet").wait().success());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(crate::timescaledb::connect(url));
    wait_until("all to be stored", || {
        let row = runtime.block_on(client.query_one("SELECT count(*) FROM telemetry", &[])).expect("a table");
        (row.get::<_, i64>(0) >= 1_000).then_some(())
    });
    drop(client);
    let (status, log) = run.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}
