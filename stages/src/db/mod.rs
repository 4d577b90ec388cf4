//! What `pipeline db` does: the tables of a pipeline made, watched, kept small and fast, backed up and brought back.
//!
//! It works on what the sinks of a pipeline file declare ([`DeclaredTable`], [`SinkLake`]), so that nothing is said twice, and
//! knows both kinds of sink: that is why it lies beside them and not within one. A run of the pipeline needs none of it.
//!
//! | file | what is in it |
//! |---|---|
//! | `script.rs` | SQL with a reason for each statement: printed, or run statement by statement |
//! | `init.rs`, `roles.rs`, `optimize.rs`, `indexes.rs` | tables, ledgers, indexes and roles; what makes queries fast again |
//! | `hypertable.rs`, `retention.rs`, `compress.rs`, `rollups.rs` | chunks, and what becomes of old rows, by edition |
//! | `status.rs` | how all of it is |
//! | `place.rs`, `tools.rs`, `manifest.rs`, `fingerprint.rs` | where backups lie, PostgreSQL's own programs, what a backup says of itself, tables as counts and checksums |
//! | `backup.rs`, `restore.rs`, `swap.rs`, `catch_up.rs`, `drill.rs` | day two: dumped, proven, brought back, brought up to date from the lake, and all of that tried |
//! | `compare.rs` | two tables held against each other by device and minute: a new path beside an old one |
//! | `archive/` | old rows to Parquet, read back, then dropped |
//!
//! **What must never be:** nothing is dropped of which no copy was read back, unless the pipeline file's `retention` says
//! so and a person has confirmed; the database of a pipeline is replaced in one transaction, and the old one is kept.

mod archive;
mod backup;
mod catch_up;
mod compare;
mod compress;
mod drill;
mod fingerprint;
mod hypertable;
mod indexes;
mod init;
mod manifest;
mod optimize;
mod place;
mod restore;
mod retention;
mod roles;
mod rollups;
mod script;
mod settings;
mod status;
mod swap;
mod tools;

use std::path::PathBuf;
use std::time::Duration;

use pipeline_engine::Plan;
use pipeline_engine::stage::StageError;
use secrecy::SecretString;
use tokio_postgres::Client;

pub use self::archive::{ArchiveOptions, Archived, Archiving};
pub use self::backup::BackupRecord;
pub use self::catch_up::{CaughtUp, SinkLake, lakes};
pub use self::compare::{ComparedTable, Comparing, Comparison, MinuteDifference, Part, compare};
pub use self::drill::{DrillReport, DrilledTable};
pub use self::fingerprint::TableFingerprint;
pub use self::init::InitOptions;
pub use self::manifest::{LedgerEntry, Manifest};
pub use self::place::Place;
pub use self::restore::Restored;
pub use self::roles::RoleNames;
pub use self::script::{Script, Step};
pub use self::settings::DatabaseSetting;
pub use self::status::{DatabaseStatus, SlowQuery, TableFinding, TableStatus};
pub use self::tools::Tools;
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};
use crate::sinks::timescaledb::{DeclaredTable, OwnTable, Server};

/// One database, and what a pipeline keeps in it.
pub struct PipelineDatabase {
    pipeline: String,
    data_dir: PathBuf,
    database: Database,
    tables: Vec<SinkTable>,
    /// Several workers run the pipeline.
    is_shared: bool,
}

/// A table, and the sink that stores in it.
struct SinkTable {
    sink: String,
    inputs: Vec<String>,
    declared: DeclaredTable,
}

impl std::ops::Deref for SinkTable {
    type Target = DeclaredTable;

    fn deref(&self) -> &DeclaredTable {
        &self.declared
    }
}

/// A login of another user than the sinks': reads a url as `url` of a sink is read.
///
/// # Errors
/// It is no url of a database.
pub fn login(url: &SecretString, pipeline: &str) -> Result<Login, StageError> {
    let database = Database::of_url(url, None, &format!("pipeline {pipeline} db"));
    database.map(Login).map_err(|error| StageError::permanent(error.message))
}

/// Where `pipeline db` logs in.
pub struct Login(Database);

impl Login {
    /// The database that it is to.
    pub fn database(&self) -> String {
        self.0.name()
    }
}

/// The databases that the sinks of a pipeline store in, in the order of the file; each once.
pub fn databases(plan: &Plan) -> Vec<PipelineDatabase> {
    let mut found: Vec<PipelineDatabase> = Vec::new();
    for declared in plan.declared::<DeclaredTable>() {
        let table = SinkTable { sink: declared.sink, inputs: declared.inputs, declared: declared.value };
        let place = table.database.to_string();
        match found.iter_mut().find(|database| database.database.to_string() == place) {
            Some(database) => database.tables.push(table),
            None => found.push(PipelineDatabase {
                pipeline: plan.name().to_owned(),
                data_dir: plan.data_dir().to_owned(),
                database: table.database.clone(),
                tables: vec![table],
                is_shared: plan.is_shared(),
            }),
        }
    }
    found
}

/// A connection of `pipeline db`, and what the server is.
struct Session {
    link: Link,
    server: Server,
}

impl Session {
    fn client(&self) -> &Client {
        &self.link.client
    }
}

impl PipelineDatabase {
    /// The same, by another login: one that owns the tables, where the pipeline's own may only store in them.
    #[must_use]
    pub fn by_login(mut self, login: &Login) -> Self {
        self.database = login.0.clone();
        self
    }

    /// The database's name.
    pub fn name(&self) -> String {
        self.database.name()
    }

    /// The place and the user, never the password: `"iot" on db:5432 as "pipeline"`.
    pub fn place(&self) -> String {
        self.database.to_string()
    }

    async fn connect(&self) -> Result<Session, StageError> {
        let link = self.database.connect().await?;
        let server = Server::identify(&link.client).await?;
        Ok(Session { link, server })
    }

    /// Each table once, though several sinks may store in it: the first of them speaks for it.
    fn tables(&self) -> Vec<&SinkTable> {
        let mut names = Vec::new();
        let mut first = |table: &&SinkTable| {
            let name = table.table.sql_name();
            let is_new = !names.contains(&name);
            names.push(name);
            is_new
        };
        self.tables.iter().filter(|table| first(table)).collect()
    }

    /// The tables where workers claim partitions, each once; none where there is one worker.
    fn claims(&self) -> Vec<&OwnTable> {
        let mut found: Vec<&OwnTable> = Vec::new();
        for table in self.tables.iter().filter(|_| self.is_shared) {
            let claims = table.claims.table();
            if found.iter().all(|known| known.name() != claims.name()) {
                found.push(claims);
            }
        }
        found
    }

    /// What makes tables, ledgers, indexes and roles that are not there yet; nothing that is there is altered.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn init(&self, options: &InitOptions) -> Result<Script, StageError> {
        let session = self.connect().await?;
        init::script(self, &session, options).await
    }

    /// What makes queries fast again: indexes, statistics, the settings of autovacuum.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn optimize(&self) -> Result<Script, StageError> {
        let session = self.connect().await?;
        optimize::script(self, &session).await
    }

    /// What drops rows that are older than the `retention` of their sink, or has the server do so.
    ///
    /// # Errors
    /// The database can't be asked, or no sink says how long rows are kept.
    pub async fn retention(&self) -> Result<Script, StageError> {
        let session = self.connect().await?;
        retention::script(self, &session).await
    }

    /// What compresses chunks that are older than the `compress_after` of their sink.
    ///
    /// # Errors
    /// The database can't be asked, no sink wants it, or this edition can't: what to do instead.
    pub async fn compress(&self) -> Result<Script, StageError> {
        let session = self.connect().await?;
        compress::script(self, &session).await
    }

    /// What makes the rollups and brings them up to date; `all` computes them from every row there is.
    ///
    /// # Errors
    /// The database can't be asked, or no sink has rollups.
    pub async fn rollups(&self, all: bool) -> Result<Script, StageError> {
        let session = self.connect().await?;
        rollups::script(self, &session, all).await
    }

    /// Runs a script, statement by statement; `done` is told of each. What has run stays where a later one fails: each
    /// script can be made and run again, and then goes on.
    ///
    /// # Errors
    /// The first statement that failed.
    pub async fn run(&self, script: &Script, mut done: impl FnMut(&Step)) -> Result<(), StageError> {
        let session = self.connect().await?;
        // Others are not to queue up behind a lock that we wait for.
        let limits = "SET lock_timeout = '30s'; SET statement_timeout = 0";
        session.client().batch_execute(limits).await.map_err(|error| while_opening(error, "can't begin"))?;
        for step in &script.steps {
            let failed = |error| while_opening(error, &format!("{} failed", step.why));
            session.client().batch_execute(&step.sql).await.map_err(failed)?;
            done(step);
        }
        Ok(())
    }

    /// How the database and the tables are.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn status(&self) -> Result<DatabaseStatus, StageError> {
        let session = self.connect().await?;
        status::look(self, &session).await
    }
}

/// An error while the catalog was read.
fn catalog(error: tokio_postgres::Error) -> StageError {
    while_opening(error, "can't read the database's catalog")
}

/// A span of time as SQL.
fn interval(span: Duration) -> String {
    format!("INTERVAL '{}'", span_text(span))
}

/// A span of time in its largest whole unit, for SQL and for people: `90 days`. (Months are of no one length.)
fn span_text(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        _ if span.subsec_nanos() > 0 => (span.as_micros(), "microsecond"),
        0 => (0, "second"),
        _ if seconds.is_multiple_of(86_400) => (u128::from(seconds / 86_400), "day"),
        _ if seconds.is_multiple_of(3_600) => (u128::from(seconds / 3_600), "hour"),
        _ if seconds.is_multiple_of(60) => (u128::from(seconds / 60), "minute"),
        _ => (u128::from(seconds), "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A time as SQL, in microseconds since 1970; what is before or behind every calendar as the least and the greatest.
fn microseconds(time: &str) -> String {
    format!(
        "CASE WHEN isfinite({time}) THEN (extract(epoch FROM {time}) * 1000000)::int8 \
         WHEN {time} > 'epoch' THEN 9223372036854775807 WHEN {time} < 'epoch' THEN -9223372036854775807 END"
    )
}

/// A text as SQL takes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table as a pipeline file with these lines declares it, for tests.
#[cfg(test)]
fn declared(more: &str) -> SinkTable {
    use pipeline_engine::stage::SinkConfig;
    let text =
        format!("url = \"postgres://u@localhost/iot\"\ntable = \"telemetry\"\ntime_column = \"timestamp\"\n{more}");
    let config: crate::sinks::timescaledb::TimescaleDbConfig = toml::from_str(&text).expect("a configuration");
    let schema = "device_id = { type = \"text\", required = true }\ntimestamp = { type = \"timestamp\", required = true }\n\
                  temperature = \"float64\"\nseq = \"int64\"";
    let context = pipeline_engine::testing::build_context("table", &format!("[schema.telemetry]\n{schema}"));
    let input = context.schema("schema", "telemetry").expect("it is declared").arrow();
    let built = config.build(&input, &context).expect("a sink");
    let declared = built.sink.declared().expect("a table").downcast::<DeclaredTable>().expect("a table");
    SinkTable { sink: "table".to_owned(), inputs: vec!["in".to_owned()], declared: *declared }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_in_their_largest_whole_unit() {
        for (seconds, text) in [(90 * 86_400, "90 days"), (5_400, "90 minutes"), (7_200, "2 hours"), (61, "61 seconds")]
        {
            assert_eq!(interval(Duration::from_secs(seconds)), format!("INTERVAL '{text}'"));
        }
        assert_eq!(interval(Duration::from_millis(1_500)), "INTERVAL '1500000 microseconds'");
        assert_eq!(literal("a'b"), "'a''b'");
    }
}
