//! A table as TimescaleDB knows it: how it is cut into chunks.

use pipeline_engine::stage::StageError;

use super::{Session, SinkTable, catalog, microseconds};

/// A part of a hypertable: all its rows between two times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Microseconds since 1970: the first that belongs to it, and the first that does not any more.
    pub from_us: i64,
    pub to_us: i64,
    pub is_compressed: bool,
}

/// The length of its chunks in microseconds; `None` for an ordinary table.
pub(super) async fn chunk_interval_us(table: &SinkTable, session: &Session) -> Result<Option<i64>, StageError> {
    if session.server.timescale.is_none() {
        return Ok(None);
    }
    let sql = "SELECT (extract(epoch FROM d.time_interval) * 1000000)::int8 \
               FROM timescaledb_information.dimensions d JOIN pg_namespace n ON n.nspname = d.hypertable_schema \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = d.hypertable_name \
               WHERE c.oid = to_regclass($1) AND d.dimension_number = 1";
    let row = session.client().query_opt(sql, &[&table.table.sql_name()]).await.map_err(catalog)?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Its chunks, the oldest first. The table is a hypertable.
pub(super) async fn chunks(table: &SinkTable, session: &Session) -> Result<Vec<Chunk>, StageError> {
    let sql = format!(
        "SELECT {}, {}, coalesce(k.is_compressed, false) \
         FROM timescaledb_information.chunks k JOIN pg_namespace n ON n.nspname = k.hypertable_schema \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = k.hypertable_name \
         WHERE c.oid = to_regclass($1) ORDER BY k.range_start",
        microseconds("k.range_start"),
        microseconds("k.range_end")
    );
    let rows = session.client().query(&sql, &[&table.table.sql_name()]).await.map_err(catalog)?;
    Ok(rows.iter().map(|row| Chunk { from_us: row.get(0), to_us: row.get(1), is_compressed: row.get(2) }).collect())
}

/// What TimescaleDB does by itself about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// `policy_retention`, `policy_compression`, ...
    pub procedure: String,
    /// How old what it deals with is, in microseconds.
    pub after_us: Option<i64>,
    pub last_run_failed: bool,
}

/// The policies of a table, or of a continuous aggregate; none in the Apache edition.
pub(super) async fn policies(name: &str, session: &Session) -> Result<Vec<Policy>, StageError> {
    if !session.server.timescale.as_ref().is_some_and(crate::sinks::timescaledb::Timescale::is_community) {
        return Ok(Vec::new());
    }
    let sql = "SELECT j.proc_name::text, \
               (extract(epoch FROM coalesce(j.config ->> 'drop_after', j.config ->> 'compress_after')::interval) * 1000000)::int8, \
               coalesce(s.last_run_status = 'Failed', false) \
               FROM timescaledb_information.jobs j LEFT JOIN timescaledb_information.job_stats s USING (job_id) \
               JOIN pg_namespace n ON n.nspname = j.hypertable_schema \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = j.hypertable_name \
               WHERE c.oid = to_regclass($1) ORDER BY j.job_id";
    let rows = session.client().query(sql, &[&name]).await.map_err(catalog)?;
    Ok(rows
        .iter()
        .map(|row| Policy { procedure: row.get(0), after_us: row.get(1), last_run_failed: row.get(2) })
        .collect())
}

/// `TIMESTAMPTZ '2026-01-31T12:00:00.000000Z'`; beyond the calendar, infinity.
pub(super) fn instant(us: i64) -> String {
    // The years 1 to 9999, whose text both calendars read alike; nothing that a device sends is of another one.
    match us {
        ..-62_135_596_800_000_000 => "TIMESTAMPTZ '-infinity'".to_owned(),
        253_402_300_800_000_000.. => "TIMESTAMPTZ 'infinity'".to_owned(),
        _ => format!("TIMESTAMPTZ '{}'", pipeline_engine::time::format_us(us)),
    }
}
