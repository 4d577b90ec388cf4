//! A restored table brought up to date from the lake: rows beyond the backup's positions, each once.
//!
//! The lake holds what the table holds, object by object, with the positions that each of them took its sink to. So the
//! objects beyond the position that the restored ledger has are just those that may hold what is missing. All of them go
//! into a temporary table, from there into the table by its key (without a key: as many of a row as are missing), and the
//! ledger goes to where the lake is: one transaction. A pipeline that starts then goes on behind that, from its spool.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::{SinkExt, pin_mut};
use pipeline_engine::stage::{Advance, StageError};
use pipeline_engine::{Declared, Plan, Position};
use serde::Serialize;
use tokio_postgres::{Client, CopyInSink};

use super::{PipelineDatabase, SinkTable, catalog, fingerprint};
use crate::postgres::Database;
use crate::postgres::fault::while_opening;
use crate::sinks::parquet::{Lake, LakeObject};
use crate::sinks::timescaledb::{Chunks, OnConflict, SqlType};

/// Objects that were made so long before the first one that matters are not looked at any more: the clock of a store counts
/// whole seconds, and a group that was staged before a crash comes later than it should.
const LOOK_BACK_US: i64 = 3_600_000_000;
const TEMPORARY: &str = "_pipeline_catch_up";
/// Which of the rows came first.
const ORDINAL: &str = "_pipeline_ordinal";
/// Whether the row is of a group that the restored ledger is in the middle of.
const PARTLY: &str = "_pipeline_partly_known";

/// The lake of a sink, and what it reads.
pub type SinkLake = Declared<Lake>;

/// The lakes of a pipeline.
pub fn lakes(plan: &Plan) -> Vec<SinkLake> {
    plan.declared::<Lake>()
}

/// What came to a table from the lake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaughtUp {
    /// As SQL names it.
    pub table: String,
    /// The sink that stores in it.
    pub sink: String,
    /// The lake that holds what the table holds; `None` if there is none.
    pub lake: Option<String>,
    /// Objects that were read in full.
    pub objects: usize,
    /// Rows in them.
    pub rows_read: u64,
    /// Rows that the table had not.
    pub rows_added: u64,
    /// Rows of the lake that are still not in the table.
    pub missing: u64,
}

/// By input and partition.
type Positions = BTreeMap<(String, String), Position>;

impl PipelineDatabase {
    /// Brings all tables of a restored database up to date that have a lake.
    pub(super) async fn catch_up(
        &self,
        restored: &Database,
        lakes: &mut [SinkLake],
    ) -> Result<Vec<CaughtUp>, StageError> {
        let link = restored.connect().await?;
        link.client.batch_execute(fingerprint::SETTINGS).await.map_err(catalog)?;
        let mut all = Vec::new();
        for table in &self.tables {
            let there = table.table.exists(&link.client).await?;
            let inputs = &table.inputs;
            let found = lakes.iter_mut().find(|lake| there && holds(lake, &table.sink, inputs));
            all.push(match found {
                Some(lake) => self.catch_up_table(table, inputs, lake, &link.client).await?,
                None => nothing(table, None),
            });
        }
        Ok(all)
    }

    async fn catch_up_table(
        &self,
        table: &SinkTable,
        inputs: &[String],
        lake: &mut SinkLake,
        client: &Client,
    ) -> Result<CaughtUp, StageError> {
        let known = self.known_positions(table, client).await?;
        let beyond = objects_beyond(&mut lake.value, inputs, &known).await?;
        let mut done = nothing(table, Some(lake.sink.clone()));
        if beyond.is_empty() {
            return Ok(done);
        }
        done.objects = beyond.len();
        let failed = |error| while_opening(error, &format!("{} was not brought up to date", table.table.sql_name()));
        client.batch_execute("BEGIN").await.map_err(failed)?;
        let columns: Vec<String> =
            table.table.columns.iter().map(|column| format!("\"{}\" {}", column.name, column.kind.name())).collect();
        let create = format!(
            "CREATE TEMPORARY TABLE {TEMPORARY} ({}, \"{ORDINAL}\" bigint, \"{PARTLY}\" boolean) ON COMMIT DROP",
            columns.join(", ")
        );
        client.batch_execute(&create).await.map_err(failed)?;
        let others = lake.inputs.iter().any(|input| !inputs.contains(input));
        let mut reached = known.clone();
        let mut given = 0;
        for object in &beyond {
            let partly = is_partly_known(object, inputs, &known);
            for rows in &object.rows {
                let rows = if others { without_own(rows, &table.sink)? } else { rows.clone() };
                put(table, &rows, done.rows_read, partly, client).await?;
                done.rows_read += rows.num_rows() as u64;
                given += if partly { 0 } else { rows.num_rows() as u64 };
            }
            for advance in object.advances.iter().flatten().filter(|advance| takes(advance, inputs)) {
                let place = reached.entry((advance.input.clone(), advance.partition.clone())).or_default();
                *place = advance.to.max(*place);
            }
        }
        client.batch_execute(&format!("ANALYZE {TEMPORARY}")).await.map_err(failed)?;
        let Statements { new, insert, missing } = statements(table);
        let count = |row: tokio_postgres::Row| u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        given += count(client.query_one(&new, &[]).await.map_err(failed)?);
        done.rows_added = client.execute(&insert, &[]).await.map_err(failed)?;
        done.missing = count(client.query_one(&missing, &[]).await.map_err(failed)?);
        self.move_ledger(table, &reached, given, client).await?;
        client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(done)
    }

    /// How far the restored ledger has the sink.
    pub(super) async fn known_positions(&self, table: &SinkTable, client: &Client) -> Result<Positions, StageError> {
        let record = table.ledger.record(client).await?;
        let committed = record.map(|(positions, _)| positions).unwrap_or_default();
        Ok(committed.into_iter().map(|at| ((at.input, at.partition), at.position)).collect())
    }

    /// The next run is not to store again what came from the lake; the rows that the sink would have been `given` count as
    /// given.
    async fn move_ledger(
        &self,
        table: &SinkTable,
        reached: &Positions,
        given: u64,
        client: &Client,
    ) -> Result<(), StageError> {
        if reached.is_empty() {
            return Ok(());
        }
        let ledger = table.ledger.table().name();
        let failed = |error| while_opening(error, &format!("{ledger} was not moved on"));
        let row = client.query_one("SELECT to_regclass($1) IS NULL", &[&ledger]).await.map_err(failed)?;
        if row.get(0) {
            client.batch_execute(&table.ledger.table().ddl()).await.map_err(failed)?;
        }
        let sql = format!(
            "INSERT INTO {ledger} AS ledger (pipeline, sink, input, partition, position, rows_total) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (pipeline, sink, input, partition) \
             DO UPDATE SET position = EXCLUDED.position, rows_total = ledger.rows_total + EXCLUDED.rows_total, updated_at = now()"
        );
        let mut rows = i64::try_from(given).unwrap_or(i64::MAX);
        for ((input, partition), position) in reached {
            let (position, rows) = (position.to_string(), std::mem::take(&mut rows));
            client
                .execute(&sql, &[&self.pipeline, &table.sink, input, partition, &position, &rows])
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

fn nothing(table: &SinkTable, lake: Option<String>) -> CaughtUp {
    CaughtUp {
        table: table.table.sql_name(),
        sink: table.sink.clone(),
        lake,
        objects: 0,
        rows_read: 0,
        rows_added: 0,
        missing: 0,
    }
}

/// Whether a lake has all that a table is given: the same inputs, and at most what the table itself has refused. One that
/// may go without rows has not.
fn holds(lake: &SinkLake, sink: &str, inputs: &[String]) -> bool {
    let own = format!("{sink}.rejected");
    lake.required
        && !inputs.is_empty()
        && inputs.iter().all(|input| lake.inputs.contains(input))
        && lake.inputs.iter().all(|input| inputs.contains(input) || *input == own)
}

/// Whether it is of one of these inputs, as the pipeline file names them.
fn takes(advance: &Advance, inputs: &[String]) -> bool {
    inputs.iter().any(|input| input == advance.reads())
}

/// The objects that take an input of the table beyond what is known, the first of them first.
///
/// The newest are read first, until one goes on from what is known: groups follow on each other.
async fn objects_beyond(lake: &mut Lake, inputs: &[String], known: &Positions) -> Result<Vec<LakeObject>, StageError> {
    let (mut beyond, mut enough_at_us) = (Vec::new(), None);
    for (key, made_at_us) in lake.newest_first().await? {
        if enough_at_us.is_some_and(|enough: i64| made_at_us < enough.saturating_sub(LOOK_BACK_US)) {
            break;
        }
        // One that is gone has expired since it was listed.
        let Some(object) = lake.read(&key).await? else { continue };
        let Some(advances) = &object.advances else {
            beyond.push(object);
            continue;
        };
        let of_ours = || advances.iter().filter(|advance| takes(advance, inputs));
        let at = |advance: &Advance| known.get(&(advance.input.clone(), advance.partition.clone())).copied();
        if of_ours().any(|advance| at(advance).is_none_or(|position| position < advance.to)) {
            beyond.push(object);
        } else if enough_at_us.is_none() && of_ours().next().is_some() {
            enough_at_us = Some(made_at_us);
        }
    }
    // In the order of their positions, as far as one partition goes.
    beyond.reverse();
    beyond
        .sort_by_key(|object| object.advances.as_ref().and_then(|advances| advances.first()).map(|advance| advance.to));
    Ok(beyond)
}

/// Whether some of the object's rows are at or before what is known, and some behind it.
fn is_partly_known(object: &LakeObject, inputs: &[String], known: &Positions) -> bool {
    object.advances.iter().flatten().filter(|advance| takes(advance, inputs)).any(|advance| {
        let known = known.get(&(advance.input.clone(), advance.partition.clone())).copied();
        known.is_some_and(|position| advance.from.is_none_or(|from| from < position))
    })
}

/// Dead letters without those that the table itself has refused, which are not for it.
fn without_own(rows: &RecordBatch, sink: &str) -> Result<RecordBatch, StageError> {
    let Some(stage) = rows.column_by_name("stage").and_then(|column| column.as_string_opt::<i32>()) else {
        return Ok(rows.clone());
    };
    let kept: BooleanArray = stage.iter().map(|stage| Some(stage != Some(sink))).collect();
    Ok(filter_record_batch(rows, &kept)?)
}

/// Copies rows of an object to the temporary table, behind so many.
async fn put(
    table: &SinkTable,
    rows: &RecordBatch,
    before: u64,
    partly: bool,
    client: &Client,
) -> Result<(), StageError> {
    let mut columns = Vec::new();
    for (name, column) in table.stored_names.iter().zip(&table.table.columns) {
        let array = match rows.column_by_name(name) {
            Some(array) => array.clone(),
            // The object is older than the column.
            None => new_null_array(&arrow_type(column.kind), rows.num_rows()),
        };
        let field = Field::new(name, array.data_type().clone(), true);
        let fits = SqlType::of(&field) == Some(column.kind)
            || (column.kind == SqlType::Jsonb && *array.data_type() == DataType::Utf8);
        if !fits {
            return Err(StageError::permanent(format!(
                "column \"{name}\" is {} in an object of the lake, and {} in {}",
                array.data_type(),
                column.kind.name(),
                table.table.sql_name()
            )));
        }
        columns.push((column.name.clone(), array, true));
    }
    let first = i64::try_from(before).unwrap_or(i64::MAX);
    let count = i64::try_from(rows.num_rows()).unwrap_or(0);
    let ordinals: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + count));
    columns.push((ORDINAL.to_owned(), ordinals, true));
    columns.push((PARTLY.to_owned(), Arc::new(BooleanArray::from(vec![partly; rows.num_rows()])), true));
    let more = [SqlType::Int8, SqlType::Bool];
    let kinds: Vec<SqlType> = table.table.columns.iter().map(|column| column.kind).chain(more).collect();
    let rows = RecordBatch::try_from_iter_with_nullable(columns)?;
    copy(client, &format!("COPY {TEMPORARY} FROM STDIN BINARY"), &rows, &kinds).await
}

/// Copies rows into a table.
pub(super) async fn copy(client: &Client, sql: &str, rows: &RecordBatch, kinds: &[SqlType]) -> Result<(), StageError> {
    let failed = |error| while_opening(error, "rows were not copied to a temporary table");
    let order: Vec<u32> = (0..u32::try_from(rows.num_rows()).unwrap_or(u32::MAX)).collect();
    let sink: CopyInSink<Bytes> = client.copy_in(sql).await.map_err(failed)?;
    pin_mut!(sink);
    for chunk in Chunks::new(rows, kinds, &order) {
        sink.send(chunk).await.map_err(failed)?;
    }
    sink.finish().await.map_err(failed).map(drop)
}

/// The Arrow type that is stored as a type of SQL.
pub(super) fn arrow_type(kind: SqlType) -> DataType {
    match kind {
        SqlType::Text | SqlType::Jsonb => DataType::Utf8,
        SqlType::Bool => DataType::Boolean,
        SqlType::Int2 => DataType::Int16,
        SqlType::Int4 => DataType::Int32,
        SqlType::Int8 => DataType::Int64,
        SqlType::Float4 => DataType::Float32,
        SqlType::Float8 => DataType::Float64,
        SqlType::Timestamptz => pipeline_engine::schema::timestamp_type(),
        SqlType::Bytea => DataType::Binary,
        SqlType::Date => DataType::Date32,
    }
}

/// What is done with the temporary table, as SQL.
struct Statements {
    /// Counts rows of groups that are known in part and that the table has not.
    new: String,
    /// Puts the rows into the table.
    insert: String,
    /// Counts those that are not there then.
    missing: String,
}

fn statements(table: &SinkTable) -> Statements {
    let (name, columns) = (table.table.sql_name(), table.table.column_list());
    // Of a large table only the time that matters is looked at.
    let within = table.table.time.as_ref().map_or_else(String::new, |time| {
        let of = |aggregate: &str| format!("(SELECT {aggregate}(\"{time}\") FROM {TEMPORARY})");
        format!(" WHERE \"{time}\" BETWEEN {} AND {}", of("min"), of("max"))
    });
    if table.table.key.is_empty() {
        // As many of each row as there are, less those that the table has.
        let rest = |condition: &str| {
            format!("SELECT {columns} FROM {TEMPORARY}{condition} EXCEPT ALL SELECT {columns} FROM {name}{within}")
        };
        return Statements {
            new: format!("SELECT count(*) FROM ({}) AS new", rest(&format!(" WHERE \"{PARTLY}\""))),
            insert: format!("INSERT INTO {name} ({columns}) {}", rest("")),
            missing: format!("SELECT count(*) FROM ({}) AS missing", rest("")),
        };
    }
    let key = table.table.key_list();
    let set = || {
        let others = table.table.columns.iter().filter(|column| !table.table.key.contains(&column.name));
        let set: Vec<String> = others.map(|column| format!("\"{0}\" = EXCLUDED.\"{0}\"", column.name)).collect();
        if set.is_empty() { "DO NOTHING".to_owned() } else { format!("DO UPDATE SET {}", set.join(", ")) }
    };
    let (order, action) = match (table.upkeep.conflict, &table.table.newest_by) {
        (OnConflict::First, _) => (format!("\"{ORDINAL}\""), "DO NOTHING".to_owned()),
        (OnConflict::Newest, Some(newest)) => (
            format!("\"{newest}\" DESC, \"{ORDINAL}\""),
            format!("{} WHERE EXCLUDED.\"{newest}\" > kept.\"{newest}\"", set()),
        ),
        (OnConflict::Last | OnConflict::Newest, _) => (format!("\"{ORDINAL}\" DESC"), set()),
    };
    let first = format!("SELECT DISTINCT ON ({key}) {columns} FROM {TEMPORARY} ORDER BY {key}, {order}");
    Statements {
        new: format!(
            "SELECT count(*) FROM (SELECT {key} FROM {TEMPORARY} WHERE \"{PARTLY}\" EXCEPT ALL SELECT {key} FROM {name}{within}) AS new"
        ),
        insert: format!("INSERT INTO {name} AS kept ({columns}) {first} ON CONFLICT ({key}) {action}"),
        missing: format!(
            "SELECT count(*) FROM (SELECT {key} FROM {TEMPORARY} EXCEPT SELECT {key} FROM {name}{within}) AS missing"
        ),
    }
}
