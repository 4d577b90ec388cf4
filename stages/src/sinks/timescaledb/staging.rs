//! How rows are stored whose key may be taken: by a temporary table, from which what is new goes on.
//!
//! Rows are compared value by value: a null equals a null, and NaN equals NaN.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use super::OnConflict;
use super::sql_type::SqlType;
use super::table::{Table, quoted};

/// The place of a row in its part of the group. No column of a table can have this name (see
/// [`super::table::is_identifier`]).
const PLACE: &str = "\"place in group\"";

/// The SQL for one table.
pub(super) struct Staging {
    create: String,
    pub copy: String,
    /// Stores what the policy lets in; affects the rows that are then in the table as they came.
    store: String,
    policy: Policy,
    /// The column of the key, by its place among the stored ones, that tells how far to look in the table.
    pub time: Option<usize>,
}

enum Policy {
    /// Names the rows whose key is taken by another row, with the columns that differ.
    KeepFirst { find_conflicts: String },
    /// Counts rows of the table that will be replaced, and rows of the group that were.
    KeepLast { count_replaced: String, count_superseded: String },
}

/// Rows that were not stored as they came, because their key was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// The same row again.
    pub duplicates: u64,
    /// Another row of the same key, where the later one wins.
    pub replaced: u64,
    /// Another row of the same key, where the first one wins: its place, and the columns that differ.
    pub conflicts: Vec<(usize, String)>,
}

/// Between which times the rows lie, so that no more of the table is looked at.
pub(super) type TimeRange = (i64, i64);

impl Staging {
    pub fn new(table: &Table, on_conflict: OnConflict) -> Self {
        let (name, columns, key) = (table.sql_name(), table.column_list(), table.key_list());
        let time = time_of_key(table);
        let newest_first = table.newest_by.as_ref().map(|column| format!("\"{column}\" DESC, ")).unwrap_or_default();
        let last_of_each_key = format!(
            "SELECT DISTINCT ON ({key}) * FROM pg_temp.pipeline_staging ORDER BY {key}, {newest_first}{PLACE} DESC"
        );
        let wins = table.newest_by.as_ref().map(|column| format!(" AND new.\"{column}\" >= stored.\"{column}\""));
        let (store, policy) = match on_conflict {
            OnConflict::First => (
                format!(
                    "INSERT INTO {name} ({columns}) SELECT {columns} FROM pg_temp.pipeline_staging ORDER BY {PLACE} \
                     ON CONFLICT ({key}) DO NOTHING"
                ),
                Policy::KeepFirst {
                    find_conflicts: joined(table, time, "pg_temp.pipeline_staging", &differences(table)),
                },
            ),
            OnConflict::Last | OnConflict::Newest => (
                format!(
                    "INSERT INTO {name} AS stored ({columns}) SELECT {columns} FROM ({last_of_each_key}) AS new \
                     ON CONFLICT ({key}) {}",
                    replace(table)
                ),
                Policy::KeepLast {
                    count_replaced: joined(table, time, &format!("({last_of_each_key})"), "count(*)")
                        + &wins.unwrap_or_default(),
                    count_superseded: joined(table, time, "pg_temp.pipeline_staging", "count(*)"),
                },
            ),
        };
        Self {
            // The same types, and none of the table's constraints. Emptied by each commit.
            create: format!(
                "CREATE TEMPORARY TABLE IF NOT EXISTS pipeline_staging ON COMMIT DELETE ROWS \
                 AS SELECT {columns}, 0 AS {PLACE} FROM {name} WITH NO DATA; TRUNCATE pg_temp.pipeline_staging"
            ),
            copy: format!("COPY pg_temp.pipeline_staging ({columns}, {PLACE}) FROM STDIN BINARY"),
            store,
            policy,
            time,
        }
    }

    /// Makes the temporary table, empty.
    pub async fn clear(&self, client: &Client) -> Result<(), Error> {
        client.batch_execute(&self.create).await
    }

    /// Stores the rows of the temporary table. `range`: where to look for those with the same key.
    pub async fn store(&self, client: &Client, rows: u64, range: Option<TimeRange>) -> Result<Taken, Error> {
        let range = range.map(|(first, last)| [at_us(first), at_us(last)]);
        let range: Vec<&(dyn ToSql + Sync)> = range.iter().flatten().map(|at| at as _).collect();
        let count = async |sql: &str| {
            let count: i64 = client.query_one(sql, &range).await?.get(0);
            Ok::<_, Error>(u64::try_from(count).unwrap_or(0))
        };
        match &self.policy {
            Policy::KeepFirst { find_conflicts } => {
                let stored = client.execute(&self.store, &[]).await?;
                let found = client.query(find_conflicts, &range).await?;
                let conflict = |row: &tokio_postgres::Row| {
                    let place = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
                    (place, row.get(1))
                };
                let conflicts: Vec<_> = found.iter().map(conflict).collect();
                let duplicates = (rows - stored).saturating_sub(conflicts.len() as u64);
                Ok(Taken { duplicates, replaced: 0, conflicts })
            }
            Policy::KeepLast { count_replaced, count_superseded } => {
                let replaced = count(count_replaced).await?;
                let stored = client.execute(&self.store, &[]).await?;
                let superseded = count(count_superseded).await?;
                let duplicates = (rows - stored).saturating_sub(superseded);
                Ok(Taken { duplicates, replaced: replaced + superseded, conflicts: Vec::new() })
            }
        }
    }
}

/// What `ON CONFLICT` does with a row whose key is taken: nothing if it is the same row.
fn replace(table: &Table) -> String {
    let others: Vec<&str> = table
        .columns
        .iter()
        .map(|column| &*column.name)
        .filter(|name| !table.key.iter().any(|key| key == name))
        .collect();
    if others.is_empty() {
        return "DO NOTHING".to_owned();
    }
    let set: Vec<String> = others.iter().map(|name| format!("\"{name}\" = excluded.\"{name}\"")).collect();
    let of = |row: &str| others.iter().map(|name| format!("{row}.\"{name}\"")).collect::<Vec<_>>().join(", ");
    let newer = table.newest_by.as_ref().map(|column| format!(" AND excluded.\"{column}\" >= stored.\"{column}\""));
    format!(
        "DO UPDATE SET {} WHERE ({}) IS DISTINCT FROM ({}){}",
        set.join(", "),
        of("stored"),
        of("excluded"),
        newer.unwrap_or_default()
    )
}

/// The columns in which a row differs from the stored one of its key.
fn differences(table: &Table) -> String {
    let each = table.columns.iter().map(|column| {
        let name = &column.name;
        format!("CASE WHEN stored.\"{name}\" IS DISTINCT FROM new.\"{name}\" THEN '{name}' END")
    });
    format!("new.{PLACE}, concat_ws(', ', {})", each.collect::<Vec<_>>().join(", "))
}

/// Selects something of the rows whose key is taken by a row of the table with other values.
fn joined(table: &Table, time: Option<usize>, new: &str, selected: &str) -> String {
    let same_key = table.columns.iter().filter(|column| table.key.contains(&column.name)).map(|column| {
        // Only `=` can use the index, and it is enough where there are no nulls.
        let same = if column.required { "=" } else { "IS NOT DISTINCT FROM" };
        format!("stored.\"{0}\" {same} new.\"{0}\"", column.name)
    });
    let all = |of: &str| {
        let columns = table.columns.iter().map(|column| format!("{of}.\"{}\"", column.name));
        columns.collect::<Vec<_>>().join(", ")
    };
    // Chunks that can hold none of the keys are left out before anything is read.
    let near = time.map(|time| format!(" AND stored.{} BETWEEN $1 AND $2", quoted([&*table.columns[time].name])));
    format!(
        "SELECT {selected} FROM {new} AS new JOIN {} AS stored ON {} WHERE ({}) IS DISTINCT FROM ({}){}",
        table.sql_name(),
        same_key.collect::<Vec<_>>().join(" AND "),
        all("new"),
        all("stored"),
        near.unwrap_or_default(),
    )
}

/// A timestamp of the key that is never null; the one that the table is cut by, if there are several.
fn time_of_key(table: &Table) -> Option<usize> {
    let is_time = |name: &str| {
        table
            .columns
            .iter()
            .position(|column| column.name == name && column.required && column.kind == SqlType::Timestamptz)
    };
    let cut_by = table.time.iter().filter(|time| table.key.contains(time));
    cut_by.chain(&table.key).find_map(|name| is_time(name))
}

fn at_us(us: i64) -> SystemTime {
    let distance = Duration::from_micros(us.unsigned_abs());
    if us < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
