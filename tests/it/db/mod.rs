//! `pipeline db` with the real binary against real TimescaleDB: what is made, what is kept up, what is brought back.
//!
//! The server has TimescaleDB's Apache edition, and databases without the extension stand in for plain PostgreSQL. The
//! community edition is not to be had as a package of Debian: what is only there is held by the unit tests of
//! `pipeline_stages::db`, as SQL.

mod archive;
mod day_two;
mod docs;
mod init;
mod killed;
mod upkeep;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::process::{Process, root};
use crate::services::{self, unique};

/// A pipeline with a database, a lake and a name of its own.
struct Site {
    folder: TempDir,
    name: String,
    url: String,
    runtime: tokio::runtime::Runtime,
}

/// What a command has said and how it ended.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Site {
    /// With TimescaleDB in its database.
    fn new(prefix: &str) -> Self {
        Self::at(prefix, services::database(prefix), "")
    }

    /// On plain PostgreSQL.
    fn plain(prefix: &str) -> Self {
        let url = services::database(prefix);
        let site = Self::at(prefix, url, "");
        site.sql("DROP EXTENSION timescaledb");
        site
    }

    fn at(prefix: &str, url: String, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let site = Self { folder, name: unique(prefix).replace('_', "-"), url, runtime };
        site.write(more);
        site
    }

    /// Writes the pipeline file, with these lines more for the sink `telemetry_table`.
    fn write(&self, more: &str) {
        let mut text = include_str!("pipeline.toml").to_owned();
        let (dir, broker) = (self.path("").display().to_string(), services::mqtt_url());
        let values = [("NAME", &self.name), ("DIR", &dir), ("BROKER", &broker), ("DATABASE", &self.url)];
        for (name, value) in values {
            text = text.replace(&format!("@{name}@"), value);
        }
        std::fs::write(self.file(), text.replace("@MORE@", more)).expect("our own folder");
    }

    fn path(&self, name: &str) -> PathBuf {
        let folder = self.folder.path();
        if name.is_empty() { folder.to_owned() } else { folder.join(name) }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("plant.toml")
    }

    /// The database's own name.
    fn database(&self) -> &str {
        self.url.rsplit_once('/').expect("a url with a database").1
    }

    /// `pipeline db COMMAND FILE ARGUMENTS`.
    fn db(&self, command: &str, arguments: &[&str]) -> Said {
        let file = self.file().display().to_string();
        let mut all = vec!["db", command, &file];
        all.extend(arguments);
        self.pipeline(&all)
    }

    fn pipeline(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(arguments).current_dir(root()).stdin(Stdio::null()).env_remove("PIPELINE_DB_URL");
        said(command.output().expect("the binary runs"))
    }

    /// The same; it must succeed.
    #[track_caller]
    fn done(&self, command: &str, arguments: &[&str]) -> String {
        let said = self.db(command, arguments);
        assert_eq!(said.code, 0, "{command} {arguments:?}: {}{}", said.out, said.err);
        said.out
    }

    /// One JSON object that a command prints.
    #[track_caller]
    fn json(&self, command: &str, arguments: &[&str]) -> Value {
        let said = self.db(command, arguments);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
    }

    /// Runs the pipeline until a fleet has sent so many messages and all are stored, the bad ones as dead letters.
    fn store(&self, messages: usize, bad: usize, seed: usize) {
        let name = format!("run-{seed}");
        let file = self.file().display().to_string();
        let mut run = Process::start(&["run", &file], &[], self.folder.path(), &name);
        run.wait_for_log("subscribed");
        let before = self.rows();
        self.fleet(messages, seed);
        self.letters(bad, seed);
        crate::process::wait_until("all to be stored", || {
            let (telemetry, letters) = self.rows();
            (telemetry >= before.0 + messages as i64 && letters >= before.1 + bad as i64).then_some(())
        });
        let (status, log) = run.stop();
        assert_eq!(status.code(), Some(0), "{log}");
    }

    fn fleet(&self, messages: usize, seed: usize) {
        let (broker, topic) = (services::mqtt_url(), format!("{}/fleet", self.name));
        let (count, seed) = (messages.to_string(), seed.to_string());
        let arguments = ["simulate", "--mqtt-broker", &broker, "--topic", &topic, "--device-count", "20"];
        let mut all = arguments.to_vec();
        all.extend(["--rate", "2000", "--count", &count, "--seed", &seed]);
        let said = self.pipeline(&all);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    }

    /// Messages that don't decode.
    fn letters(&self, count: usize, seed: usize) {
        let payloads: Vec<String> = (0..count).map(|number| format!("{{ no JSON: {seed} {number}")).collect();
        let topic = format!("{}/bad", self.name);
        let messages = payloads.iter().map(|payload| (topic.clone(), payload.as_bytes()));
        self.runtime.block_on(services::publish(messages));
    }

    /// Rows of telemetry and dead letters.
    fn rows(&self) -> (i64, i64) {
        let count = |table: &str| match self.number(&format!("SELECT (to_regclass('{table}') IS NULL)::int4::int8")) {
            0 => self.number(&format!("SELECT count(*) FROM {table}")),
            _ => 0,
        };
        (count("telemetry"), count("dead_letters"))
    }

    fn connect(&self, url: &str) -> Client {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the test's own connection");
            tokio::spawn(connection);
            client
        })
    }

    #[track_caller]
    fn sql(&self, sql: &str) {
        let client = self.connect(&self.url);
        self.runtime.block_on(client.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    #[track_caller]
    fn number(&self, sql: &str) -> i64 {
        let client = self.connect(&self.url);
        self.runtime.block_on(client.query_one(sql, &[])).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    #[track_caller]
    fn text(&self, sql: &str) -> String {
        let client = self.connect(&self.url);
        self.runtime.block_on(client.query_one(sql, &[])).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// All that a table holds, as one hash.
    fn content(&self, table: &str) -> String {
        self.text(&format!("SELECT count(*) || ' ' || coalesce(sum(hashtext(t::text)::int8), 0) FROM {table} AS t"))
    }

    /// Runs a script with psql, which stops at the first mistake.
    #[track_caller]
    fn psql(&self, script: &str) {
        use std::io::Write;
        let mut psql = client_program("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let (server, database) = (self.url.trim_start_matches("postgres://"), self.database());
        let (user, place) = server.split_once('@').expect("a user");
        let (host, port) = place.split_once('/').expect("a database").0.split_once(':').expect("a port");
        let place = [("PGHOST", host), ("PGPORT", port), ("PGUSER", user), ("PGDATABASE", database)];
        let mut running = psql.envs(place).stderr(Stdio::piped()).spawn().expect("psql starts");
        running.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("psql reads");
        let output = said(running.wait_with_output().expect("psql ends"));
        assert_eq!(output.code, 0, "{script}\n{}", output.err);
    }

    /// Readings of five devices, one a minute, for so many days before now and one ahead.
    fn fill(&self, days: u32) {
        self.sql(&format!(
            "INSERT INTO telemetry (device_id, timestamp, temperature, humidity, seq) \
             SELECT 'd' || device, at, 20 + device + extract(hour FROM at) / 10, 50, row_number() OVER () \
             FROM generate_series(1, 5) AS device, \
             generate_series(date_trunc('minute', now()) - interval '{days} days', now(), interval '10 minutes') AS at"
        ));
    }
}

fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// One of PostgreSQL's programs in the version of the server.
fn client_program(name: &str) -> Command {
    let mut command = Command::new(root().join("tests/services/services"));
    command.args(["client", name]);
    command
}

/// A folder with `pg_dump` and `pg_restore` in the version of the server: this machine may have none, or older ones.
fn tools(folder: &Path) -> String {
    let tools = folder.join("tools");
    std::fs::create_dir_all(&tools).expect("our own folder");
    let services = root().join("tests/services/services");
    for name in ["pg_dump", "pg_restore"] {
        let program = tools.join(name);
        std::fs::write(&program, format!("#!/bin/sh\nexec '{}' client {name} \"$@\"\n", services.display()))
            .expect("our own folder");
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our own file");
    }
    tools.display().to_string()
}
