//! `pipelines/iot.toml` as it ships, but for where its page is; on services that are shared, under names of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::free_port;
use crate::process::{Process, root};
use crate::services;

/// A pipeline file and what it needs, not running yet.
pub struct Shipped {
    pub folder: TempDir,
    pub file: PathBuf,
    pub port: u16,
    pub database: String,
    variables: Vec<(String, String)>,
}

impl Shipped {
    /// `edit` changes the text of the file.
    pub fn new(name: &str, edit: impl Fn(String) -> String) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let shipped = std::fs::read_to_string(root().join("pipelines/iot.toml")).expect("it is shipped");
        let file = folder.path().join("iot.toml");
        let text = format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n{}", edit(shipped));
        std::fs::write(&file, text).expect("our own folder");
        let (topic, database) = (services::unique(name), services::database(name));
        let place = |name: &str| folder.path().join(name).display().to_string();
        let variables = [
            ("MQTT_URL", services::mqtt_url()),
            ("MQTT_TOPIC", format!("{topic}/#")),
            ("MQTT_CLIENT_ID", topic.clone()),
            ("DATABASE_URL", database.clone()),
            ("S3_URL", place("lake")),
            ("PIPELINE_DATA_DIR", place("state")),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { folder, file, port, database, variables }
    }

    /// Its variables, for a process.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Runs it. Subscribed on return.
    pub fn run(&self) -> Process {
        let arguments = ["run".as_ref(), self.file.as_os_str()];
        let mut pipeline = Process::start(&arguments, &self.variables(), self.folder.path(), "pipeline");
        pipeline.wait_for_log("subscribed");
        pipeline
    }

    /// `pipeline SUBCOMMAND FILE ARGUMENTS`, to its end.
    pub fn pipeline(&self, subcommand: &str, arguments: &[&str]) -> Output {
        pipeline(subcommand, &self.file, arguments, &self.variables())
    }

    /// The same, whose output is JSON on one line; with the exit code.
    pub fn json(&self, subcommand: &str, arguments: &[&str]) -> (i32, Value) {
        parsed(&self.pipeline(subcommand, arguments))
    }

    /// What a query of the database gives: one number.
    pub fn count(&self, sql: &str) -> i64 {
        count(&self.database, sql)
    }
}

/// A subcommand with a file, to its end.
pub fn pipeline(subcommand: &str, file: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg(subcommand).arg(file).args(arguments).envs(variables.iter().copied()).current_dir(root());
    command.output().expect("the binary runs")
}

/// Exit code and JSON of a command that prints one line.
pub fn parsed(output: &Output) -> (i32, Value) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"));
    assert_eq!(stdout.trim_end().lines().count(), 1, "{stdout}");
    (output.status.code().expect("it ended by itself"), json)
}

/// What a query gives: one number.
pub fn count(database: &str, sql: &str) -> i64 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(database, tokio_postgres::NoTls).await.expect("the database");
        tokio::spawn(connection);
        client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    })
}

/// Runs statements.
pub fn execute(database: &str, sql: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(database, tokio_postgres::NoTls).await.expect("the database");
        tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    });
}
