//! How the tables of a pipeline are: sizes, ages, what is kept up and what is behind.

use std::time::Duration;

use pipeline_engine::now_us;
use pipeline_engine::stage::{Finding, StageError, Verdict};
use pipeline_engine::time::{format_age, format_us};
use serde::Serialize;

use super::{PipelineDatabase, Session, SinkTable, catalog, hypertable, indexes, microseconds, rollups, span_text};
use crate::sinks::timescaledb::{Rollup, Server, Table, Timescale};

/// Queries that take longer on average are named: what the runbook promises for 95 % of them.
const SLOW_MS: f64 = 2_000.0;
/// The slowest so many are shown.
const SLOW_QUERIES: i64 = 5;

/// How a database is, as JSON as well.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseStatus {
    /// The place and the user: `"iot" on db:5432 as "pipeline"`.
    pub database: String,
    /// `PostgreSQL 17.2, TimescaleDB 2.19.3 (apache edition)`.
    pub server: String,
    /// `community`, `apache`, or `none` on plain PostgreSQL.
    pub edition: String,
    /// What this edition can't do, and what is done instead.
    pub without: Vec<&'static str>,
    /// All of the database on disk.
    pub bytes: i64,
    /// What the pipeline stores in.
    pub tables: Vec<TableStatus>,
    /// The slowest statements by their mean time; `None` where pg_stat_statements is not there.
    pub slow_queries: Option<Vec<SlowQuery>>,
    /// What is as it should be and what is not.
    pub findings: Vec<TableFinding>,
}

/// A finding about a table, or about the whole where `about` is empty.
#[derive(Debug, Clone, Serialize)]
pub struct TableFinding {
    /// The table.
    pub about: String,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// How one table is.
#[derive(Debug, Clone, Serialize)]
pub struct TableStatus {
    /// As SQL names it.
    pub table: String,
    /// The sink that stores in it.
    pub sink: String,
    /// It is there.
    pub exists: bool,
    /// By the statistics of the server: exact after `pipeline db optimize`.
    pub rows_estimate: i64,
    /// With indexes.
    pub bytes: i64,
    /// `None` for an ordinary table.
    pub chunks: Option<usize>,
    /// How many of them are compressed.
    pub compressed_chunks: usize,
    /// The time of the oldest row.
    pub oldest: Option<String>,
    /// The time of the newest row.
    pub newest: Option<String>,
    /// How long rows are kept, as the pipeline file says.
    pub retention: Option<String>,
    /// After what time chunks are compressed, as the pipeline file says.
    pub compress_after: Option<String>,
    /// What TimescaleDB does by itself about it.
    pub policies: Vec<String>,
}

/// A statement that takes long.
#[derive(Debug, Clone, Serialize)]
pub struct SlowQuery {
    /// Its text, with parameters left out, cut to 300 letters.
    pub query: String,
    /// How often it was run.
    pub calls: i64,
    /// How long it took on average.
    pub mean_ms: f64,
}

/// Collects findings.
struct Findings(Vec<TableFinding>);

impl Findings {
    fn add(&mut self, about: &str, check: &'static str, verdict: Verdict, found: String, fix: Option<&str>) {
        let fix = fix.map(str::to_owned);
        self.0.push(TableFinding { about: about.to_owned(), finding: Finding { check, verdict, found, fix } });
    }
}

pub(super) async fn look(db: &PipelineDatabase, session: &Session) -> Result<DatabaseStatus, StageError> {
    let client = session.client();
    let mut findings = Findings(Vec::new());
    tell_server(&session.server, &mut findings);
    let row = client.query_one("SELECT pg_database_size(current_database())", &[]).await.map_err(catalog)?;
    let bytes = row.get(0);
    let mut tables = Vec::new();
    for table in db.tables() {
        tables.push(look_at_table(table, session, &mut findings).await?);
        for rollup in &table.upkeep.rollups {
            look_at_rollup(table, rollup, session, &mut findings).await?;
        }
    }
    for claims in db.claims() {
        look_at_claims(claims.name(), session, &mut findings).await?;
    }
    let slow_queries = slow_queries(session, &mut findings).await?;
    let community = session.server.timescale.as_ref().map(Timescale::is_community);
    Ok(DatabaseStatus {
        database: db.place(),
        server: session.server.to_string(),
        edition: match community {
            Some(true) => "community",
            Some(false) => "apache",
            None => "none",
        }
        .to_owned(),
        without: match community {
            Some(true) => Vec::new(),
            Some(false) => vec![
                "compression: keep old rows as Parquet by `pipeline db archive`",
                "retention policies: `pipeline db retention` drops chunks, once a day",
                "continuous aggregates: `pipeline db rollups` keeps tables, once an hour",
            ],
            None => vec![
                "hypertables: tables are ordinary ones, and retention deletes row by row",
                "compression: keep old rows as Parquet by `pipeline db archive`",
                "continuous aggregates: `pipeline db rollups` keeps tables, once an hour",
            ],
        },
        bytes,
        tables,
        slow_queries,
        findings: findings.0,
    })
}

fn tell_server(server: &Server, findings: &mut Findings) {
    match server.timescale {
        Some(_) => findings.add("", "server", Verdict::Pass, server.to_string(), None),
        None => findings.add(
            "",
            "server",
            Verdict::Warn,
            format!("{server}: tables are ordinary ones"),
            Some("Install TimescaleDB on the server before much is stored, to have hypertables."),
        ),
    }
}

async fn look_at_table(
    table: &SinkTable,
    session: &Session,
    findings: &mut Findings,
) -> Result<TableStatus, StageError> {
    let name = table.table.sql_name();
    let text = |kept: Option<Duration>| kept.map(span_text);
    let mut status = TableStatus {
        table: name.clone(),
        sink: table.sink.clone(),
        exists: table.table.exists(session.client()).await?,
        rows_estimate: 0,
        bytes: 0,
        chunks: None,
        compressed_chunks: 0,
        oldest: None,
        newest: None,
        retention: text(table.upkeep.retention),
        compress_after: text(table.upkeep.compress_after),
        policies: Vec::new(),
    };
    if !status.exists {
        let found = format!("the sink \"{}\" has no table yet", table.sink);
        findings.add(&name, "table", Verdict::Fail, found, Some("Run `pipeline db init`."));
        return Ok(status);
    }
    let interval_us = hypertable::chunk_interval_us(table, session).await?;
    let chunks = if interval_us.is_some() { hypertable::chunks(table, session).await? } else { Vec::new() };
    size(table, interval_us.is_some(), session, &mut status).await?;
    status.chunks = interval_us.map(|_| chunks.len());
    status.compressed_chunks = chunks.iter().filter(|chunk| chunk.is_compressed).count();
    let policies = hypertable::policies(&name, session).await?;
    status.policies = policies.iter().map(|policy| policy.procedure.clone()).collect();
    if let Some(failed) = policies.iter().find(|policy| policy.last_run_failed) {
        findings.add(
            &name,
            "policy",
            Verdict::Warn,
            format!("the last run of {} failed", failed.procedure),
            Some("SELECT * FROM timescaledb_information.job_errors ORDER BY finish_time DESC LIMIT 5;"),
        );
    }
    let span = span(table, session).await?;
    (status.oldest, status.newest) = (span.map(|span| format_us(span.0)), span.map(|span| format_us(span.1)));
    tell_age(table, span, interval_us, &chunks, session, findings);
    let missing = indexes::missing(table, &indexes::of(&name, session.client()).await?);
    if let Some(columns) = missing.first() {
        let found = format!("no index begins with {}", columns.join(", "));
        findings.add(&name, "indexes", Verdict::Warn, found, Some("Run `pipeline db optimize`."));
    }
    Ok(status)
}

async fn size(
    table: &SinkTable,
    is_hypertable: bool,
    session: &Session,
    status: &mut TableStatus,
) -> Result<(), StageError> {
    let sql = match &session.server.timescale {
        Some(Timescale { schema, .. }) if is_hypertable => format!(
            "SELECT coalesce(\"{schema}\".hypertable_size(to_regclass($1)), 0)::int8, \
             coalesce(\"{schema}\".approximate_row_count(to_regclass($1)), 0)::int8"
        ),
        _ => "SELECT pg_total_relation_size(to_regclass($1)), \
              (SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = to_regclass($1))"
            .to_owned(),
    };
    let row = session.client().query_one(&sql, &[&table.table.sql_name()]).await.map_err(catalog)?;
    (status.bytes, status.rows_estimate) = (row.get(0), row.get(1));
    Ok(())
}

/// The times of the oldest and the newest row, in microseconds since 1970.
async fn span(table: &SinkTable, session: &Session) -> Result<Option<(i64, i64)>, StageError> {
    let Some(time) = table.table.time.as_ref().or(table.table.newest_by.as_ref()) else { return Ok(None) };
    let name = table.table.sql_name();
    let (first, last) = (microseconds("first"), microseconds("last"));
    let sql = format!(
        "SELECT {first}, {last} FROM (SELECT min(\"{time}\") AS first, max(\"{time}\") AS last FROM {name}) AS span"
    );
    let row = session.client().query_one(&sql, &[]).await.map_err(catalog)?;
    Ok(row.get::<_, Option<i64>>(0).zip(row.get(1)))
}

/// Whether what is old is gone, or compressed, as the pipeline file wants it.
fn tell_age(
    table: &SinkTable,
    span: Option<(i64, i64)>,
    interval_us: Option<i64>,
    chunks: &[hypertable::Chunk],
    session: &Session,
    findings: &mut Findings,
) {
    let name = table.table.sql_name();
    let age = |us: i64| Duration::from_micros(u64::try_from(now_us().saturating_sub(us)).unwrap_or(0));
    let found = match span {
        Some((_, newest_us)) => format!("the newest row is {} old", format_age(age(newest_us))),
        None => "there is no row, or none with a time".to_owned(),
    };
    findings.add(&name, "table", Verdict::Pass, found, None);
    // A chunk goes as a whole, and whoever drops it comes once a day.
    let slack =
        Duration::from_micros(u64::try_from(interval_us.unwrap_or(0)).unwrap_or(0)) + Duration::from_secs(86_400);
    if let (Some(kept), Some((oldest_us, _))) = (table.upkeep.retention, span) {
        let oldest = age(oldest_us);
        if oldest > kept + slack {
            let found = format!("rows are to be kept for {}, and there are some of {}", span_text(kept), days(oldest));
            let fix = "Run `pipeline db retention`, and see that it runs once a day (ops/systemd/pipeline-db.timer).";
            findings.add(&name, "retention", Verdict::Warn, found, Some(fix));
        } else {
            findings.add(
                &name,
                "retention",
                Verdict::Pass,
                format!("no row is much older than {}", span_text(kept)),
                None,
            );
        }
    }
    let Some(after) = table.upkeep.compress_after else { return };
    if !session.server.timescale.as_ref().is_some_and(Timescale::is_community) {
        let fix = "Keep old rows as Parquet by `pipeline db archive`, and remove compress_after.";
        findings.add(&name, "compression", Verdict::Warn, format!("{} can't compress", session.server), Some(fix));
        return;
    }
    let due = chunks.iter().filter(|chunk| !chunk.is_compressed && age(chunk.to_us) > after + slack).count();
    if due > 0 {
        let found = format!("{due} chunks are older than {} and not compressed", span_text(after));
        findings.add(&name, "compression", Verdict::Warn, found, Some("Run `pipeline db compress`."));
    } else {
        findings.add(&name, "compression", Verdict::Pass, "every chunk that should be is compressed".to_owned(), None);
    }
}

/// Months are of no one length: old ages are told in days.
fn days(age: Duration) -> String {
    if age < Duration::from_secs(2 * 86_400) { format_age(age) } else { format!("{} days", age.as_secs() / 86_400) }
}

async fn look_at_rollup(
    table: &SinkTable,
    rollup: &Rollup,
    session: &Session,
    findings: &mut Findings,
) -> Result<(), StageError> {
    let name = rollup.sql_name(&table.table);
    let (client, fix) = (
        session.client(),
        "Run `pipeline db rollups`, and see that it runs once an hour (ops/systemd/pipeline-db.timer).",
    );
    let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await.map_err(catalog)?;
    if !row.get::<_, bool>(0) {
        findings.add(&name, "rollup", Verdict::Warn, "the rollup is not there yet".to_owned(), Some(fix));
        return Ok(());
    }
    let state = Table { name: rollups::STATE.to_owned(), ..table.table.clone() }.sql_name();
    let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&state]).await.map_err(catalog)?;
    if !row.get::<_, bool>(0) {
        findings.add(&name, "rollup", Verdict::Pass, "TimescaleDB keeps it".to_owned(), None);
        return Ok(());
    }
    let sql = format!("SELECT (extract(epoch FROM now() - updated_at) * 1000000)::int8 FROM {state} WHERE rollup = $1");
    let row = client.query_opt(&sql, &[&rollup.name]).await.map_err(catalog)?;
    let age = row.map(|row| Duration::from_micros(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)));
    // Once an hour or once a bucket, and it may take its time.
    let allowed = rollup.every.max(Duration::from_secs(3_600)) * 2;
    match age {
        Some(age) if age <= allowed => {
            findings.add(&name, "rollup", Verdict::Pass, format!("brought up to date {} ago", format_age(age)), None);
        }
        Some(age) => {
            let found = format!("brought up to date {} ago", format_age(age));
            findings.add(&name, "rollup", Verdict::Warn, found, Some(fix));
        }
        None => findings.add(&name, "rollup", Verdict::Warn, "nothing is in it yet".to_owned(), Some(fix)),
    }
    Ok(())
}

/// Where workers claim shards: by the catalog alone, since not everybody who looks may read it.
async fn look_at_claims(name: &str, session: &Session, findings: &mut Findings) -> Result<(), StageError> {
    let row = session.client().query_one("SELECT pg_total_relation_size(to_regclass($1))", &[&name]).await;
    match row.map_err(catalog)?.get::<_, Option<i64>>(0) {
        Some(bytes) => {
            let found = format!("workers claim their shards here, {} KiB", bytes / 1024);
            findings.add(name, "claims", Verdict::Pass, found, None);
        }
        None => {
            let found = "workers can't claim shards yet".to_owned();
            let fix = "Run `pipeline db init`, or let the first worker make it, if its role may.";
            findings.add(name, "claims", Verdict::Warn, found, Some(fix));
        }
    }
    Ok(())
}

async fn slow_queries(session: &Session, findings: &mut Findings) -> Result<Option<Vec<SlowQuery>>, StageError> {
    let client = session.client();
    let there = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')";
    if !client.query_one(there, &[]).await.map_err(catalog)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 300), calls, mean_exec_time \
               FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid WHERE d.datname = current_database() \
               AND toplevel ORDER BY mean_exec_time DESC LIMIT $1";
    // Created and not loaded, or not for us to read: as if it were not there.
    let Ok(rows) = client.query(sql, &[&SLOW_QUERIES]).await else { return Ok(None) };
    let queries: Vec<SlowQuery> =
        rows.iter().map(|row| SlowQuery { query: row.get(0), calls: row.get(1), mean_ms: row.get(2) }).collect();
    if let Some(slow) = queries.iter().find(|query| query.mean_ms > SLOW_MS) {
        let found = format!("a statement takes {:.1} s on average: {}", slow.mean_ms / 1_000.0, slow.query);
        findings.add(
            "",
            "queries",
            Verdict::Warn,
            found,
            Some("Run `pipeline db optimize`; over long times, ask a rollup."),
        );
    } else {
        findings.add("", "queries", Verdict::Pass, "no statement takes more than 2 s on average".to_owned(), None);
    }
    Ok(Some(queries))
}
