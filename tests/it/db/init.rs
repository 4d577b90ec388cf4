//! Tables, indexes, ledgers and roles that `pipeline db init` makes.

use super::Site;
use crate::process::Process;

#[test]
fn what_init_prints_runs_with_psql_and_leaves_nothing_to_do() {
    let site = Site::new("printed");
    let script = site.done("init", &["--dry-run"]);
    assert!(script.contains("CREATE TABLE \"telemetry\"") && script.contains("create_hypertable"), "{script}");
    assert_eq!(site.number("SELECT count(*) FROM pg_tables WHERE tablename = 'telemetry'"), 0, "a dry run");
    site.psql(&script);
    let again = site.done("init", &["--dry-run"]);
    assert!(!again.contains("CREATE TABLE") && !again.contains("CREATE INDEX"), "{again}");
    assert!(!again.contains("NOTE"), "what was made fits: {again}");
}

#[test]
fn init_makes_what_a_run_and_the_queries_of_the_runbook_need_and_may_be_repeated() {
    let site = Site::new("made");
    site.done("init", &[]);
    let said = site.done("init", &[]);
    assert!(!said.contains("table"), "nothing is made twice: {said}");
    assert_eq!(site.number("SELECT count(*) FROM timescaledb_information.hypertables"), 2);
    for table in ["device_status", "_pipeline_ledger", "_pipeline_replayed"] {
        assert_eq!(site.number(&format!("SELECT count(*) FROM {table}")), 0);
    }
    // By time alone, and by device and time: the first by its hypertable's index, the second by the key.
    site.fill(2);
    site.sql("ANALYZE");
    for query in [
        "SELECT * FROM telemetry ORDER BY timestamp DESC LIMIT 100",
        "SELECT * FROM telemetry WHERE device_id = 'd1' ORDER BY timestamp DESC LIMIT 1",
    ] {
        let client = site.connect(&site.url);
        let rows = site.runtime.block_on(async {
            // So few rows are read and sorted as fast: whether an index could do it is the question.
            client.batch_execute("SET enable_seqscan = off; SET enable_sort = off").await.expect("settings");
            client.query(&format!("EXPLAIN {query}"), &[]).await.expect("a plan")
        });
        let plan: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Index") && !plan.contains("Sort") && !plan.contains("Seq Scan"), "{query}: {plan}");
    }
}

#[test]
fn a_table_that_does_not_fit_is_told_and_left_alone() {
    let site = Site::new("unfit");
    site.sql("CREATE TABLE telemetry (device_id text NOT NULL, timestamp timestamptz NOT NULL, temperature text)");
    let said = site.db("init", &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    for words in ["\"temperature\" is text", "\"humidity\" is missing", "no unique index", "ALTER TABLE"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    assert_eq!(
        site.text(
            "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attname = 'temperature' \
                          AND attrelid = 'telemetry'::regclass"
        ),
        "text"
    );
}

#[test]
fn a_writer_stores_and_a_reader_reads_and_neither_can_do_more() {
    let site = Site::new("roles");
    site.done("init", &[]);
    let role = site.name.replace('-', "_");
    let (collector, viewer) = (format!("c_{role}"), format!("v_{role}"));
    site.sql(&format!(
        "CREATE ROLE \"{collector}\" LOGIN IN ROLE \"{role}_writer\"; CREATE ROLE \"{viewer}\" LOGIN IN ROLE \"{role}_reader\""
    ));
    let as_user = |user: &str| site.url.replace("postgres@", &format!("{user}@"));
    // A whole run as the writer: chunks are made, positions kept, rows that come again recognised.
    let text = std::fs::read_to_string(site.file()).expect("it was written");
    std::fs::write(site.file(), text.replace(&site.url, &as_user(&collector))).expect("our own folder");
    site.store(500, 3, 1);
    assert_eq!(site.rows(), (500, 3));
    let refused = |user: &str, sql: &str| {
        let client = site.connect(&as_user(user));
        let error = site.runtime.block_on(client.batch_execute(sql)).expect_err(sql);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{user}: {sql}: {error:?}");
    };
    for sql in
        ["DELETE FROM telemetry", "UPDATE telemetry SET temperature = 0", "DROP TABLE telemetry", "TRUNCATE telemetry"]
    {
        refused(&collector, sql);
    }
    for sql in ["INSERT INTO telemetry (device_id, timestamp) VALUES ('x', now())", "SELECT * FROM _pipeline_ledger"] {
        refused(&viewer, sql);
    }
    let client = site.connect(&as_user(&viewer));
    let row = site.runtime.block_on(client.query_one("SELECT count(*) FROM telemetry", &[])).expect("it may read");
    assert_eq!(row.get::<_, i64>(0), 500);
    // The tables are the admin's, by which the rest of `pipeline db` works.
    let owner = site.text("SELECT tableowner::text FROM pg_tables WHERE tablename = 'telemetry'");
    assert_eq!(owner, format!("{role}_admin"));
    let keeper = format!("k_{role}");
    site.sql(&format!("CREATE ROLE \"{keeper}\" LOGIN IN ROLE \"{role}_admin\""));
    let said = site.db("retention", &["--yes", "--login", &as_user(&keeper)]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let said = site.db("rollups", &["--login", &as_user(&keeper)]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let row = site.runtime.block_on(client.query_one("SELECT sum(reading_count)::int8 FROM telemetry_hourly", &[]));
    assert_eq!(row.expect("the reader may read a rollup").get::<_, i64>(0), 500);
}

/// A pipeline that several workers run: as much of it as has to do with its tables.
const SHARED: &str = r#"
[pipeline]
name = "@NAME@"
data_dir = "@DIR@/data"

[http]
listen = "off"

[schema.reading]
device = { type = "text", required = true }
at     = { type = "timestamp", required = true }

[sources.telemetry]
type = "kinesis"
stream = "telemetry"
schema = "reading"
region = "us-east-1"
endpoint = "http://127.0.0.1:9"
workers = { application = "plant", endpoint = "http://127.0.0.1:9" }

[sinks.table]
type = "timescaledb"
inputs = ["telemetry"]
url = "@DATABASE@"
table = "readings"
time_column = "at"
key = []

[sinks.refused]
type = "timescaledb"
inputs = ["telemetry.rejected", "table.rejected"]
url = "@DATABASE@"
table = "dead_letters"
time_column = "received_at"
key = []
"#;

#[test]
fn what_workers_claim_shards_by_is_made_beside_the_ledger_and_is_the_writers_to_use() {
    let site = Site::new("claimed");
    assert!(!site.done("init", &["--dry-run"]).contains("_pipeline_claims"), "one worker needs none");
    let write_as = |url: &str| {
        let dir = site.path("").display().to_string();
        let text = SHARED.replace("@NAME@", &site.name).replace("@DIR@", &dir).replace("@DATABASE@", url);
        std::fs::write(site.file(), text).expect("our own folder");
    };
    write_as(&site.url);
    let verdict = || {
        let status = site.json("status", &["--json"]);
        let findings = status["databases"][0]["findings"].as_array().expect("findings").clone();
        let claims = findings.into_iter().find(|finding| finding["check"] == "claims").expect("it is looked at");
        claims["verdict"].as_str().expect("a word").to_owned()
    };
    assert_eq!(verdict(), "warn", "it is not there yet");
    site.done("init", &[]);
    assert_eq!(verdict(), "pass");
    assert!(!site.done("init", &[]).contains("_pipeline_claims"), "nothing is made twice");

    // As a run that may make no table does.
    let role = site.name.replace('-', "_");
    let writer = format!("w_{role}");
    site.sql(&format!("CREATE ROLE \"{writer}\" LOGIN IN ROLE \"{role}_writer\""));
    let url = site.url.replace("postgres@", &format!("{writer}@"));
    let used = "INSERT INTO _pipeline_claims VALUES ('p', 's', 'x', 1, 'h', NULL); \
                UPDATE _pipeline_claims SET checkpoint = 'y'; DELETE FROM _pipeline_claims";
    site.runtime.block_on(site.connect(&url).batch_execute(used)).expect("the writer may use it");
    write_as(&url);
    let said = site.pipeline(&["doctor", &site.file().display().to_string(), "--json", "--timeout", "20"]);
    let seen: serde_json::Value = serde_json::from_str(&said.out).expect(&said.err);
    for check in ["claims", "positions"] {
        let checks = seen["checks"].as_array().expect("checks").iter();
        let found: Vec<_> = checks.filter(|one| one["check"] == check && one["verdict"] == "pass").collect();
        assert_eq!(found.len(), 2, "{check} of both sinks: {seen:#}");
    }
}

#[test]
fn a_pipeline_without_tables_is_refused_by_its_name() {
    let site = Site::new("none");
    std::fs::write(
        site.file(),
        "[sources.a]\ntype = \"simulator\"\nschema = \"s\"\n[schema.s]\nn = \"int64\"\n[sinks.b]\ntype = \"discard\"\ninputs = [\"a\"]\n",
    )
    .expect("our own folder");
    let said = site.db("init", &[]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("is of type \"timescaledb\""), "{}", said.err);
    let mut process = Process::start(&["db", "status", "/nowhere.toml"], &[], site.folder.path(), "status");
    assert_eq!(process.wait().code(), Some(3), "{}", process.log());
}
