//! Stores rows in a TimescaleDB hypertable, or an ordinary table of plain PostgreSQL.
//!
//! A group is one transaction: binary `COPY` straight from the Arrow columns, sorted by the unique key
//! so that index pages are touched once. Where a row is there already, the group goes through a
//! temporary table with `ON CONFLICT DO NOTHING` instead, and what was there is counted. So a group
//! whose commit got no answer is simply written again. Without a `key` there is nothing to tell rows
//! apart by: a group then may be stored twice after a lost connection or a crash.

mod connect;
pub mod copy;
mod faults;
mod table;
mod types;

use std::time::Duration;

use arrow::array::UInt32Array;
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSink, Group, Grouping, Port, Sink, SinkConfig, StageDoc, StageError,
};
use pipeline_engine::units::{DurationText, SizeText};
use pipeline_engine::{Counter, columns, dead_letter};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use connect::Endpoint;
use copy::{PgColumn, encode};
use faults::fault;
use table::{Column, Edition, Table, TableName, is_identifier, quoted, quoted_list};
use types::PgType;

/// `type = "timescaledb"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimescaleDbConfig {
    /// `postgres://user:password@host:5432/database`. For hosts other than this machine the connection
    /// is encrypted and the server's certificate verified (`sslmode=verify-full`); `sslrootcert`,
    /// `sslcert` and `sslkey` name PEM files, `sslmode=disable` turns encryption off.
    url: String,
    /// The password, if not in the URL.
    #[schemars(with = "Option<String>")]
    password: Option<SecretString>,
    /// The table, as `name` or `schema.name`.
    table: String,
    /// Create table, hypertable, unique key and index if the table is missing. A table that is there is
    /// never changed.
    #[serde(default)]
    create: bool,
    /// The column that a hypertable is partitioned by. Default: the only required timestamp.
    time_column: Option<String>,
    /// Columns of the unique key: a row that comes twice is stored once. On a hypertable the time column
    /// is one of them. An empty list: no key, and rows may be stored twice after a crash.
    key: Vec<String>,
    /// Time that one chunk of the hypertable spans, when it is created.
    #[serde(default = "default_chunk_interval")]
    chunk_interval: DurationText,
    /// At most so many rows in one transaction.
    #[serde(default = "default_batch_rows")]
    batch_rows: usize,
    /// At most so much in one transaction, as columns in memory.
    #[serde(default = "default_batch_size")]
    batch_size: SizeText,
    /// How long rows may wait for more before they are written. Zero: what is there is written at once,
    /// which makes transactions small when idle and large under load.
    #[serde(default = "default_linger")]
    linger: DurationText,
    /// A transaction that takes longer is given up, with its connection, and tried again.
    #[serde(default = "default_write_timeout")]
    write_timeout: DurationText,
}

fn default_chunk_interval() -> DurationText {
    DurationText::secs(24 * 3600)
}

fn default_batch_rows() -> usize {
    Grouping::default().rows_max
}

fn default_batch_size() -> SizeText {
    SizeText(Grouping::default().bytes_max as u64)
}

fn default_linger() -> DurationText {
    DurationText(Duration::ZERO)
}

fn default_write_timeout() -> DurationText {
    DurationText::secs(60)
}

impl SinkConfig for TimescaleDbConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "timescaledb",
        summary: "Stores rows in a table of TimescaleDB or PostgreSQL, each once.",
        ports: &[("rejected", "rows that the database refuses, with their SQLSTATE")],
        failure: "Transient (no connection, shutdown, full disk, deadlock): the transaction is tried again for as long \
                  as it takes, on a new connection.\n\
                  Permanent (wrong password, missing table or column, no rights): the run stops; nothing is dropped.\n\
                  A row that the database refuses (out of range, a CHECK constraint) leaves by `rejected`; its \
                  neighbours are stored.\n\
                  Duplication window: none with a `key`, which is what rows are told apart by; without one, the \
                  transaction whose commit got no answer.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let endpoint = Endpoint::parse(&self.url, self.password.as_ref(), &format!("pipeline {}", cx.pipeline))?;
        let name = TableName::parse(&self.table).ok_or_else(|| {
            BuildError::invalid("table", format!("\"{}\" can't be a table's name", self.table))
                .hint("Letters, digits and underscores, at most 63; a schema may stand before it with a dot.")
        })?;
        let columns = table_columns(input)?;
        let mut key = Vec::new();
        for (index, column) in self.key.iter().enumerate() {
            key.push(columns::find(input, format!("key.{index}"), column)?);
        }
        let time_column = time_column(input, self.time_column.as_deref())?;
        if let Some(time) = time_column.as_ref().filter(|time| !key.is_empty() && !self.key.contains(time)) {
            return Err(BuildError::invalid("key", format!("the key must hold the time column \"{time}\""))
                .hint("TimescaleDB can keep a key unique only within a chunk of time."));
        }
        let table = Table {
            name,
            columns,
            key: self.key,
            time_column,
            chunk_interval_us: i64::try_from(self.chunk_interval.0.as_micros()).unwrap_or(i64::MAX),
        };
        let sink = TimescaleDb {
            endpoint,
            create: self.create,
            write_timeout: self.write_timeout.0,
            copied: (0..input.fields().len()).filter_map(|index| PgColumn::of(input, index)).collect(),
            key,
            statements: Statements::new(&table),
            table,
            schema: input.clone(),
            connection: None,
            duplicates: cx.counter("duplicate_rows"),
            conflicts: cx.counter("conflicting_rows"),
        };
        Ok(BuiltSink {
            sink: Box::new(sink),
            grouping: Grouping {
                rows_max: self.batch_rows.max(1),
                bytes_max: self.batch_size.bytes(),
                linger: self.linger.0,
            },
            outputs: vec![(Port::REJECTED, dead_letter::schema())],
        })
    }
}

fn table_columns(input: &SchemaRef) -> Result<Vec<Column>, BuildError> {
    let mut columns = Vec::new();
    for field in input.fields() {
        let name = field.name();
        if !is_identifier(name) {
            let hint = "Letters, digits and underscores, at most 63.";
            return Err(BuildError::invalid("", format!("\"{name}\" can't be the name of a table's column")).hint(hint));
        }
        let kind = PgType::of(field).ok_or_else(|| {
            BuildError::invalid(
                "",
                format!("column \"{name}\" is {}, which has no type in the table", field.data_type()),
            )
        })?;
        columns.push(Column { name: name.clone(), kind, required: !field.is_nullable() });
    }
    Ok(columns)
}

/// The column given, which must be a required timestamp, or the only one there is.
fn time_column(input: &SchemaRef, given: Option<&str>) -> Result<Option<String>, BuildError> {
    let is_time = |kind: &DataType| matches!(kind, DataType::Timestamp(..));
    if let Some(name) = given {
        let index = columns::find_typed(input, "time_column", name, "a timestamp", is_time)?;
        if input.field(index).is_nullable() {
            let hint = "Declare it with `required = true`: a hypertable has no place for a row without a time.";
            return Err(BuildError::invalid("time_column", format!("\"{name}\" may be null")).hint(hint));
        }
        return Ok(Some(name.to_owned()));
    }
    let mut times = input.fields().iter().filter(|field| is_time(field.data_type()) && !field.is_nullable());
    match (times.next(), times.next()) {
        (Some(only), None) => Ok(Some(only.name().clone())),
        (None, _) => Ok(None),
        (Some(first), Some(second)) => {
            let message = format!("both \"{}\" and \"{}\" could be the time column", first.name(), second.name());
            Err(BuildError::invalid("", message).hint("Set `time_column`."))
        }
    }
}

/// SQL of a group, made once.
struct Statements {
    copy: String,
    copy_to_staging: String,
    make_staging: String,
    insert: String,
    /// Rows of the temporary table whose key is taken by a row with other values.
    conflicts: String,
}

const STAGING: &str = "pg_temp.pipeline_staging";

impl Statements {
    fn new(table: &Table) -> Self {
        let name = table.name.sql();
        let all = quoted_list(table.columns.iter().map(|column| &column.name));
        let same_key = table.columns.iter().filter(|column| table.key.contains(&column.name)).map(|column| {
            let name = quoted(&column.name);
            // Only `=` can use the index, and only it is enough where there are no nulls.
            let same = if column.required { "=" } else { "is not distinct from" };
            format!("t.{name} {same} s.{name}")
        });
        let values = |alias: &str| {
            let columns = table.columns.iter().map(|column| format!("{alias}.{}", quoted(&column.name)));
            columns.collect::<Vec<_>>().join(", ")
        };
        Self {
            copy: format!("copy {name} ({all}) from stdin binary"),
            copy_to_staging: format!("copy {STAGING} ({all}) from stdin binary"),
            make_staging: format!(
                "drop table if exists {STAGING};
                 create temp table pipeline_staging on commit drop as select {all} from {name} with no data"
            ),
            insert: format!(
                "insert into {name} ({all}) select {all} from {STAGING} on conflict ({}) do nothing",
                quoted_list(&table.key)
            ),
            conflicts: format!(
                "select count(*) from {STAGING} s join {name} t on {} where ({}) is distinct from ({})",
                same_key.collect::<Vec<_>>().join(" and "),
                values("s"),
                values("t")
            ),
        }
    }
}

/// The running sink.
struct TimescaleDb {
    endpoint: Endpoint,
    table: Table,
    create: bool,
    write_timeout: Duration,
    schema: SchemaRef,
    copied: Vec<PgColumn>,
    /// The key's columns, by index in the input.
    key: Vec<usize>,
    statements: Statements,
    connection: Option<Connection>,
    duplicates: Counter,
    conflicts: Counter,
}

/// A connection with what was prepared on it.
struct Connection {
    client: Client,
    copy: Statement,
}

#[async_trait]
impl Sink for TimescaleDb {
    async fn open(&mut self) -> Result<(), StageError> {
        let mut client = self.endpoint.connect().await?;
        let edition = table::edition(&client).await?;
        if edition == Edition::PlainPostgres && self.table.time_column.is_some() {
            tracing::warn!(
                "the database {} has no timescaledb extension: {} is an ordinary table; run \
                 `create extension timescaledb` before the table is created to make it a hypertable",
                self.endpoint.name(),
                self.table.name.sql()
            );
        }
        if self.create {
            self.table.create(&mut client, &edition).await?;
        }
        self.table.compare(&client, &edition).await?;
        self.connection = Some(self.prepare(client).await?);
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let rows = concat_batches(&self.schema, group.batches().iter().map(|batch| &batch.rows))?;
        let chunks = encode(&rows, &self.copied, &self.order(&rows)?);
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.client.is_closed() => connection,
            _ => self.prepare(self.endpoint.connect().await?).await?,
        };
        let written = tokio::time::timeout(self.write_timeout, self.commit(&mut connection, chunks, rows.num_rows()));
        let Ok(outcome) = written.await else {
            // The connection is in the middle of something: it goes, and the server rolls back.
            let limit = DurationText(self.write_timeout);
            return Err(StageError::transient(format!("the transaction took longer than {limit}")));
        };
        if outcome.is_ok() || !connection.client.is_closed() {
            self.connection = Some(connection);
        }
        outcome
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        let client = self.endpoint.connect().await?;
        let edition = table::edition(&client).await?;
        match self.table.compare(&client, &edition).await {
            Err(missing) if self.create && missing.to_string().starts_with("there is no table") => {
                Ok(format!("{edition}; the table {} will be created", self.table.name.sql()))
            }
            Err(error) => Err(error),
            Ok(()) => Ok(format!("{edition}; the table {} fits", self.table.name.sql())),
        }
    }
}

impl TimescaleDb {
    async fn prepare(&self, client: Client) -> Result<Connection, StageError> {
        let prepared = client.prepare(&self.statements.copy).await;
        let copy = prepared.map_err(|error| fault(&format!("could not write to {}", self.table.name.sql()), error))?;
        Ok(Connection { client, copy })
    }

    /// Rows by key: neighbours in the index are written together, which about doubles the rate.
    fn order(&self, rows: &arrow::record_batch::RecordBatch) -> Result<Vec<u32>, StageError> {
        if self.key.is_empty() {
            return Ok((0..u32::try_from(rows.num_rows()).expect("a group has fewer than 2^32 rows")).collect());
        }
        let keys: Vec<SortColumn> =
            self.key.iter().map(|index| SortColumn { values: rows.column(*index).clone(), options: None }).collect();
        let order: UInt32Array = lexsort_to_indices(&keys, None)?;
        Ok(order.values().to_vec())
    }

    /// The transaction of one group. The place where a position is stored with its rows, once there is
    /// one to store.
    async fn commit(&self, connection: &mut Connection, chunks: Vec<Bytes>, rows: usize) -> Result<(), StageError> {
        let failed = |error| fault(&format!("could not write to {}", self.table.name.sql()), error);
        let copy = connection.copy.clone();
        let transaction = connection.client.transaction().await.map_err(failed)?;
        if self.key.is_empty() {
            copy_in(&transaction, &copy, &chunks).await.map_err(failed)?;
            return transaction.commit().await.map_err(failed);
        }
        transaction.batch_execute("savepoint rows").await.map_err(failed)?;
        let (mut duplicates, mut conflicts) = (0, 0);
        match copy_in(&transaction, &copy, &chunks).await {
            Ok(()) => {}
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                transaction.batch_execute("rollback to savepoint rows").await.map_err(failed)?;
                let inserted = self.merge(&transaction, &chunks).await.map_err(failed)?;
                duplicates = (rows as u64).saturating_sub(inserted);
                conflicts = self.count_conflicts(&transaction).await.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        transaction.commit().await.map_err(failed)?;
        self.duplicates.add(duplicates.saturating_sub(conflicts));
        self.conflicts.add(conflicts);
        if conflicts > 0 {
            tracing::warn!(
                "{conflicts} rows for {} have the key of a stored row but other values; the stored ones were kept",
                self.table.name.sql()
            );
        }
        Ok(())
    }

    /// Through a temporary table, leaving out what is there. Gives the rows inserted.
    async fn merge(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
        chunks: &[Bytes],
    ) -> Result<u64, tokio_postgres::Error> {
        transaction.batch_execute(&self.statements.make_staging).await?;
        let staging = transaction.prepare(&self.statements.copy_to_staging).await?;
        copy_in(transaction, &staging, chunks).await?;
        transaction.execute(self.statements.insert.as_str(), &[]).await
    }

    async fn count_conflicts(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
    ) -> Result<u64, tokio_postgres::Error> {
        let row = transaction.query_one(self.statements.conflicts.as_str(), &[]).await?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }
}

/// Sends one `COPY`. Dropped before its end, the server rolls it back.
async fn copy_in(
    transaction: &tokio_postgres::Transaction<'_>,
    statement: &Statement,
    chunks: &[Bytes],
) -> Result<(), tokio_postgres::Error> {
    let sink = transaction.copy_in(statement).await?;
    let mut sink = Box::pin(sink);
    for chunk in chunks {
        sink.as_mut().feed(chunk.clone()).await?;
    }
    sink.as_mut().finish().await?;
    Ok(())
}
