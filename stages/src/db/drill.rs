//! The whole way back, tried: the newest backup into a scratch database, up to date from the lake, held against all that is
//! known, and timed. Nothing that a pipeline uses is touched.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pipeline_engine::now_us;
use pipeline_engine::spool::{FsStorage, inspect};
use pipeline_engine::stage::StageError;
use pipeline_engine::{Plan, Position};
use serde::Serialize;
use tokio_postgres::Client;

use super::manifest::Manifest;
use super::place::Place;
use super::tools::Tools;
use super::{CaughtUp, PipelineDatabase, SinkLake, SinkTable, catalog, fingerprint};
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};

/// Rows are compared in parcels of so much time: those of one are in memory at once.
const PARCEL_SECONDS: i64 = 300;
/// How often it is looked whether the lake has come further.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How a drill went.
#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    /// The backup.
    pub backup: String,
    /// As of when, in microseconds since 1970.
    pub taken_at_us: i64,
    /// All rows that it held, each of them found again.
    pub rows_in_backup: u64,
    /// The live database was there to compare with.
    pub compared_with_live: bool,
    /// Table by table.
    pub tables: Vec<DrilledTable>,
    /// Rows that could not be brought back.
    pub missing: u64,
    /// Recovery point: how much time is lost. 0 if no row is.
    pub rpo_seconds: f64,
    /// Recovery time: until the scratch database was up to date.
    pub rto_seconds: f64,
    /// What of it was restoring.
    pub restore_seconds: f64,
}

/// One table of a drill.
#[derive(Debug, Clone, Serialize)]
pub struct DrilledTable {
    /// What came from the lake.
    #[serde(flatten)]
    pub caught_up: CaughtUp,
    /// Rows of the live table that the restored one has not, and that no other place has either.
    pub missing: u64,
    /// Rows that it has not, and that the spool still has the messages of: a run makes them again if it is
    /// rewound.
    pub in_spool: u64,
}

impl DrillReport {
    /// Every row came back.
    pub fn passed(&self) -> bool {
        self.missing == 0
    }
}

impl PipelineDatabase {
    /// Tries the whole way back. `patience` is how long the lake may take to come to where the live table is.
    ///
    /// # Errors
    /// What stood in the way; a drill in which rows are missing is none.
    pub async fn drill(
        &self,
        plan: &Plan,
        from: &Place,
        tools: &Tools,
        lakes: &mut [SinkLake],
        patience: Duration,
    ) -> Result<DrillReport, StageError> {
        // As of now: what comes while we work is not held against us.
        let live = self.live().await?;
        let started = (Instant::now(), now_us());
        let manifest = Manifest::find(from, &self.name(), None).await?;
        let scratch = self.restore_to_scratch("drill", from, manifest, tools).await?;
        let tried = self.try_catch_up(plan, &scratch.database, lakes, live.as_ref(), patience).await;
        self.drop_scratch(&scratch.database).await?;
        let (tables, ready) = tried?;
        let missing = tables.iter().map(|table| table.missing).sum();
        let lost = if missing > 0 { started.1.saturating_sub(scratch.manifest.taken_at_us) as f64 / 1e6 } else { 0.0 };
        Ok(DrillReport {
            rows_in_backup: scratch.manifest.tables.iter().map(|table| table.rows).sum(),
            taken_at_us: scratch.manifest.taken_at_us,
            backup: scratch.manifest.name,
            compared_with_live: live.is_some(),
            tables,
            missing,
            rpo_seconds: lost,
            rto_seconds: ready.duration_since(started.0).as_secs_f64(),
            restore_seconds: scratch.took.as_secs_f64(),
        })
    }

    /// The live database as it is now; `None` where there is none, as on an empty machine.
    async fn live(&self) -> Result<Option<Link>, StageError> {
        let link = match self.database.connect().await {
            Ok(link) => link,
            Err(error) if error.outside_code() == Some("3D000") => return Ok(None),
            Err(error) => return Err(error),
        };
        let begin = format!("{}; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", fingerprint::SETTINGS);
        link.client.batch_execute(&begin).await.map_err(catalog)?;
        // The first statement is what takes the snapshot.
        link.client.query_one("SELECT 1", &[]).await.map_err(catalog)?;
        Ok(Some(link))
    }

    /// Catches up until nothing is missing, or the lake has had its time. Says when all was there.
    async fn try_catch_up(
        &self,
        plan: &Plan,
        scratch: &Database,
        lakes: &mut [SinkLake],
        live: Option<&Link>,
        patience: Duration,
    ) -> Result<(Vec<DrilledTable>, Instant), StageError> {
        let until = Instant::now() + patience;
        let mut all: Vec<DrilledTable> = Vec::new();
        loop {
            let caught_up = self.catch_up(scratch, lakes).await?;
            let ready = Instant::now();
            if all.is_empty() {
                all = caught_up
                    .into_iter()
                    .map(|caught_up| DrilledTable { caught_up, missing: 0, in_spool: 0 })
                    .collect();
            } else {
                for (table, more) in all.iter_mut().zip(caught_up) {
                    table.caught_up.objects += more.objects;
                    table.caught_up.rows_read += more.rows_read;
                    table.caught_up.rows_added += more.rows_added;
                    table.caught_up.missing = more.missing;
                }
            }
            let link = scratch.connect().await?;
            link.client.batch_execute(fingerprint::SETTINGS).await.map_err(catalog)?;
            for (table, drilled) in self.tables.iter().zip(&mut all) {
                drilled.missing = drilled.caught_up.missing;
                if let Some(live) = live {
                    drilled.missing += missing(table, &live.client, &link.client).await?;
                }
            }
            // Another look helps only where there is a lake that may come further.
            let may_come = all.iter().any(|table| table.missing > 0 && table.caught_up.lake.is_some());
            if may_come && Instant::now() < until {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            for (table, drilled) in self.tables.iter().zip(&mut all) {
                if drilled.missing > 0 && self.is_in_spool(plan, table, &link.client).await? {
                    (drilled.in_spool, drilled.missing) = (drilled.missing, 0);
                }
            }
            return Ok((all, ready));
        }
    }

    /// Whether the spools reach back to the restored positions of a sink, so that a run that is rewound makes its rows again.
    async fn is_in_spool(&self, plan: &Plan, table: &SinkTable, client: &Client) -> Result<bool, StageError> {
        let known = self.known_positions(table, client).await?;
        let spools =
            plan.spools().map_err(|error| StageError::permanent("the spools can't be looked at").because(error))?;
        let reaches_back = |partition: &str, Position([_, _, epoch, lsn]): Position| {
            let spool = spools.iter().find(|place| !place.orphaned && partition == format!("{}/spool", place.source));
            let Some(found) = spool.and_then(|place| inspect(&place.dir, &FsStorage).ok()) else { return false };
            let same_life = found.segments.iter().any(|segment| segment.epoch == Some(epoch));
            same_life && found.lsns.is_some_and(|lsns| *lsns.start() <= lsn + 1)
        };
        Ok(!known.is_empty() && known.iter().all(|((_, partition), position)| reaches_back(partition, *position)))
    }
}

/// Rows of the live table that the restored one has not.
///
/// By their values; where later rows take the place of earlier ones by their keys, since the restored table may be further
/// than the live one was.
async fn missing(table: &SinkTable, live: &Client, restored: &Client) -> Result<u64, StageError> {
    let name = table.table.sql_name();
    if !table.table.exists(live).await? {
        return Ok(0);
    }
    if !table.table.exists(restored).await? {
        let sql = format!("SELECT count(*) FROM {name}");
        return Ok(u64::try_from(live.query_one(&sql, &[]).await.map_err(catalog)?.get::<_, i64>(0)).unwrap_or(0));
    }
    let (here, there) = (parcels(table, live).await?, parcels(table, restored).await?);
    let mut missing = 0;
    for (parcel, content) in &here {
        if there.get(parcel) == Some(content) {
            continue;
        }
        let mut counts: HashMap<String, i64> = HashMap::new();
        for hash in hashes(table, *parcel, live).await? {
            *counts.entry(hash).or_default() += 1;
        }
        for hash in hashes(table, *parcel, restored).await? {
            *counts.entry(hash).or_default() -= 1;
        }
        missing += counts.values().filter(|count| **count > 0).sum::<i64>().unsigned_abs();
    }
    Ok(missing)
}

/// Of each parcel of time the count of its rows and their checksum.
async fn parcels(table: &SinkTable, client: &Client) -> Result<HashMap<i64, (i64, String)>, StageError> {
    let sql = format!(
        "SELECT {}, count(*), sum({})::text FROM {} AS whole_row GROUP BY 1",
        parcel(table),
        fingerprint::hash(&text(table)),
        table.table.sql_name()
    );
    let failed = |error| while_opening(error, &format!("{} can't be compared", table.table.sql_name()));
    let rows = client.query(&sql, &[]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

async fn hashes(table: &SinkTable, number: i64, client: &Client) -> Result<Vec<String>, StageError> {
    let within = match &table.table.time {
        Some(time) => format!(
            " WHERE (\"{time}\" >= to_timestamp({}) AND \"{time}\" < to_timestamp({})){}",
            number * PARCEL_SECONDS,
            (number + 1) * PARCEL_SECONDS,
            if number == 0 { format!(" OR NOT isfinite(\"{time}\")") } else { String::new() }
        ),
        None => String::new(),
    };
    let sql = format!("SELECT md5({}) FROM {} AS whole_row{within}", text(table), table.table.sql_name());
    let failed = |error| while_opening(error, &format!("{} can't be compared", table.table.sql_name()));
    Ok(client.query(&sql, &[]).await.map_err(failed)?.iter().map(|row| row.get(0)).collect())
}

fn parcel(table: &SinkTable) -> String {
    match &table.table.time {
        // Times beyond the calendar are few, and go with those of the first minutes of 1970.
        Some(time) => format!(
            "CASE WHEN isfinite(\"{time}\") THEN floor(extract(epoch FROM \"{time}\") / {PARCEL_SECONDS})::int8 ELSE 0 END"
        ),
        None => "0::int8".to_owned(),
    }
}

/// What of a row is compared.
fn text(table: &SinkTable) -> String {
    if table.table.replaces {
        let key: Vec<String> = table.table.key.iter().map(|column| format!("whole_row.\"{column}\"")).collect();
        return format!("ROW({})::text", key.join(", "));
    }
    "whole_row::text".to_owned()
}
