//! Databases that are away, don't let us in, or have another table than the pipeline needs.

use std::net::TcpListener;

use super::{Diagnosis, Patient, SIMULATOR};
use crate::services::{database_url, unique};
use crate::timescaledb::connect;
use crate::timescaledb::server::secured;

fn sink(url: &str, table: &str, more: &str) -> Patient {
    let sink = format!(
        "[sinks.db]\ntype = \"timescaledb\"\ninputs = [\"in\"]\nurl = \"{url}\"\ntable = \"{table}\"\n{more}\n"
    );
    Patient::new(&format!("{SIMULATOR}{sink}"))
}

/// What is found of a table that is made like this.
async fn of_table(columns: &str) -> Diagnosis {
    let table = unique("examined");
    connect(&database_url()).await.batch_execute(&format!("CREATE TABLE {table} ({columns})")).await.unwrap();
    let found = sink(&database_url(), &table, "").examine();
    let count = format!("SELECT count(*) FROM {table}");
    let rows: i64 = connect(&database_url()).await.query_one(&count, &[]).await.unwrap().get(0);
    assert_eq!(rows, 0, "what was written is taken back");
    found
}

const KEY: &str = "PRIMARY KEY (device_id, timestamp)";

#[tokio::test]
async fn a_table_that_fits_takes_a_row_that_is_rolled_back() {
    let found = of_table(&format!("device_id text, timestamp timestamptz, temperature float8, {KEY}")).await;
    found
        .says("db", "server", "pass", &["PostgreSQL", "TimescaleDB", "apache edition"])
        .says("db", "clock", "pass", &["agree"])
        .says("db", "table", "pass", &["fits the input"])
        .says("db", "unique key", "pass", &["device_id, timestamp"])
        .says("db", "write", "pass", &["stored and rolled back"])
        .blames_only("nobody");
}

#[tokio::test]
async fn a_table_that_will_be_created_is_not_there_afterwards() {
    let table = unique("examined");
    let found = sink(&database_url(), &table, "create = true").examine();
    found.says("db", "table", "pass", &["will be created"]).says("db", "write", "pass", &["all rolled back"]);
    let there =
        connect(&database_url()).await.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.unwrap();
    assert!(!there.get::<_, bool>(0));
}

#[test]
fn a_dead_database_is_a_port_where_nothing_listens() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let found = sink(&format!("postgres://postgres@127.0.0.1:{port}/iot"), "t", "").examine();
    found.says("db", "network", "fail", &["nothing listens at"]).says("in", "reach", "pass", &[]).blames_only("db");
}

#[test]
fn a_wrong_password_is_told_and_never_shown() {
    let url = format!("postgres://keeper@{}", secured().place());
    let found = sink(&url, "t", "password = \"canary-wrong\"").examine();
    found.says(
        "db",
        "login",
        "fail",
        &["password authentication failed", "Check the user in the url and the password"],
    );
    assert!(!found.text.contains("canary"), "{}", found.text);
}

#[test]
fn a_missing_database_is_named() {
    let found = sink(&database_url().replace("/iot", "/nowhere"), "t", "").examine();
    found.says("db", "database", "fail", &["database \"nowhere\" does not exist", "Create the database"]);
}

#[test]
fn an_unknown_user_is_named() {
    let found = sink(&database_url().replace("postgres@", "nobody@"), "t", "").examine();
    found.says("db", "login", "fail", &["role \"nobody\" does not exist"]);
}

#[test]
fn a_server_without_tls_is_told_where_tls_is_asked_for() {
    let found = sink(&format!("{}?sslmode=verify-full", database_url()), "t", "").examine();
    found.says("db", "tls", "fail", &["server does not support TLS"]);
}

#[test]
fn the_certificate_of_a_database_is_looked_at_and_its_authority_held_against_ours() {
    let server = secured();
    let url = |ca: &str| {
        let ca = server.file(ca).display().to_string();
        format!("postgres://postgres@{}?sslmode=verify-full&sslrootcert={ca}", server.place())
    };
    sink(&url("ca.pem"), "t", "").examine().says("db", "tls", "pass", &["the certificate is trusted", "days"]);
    sink(&url("other-ca.pem"), "t", "").examine().says("db", "tls", "fail", &["UnknownIssuer", "sslrootcert"]);
}

#[test]
fn a_missing_table_is_told_with_what_makes_it() {
    let found = sink(&database_url(), &unique("missing"), "").examine();
    found.says("db", "table", "fail", &["there is no table", "Set create = true, or run: CREATE TABLE"]);
}

#[tokio::test]
async fn a_missing_column_is_told_with_what_adds_it() {
    let found = of_table(&format!("device_id text, timestamp timestamptz, {KEY}")).await;
    found.says("db", "columns", "fail", &["column \"temperature\" is missing", "ADD COLUMN \"temperature\""]);
}

#[tokio::test]
async fn a_column_of_another_type_is_told_with_what_changes_it() {
    let found = of_table(&format!("device_id text, timestamp timestamptz, temperature integer, {KEY}")).await;
    found.says("db", "columns", "fail", &["column \"temperature\" is integer", "TYPE double precision"]);
}

#[tokio::test]
async fn a_missing_unique_key_is_told_with_what_makes_it() {
    let found = of_table("device_id text, timestamp timestamptz, temperature float8").await;
    found.says("db", "unique key", "fail", &["no unique index over its key", "CREATE UNIQUE INDEX"]);
}

#[tokio::test]
async fn a_missing_right_is_told_with_what_grants_it() {
    let (table, reader) = (unique("examined"), unique("reader"));
    let sql = format!(
        "CREATE TABLE {table} (device_id text, timestamp timestamptz, temperature float8, {KEY}); \
         CREATE ROLE {reader} LOGIN; GRANT SELECT ON {table} TO {reader}"
    );
    connect(&database_url()).await.batch_execute(&sql).await.unwrap();
    let found = sink(&database_url().replace("postgres@", &format!("{reader}@")), &table, "").examine();
    found.says("db", "rights", "fail", &["lacks the right INSERT", "GRANT INSERT ON"]);
}

#[tokio::test]
async fn a_rule_that_a_made_up_row_breaks_is_no_fault() {
    let columns =
        format!("device_id text CHECK (device_id LIKE 'ours-%'), timestamp timestamptz, temperature float8, {KEY}");
    let found = of_table(&columns).await;
    found.says("db", "write", "warn", &["breaks a rule of the table"]).blames_only("nobody");
}
