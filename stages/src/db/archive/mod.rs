//! Old rows to Parquet, read back, and only then dropped.
//!
//! A parcel is a chunk of a hypertable, or a day of an ordinary table. It is exported as of a snapshot; the objects are read
//! back from where they lie and compared with that snapshot value for value, by the server. Then, with the table locked
//! against writers for as long as a checksum takes, it is asked whether the parcel is still what was exported. If so it is
//! dropped and noted in `_pipeline_archive`, in one transaction; if a late row has come meanwhile, all is done again.
//!
//! So a crash at any moment leaves the rows in the table, or in objects that were proven, and never in neither; and what is
//! archived is noted once. An object is named by its content: done again, the same rows make the same object.

mod columns;
mod export;

use std::time::Duration;

use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;
use serde::Serialize;

use self::columns::ArchiveColumn;
use super::fingerprint::TableFingerprint;
use super::hypertable::instant;
use super::place::Place;
use super::{PipelineDatabase, Session, SinkTable, catalog, fingerprint, hypertable, literal, rollups};
use crate::postgres::fault::while_opening;
use crate::sinks::timescaledb::Table;

/// What was archived and when, beside the tables.
const LEDGER: &str = "_pipeline_archive";
const DAY_US: i64 = 86_400_000_000;
/// Late rows that come while a parcel is exported: so often it is begun anew.
const TRIES: usize = 5;

/// What is archived.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// Parcels all of whose rows are older.
    pub older_than: Duration,
    /// Of these sinks only; empty: of all that have a time column.
    pub sinks: Vec<String>,
}

/// A parcel that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archiving {
    /// As SQL names it.
    pub table: String,
    /// The sink that stores in it.
    pub sink: String,
    /// Microseconds since 1970, of the first row that may be in it.
    pub from_us: i64,
    /// Of the first that may not any more.
    pub to_us: i64,
}

/// A parcel that lies in objects now and no longer in the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// What it was.
    #[serde(flatten)]
    pub parcel: Archiving,
    /// How many rows.
    pub rows: u64,
    /// Their objects, below the place.
    pub objects: Vec<String>,
    /// How large these are together.
    pub bytes: u64,
}

impl PipelineDatabase {
    /// The parcels that are due, the oldest of each table first.
    ///
    /// # Errors
    /// The database can't be asked, or no such sink has a time column.
    pub async fn to_archive(&self, options: &ArchiveOptions) -> Result<Vec<Archiving>, StageError> {
        let session = self.connect().await?;
        let is_meant = |table: &&SinkTable| options.sinks.is_empty() || options.sinks.contains(&table.sink);
        let tables: Vec<_> = self.tables().into_iter().filter(is_meant).filter(|it| it.table.time.is_some()).collect();
        if tables.is_empty() {
            return Err(StageError::permanent("no such sink has a table with a time column, so no row is old"));
        }
        let limit_us = now_us().saturating_sub(i64::try_from(options.older_than.as_micros()).unwrap_or(i64::MAX));
        let mut due = Vec::new();
        for table in tables {
            if !table.table.exists(session.client()).await? {
                continue;
            }
            for (from_us, to_us) in parcels(table, &session).await? {
                if to_us <= limit_us {
                    due.push(Archiving { table: table.table.sql_name(), sink: table.sink.clone(), from_us, to_us });
                }
            }
        }
        Ok(due)
    }

    /// Archives what is due; `done` is told of each parcel.
    ///
    /// # Errors
    /// The first parcel that could not be archived; it is in the table still, and those before it are done.
    pub async fn archive(
        &self,
        to: &Place,
        options: &ArchiveOptions,
        mut done: impl FnMut(&Archived),
    ) -> Result<(), StageError> {
        let due = self.to_archive(options).await?;
        self.bring_rollups_up_to_date(&due).await?;
        for parcel in due {
            let Some(table) = self.tables().into_iter().find(|table| table.sink == parcel.sink) else { continue };
            if let Some(archived) = self.archive_parcel(table, parcel, to).await? {
                done(&archived);
            }
        }
        Ok(())
    }

    /// Rollups keep what the rows said.
    async fn bring_rollups_up_to_date(&self, due: &[Archiving]) -> Result<(), StageError> {
        let session = self.connect().await?;
        let mut script = super::Script::default();
        for table in self.tables().into_iter().filter(|table| due.iter().any(|parcel| parcel.sink == table.sink)) {
            for rollup in &table.upkeep.rollups {
                rollups::add(self, table, rollup, &session, false, &mut script).await?;
            }
        }
        self.run(&script, |_| {}).await
    }

    /// `None` for a parcel without rows, or one that somebody else has archived meanwhile.
    async fn archive_parcel(
        &self,
        table: &SinkTable,
        parcel: Archiving,
        to: &Place,
    ) -> Result<Option<Archived>, StageError> {
        let session = self.connect().await?;
        session.client().batch_execute(fingerprint::SETTINGS).await.map_err(catalog)?;
        let columns = columns::of(table, session.client()).await?;
        make_ledger(table, &session).await?;
        for _ in 0..TRIES {
            let exported = self.export(table, &parcel, &columns, to, &session).await?;
            let Some(exported) = exported else { return Ok(None) };
            if drop_unless_changed(table, &parcel, &exported, to, &session).await? {
                let Exported { content, objects } = exported;
                let bytes = objects.iter().map(|object| object.measured.bytes).sum();
                let objects = objects.into_iter().map(|object| object.name).collect();
                return Ok(Some(Archived { parcel, rows: content.rows, objects, bytes }));
            }
        }
        Err(StageError::transient(format!(
            "rows between {} and {} come to {} all the time",
            pipeline_engine::time::format_us(parcel.from_us),
            pipeline_engine::time::format_us(parcel.to_us),
            parcel.table
        ))
        .hint("Nothing was dropped of them. Archive them when the late rows are in, or only what is older."))
    }

    /// Writes the parcel to objects, reads these back and has the server compare. One snapshot for all of it.
    async fn export(
        &self,
        table: &SinkTable,
        parcel: &Archiving,
        columns: &[ArchiveColumn],
        to: &Place,
        session: &Session,
    ) -> Result<Option<Exported>, StageError> {
        let client = session.client();
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
        client.batch_execute(begin).await.map_err(catalog)?;
        let content = fingerprint::of(client, &parcel.table, &condition(table, parcel)).await?;
        if content.rows == 0 {
            client.batch_execute("ROLLBACK").await.map_err(catalog)?;
            return Ok(None);
        }
        let objects = export::write(table, parcel, columns, to, client).await?;
        export::read_back(&objects, columns, to, client).await?;
        export::compare(table, parcel, columns, client).await?;
        // The temporary table goes with it.
        client.batch_execute("ROLLBACK").await.map_err(catalog)?;
        Ok(Some(Exported { content, objects }))
    }
}

/// What lies in objects, as of a snapshot.
struct Exported {
    content: TableFingerprint,
    objects: Vec<export::WrittenObject>,
}

/// The times between which parcels lie: those of chunks, or days that have rows.
async fn parcels(table: &SinkTable, session: &Session) -> Result<Vec<(i64, i64)>, StageError> {
    if hypertable::chunk_interval_us(table, session).await?.is_some() {
        let chunks = hypertable::chunks(table, session).await?;
        let mut parcels: Vec<_> = chunks.iter().map(|chunk| (chunk.from_us, chunk.to_us)).collect();
        parcels.dedup();
        return Ok(parcels);
    }
    let Some(time) = &table.table.time else { return Ok(Vec::new()) };
    let sql = format!(
        "SELECT DISTINCT floor(extract(epoch FROM \"{time}\") / 86400)::int8 AS day FROM {} WHERE isfinite(\"{time}\") \
         ORDER BY day",
        table.table.sql_name()
    );
    let rows = session.client().query(&sql, &[]).await.map_err(catalog)?;
    Ok(rows.iter().map(|row| row.get::<_, i64>(0) * DAY_US).map(|from_us| (from_us, from_us + DAY_US)).collect())
}

/// Which rows of the table a parcel is.
fn condition(table: &SinkTable, parcel: &Archiving) -> String {
    let time = table.table.time.as_deref().unwrap_or_default();
    format!("WHERE \"{time}\" >= {} AND \"{time}\" < {}", instant(parcel.from_us), instant(parcel.to_us))
}

fn ledger(table: &SinkTable) -> String {
    Table { name: LEDGER.to_owned(), ..table.table.clone() }.sql_name()
}

async fn make_ledger(table: &SinkTable, session: &Session) -> Result<(), StageError> {
    let name = ledger(table);
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {name} (table_name text NOT NULL, range_start timestamp with time zone NOT NULL, \
         range_end timestamp with time zone NOT NULL, place text NOT NULL, object text NOT NULL, rows bigint NOT NULL, \
         bytes bigint NOT NULL, sha256 text NOT NULL, archived_at timestamp with time zone NOT NULL DEFAULT now(), \
         PRIMARY KEY (place, object))"
    );
    // It is there with a notice otherwise.
    let quiet = format!("SET client_min_messages = warning; {sql}; RESET client_min_messages");
    let failed = |error| while_opening(error, &format!("{name}, where archives are noted, can't be made"));
    session.client().batch_execute(&quiet).await.map_err(failed)
}

/// Drops the parcel and notes it, if it still is what was exported. Writers wait for as long as a checksum takes.
async fn drop_unless_changed(
    table: &SinkTable,
    parcel: &Archiving,
    exported: &Exported,
    to: &Place,
    session: &Session,
) -> Result<bool, StageError> {
    let client = session.client();
    let name = &parcel.table;
    let failed = |error| while_opening(error, &format!("{name} was not locked, or the parcel not dropped"));
    let lock = format!("BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE");
    client.batch_execute(&lock).await.map_err(failed)?;
    let condition = condition(table, parcel);
    if fingerprint::of(client, name, &condition).await? != exported.content {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        return Ok(false);
    }
    let is_hypertable = hypertable::chunk_interval_us(table, session).await?.is_some();
    let drop = match &session.server.timescale {
        Some(timescale) if is_hypertable => format!(
            "SELECT \"{}\".drop_chunks('{name}', older_than => {}, newer_than => {})",
            timescale.schema,
            instant(parcel.to_us),
            instant(parcel.from_us)
        ),
        _ => format!("DELETE FROM {name} {condition}"),
    };
    client.batch_execute(&drop).await.map_err(failed)?;
    let left = fingerprint::of(client, name, &condition).await?.rows;
    if left > 0 {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        return Err(StageError::bug(format!("{left} rows of {name} would have stayed beside their archive")));
    }
    let note = format!(
        "INSERT INTO {} (table_name, range_start, range_end, place, object, rows, bytes, sha256) \
         VALUES ({}, {}, {}, $1, $2, $3, $4, $5) ON CONFLICT (place, object) DO NOTHING",
        ledger(table),
        literal(name),
        instant(parcel.from_us),
        instant(parcel.to_us)
    );
    for object in &exported.objects {
        let (rows, bytes) = (count(object.rows), count(object.measured.bytes));
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&to.shown(), &object.name, &rows, &bytes, &object.measured.sha256];
        client.execute(&note, &values).await.map_err(failed)?;
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(true)
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
