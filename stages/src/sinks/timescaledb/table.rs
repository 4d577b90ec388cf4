//! The table: made when asked for, else compared with what the input needs.

use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use super::faults::fault;
use super::types::PgType;

/// What the table must be.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) columns: Vec<Column>,
    /// Columns of the unique key, in order; may be empty.
    pub(super) key: Vec<String>,
    pub(super) time_column: Option<String>,
    pub(super) chunk_interval_us: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: PgType,
    pub(super) required: bool,
}

/// `table` or `schema.table`, each part checked.
#[derive(Debug, Clone)]
pub(super) struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// `None` unless each part is letters, digits and underscores, as PostgreSQL's own names are.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (schema, table) = match text.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, text),
        };
        let valid = is_identifier(table) && schema.is_none_or(is_identifier);
        valid.then(|| Self { schema: schema.map(str::to_owned), table: table.to_owned() })
    }

    /// Quoted, for SQL.
    pub(super) fn sql(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }
}

/// At most 63 characters, which PostgreSQL would cut silently.
pub(super) fn is_identifier(name: &str) -> bool {
    let first = name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    let rest = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    first && rest && name.len() <= 63
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn quoted_list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// What kind of database it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edition {
    /// TimescaleDB in its community edition: compression, policies, continuous aggregates.
    Community,
    /// TimescaleDB in its Apache edition: hypertables and `drop_chunks`.
    Apache,
    /// No extension: an ordinary table.
    PlainPostgres,
}

impl std::fmt::Display for Edition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Community => "TimescaleDB, community edition",
            Self::Apache => "TimescaleDB, Apache edition",
            Self::PlainPostgres => "PostgreSQL without TimescaleDB",
        })
    }
}

pub(super) async fn edition(client: &Client) -> Result<Edition, StageError> {
    let sql = "select exists (select from pg_extension where extname = 'timescaledb'),
                      current_setting('timescaledb.license', true)";
    let row = client.query_one(sql, &[]).await.map_err(|error| fault("could not read the extensions", error))?;
    let license: Option<String> = row.get(1);
    Ok(match (row.get(0), license.as_deref()) {
        (false, _) => Edition::PlainPostgres,
        (true, Some("apache")) => Edition::Apache,
        (true, _) => Edition::Community,
    })
}

impl Table {
    /// Creates table, hypertable, unique key and index, unless the table is there.
    pub(super) async fn create(&self, client: &mut Client, edition: &Edition) -> Result<(), StageError> {
        let what = format!("could not create the table {}", self.name.sql());
        let failed = |error| fault(&what, error);
        let transaction = client.transaction().await.map_err(failed)?;
        // Several sinks of one pipeline may come at the same moment.
        let lock = "select pg_advisory_xact_lock(hashtextextended('pipeline create table', 0))";
        transaction.batch_execute(lock).await.map_err(failed)?;
        let name = self.name.sql();
        let there = transaction.query_one("select to_regclass($1) is not null", &[&name]).await.map_err(failed)?;
        if !there.get::<_, bool>(0) {
            transaction.batch_execute(&self.ddl(edition)).await.map_err(failed)?;
            tracing::info!("created the table {name}");
        }
        transaction.commit().await.map_err(failed)
    }

    /// The statements that make the table.
    fn ddl(&self, edition: &Edition) -> String {
        let name = self.name.sql();
        let columns = self.columns.iter().map(|column| {
            let required = if column.required { " not null" } else { "" };
            format!("{} {}{required}", quoted(&column.name), column.kind.sql())
        });
        let mut ddl = format!("create table {name} ({});\n", columns.collect::<Vec<_>>().join(", "));
        if let (Some(time), true) = (&self.time_column, *edition != Edition::PlainPostgres) {
            ddl += &format!(
                "select create_hypertable('{name}', by_range('{time}', {}::bigint * interval '1 microsecond'), create_default_indexes => false);\n",
                self.chunk_interval_us
            );
        }
        if !self.key.is_empty() {
            ddl += &self.key_ddl();
            ddl += "\n";
        }
        if let Some(time) = &self.time_column {
            ddl += &format!("create index on {name} ({} desc);\n", quoted(time));
        }
        ddl
    }

    /// The statement that makes the unique key. Nulls are one value: a reading without a sequence
    /// number that comes twice is stored once.
    fn key_ddl(&self) -> String {
        let optional = self.columns.iter().any(|column| self.key.contains(&column.name) && !column.required);
        let nulls = if optional { " nulls not distinct" } else { "" };
        format!("create unique index on {} ({}){nulls};", self.name.sql(), quoted_list(&self.key))
    }

    /// Compares the table with what the input needs.
    pub(super) async fn compare(&self, client: &Client, edition: &Edition) -> Result<(), StageError> {
        let failed = |error| fault(&format!("could not read the shape of {}", self.name.sql()), error);
        let sql = "select attname::text, format_type(atttypid, atttypmod), attnotnull, atthasdef or attidentity <> ''
                   from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped";
        let found = client.query(sql, &[&self.name.sql()]).await.map_err(failed)?;
        if found.is_empty() {
            let hint = format!("Set `create = true`, or run:\n{}", self.ddl(edition));
            return Err(StageError::permanent(format!("there is no table {}", self.name.sql())).hint(hint));
        }
        let found: Vec<(String, String, bool, bool)> =
            found.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
        self.compare_columns(&found)?;
        if !self.key.is_empty() && !self.has_key(client).await? {
            let message = format!("{} has no unique index on ({})", self.name.sql(), self.key.join(", "));
            let hint = format!("A message that comes twice would be stored twice. Run: {}", self.key_ddl());
            return Err(StageError::permanent(message).hint(hint));
        }
        Ok(())
    }

    fn compare_columns(&self, found: &[(String, String, bool, bool)]) -> Result<(), StageError> {
        let name = self.name.sql();
        for column in &self.columns {
            let Some((_, kind, ..)) = found.iter().find(|(found, ..)| *found == column.name) else {
                let hint =
                    format!("Run: alter table {name} add column {} {};", quoted(&column.name), column.kind.sql());
                return Err(StageError::permanent(format!("{name} has no column \"{}\"", column.name)).hint(hint));
            };
            if !column.kind.fits(kind) {
                let message = format!("column \"{}\" of {name} is {kind}, not {}", column.name, column.kind.sql());
                let hint = "Change the column's type, or its type in the schema of the pipeline file.";
                return Err(StageError::permanent(message).hint(hint));
            }
        }
        let unfilled = found.iter().find(|(found, _, required, default)| {
            *required && !*default && !self.columns.iter().any(|column| column.name == *found)
        });
        match unfilled {
            Some((column, ..)) => {
                let message =
                    format!("column \"{column}\" of {name} must not be null, and the input has none of that name");
                Err(StageError::permanent(message).hint("Give it a default, or drop its NOT NULL."))
            }
            None => Ok(()),
        }
    }

    async fn has_key(&self, client: &Client) -> Result<bool, StageError> {
        let sql = "select exists (
                     select from pg_index i where i.indrelid = to_regclass($1) and i.indisunique and i.indisvalid
                       and i.indpred is null and i.indexprs is null
                       and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
                            where a.attrelid = i.indrelid and a.attnum = any(i.indkey)) = $2)";
        let mut key = self.key.clone();
        key.sort();
        let row = client.query_one(sql, &[&self.name.sql(), &key]).await;
        Ok(row.map_err(|error| fault("could not read the indexes", error))?.get(0))
    }
}
