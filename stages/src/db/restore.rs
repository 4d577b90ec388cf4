//! A backup brought back: into a scratch database first, held against its manifest, and only then in the place of the
//! pipeline's database ([`super::swap`]).

use std::time::{Duration, Instant};

use pipeline_engine::stage::StageError;
use serde::Serialize;
use tokio_postgres::Client;

use super::manifest::Manifest;
use super::place::Place;
use super::swap::free_name;
use super::tools::Tools;
use super::{PipelineDatabase, catalog, fingerprint, literal, settings};
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};
use crate::sinks::timescaledb::Server;

/// The database of every server by which others are made and renamed.
const MAINTENANCE: &str = "postgres";

/// A backup in a database of its own, held against its manifest and equal to it.
pub(super) struct Scratch {
    pub database: Database,
    pub manifest: Manifest,
    /// Roles that were missing, and are now there without a login.
    pub roles_made: Vec<String>,
    pub took: Duration,
}

/// A database that was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The backup.
    pub backup: String,
    /// As of when, in microseconds since 1970.
    pub taken_at_us: i64,
    /// All rows that the backup held.
    pub rows: u64,
    /// What was brought up to date from the lake, by table.
    pub caught_up: Vec<super::CaughtUp>,
    /// What the database that was replaced is called now; `None` where there was none.
    pub replaced: Option<String>,
    /// Roles that were missing, and were made without a login.
    pub roles_made: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl PipelineDatabase {
    pub(super) async fn maintenance(&self) -> Result<Link, StageError> {
        // Nobody can rename the database that he is connected to.
        let database = if self.name() == MAINTENANCE { "template1" } else { MAINTENANCE };
        self.database.sibling(database).connect().await
    }

    /// Programs for the server of this database, which need not be there itself.
    ///
    /// # Errors
    /// The server can't be asked, or there are no such programs.
    pub async fn tools(&self, folder: Option<&std::path::Path>) -> Result<Tools, StageError> {
        let link = self.maintenance().await?;
        let server = Server::identify(&link.client).await?;
        Tools::find(folder, Some(&server.version)).await
    }

    /// Restores a backup into a database of its own and proves that all of it is there. On an error there is no such
    /// database any more.
    pub(super) async fn restore_to_scratch(
        &self,
        purpose: &str,
        from: &Place,
        manifest: Manifest,
        tools: &Tools,
    ) -> Result<Scratch, StageError> {
        let started = Instant::now();
        let link = self.maintenance().await?;
        let roles_made = make_roles(&link.client, &manifest.roles).await?;
        let name = free_name(&link.client, &manifest.database, purpose).await?;
        // The text of the original decides on its encoding and its order of letters; what is not there is the server's.
        execute(&link.client, &format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", ident(&name))).await?;
        let database = self.database.sibling(&name);
        let filled = async {
            prepare(&database, &manifest).await?;
            let read = tools.restore(from, &manifest.dump(), &database).await?;
            if read.sha256 != manifest.sha256 {
                return Err(StageError::permanent(format!(
                    "\"{}\" is not what was written: its SHA-256 is {}, and the manifest says {}",
                    manifest.dump(),
                    read.sha256,
                    manifest.sha256
                ))
                .hint("It was damaged where it lies. Restore an older one: --backup NAME."));
            }
            settle(&database, &manifest).await?;
            compare(&database, &manifest).await
        };
        match filled.await {
            Ok(()) => Ok(Scratch { database, manifest, roles_made, took: started.elapsed() }),
            Err(error) => {
                self.drop_scratch(&database).await?;
                Err(error)
            }
        }
    }

    /// Drops a scratch database, whoever is connected to it.
    pub(super) async fn drop_scratch(&self, scratch: &Database) -> Result<(), StageError> {
        let link = self.maintenance().await?;
        execute(&link.client, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(&scratch.name()))).await
    }

    /// Restores a backup in the place of the database. What the lakes have of the time since is put in first, unless
    /// `lakes` is empty. The database that was there is kept, under another name.
    ///
    /// # Errors
    /// Whatever failed; the database is then what it was.
    pub async fn restore(
        &self,
        from: &Place,
        name: Option<&str>,
        tools: &Tools,
        lakes: &mut [super::SinkLake],
        disconnect: bool,
    ) -> Result<Restored, StageError> {
        let started = Instant::now();
        let manifest = Manifest::find(from, &self.name(), name).await?;
        // Told now and not after an hour of restoring.
        self.check_unused(disconnect).await?;
        let scratch = self.restore_to_scratch("restore", from, manifest, tools).await?;
        let outcome = async {
            let caught_up = self.catch_up(&scratch.database, lakes).await?;
            // Only now: a database may be set to be read alone.
            let link = self.maintenance().await?;
            settings::give(&link.client, &scratch.database.name(), &scratch.manifest.settings).await?;
            let replaced = self.swap(&scratch.database, disconnect).await?;
            Ok((caught_up, replaced))
        };
        let (caught_up, replaced) = match outcome.await {
            Ok(done) => done,
            Err(error) => {
                self.drop_scratch(&scratch.database).await?;
                return Err(error);
            }
        };
        let Scratch { manifest, roles_made, .. } = scratch;
        Ok(Restored {
            rows: manifest.tables.iter().map(|table| table.rows).sum(),
            backup: manifest.name,
            taken_at_us: manifest.taken_at_us,
            caught_up,
            replaced,
            roles_made,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// A name in double quotes.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) async fn execute(client: &Client, sql: &str) -> Result<(), StageError> {
    client.batch_execute(sql).await.map_err(|error| while_opening(error, &format!("`{sql}` failed")))
}

/// Makes the roles that own what is in the dump, where they are missing: without a login.
async fn make_roles(client: &Client, wanted: &[String]) -> Result<Vec<String>, StageError> {
    let sql = "SELECT name FROM unnest($1::text[]) AS name WHERE name NOT IN (SELECT rolname FROM pg_roles)";
    let rows = client.query(sql, &[&wanted]).await.map_err(catalog)?;
    let missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for role in &missing {
        execute(client, &format!("CREATE ROLE {} NOLOGIN", ident(role))).await?;
    }
    Ok(missing)
}

/// TimescaleDB's own procedure: the extension in the version of the dump, and its triggers at rest.
async fn prepare(database: &Database, manifest: &Manifest) -> Result<(), StageError> {
    let Some(version) = &manifest.timescaledb else { return Ok(()) };
    let link = database.connect().await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_available_extension_versions WHERE name = 'timescaledb' AND version = $1)";
    let row = link.client.query_one(sql, &[version]).await.map_err(catalog)?;
    if !row.get::<_, bool>(0) {
        return Err(StageError::permanent(format!("the server has no TimescaleDB {version}, of which the backup is"))
            .hint(
                "Install that version, restore, and then update the extension: ALTER EXTENSION timescaledb UPDATE.",
            ));
    }
    execute(&link.client, &format!("CREATE EXTENSION timescaledb VERSION {}", literal(version))).await?;
    execute(&link.client, "SELECT timescaledb_pre_restore()").await?;
    close(link).await
}

async fn settle(database: &Database, manifest: &Manifest) -> Result<(), StageError> {
    let link = database.connect().await?;
    if manifest.timescaledb.is_some() {
        execute(&link.client, "SELECT timescaledb_post_restore()").await?;
    }
    execute(&link.client, "ANALYZE").await?;
    close(link).await
}

async fn close(link: Link) -> Result<(), StageError> {
    link.close().await.map_err(|error| while_opening(error, "the connection was lost"))
}

/// Every table against its count and checksum in the manifest.
async fn compare(database: &Database, manifest: &Manifest) -> Result<(), StageError> {
    let link = database.connect().await?;
    execute(&link.client, fingerprint::SETTINGS).await?;
    let mut differences = Vec::new();
    for expected in &manifest.tables {
        let found = fingerprint::of(&link.client, &expected.table, "").await?;
        if found != *expected {
            differences.push(format!(
                "{} has {} rows with checksum {}, and the backup had {} with {}",
                expected.table, found.rows, found.checksum, expected.rows, expected.checksum
            ));
        }
    }
    close(link).await?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(StageError::permanent(format!("what was restored is not what was backed up: {}", differences.join("; ")))
        .hint("Nothing was replaced. Restore an older one: --backup NAME."))
}
