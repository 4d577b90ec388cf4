//! The table: how it is created, and what is wrong with one that is there.
//!
//! A table that exists is never altered: what does not fit is said all at once, each with the
//! statement that mends it.

use std::fmt::Write;
use std::time::Duration;

use pipeline_engine::stage::{ColumnDifference, SchemaComparison, StageError};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::server::Server;
use super::sql_type::SqlType;
use crate::postgres::fault::while_opening;

/// The table as the sink wants it. All names are plain identifiers (see [`is_identifier`]).
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub schema: Option<String>,
    pub name: String,
    pub columns: Vec<Column>,
    /// The unique key, by column; empty for none.
    pub key: Vec<String>,
    /// What a hypertable is cut by. Only needed to create one.
    pub time: Option<String>,
    pub chunk_interval: Duration,
    /// Further indexes to create: the inside of the parentheses.
    pub indexes: Vec<String>,
    /// Rows that are there are replaced by later ones of the same key.
    pub replaces: bool,
    /// They are only by those that are newer by this column.
    pub newest_by: Option<String>,
}

/// A column that the sink fills.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub name: String,
    pub kind: SqlType,
    /// The input has no nulls in it.
    pub required: bool,
}

/// Something in which a table does not fit what the sink writes.
pub(crate) struct Mistake {
    /// `columns`, `unique key` or `rights`.
    pub about: &'static str,
    pub what: String,
    /// The statement that mends it.
    pub mend: String,
}

/// A column as the catalog has it.
struct Found {
    name: String,
    /// As in DDL, for people: `numeric(10,2)`.
    type_text: String,
    /// `pg_type.typname`, of the base type for a domain.
    type_name: String,
    needs_value: bool,
    generated: bool,
}

/// Whether a text can stand in double quotes without further ado: `^[A-Za-z_][A-Za-z0-9_]{0,62}$`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let starts = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    starts && text.len() <= 63 && text.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
}

/// `"a", "b"`.
pub(crate) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

impl Table {
    /// Its name as SQL takes it: `"public"."telemetry"`.
    pub fn sql_name(&self) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{}\"", self.name),
            None => format!("\"{}\"", self.name),
        }
    }

    /// The columns that the sink fills, in the order of the input.
    pub fn column_list(&self) -> String {
        quoted(self.columns.iter().map(|column| column.name.as_str()))
    }

    /// The key, as people read it.
    pub fn key_text(&self) -> String {
        if self.key.is_empty() {
            return "no key: behind a source that can't resume, a replay stores rows twice".to_owned();
        }
        format!("unique over its key ({})", self.key.join(", "))
    }

    pub fn key_list(&self) -> String {
        quoted(self.key.iter().map(String::as_str))
    }

    /// All that makes it, in order. On plain PostgreSQL an ordinary table.
    pub fn ddl(&self, server: &Server) -> Vec<String> {
        let table = self.sql_name();
        let mut lines: Vec<String> = Vec::new();
        for Column { name, kind, required } in &self.columns {
            lines.push(format!("\"{name}\" {}{}", kind.name(), if *required { " NOT NULL" } else { "" }));
        }
        let nullable_key = self.has_nullable_key();
        if !self.key.is_empty() && !nullable_key {
            lines.push(format!("PRIMARY KEY ({})", self.key_list()));
        }
        let mut statements = vec![format!("CREATE TABLE {table} ({})", lines.join(", "))];
        if let Some(time) = &self.time {
            statements.push(match &server.timescale {
                // The older of its two forms: every version understands it. Makes an index on the time.
                Some(timescale) => format!(
                    "SELECT \"{}\".create_hypertable('{table}', '{time}', \
                     chunk_time_interval => INTERVAL '{} microseconds')",
                    timescale.schema,
                    self.chunk_interval.as_micros()
                ),
                None => format!("CREATE INDEX ON {table} (\"{time}\" DESC)"),
            });
        }
        if nullable_key {
            statements.push(self.unique_index());
        }
        statements.extend(self.indexes.iter().map(|columns| format!("CREATE INDEX ON {table} ({columns})")));
        statements
    }

    fn has_nullable_key(&self) -> bool {
        self.columns.iter().any(|column| self.key.contains(&column.name) && !column.required)
    }

    /// To an ordinary unique index no null equals another: such rows would be stored again and again.
    fn unique_index(&self) -> String {
        let nulls = if self.has_nullable_key() { " NULLS NOT DISTINCT" } else { "" };
        format!("CREATE UNIQUE INDEX ON {} ({}){nulls}", self.sql_name(), self.key_list())
    }

    /// Whether there is something of that name.
    pub async fn exists(&self, client: &Client) -> Result<bool, StageError> {
        Ok(self.oid(client).await?.is_some())
    }

    /// Creates it with all that belongs to it, or nothing.
    pub async fn create(&self, client: &Client, server: &Server) -> Result<(), StageError> {
        let made = make_once(client, &self.sql_name(), &self.ddl(server).join("; ")).await;
        made.map_err(|error| while_opening(error, &format!("can't create table {}", self.sql_name())))
    }

    /// Compares the table with what the sink writes.
    pub async fn check(&self, client: &Client, server: &Server) -> Result<(), StageError> {
        let mistakes = self.mistakes(client, server).await?;
        if mistakes.is_empty() {
            return Ok(());
        }
        let (what, mend): (Vec<_>, Vec<_>) =
            mistakes.into_iter().map(|Mistake { what, mend, .. }| (what, mend)).unzip();
        let message = format!("table {} does not fit the input: {}", self.sql_name(), what.join("; "));
        Err(StageError::permanent(message).hint(format!("To mend it: {}.", mend.join(" "))))
    }

    /// All in which the table does not fit what the sink writes.
    ///
    /// # Errors
    /// There is no such table, or it can't be looked at.
    pub async fn mistakes(&self, client: &Client, server: &Server) -> Result<Vec<Mistake>, StageError> {
        let Some((oid, kind)) = self.oid(client).await? else {
            return Err(StageError::permanent(format!("there is no table {}", self.sql_name()))
                .hint(format!("Set create = true, or run: {};", self.ddl(server).join("; "))));
        };
        if !["r", "p"].contains(&kind.as_str()) {
            return Err(StageError::permanent(format!("{} is not a table", self.sql_name()))
                .hint("Binary COPY writes to tables, not to views and foreign tables."));
        }
        let about = |about| move |(what, mend)| Mistake { about, what, mend };
        let columns = self.wrong_columns(&columns_of(client, oid).await?).into_iter().map(about("columns"));
        let key = self.wrong_key(client, oid).await?.into_iter().map(about("unique key"));
        let rights = self.missing_rights(client, oid).await?.into_iter().map(about("rights"));
        Ok(columns.chain(key).chain(rights).collect())
    }

    /// How the rows differ from the table, column by column; `None` if there is no table.
    pub async fn compare(&self, client: &Client) -> Result<Option<SchemaComparison>, StageError> {
        let Some((oid, _)) = self.oid(client).await? else { return Ok(None) };
        let differences = self.differences(&columns_of(client, oid).await?);
        Ok(Some(SchemaComparison { against: format!("table {}", self.sql_name()), differences }))
    }

    /// Columns that the rows and the table do not agree on; the sink can't run with those that have something to mend.
    fn differences(&self, found: &[Found]) -> Vec<ColumnDifference> {
        let table = self.sql_name();
        let mut differences = Vec::new();
        for Column { name, kind, .. } in &self.columns {
            let wanted = kind.name();
            let column = found.iter().find(|column| column.name == *name);
            let mut differs = |text: String, mend: String| {
                differences.push(ColumnDifference {
                    column: name.clone(),
                    ours: Some(wanted.to_owned()),
                    theirs: column.map(|column| column.type_text.clone()),
                    consequence: text,
                    mend: Some(mend),
                });
            };
            let Some(Found { type_name, type_text, generated, .. }) = column else {
                differs("is missing".to_owned(), format!("ALTER TABLE {table} ADD COLUMN \"{name}\" {wanted};"));
                continue;
            };
            if !kind.reads_as(type_name) {
                differs(
                    format!("is {type_text}, the input's is {wanted}"),
                    format!("ALTER TABLE {table} ALTER COLUMN \"{name}\" TYPE {wanted} USING \"{name}\"::{wanted};"),
                );
            }
            if *generated {
                differs(
                    "is generated".to_owned(),
                    format!("ALTER TABLE {table} ALTER COLUMN \"{name}\" DROP EXPRESSION;"),
                );
            }
        }
        let filled = |name: &str| self.columns.iter().any(|column| column.name == name);
        for Found { name, type_text, needs_value, .. } in
            found.iter().filter(|found| !found.generated && !filled(&found.name))
        {
            let (consequence, mend) = if *needs_value {
                (
                    "is NOT NULL without a default, and the input has no such column",
                    Some(format!("ALTER TABLE {table} ALTER COLUMN \"{name}\" DROP NOT NULL;")),
                )
            } else {
                ("is filled by no row", None)
            };
            differences.push(ColumnDifference {
                column: name.clone(),
                ours: None,
                theirs: Some(type_text.clone()),
                consequence: consequence.to_owned(),
                mend,
            });
        }
        differences
    }

    /// Its oid, and what kind of relation it is.
    pub async fn oid(&self, client: &Client) -> Result<Option<(u32, String)>, StageError> {
        let sql = "SELECT oid, relkind::text FROM pg_class WHERE oid = to_regclass($1)";
        let row = client.query_opt(sql, &[&self.sql_name()]).await.map_err(unreadable)?;
        Ok(row.map(|row| (row.get(0), row.get(1))))
    }

    /// What is wrong and what mends it, a pair for each column.
    fn wrong_columns(&self, found: &[Found]) -> Vec<(String, String)> {
        let mend = |difference: ColumnDifference| {
            let ColumnDifference { column, consequence, mend, .. } = difference;
            mend.map(|mend| (format!("column \"{column}\" {consequence}"), mend))
        };
        self.differences(found).into_iter().filter_map(mend).collect()
    }

    /// `ON CONFLICT` takes a unique index over exactly the key: whole, immediate, of plain columns.
    async fn wrong_key(&self, client: &Client, oid: u32) -> Result<Option<(String, String)>, StageError> {
        if self.key.is_empty() {
            return Ok(None);
        }
        let sql = "SELECT array_agg(a.attname::text) FROM pg_index i \
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey[0:i.indnkeyatts - 1]) \
                   WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid \
                   AND i.indpred IS NULL AND i.indexprs IS NULL \
                   AND (NOT $2 OR coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false)) \
                   GROUP BY i.indexrelid";
        let rows = client.query(sql, &[&oid, &self.has_nullable_key()]).await.map_err(unreadable)?;
        let mut wanted = self.key.clone();
        wanted.sort_unstable();
        let has_key = rows.iter().any(|row| {
            let mut columns: Vec<String> = row.get(0);
            columns.sort_unstable();
            columns == wanted
        });
        Ok((!has_key).then(|| {
            (
                format!("there is no unique index over its key ({})", self.key_list()),
                format!("{}; or set key = [], and a replay stores rows twice", self.unique_index()),
            )
        }))
    }

    /// Rights that would only be missed later, at the first duplicate.
    async fn missing_rights(&self, client: &Client, oid: u32) -> Result<Vec<(String, String)>, StageError> {
        let sql = "SELECT has_any_column_privilege($1::oid, 'INSERT'), has_any_column_privilege($1::oid, 'SELECT'), \
                   has_database_privilege(current_database(), 'TEMPORARY'), \
                   has_any_column_privilege($1::oid, 'UPDATE'), quote_ident(current_user), \
                   quote_ident(current_database())";
        let row = client.query_one(sql, &[&oid]).await.map_err(unreadable)?;
        let (user, database): (String, String) = (row.get(4), row.get(5));
        let keyed = !self.key.is_empty();
        let table = self.sql_name();
        let rights = [
            (row.get(0), "INSERT", format!("GRANT INSERT ON {table} TO {user};")),
            (!keyed || row.get(1), "SELECT", format!("GRANT SELECT ON {table} TO {user};")),
            (!keyed || row.get(2), "TEMPORARY", format!("GRANT TEMPORARY ON DATABASE {database} TO {user};")),
            (!self.replaces || row.get(3), "UPDATE", format!("GRANT UPDATE ON {table} TO {user};")),
        ];
        let missing = rights.into_iter().filter(|(has, ..)| !has);
        Ok(missing.map(|(_, right, grant)| (format!("user {user} lacks the right {right}"), grant)).collect())
    }
}

/// Runs the statements unless there is a table of that name by now. Two sinks that start at once: the second
/// waits, and then finds the table. Whoever makes it without that lock, a person or another tool, may be quicker: then the
/// statements fail, and the table is there.
pub(super) async fn make_once(client: &Client, table: &str, ddl: &str) -> Result<(), tokio_postgres::Error> {
    let lock = "SELECT pg_advisory_xact_lock(hashtext('pipeline creates a table'))";
    client.batch_execute(&format!("BEGIN; {lock}")).await?;
    if !is_there(client, table).await?
        && let Err(error) = client.batch_execute(ddl).await
    {
        client.batch_execute("ROLLBACK").await?;
        let was_made = error.code().is_some_and(|code| MADE_BY_ANOTHER.contains(code));
        return if was_made && is_there(client, table).await? { Ok(()) } else { Err(error) };
    }
    client.batch_execute("COMMIT").await
}

/// What the server says of a table, or of the type that goes with it, that somebody else has just made.
const MADE_BY_ANOTHER: [SqlState; 3] =
    [SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION];

async fn is_there(client: &Client, table: &str) -> Result<bool, tokio_postgres::Error> {
    client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.map(|row| row.get(0))
}

async fn columns_of(client: &Client, oid: u32) -> Result<Vec<Found>, StageError> {
    let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), coalesce(base.typname, t.typname)::text, \
               a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attgenerated <> '' \
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
               LEFT JOIN pg_type base ON base.oid = t.typbasetype \
               WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let rows = client.query(sql, &[&oid]).await.map_err(unreadable)?;
    let found = rows.iter().map(|row| Found {
        name: row.get(0),
        type_text: row.get(1),
        type_name: row.get(2),
        needs_value: row.get(3),
        generated: row.get(4),
    });
    Ok(found.collect())
}

fn unreadable(error: tokio_postgres::Error) -> StageError {
    while_opening(error, "can't read the database's catalog")
}

/// An index as written, such as `device_id, timestamp desc`, as SQL: `"device_id", "timestamp" DESC`.
///
/// # Errors
/// A word that is neither a column nor a direction.
pub(super) fn index_sql(text: &str, has_column: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut sql = String::new();
    for part in text.split(',') {
        let words: Vec<&str> = part.split_whitespace().collect();
        let (name, direction) = match words[..] {
            [name] => (name, ""),
            [name, direction] if direction.eq_ignore_ascii_case("desc") => (name, " DESC"),
            [name, direction] if direction.eq_ignore_ascii_case("asc") => (name, ""),
            _ => return Err(format!("\"{text}\" is not a list of columns, each with or without \"desc\"")),
        };
        if !has_column(name) {
            return Err(format!("the table has no column \"{name}\""));
        }
        let comma = if sql.is_empty() { "" } else { ", " };
        write!(sql, "{comma}\"{name}\"{direction}").expect("writing to a String can't fail");
    }
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::timescaledb::server::Timescale;

    fn table() -> Table {
        let column = |name: &str, kind, required| Column { name: name.into(), kind, required };
        Table {
            schema: None,
            name: "telemetry".into(),
            columns: vec![
                column("device_id", SqlType::Text, true),
                column("timestamp", SqlType::Timestamptz, true),
                column("temperature", SqlType::Float8, false),
            ],
            key: vec!["device_id".into(), "timestamp".into()],
            time: Some("timestamp".into()),
            chunk_interval: Duration::from_secs(86_400),
            indexes: vec!["\"temperature\"".into()],
            replaces: false,
            newest_by: None,
        }
    }

    #[test]
    fn the_ddl_makes_a_hypertable_or_on_plain_postgresql_a_table_with_the_same_indexes() {
        let create = "CREATE TABLE \"telemetry\" (\"device_id\" text NOT NULL, \
                      \"timestamp\" timestamp with time zone NOT NULL, \"temperature\" double precision, \
                      PRIMARY KEY (\"device_id\", \"timestamp\"))";
        let index = "CREATE INDEX ON \"telemetry\" (\"temperature\")";
        let timescale = Timescale { version: "2.19.3".into(), schema: "public".into(), license: "apache".into() };
        let hypertable = "SELECT \"public\".create_hypertable('\"telemetry\"', 'timestamp', \
                          chunk_time_interval => INTERVAL '86400000000 microseconds')";
        let mut server = Server { version: "17.12".into(), timescale: Some(timescale), timescale_available: true };
        assert_eq!(table().ddl(&server), [create, hypertable, index]);
        server.timescale = None;
        assert_eq!(table().ddl(&server), [create, "CREATE INDEX ON \"telemetry\" (\"timestamp\" DESC)", index]);
    }

    #[test]
    fn only_plain_words_are_identifiers() {
        for good in ["telemetry", "_x", "Device9", &"x".repeat(63)] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "9x", "a-b", "a\"b", "a b", "naïve", "a;drop", &"x".repeat(64)] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }

    #[test]
    fn an_index_is_a_list_of_columns_with_directions() {
        let known = |name: &str| ["device_id", "timestamp"].contains(&name);
        assert_eq!(index_sql("device_id, timestamp desc", known).unwrap(), "\"device_id\", \"timestamp\" DESC");
        assert_eq!(index_sql("timestamp ASC", known).unwrap(), "\"timestamp\"");
        assert_eq!(index_sql("speed", known).unwrap_err(), "the table has no column \"speed\"");
        for bad in ["", "device_id,", "device_id up", "device_id desc desc"] {
            assert!(index_sql(bad, known).unwrap_err().contains("is not a list of columns"), "{bad}");
        }
    }
}
