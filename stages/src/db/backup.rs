//! A database dumped, proven, and only then called the newest backup.
//!
//! Counts, checksums and positions are those of the very snapshot that `pg_dump` dumps, so that a restore can be held
//! against them. The dump is read back from where it lies, whole, before the pointer moves; what is cut off in the middle
//! has no manifest and counts for nothing.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime, Utc};
use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::manifest::{self, FORMAT, Manifest, Pointer};
use super::place::{Measured, Place};
use super::tools::Tools;
use super::{PipelineDatabase, catalog, fingerprint, settings};
use crate::postgres::fault::while_opening;

/// What is noted of the last backup, in the pipeline's data directory: the run and `status` tell its age by it.
const RECORD: &str = "backup.json";

const STAMP: &str = "%Y%m%d-%H%M%S";

/// The last backup that this machine has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub place: String,
    /// As of when, in microseconds since 1970.
    pub taken_at_us: i64,
    /// The size of its dump.
    pub bytes: u64,
    /// All rows in it.
    pub rows: u64,
}

impl BackupRecord {
    /// What was noted in a data directory; `None` if nothing was, or nothing that can be read.
    pub fn of(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data_dir.join(RECORD)).ok()?).ok()
    }

    fn keep(&self, data_dir: &Path) -> Result<(), StageError> {
        let kept = std::fs::create_dir_all(data_dir).and_then(|()| {
            // A reader sees the old one or the new one.
            let aside = data_dir.join(format!("{RECORD}.new"));
            std::fs::write(&aside, serde_json::to_vec(self)?)?;
            std::fs::rename(aside, data_dir.join(RECORD))
        });
        kept.map_err(|error| {
            let text = format!("the backup is made, and was not noted in \"{}\"", data_dir.display());
            StageError::permanent(text).because(error).hint("Run this as the user that the pipeline runs as.")
        })
    }
}

impl PipelineDatabase {
    /// Dumps the database to a place. Backups that are older than `keep` are deleted once this one is proven. A place with
    /// backups of another server is refused, unless this one is to `take_over`.
    ///
    /// # Errors
    /// Whatever failed; the newest backup is then the one that it was.
    pub async fn back_up(
        &self,
        to: &Place,
        tools: &Tools,
        keep: Option<Duration>,
        take_over: bool,
    ) -> Result<Manifest, StageError> {
        let session = self.connect().await?;
        let client = session.client();
        let system = manifest::system(client).await?;
        if !take_over {
            Manifest::check_owner(to, &self.name(), &system).await?;
        }
        client.batch_execute(fingerprint::SETTINGS).await.map_err(catalog)?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(catalog)?;
        let row = client
            .query_one("SELECT pg_export_snapshot(), (extract(epoch FROM now()) * 1000000)::int8", &[])
            .await
            .map_err(|error| while_opening(error, "no snapshot was given"))?;
        let (snapshot, taken_at_us): (String, i64) = (row.get(0), row.get(1));
        let name = format!("{}_{}", self.name(), stamp(taken_at_us));
        if to.get(&format!("{name}.json")).await?.is_some() {
            return Err(StageError::transient(format!("\"{name}\" was made within this second")));
        }
        let dump = format!("{name}.dump");
        let (measured, tables) =
            tokio::try_join!(tools.dump(&self.database, &snapshot, to, &dump), fingerprints(client))?;
        let manifest = Manifest {
            format: FORMAT,
            name,
            pipeline: self.pipeline.clone(),
            database: self.name(),
            taken_at_us,
            server: session.server.version.clone(),
            system: Some(system),
            timescaledb: session.server.timescale.as_ref().map(|timescale| timescale.version.clone()),
            bytes: measured.bytes,
            sha256: measured.sha256.clone(),
            tables,
            positions: manifest::positions(client).await?,
            roles: roles(client).await?,
            settings: settings::of(client).await?,
        };
        client.batch_execute("COMMIT").await.map_err(catalog)?;
        self.prove(&manifest, &measured, to, tools).await?;
        self.record(&manifest, to)?;
        if let Some(keep) = keep {
            prune(to, &manifest, keep).await?;
        }
        Ok(manifest)
    }

    /// Reads the dump back, and moves the pointer.
    async fn prove(
        &self,
        manifest: &Manifest,
        written: &Measured,
        to: &Place,
        tools: &Tools,
    ) -> Result<(), StageError> {
        let found = tools.inspect(to, &manifest.dump()).await?;
        if found != *written {
            return Err(StageError::permanent(format!(
                "\"{}\" reads back as {} bytes with SHA-256 {}, and {} bytes with {} were written",
                manifest.dump(),
                found.bytes,
                found.sha256,
                written.bytes,
                written.sha256
            ))
            .hint("The place has changed it. The newest backup is still the one before."));
        }
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.map(Bytes::from).map_err(|error| StageError::bug("a manifest can't be written").because(error))
        };
        to.put(&manifest.file(), json(serde_json::to_vec_pretty(manifest))?).await?;
        let pointer = Pointer { name: manifest.name.clone() };
        to.put(&manifest::latest_of(&manifest.database), json(serde_json::to_vec(&pointer))?).await
    }

    fn record(&self, manifest: &Manifest, to: &Place) -> Result<(), StageError> {
        let record = BackupRecord {
            name: manifest.name.clone(),
            place: to.shown().to_owned(),
            taken_at_us: manifest.taken_at_us,
            bytes: manifest.bytes,
            rows: manifest.tables.iter().map(|table| table.rows).sum(),
        };
        record.keep(&self.data_dir)
    }

    /// The last backup that was made on this machine for this pipeline.
    pub fn last_backup(&self) -> Option<BackupRecord> {
        BackupRecord::of(&self.data_dir)
    }
}

async fn fingerprints(client: &Client) -> Result<Vec<fingerprint::TableFingerprint>, StageError> {
    let mut found = Vec::new();
    for table in fingerprint::tables(client).await? {
        found.push(fingerprint::of(client, &table, "").await?);
    }
    Ok(found)
}

/// Whoever must be there before the dump can be restored.
async fn roles(client: &Client) -> Result<Vec<String>, StageError> {
    let sql = "SELECT DISTINCT r.rolname::text FROM pg_roles r WHERE r.rolname !~ '^pg_' AND (r.oid IN \
               (SELECT refobjid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass \
                AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) \
               OR r.oid IN (SELECT relowner FROM pg_class) OR r.oid IN (SELECT setrole FROM pg_db_role_setting \
               WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))) ORDER BY 1";
    let rows = client.query(sql, &[]).await.map_err(catalog)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Deletes backups of the database that are older than so long, but never the one that was just made: the manifest first,
/// so that no backup is without its dump. What was cut off in the middle goes as well.
async fn prune(place: &Place, newest: &Manifest, keep: Duration) -> Result<(), StageError> {
    let limit_us = now_us().saturating_sub(i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
    let mut old: Vec<String> = place
        .names()
        .await?
        .into_iter()
        .filter(|file| {
            let name = file.strip_suffix(".json").or_else(|| file.strip_suffix(".dump"));
            let stamp =
                name.filter(|name| *name != newest.name).and_then(|name| manifest::stamp_of(name, &newest.database));
            stamp.and_then(time_of).is_some_and(|taken_at_us| taken_at_us < limit_us)
        })
        .collect();
    // Manifests before dumps.
    old.sort_unstable_by_key(|file| (file.ends_with(".dump"), file.clone()));
    for file in old {
        place.delete(&file).await?;
    }
    Ok(())
}

pub(super) fn stamp(us: i64) -> String {
    DateTime::<Utc>::from_timestamp_micros(us).unwrap_or_default().format(STAMP).to_string()
}

fn time_of(stamp: &str) -> Option<i64> {
    NaiveDateTime::parse_from_str(stamp, STAMP).ok().map(|time| time.and_utc().timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_second_in_utc() {
        let noon = 1_769_860_800_000_000;
        assert_eq!(stamp(noon + 999_999), "20260131-120000");
        assert_eq!(time_of("20260131-120000"), Some(noon));
        assert_eq!(time_of("20261331-120000"), None);
    }

    #[test]
    fn what_was_noted_of_a_backup_reads_back_and_damage_is_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let record = BackupRecord { name: "iot_1".into(), place: "/b".into(), taken_at_us: 7, bytes: 8, rows: 9 };
        assert_eq!(BackupRecord::of(folder.path()), None);
        record.keep(&folder.path().join("new")).unwrap();
        assert_eq!(BackupRecord::of(&folder.path().join("new")), Some(record));
        std::fs::write(folder.path().join("new").join(RECORD), "{").unwrap();
        assert_eq!(BackupRecord::of(&folder.path().join("new")), None);
    }
}
