//! What `pipeline doctor` asks a database: each step on the way to a stored row, the last of them rolled back.

use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::stage::{Examination, Fault, StageError};
use pipeline_engine::{CertificateStats, now_us};
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;

use super::nature::Nature;
use super::own_table::OwnTable;
use super::server::Server;
use super::sink::TimescaleDb;
use super::sql_type::SqlType;
use crate::postgres::fault::{while_opening, while_writing};
use crate::postgres::{Link, Place};
use crate::reach::{self, Preface};

/// What the server may keep us waiting for: a running pipeline is not to be held up by us either.
const PATIENCE: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '15s'";
/// Of a hundred connections that the server allows, so many may be taken.
const CONNECTIONS_PERCENT_MAX: i64 = 90;

pub(super) async fn examine(sink: &TimescaleDb, report: &Examination) {
    let places = sink.database.places();
    let sockets: Vec<String> = places.iter().map(|place| place.socket.clone()).collect();
    if !reach::network(&sockets, report).await || !encryption(sink, &places, report).await {
        return;
    }
    report.begin("login");
    let link = match sink.database.connect().await {
        Ok(link) => link,
        Err(error) => return report.fail(failed_at(&error), &error),
    };
    report.pass("login", format!("{} lets us in", sink.database));
    if let Err((check, error)) = look_inside(sink, &link, report).await {
        report.fail(check, &error);
    }
    // Nothing of ours is open there: a goodbye that is not heard changes nothing.
    drop(tokio::time::timeout(Duration::from_secs(2), link.close()).await);
}

/// Which check an attempt to connect has failed.
fn failed_at(error: &StageError) -> &'static str {
    match error.outside_code() {
        Some("3D000") => "database",
        Some(_) => "login",
        None if error.explanation().contains("certificate") || error.explanation().contains("TLS") => "tls",
        None => "login",
    }
}

/// How the way to the server is secured. False where it makes no sense to go on.
async fn encryption(sink: &TimescaleDb, places: &[Place], report: &Examination) -> bool {
    let (mode, tls) = sink.database.encryption();
    if mode == SslMode::Disable {
        if places.iter().any(|place| !place.is_this_machine) {
            report.warn(
                "tls",
                "the connection is not encrypted",
                "Add sslmode=verify-full to the url, and sslrootcert=/path/to/ca.pem for an authority of your own.",
            );
        }
        return true;
    }
    report.begin("tls");
    let preface = if tls.direct { Preface::None } else { Preface::PostgreSql };
    let files = tls.clone();
    let config = tokio::task::spawn_blocking(move || files.client_config(&CertificateStats::default())).await;
    let config = match config.unwrap_or_else(|_| Err(StageError::bug("reading certificates panicked"))) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            report.fail("tls", &error);
            return false;
        }
    };
    match tls.own_certificates() {
        Ok(Some(chain)) => reach::tell_validity("client certificate", "it can be read", &chain, report),
        Ok(None) => {}
        Err(error) => report.fail("client certificate", &error),
    }
    let mut shaken = false;
    for place in places {
        shaken |= reach::certificates(&place.socket, &place.name, config.clone(), preface, report).await;
    }
    if !shaken && mode == SslMode::Prefer {
        report.warn(
            "tls",
            "sslmode=prefer, and no encryption came about",
            "Set up TLS on the server, or say so: sslmode=disable.",
        );
    }
    true
}

type Failed = (&'static str, StageError);

/// Everything behind the login.
async fn look_inside(sink: &TimescaleDb, link: &Link, report: &Examination) -> Result<(), Failed> {
    let client = &link.client;
    report.begin("server");
    let server = Server::identify(client).await.map_err(|error| ("server", error))?;
    tell_server(&server, report);
    clock(client, report).await.map_err(|error| ("clock", catalog(error)))?;
    settings(client, report).await.map_err(|error| ("server", catalog(error)))?;
    report.begin("table");
    let table = &sink.table;
    let exists = table.exists(client).await.map_err(|error| ("table", error))?;
    if exists || !sink.create {
        let mistakes = table.mistakes(client, &server).await.map_err(|error| ("table", error))?;
        for mistake in &mistakes {
            let error = StageError::permanent(format!("table {}: {}", table.sql_name(), mistake.what));
            report.fail(mistake.about, &error.hint(mistake.mend.clone()));
        }
        if !mistakes.is_empty() {
            return Ok(());
        }
        let nature = Nature::of(table, client, &server).await.map_err(|error| ("table", error))?;
        if sink.direct_compress {
            let compresses = nature.compress_directly(client, &server, table).await;
            compresses.map_err(|error| ("direct compress", error))?;
        }
        report.pass("table", format!("{} fits the input: {nature}", table.sql_name()));
    }
    tell_key(sink, report);
    write(sink, client, &server, exists, report).await;
    if report.run_resumes() {
        kept("positions", sink.ledger.table(), client, report).await;
    }
    if report.run_is_shared() {
        kept("claims", sink.claims.table(), client, report).await;
    }
    Ok(())
}

fn tell_server(server: &Server, report: &Examination) {
    if server.timescale.is_some() {
        return report.pass("server", server.to_string());
    }
    report.warn(
        "server",
        format!("{server}: rows go to an ordinary table"),
        if server.timescale_available {
            "CREATE EXTENSION timescaledb; before the table is created."
        } else {
            "Install TimescaleDB on the server to have hypertables."
        },
    );
}

async fn clock(client: &Client, report: &Examination) -> Result<(), tokio_postgres::Error> {
    report.begin("clock");
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let before = now_us();
    let theirs: i64 = client.query_one(sql, &[]).await?.get(0);
    report.compare_clock("the database", (theirs, theirs), (before, now_us()));
    Ok(())
}

async fn settings(client: &Client, report: &Examination) -> Result<(), tokio_postgres::Error> {
    report.begin("server");
    let sql = "SELECT current_setting('fsync') = 'on', current_setting('max_connections')::bigint, \
               (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), pg_is_in_recovery()";
    let row = client.query_one(sql, &[]).await?;
    let (syncs, connections_max, connections, is_standby): (bool, i64, i64, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    if is_standby {
        let error = StageError::permanent("the server is a standby, which takes no rows");
        report.fail("server", &error.hint("Put the primary into the url, or promote this one."));
    }
    if !syncs {
        report.warn(
            "durability",
            "the server has fsync = off: a crash of its machine loses or damages what counts as stored",
            "Set fsync = on in postgresql.conf.",
        );
    }
    if connections * 100 > connections_max * CONNECTIONS_PERCENT_MAX {
        report.warn(
            "connections",
            format!("{connections} of {connections_max} connections are taken"),
            "Raise max_connections, or look in pg_stat_activity who holds them.",
        );
    } else {
        report.pass("connections", format!("{connections} of {connections_max} are taken"));
    }
    Ok(())
}

fn tell_key(sink: &TimescaleDb, report: &Examination) {
    if !sink.table.key.is_empty() || report.run_resumes() {
        let text = if sink.table.key.is_empty() {
            "none, positions tell which rows are stored".to_owned()
        } else {
            sink.table.key_text()
        };
        return report.pass("unique key", text);
    }
    report.warn("unique key", sink.table.key_text(), "Set `key` to the columns that tell rows apart.");
}

/// Stores a made-up row, by a table that is made if need be, and takes all of it back.
async fn write(sink: &TimescaleDb, client: &Client, server: &Server, exists: bool, report: &Examination) {
    report.begin("write");
    let table = &sink.table;
    let stored = async {
        client.batch_execute(&format!("BEGIN; {PATIENCE}")).await?;
        if !exists {
            client.batch_execute(&table.ddl(server).join("; ")).await?;
        }
        if let Some(staging) = &sink.statements.staging {
            staging.clear(client).await?;
        }
        client.batch_execute(&insert(sink)).await
    };
    let outcome = stored.await;
    let rolled_back = client.batch_execute("ROLLBACK").await;
    match outcome.and(rolled_back) {
        Ok(()) if exists => report.pass("write", "a row was stored and rolled back"),
        Ok(()) => {
            let name = table.sql_name();
            report.pass("table", format!("{name} is not there yet and will be created"));
            report.pass("write", format!("{name} was created, a row stored in it, and all rolled back"));
        }
        Err(error) => {
            let error = while_writing(error, &table.sql_name());
            if error.fault() == Fault::Data {
                report.warn(
                    "write",
                    format!("a row that was made up breaks a rule of the table, so it is not known whether others can be stored: {}", error.explanation()),
                    "Nothing to do if the table has constraints that made-up values can't keep.",
                );
            } else {
                report.fail(if exists { "write" } else { "table" }, &error);
            }
        }
    }
}

/// A row that no device has sent.
fn insert(sink: &TimescaleDb) -> String {
    let table = &sink.table;
    let values = table.columns.iter().map(|column| match column.kind {
        SqlType::Text => format!("'pipeline-doctor-{:08x}'", rand::random::<u32>()),
        SqlType::Jsonb => "'{}'".to_owned(),
        SqlType::Bool => "false".to_owned(),
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 | SqlType::Float4 | SqlType::Float8 => "0".to_owned(),
        SqlType::Timestamptz => "now()".to_owned(),
        SqlType::Bytea => "''".to_owned(),
        SqlType::Date => "current_date".to_owned(),
    });
    let values: Vec<String> = values.collect();
    format!("INSERT INTO {} ({}) VALUES ({})", table.sql_name(), table.column_list(), values.join(", "))
}

/// Whether what the sink keeps for itself can be kept beside its rows: how far it has come, whose each partition is.
async fn kept(check: &'static str, table: &OwnTable, client: &Client, report: &Examination) {
    report.begin(check);
    match table.rehearse(client, PATIENCE).await {
        Ok(found) => report.pass(check, found),
        Err(error) => report.fail(check, &error),
    }
}

fn catalog(error: tokio_postgres::Error) -> StageError {
    while_opening(error, "can't ask the database how it is")
}
