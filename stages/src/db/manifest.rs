//! What lies beside a dump: when it was made, what is in it, and how far the pipeline had come.

use pipeline_engine::stage::StageError;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::fingerprint::TableFingerprint;
use super::place::Place;
use super::settings::DatabaseSetting;
use super::{catalog, fingerprint};
use crate::sinks::timescaledb::LEDGER;

/// The name of what says which backup is the newest that was proven.
pub(super) const LATEST: &str = "latest.json";
/// What manifests are called behind the backup's name.
const ENDING: &str = ".json";

/// A backup, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this description; another one is not understood.
    pub format: u32,
    /// `iot_20260131-120000`: the dump is NAME.dump, this is NAME.json.
    pub name: String,
    /// The pipeline.
    pub pipeline: String,
    /// The database that was dumped.
    pub database: String,
    /// When, in microseconds since 1970, by the server's clock.
    pub taken_at_us: i64,
    /// The server's version: `17.2`.
    pub server: String,
    /// What tells its cluster from all others, a standby and a copy of its files aside; `None` in manifests of before.
    #[serde(default)]
    pub system: Option<String>,
    /// TimescaleDB's version; `None` without it.
    pub timescaledb: Option<String>,
    /// The size of the dump.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Every table of the database as of the dump.
    pub tables: Vec<TableFingerprint>,
    /// Every sink's positions as of the dump.
    pub positions: Vec<LedgerEntry>,
    /// Roles that own something in it, were granted something, or have settings of their own in it.
    pub roles: Vec<String>,
    /// Settings of the database itself.
    #[serde(default)]
    pub settings: Vec<DatabaseSetting>,
}

/// How far a sink had come on one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The ledger, as SQL names it.
    pub ledger: String,
    /// The pipeline.
    pub pipeline: String,
    /// The sink.
    pub sink: String,
    /// The input.
    pub input: String,
    /// The source and its partition.
    pub partition: String,
    /// As text, in decimal.
    pub position: String,
    /// How many rows it had been given.
    pub rows_total: i64,
}

impl Manifest {
    pub(super) fn dump(&self) -> String {
        format!("{}.dump", self.name)
    }

    pub(super) fn file(&self) -> String {
        format!("{}{ENDING}", self.name)
    }

    /// All backups of a database at a place, the oldest first.
    ///
    /// # Errors
    /// The place can't be read, or something there that is called as a manifest is none.
    pub async fn all(place: &Place, database: &str) -> Result<Vec<Self>, StageError> {
        let mut found = Vec::new();
        for file in place.names().await? {
            let is_ours = file.strip_suffix(ENDING).is_some_and(|name| stamp_of(name, database).is_some());
            if is_ours && let Some(manifest) = Self::read(place, &file).await? {
                found.push(manifest);
            }
        }
        found.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(found)
    }

    /// A backup by its name; without one, that which the place says is the newest.
    ///
    /// # Errors
    /// There is none.
    pub async fn find(place: &Place, database: &str, name: Option<&str>) -> Result<Self, StageError> {
        let name = match name {
            Some(name) => name.trim_end_matches(ENDING).trim_end_matches(".dump").to_owned(),
            None => match place.get(&latest_of(database)).await? {
                Some(pointer) => parse::<Pointer>(&pointer, LATEST)?.name,
                None => {
                    return Err(StageError::permanent(format!(
                        "no backup of \"{database}\" lies in {}",
                        place.shown()
                    ))
                    .hint("`pipeline db backup FILE --to PLACE` makes one."));
                }
            },
        };
        let missing = || StageError::permanent(format!("no backup \"{name}\" lies in {}", place.shown()));
        let found = Self::read(place, &format!("{name}{ENDING}")).await?.ok_or_else(missing)?;
        if found.database != database {
            return Err(StageError::permanent(format!(
                "\"{name}\" is a backup of \"{}\", not of \"{database}\"",
                found.database
            )));
        }
        Ok(found)
    }

    /// Refuses a place whose newest backup of a database of that name is of another server: names and pruning would mix the
    /// backups of both, and a restore take the wrong one.
    ///
    /// # Errors
    /// It is, or the place can't be read.
    pub(super) async fn check_owner(place: &Place, database: &str, system: &str) -> Result<(), StageError> {
        let Some(pointer) = place.get(&latest_of(database)).await? else { return Ok(()) };
        // What can't be read belongs to nobody, and is replaced by what is proven.
        let Ok(Pointer { name }) = parse(&pointer, LATEST) else { return Ok(()) };
        let Ok(Some(newest)) = Self::read(place, &format!("{name}{ENDING}")).await else { return Ok(()) };
        match newest.system {
            Some(other) if other != system => Err(StageError::permanent(format!(
                "{} has backups of \"{database}\" of another server: the newest, \"{name}\", is of system {other}, and this one \
                 is {system}",
                place.shown()
            ))
            .hint(
                "Give each server a place of its own. Where this one has taken the other's place, after a restore or an upgrade, \
                 say --take-over once.",
            )),
            _ => Ok(()),
        }
    }

    async fn read(place: &Place, file: &str) -> Result<Option<Self>, StageError> {
        let Some(text) = place.get(file).await? else { return Ok(None) };
        let manifest: Self = parse(&text, file)?;
        if manifest.format != FORMAT {
            return Err(StageError::permanent(format!("\"{file}\" is of format {}", manifest.format))
                .hint(format!("This version of pipeline reads format {FORMAT}.")));
        }
        Ok(Some(manifest))
    }
}

/// Of manifests that this version writes.
pub(super) const FORMAT: u32 = 1;

/// Several databases may be backed up to one place.
pub(super) fn latest_of(database: &str) -> String {
    format!("{database}.{LATEST}")
}

/// What [`LATEST`] holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pointer {
    pub name: String,
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], file: &str) -> Result<T, StageError> {
    serde_json::from_slice(text)
        .map_err(|error| StageError::permanent(format!("\"{file}\" is no manifest")).because(error))
}

/// `20260131-120000` of `iot_20260131-120000`, if that is a backup of this database.
pub(super) fn stamp_of<'n>(name: &'n str, database: &str) -> Option<&'n str> {
    let stamp = name.strip_prefix(database)?.strip_prefix('_')?;
    let shape = |(place, letter): (usize, char)| if place == 8 { letter == '-' } else { letter.is_ascii_digit() };
    (stamp.len() == 15 && stamp.chars().enumerate().all(shape)).then_some(stamp)
}

/// What tells a server's cluster from all others.
pub(super) async fn system(client: &Client) -> Result<String, StageError> {
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    Ok(client.query_one(sql, &[]).await.map_err(catalog)?.get(0))
}

/// Every sink's positions, in all ledgers of the database.
pub(super) async fn positions(client: &Client) -> Result<Vec<LedgerEntry>, StageError> {
    let mut found = Vec::new();
    for ledger in fingerprint::tables(client).await? {
        if ledger.rsplit('.').next() != Some(LEDGER) {
            continue;
        }
        let sql = format!(
            "SELECT pipeline, sink, input, partition, position, rows_total FROM {ledger} ORDER BY pipeline, sink, input, partition"
        );
        for row in client.query(&sql, &[]).await.map_err(catalog)? {
            found.push(LedgerEntry {
                ledger: ledger.clone(),
                pipeline: row.get(0),
                sink: row.get(1),
                input: row.get(2),
                partition: row.get(3),
                position: row.get(4),
                rows_total: row.get(5),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_known_by_their_names() {
        assert_eq!(stamp_of("iot_20260131-120000", "iot"), Some("20260131-120000"));
        for other in ["iot_b_20260131-120000", "iot_20260131-1200", "iot_latest", "iot", "other_20260131-120000"] {
            assert_eq!(stamp_of(other, "iot"), None, "{other}");
        }
    }
}
