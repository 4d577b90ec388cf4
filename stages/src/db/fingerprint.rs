//! Tables as counts and checksums: what says that a copy is one.
//!
//! A checksum is the sum of a hash of each row's text, so the order of rows does not matter, and a row that is there twice
//! counts twice. It is computed by the server, by MD5, which is the same in every version and on every machine; the text
//! depends on settings, which are made the same first.

use pipeline_engine::stage::StageError;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::postgres::fault::while_opening;

/// What the text of a value depends on.
pub(super) const SETTINGS: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; \
     SET extra_float_digits = 1; SET bytea_output = 'hex'; SET statement_timeout = 0";

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFingerprint {
    /// As SQL names it, with its schema.
    pub table: String,
    /// How many rows.
    pub rows: u64,
    /// The sum of their hashes.
    pub checksum: String,
}

/// The hash of a row, as SQL over `text`: a number.
pub(super) fn hash(text: &str) -> String {
    format!("('x' || left(md5({text}), 16))::bit(64)::bigint::numeric")
}

/// All tables of the database's users, as SQL names them: none of TimescaleDB's chunks, no extension's own.
pub(super) async fn tables(client: &Client) -> Result<Vec<String>, StageError> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
               AND n.nspname !~ '^(pg_|information_schema$|_timescaledb_|timescaledb_)' \
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                 AND d.deptype = 'e') ORDER BY 1";
    let rows = client.query(sql, &[]).await.map_err(super::catalog)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a table holds, or the rows of it that a condition names.
pub(super) async fn of(client: &Client, table: &str, condition: &str) -> Result<TableFingerprint, StageError> {
    let sql = format!(
        "SELECT count(*), coalesce(sum({}), 0)::text FROM {table} AS whole_row {condition}",
        hash("whole_row::text")
    );
    let row = client.query_one(&sql, &[]).await;
    let row = row.map_err(|error| while_opening(error, &format!("can't read {table}")))?;
    let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    Ok(TableFingerprint { table: table.to_owned(), rows, checksum: row.get(1) })
}
