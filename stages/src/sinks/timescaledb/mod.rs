//! Stores rows in a TimescaleDB hypertable, or in a plain PostgreSQL table.
//!
//! Each group is one transaction: all of it is durable, or nothing of it is visible. Rows go in by
//! binary COPY, sorted by the key, since neighbours in the index then share its pages.
//!
//! What makes it safe to send a group again whose commit was never confirmed: behind sources that resume,
//! its positions, which are in the table `_pipeline_ledger` and move with its rows (`ledger`). Behind
//! others the key: a row that is there already is a duplicate, counted and skipped. **Without a key such a
//! group is stored twice.**

mod claims;
pub mod copy;
mod declared;
mod examine;
mod far_end;
mod fence;
mod late;
mod ledger;
mod letters;
mod nature;
mod own_table;
mod rollup;
mod server;
mod session;
mod sink;
mod sql_type;
mod staging;
mod store;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use pipeline_engine::secret::SecretText;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSink, Grouping, Port, SinkConfig, StageDoc};
use pipeline_engine::units::{DurationText, SizeText};
use pipeline_engine::{columns, dead_letter};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

pub(crate) use self::copy::Chunks;
pub use self::declared::DeclaredTable;
pub(crate) use self::ledger::NAME as LEDGER;
pub(crate) use self::letters::replay_log_ddl;
pub(crate) use self::own_table::OwnTable;
pub(crate) use self::rollup::Rollup;
pub use self::rollup::RollupConfig;
pub(crate) use self::server::{Server, Timescale};
pub use self::sql_type::SqlType;
pub(crate) use self::table::{Column, Table, is_identifier, quoted};

use self::claims::Claims;
use self::fence::Fence;
use self::ledger::Ledger;
use self::letters::LetterColumns;
use self::session::Statements;
use self::sink::{Counters, Layout, TimescaleDb};
use crate::postgres::Database;

/// `type = "timescaledb"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimescaleDbConfig {
    /// The database, as libpq takes it: `postgres://user@host:5432/database?sslmode=verify-full`.
    ///
    /// `sslmode` is `disable`, `prefer` (TLS if the server has it), `require` or `verify-full`
    /// (TLS or nothing). Whenever there is TLS the server's certificate and name are verified, also
    /// with `require` and `prefer`. The default is `verify-full`, and `disable` for a server on this
    /// machine. `sslrootcert` is a private authority, `sslcert` and `sslkey` are our own
    /// certificate and key, all PEM files.
    #[schemars(with = "SecretText")]
    url: SecretString,
    /// The password, if it is not in the url.
    #[schemars(with = "Option<SecretText>")]
    password: Option<SecretString>,
    /// The table, or `schema.table`. Names are taken literally, upper case too.
    table: String,
    /// Creates the table if it is missing: columns, key and indexes, as a hypertable where
    /// TimescaleDB is installed. A table that is there is compared with the input and never altered.
    #[serde(default)]
    create: bool,
    /// Which input columns are stored, and as which columns of the table: `{ event_time =
    /// "timestamp" }`. Left out: all, under their own names.
    columns: Option<BTreeMap<String, String>>,
    /// Columns of the table that tell a row from all others; the table has a unique index over
    /// them. In a column that may be null, nulls are one value (`NULLS NOT DISTINCT`, PostgreSQL 15 and
    /// later). Empty: no row is ever a duplicate; behind a source that
    /// can't resume, a group whose commit was not confirmed is stored twice.
    #[serde(default = "default_key")]
    key: Vec<String>,
    /// What to do with a row whose key is taken by a row with other values, in the table or in the same
    /// group. `keep_first`, the default: it leaves by `rejected` with the reason `conflict`. `keep_last`: it takes
    /// the place of the first one, which is counted as `replaced_rows`. `keep_newest`: the one that is newer by
    /// `newest_by` stays, whichever came first, and the other is counted as `replaced_rows`: a table of the last row of
    /// each device. A row whose key is taken by the very same row is a duplicate: skipped, and counted as
    /// `duplicate_rows`.
    #[serde(default)]
    on_conflict: OnConflict,
    /// With `on_conflict = "keep_newest"`: the column that tells which row is newer, a timestamp that is never null and
    /// not part of the key. Left out: the only such timestamp. Such a table is created as an ordinary one.
    newest_by: Option<String>,
    /// The column by which a new hypertable is cut into chunks. Left out: the only timestamp that
    /// is never null.
    time_column: Option<String>,
    /// How much time a chunk of a new hypertable holds.
    #[serde(default = "default_chunk_interval")]
    chunk_interval: DurationText,
    /// Further indexes of a new table, each a list of columns: `["site, timestamp desc"]`. The key
    /// has its index, and so has the time column.
    #[serde(default)]
    index: Vec<String>,
    /// Rows are compressed as they are copied (TimescaleDB 2.20 and later, community edition): for a hypertable
    /// with compression enabled, without unique indexes and triggers, so with `key = []`. Where that can't be,
    /// the sink does not open and says why. A preview still, by TimescaleDB's own word.
    #[serde(default)]
    direct_compress: bool,
    /// How long rows are kept: `pipeline db retention` has older ones dropped, by TimescaleDB's own policy in the
    /// community edition and by itself elsewhere. Left out: for good. A run of the pipeline drops nothing.
    retention: Option<DurationText>,
    /// After what time chunks are compressed, by `pipeline db compress`: the community edition alone can. Left out: never.
    compress_after: Option<DurationText>,
    /// Tables or views with a row for each bucket of time, kept by `pipeline db rollups`:
    /// `[sinks.NAME.rollups.telemetry_hourly]`.
    #[serde(default)]
    rollups: BTreeMap<String, RollupConfig>,
    /// A group is written once it holds this many rows.
    #[serde(default = "default_batch_rows")]
    batch_rows: usize,
    /// A group is written once it holds this much, as columns in memory.
    #[serde(default = "default_batch_bytes")]
    batch_bytes: SizeText,
    /// How long the first rows of a group wait for more. Zero: what is there is written at once.
    #[serde(default = "default_linger")]
    linger: DurationText,
    /// How long one group may take. Then the connection is dropped and the group sent again.
    #[serde(default = "default_write_timeout")]
    write_timeout: DurationText,
}

/// What happens to a row whose key is taken by a row with other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub(crate) enum OnConflict {
    /// The first row stays, and the other one leaves by `rejected` with the reason `conflict`.
    #[default]
    #[serde(rename = "keep_first")]
    First,
    /// The later row takes the place of the first one, which is counted as `replaced_rows`.
    #[serde(rename = "keep_last")]
    Last,
    /// The newer row stays, by a time in it; the other one is counted as `replaced_rows`.
    #[serde(rename = "keep_newest")]
    Newest,
}

fn default_key() -> Vec<String> {
    vec!["device_id".to_owned(), "timestamp".to_owned()]
}
fn default_chunk_interval() -> DurationText {
    DurationText::secs(86_400)
}
/// Into a table with a unique key, groups of 10,000 rows reach 85 % of the rate of one endless COPY.
fn default_batch_rows() -> usize {
    20_000
}
fn default_batch_bytes() -> SizeText {
    SizeText(16 << 20)
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
        summary: "Stores rows in a TimescaleDB hypertable or a PostgreSQL table, each group in one transaction.",
        ports: &[(
            "rejected",
            "rows that the database refuses for what they hold, with the SQLSTATE as reason, and rows whose key is taken \
             by another row, with the reason conflict",
        )],
        failure: "Transient (server away or starting, connection lost, deadlock, disk full, timeout): the group is \
                  rolled back and sent again on a new connection. Permanent (wrong password, no such database or \
                  table, a table that does not fit the input): the run stops, or the sink pauses where the source \
                  resumes, with the statement that mends it. Behind a source that resumes there is no window for \
                  duplicates: each group moves its positions on in the transaction that stores its rows, in the table \
                  _pipeline_ledger in the schema of the sink's table (pipeline, sink, input, partition, position, \
                  rows_total, updated_at; made when first needed, with one row for each input and partition). A commit \
                  whose answer was lost is looked up there, and counted as commits_resolved if it was made. Such a sink \
                  is for one run at a time: its connection holds a lock of the database, so it can't go through a pooler \
                  that shares connections between transactions. A second run is told who holds the lock; what a dead \
                  run has left is waited for, 90 s at most. Behind other sources the key for deduplication is `key`: a \
                  group whose commit was not confirmed is sent again, and the rows that are there already are skipped \
                  and counted as duplicate_rows; with key = [] the window for duplicates is one group. Late rows that \
                  meet TimescaleDB's limit on unpacking compressed chunks are stored apart from the rest of their group \
                  without that limit, in ten times the write_timeout at most, and counted as late_rows; where the server \
                  can't store in a compressed chunk at all, they leave by rejected with the reason 0A000.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        let application = format!("pipeline {}", cx.pipeline);
        let database = Database::of_url(&self.url, self.password.as_ref(), &application)?.noting(cx.certificates());
        let (stored, columns) = self.stored_columns(input)?;
        let table = self.table(columns)?;
        let key = key_indices(&table)?;
        if self.create {
            check_can_create(&table)?;
        }
        if self.direct_compress && !table.key.is_empty() {
            return Err(BuildError::invalid(
                "direct_compress",
                "a table with a unique key can't be compressed directly",
            )
            .hint(
                "Set direct_compress = false; or key = [], where the source can resume and its positions tell which \
                     rows are stored.",
            ));
        }
        if self.batch_rows == 0 {
            return Err(BuildError::invalid("batch_rows", "a group has at least one row"));
        }
        if self.write_timeout.0 < Duration::from_millis(1) {
            return Err(BuildError::invalid("write_timeout", "no group can be written in no time"));
        }
        let upkeep = self.upkeep(&table, &cx.stage)?;
        let stored_names = stored.iter().map(|column| input.field(*column).name().clone()).collect();
        let projected = input.project(&stored).map_err(|error| BuildError::invalid("columns", error.to_string()))?;
        let keeps_letters = *input == dead_letter::schema();
        let sink = TimescaleDb {
            database,
            letters: keeps_letters.then(|| LetterColumns::of(&stored, &table)).flatten(),
            pipeline: cx.pipeline.clone(),
            layout: Layout {
                stored,
                schema: projected.into(),
                types: table.columns.iter().map(|column| column.kind).collect(),
                key,
            },
            statements: Statements::new(&table, self.on_conflict),
            ledger: Ledger::beside(&table, &cx.pipeline, &cx.stage),
            claims: Claims::beside(&table, &cx.pipeline, &cx.stage),
            fence: Fence::new(&cx.pipeline, &cx.stage),
            keeps_positions: false,
            is_shared: false,
            table,
            upkeep,
            stored_names,
            create: self.create,
            direct_compress: self.direct_compress,
            write_timeout: self.write_timeout.0,
            session: None,
            counters: Counters {
                duplicates: cx.counter("duplicate_rows"),
                replaced: cx.counter("replaced_rows"),
                late: cx.counter("late_rows"),
                resolved: cx.counter("commits_resolved"),
                reconnects: cx.counter("reconnects"),
            },
        };
        Ok(BuiltSink {
            sink: Box::new(sink),
            grouping: Grouping {
                rows_max: self.batch_rows,
                bytes_max: self.batch_bytes.bytes(),
                linger: self.linger.0,
            },
            outputs: vec![(Port::REJECTED, dead_letter::schema())],
        })
    }
}

impl TimescaleDbConfig {
    /// The input columns that are stored, by index, and the columns of the table that they fill.
    fn stored_columns(&self, input: &Schema) -> Result<(Vec<usize>, Vec<Column>), BuildError> {
        for name in self.columns.iter().flat_map(BTreeMap::keys) {
            columns::find(input, format!("columns.{name}"), name)?;
        }
        let mut stored = Vec::new();
        let mut filled: Vec<Column> = Vec::new();
        for (index, field) in input.fields().iter().enumerate() {
            let name = match &self.columns {
                None => field.name(),
                Some(columns) => match columns.get(field.name()) {
                    None => continue,
                    Some(name) => name,
                },
            };
            let key = self.columns.as_ref().map_or("columns".to_owned(), |_| format!("columns.{}", field.name()));
            if !is_identifier(name) {
                return Err(BuildError::invalid(key, format!("\"{name}\" can't be the name of a column"))
                    .hint("Letters, digits and underscores, at most 63. Name it otherwise in \"columns\"."));
            }
            if filled.iter().any(|column| column.name == *name) {
                return Err(BuildError::invalid(key, format!("two columns are stored as \"{name}\"")));
            }
            let Some(kind) = SqlType::of(field) else {
                let message = format!("column \"{}\" is {}, which can't be stored", field.name(), field.data_type());
                return Err(BuildError::invalid(key, message)
                    .hint(format!("Leave it out by \"columns\". {}.", sql_type::STORABLE)));
            };
            stored.push(index);
            filled.push(Column { name: name.clone(), kind, required: !field.is_nullable() });
        }
        if filled.is_empty() {
            return Err(BuildError::invalid("columns", "no column is stored"));
        }
        Ok((stored, filled))
    }

    fn table(&self, columns: Vec<Column>) -> Result<Table, BuildError> {
        let (schema, name) = match self.table.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, self.table.as_str()),
        };
        if !schema.is_none_or(is_identifier) || !is_identifier(name) {
            return Err(BuildError::invalid("table", format!("\"{}\" can't be the name of a table", self.table))
                .hint("A name, or a schema and a name with a dot between: letters, digits and underscores."));
        }
        let has_column = |name: &str| columns.iter().any(|column| column.name == name);
        let mut indexes = Vec::new();
        for (place, text) in self.index.iter().enumerate() {
            let sql = table::index_sql(text, has_column);
            indexes.push(sql.map_err(|mistake| BuildError::invalid(format!("index.{place}"), mistake))?);
        }
        let newest_by = self.newest_by(&columns)?;
        let time = if newest_by.is_some() { None } else { time_column(&columns, self.time_column.as_deref())? };
        Ok(Table {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
            key: self.key.clone(),
            time,
            newest_by,
            columns,
            chunk_interval: self.chunk_interval.0,
            indexes,
            replaces: !self.key.is_empty() && self.on_conflict != OnConflict::First,
        })
    }
}

impl TimescaleDbConfig {
    /// What tells which of two rows is newer, where that is asked for.
    fn newest_by(&self, columns: &[Column]) -> Result<Option<String>, BuildError> {
        if self.on_conflict != OnConflict::Newest {
            return match &self.newest_by {
                None => Ok(None),
                Some(_) => Err(BuildError::invalid("newest_by", "nothing asks which row is newer")
                    .hint("Set on_conflict = \"keep_newest\", or leave this key out.")),
            };
        }
        if self.key.is_empty() {
            return Err(BuildError::invalid("on_conflict", "without a key no two rows are in each other's place"));
        }
        let can_tell = |column: &&Column| {
            column.kind == SqlType::Timestamptz && column.required && !self.key.contains(&column.name)
        };
        let mut candidates = columns.iter().filter(can_tell);
        match (&self.newest_by, candidates.next(), candidates.next()) {
            (None, Some(only), None) => Ok(Some(only.name.clone())),
            (Some(name), ..) if columns.iter().filter(can_tell).any(|column| column.name == *name) => {
                Ok(Some(name.clone()))
            }
            (named, ..) => {
                let message = match named {
                    Some(name) => format!("\"{name}\" is no timestamp beside the key that is never null"),
                    None => "there is not exactly one timestamp beside the key that is never null".to_owned(),
                };
                Err(BuildError::invalid("newest_by", message)
                    .hint("Name a column of the table, such as newest_by = \"timestamp\"."))
            }
        }
    }
}

/// The column to cut a hypertable by; `None` if there is no single candidate and none is named.
fn time_column(columns: &[Column], named: Option<&str>) -> Result<Option<String>, BuildError> {
    let is_time = |column: &&Column| column.kind == SqlType::Timestamptz && column.required;
    if let Some(name) = named {
        if !columns.iter().filter(is_time).any(|column| column.name == name) {
            let message = format!("the table has no timestamp column \"{name}\" that is never null");
            return Err(BuildError::invalid("time_column", message)
                .hint("Name a column of the table. It must be a timestamp and required in its schema."));
        }
        return Ok(Some(name.to_owned()));
    }
    let mut candidates = columns.iter().filter(is_time);
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Ok(Some(only.name.clone())),
        _ => Ok(None),
    }
}

/// The key as indices of stored columns.
fn key_indices(table: &Table) -> Result<Vec<usize>, BuildError> {
    let without = "Name columns of the table that tell its rows apart, or set key = [] and accept duplicates.";
    let mut indices = Vec::new();
    for name in &table.key {
        let Some(index) = table.columns.iter().position(|column| column.name == *name) else {
            return Err(BuildError::invalid("key", format!("no stored column is named \"{name}\"")).hint(without));
        };
        if indices.contains(&index) {
            return Err(BuildError::invalid("key", format!("\"{name}\" is named twice")));
        }
        indices.push(index);
    }
    Ok(indices)
}

fn check_can_create(table: &Table) -> Result<(), BuildError> {
    if table.newest_by.is_some() {
        return Ok(());
    }
    let Some(time) = &table.time else {
        return Err(BuildError::invalid("time_column", "the stored columns don't have exactly one required timestamp")
            .hint("Name the one that a new hypertable is cut by, or set create = false."));
    };
    if !table.key.is_empty() && !table.key.contains(time) {
        return Err(BuildError::invalid("key", format!("the key is without \"{time}\", the time column"))
            .hint("A hypertable's unique key must hold its time column."));
    }
    if table.chunk_interval < Duration::from_secs(1) {
        return Err(BuildError::invalid("chunk_interval", "a chunk holds at least a second"));
    }
    Ok(())
}
