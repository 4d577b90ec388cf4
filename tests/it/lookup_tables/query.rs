//! Tables by query, from a real TimescaleDB.

use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use super::door::Door;
use super::*;

/// A database of a test's own.
struct Database {
    runtime: Runtime,
    url: String,
}

impl Database {
    fn new(sql: &str) -> Self {
        let database = Self { url: services::database("lookup"), runtime: Runtime::new().expect("a runtime") };
        database.execute(sql);
        database
    }

    fn execute(&self, sql: &str) {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.expect("the database");
            tokio::spawn(connection);
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        });
    }
}

const DEVICES: &str = "CREATE TABLE devices (id text, site text);
                       INSERT INTO devices VALUES ('dev-1', 'north'), ('dev-2', 'south')";

fn keys(url: &str, query: &str, rest: &str) -> String {
    format!("query = \"\"\"{query}\"\"\"\nurl = \"{url}\"\nkey = \"device_id\"\ntable_key = \"id\"\n{rest}\n")
}

/// The sites of all devices, asked for ten times a second.
fn sites(url: &str) -> String {
    keys(url, "SELECT id, site FROM devices", "columns = [\"site\"]\nrefresh = \"100ms\"")
}

#[test]
fn every_type_of_the_database_can_be_read() {
    let database = Database::new(
        "CREATE TYPE kind AS ENUM ('indoor', 'outdoor');
         CREATE TABLE devices (id text, tag uuid, kind kind, weight numeric(8, 3), floor smallint, active boolean,
                               since timestamptz, built date, notes jsonb, label text, level real, serial bigint);
         INSERT INTO devices VALUES
           ('dev-1', '6f9619ff-8b86-d011-b42d-00cf4fc964ff', 'outdoor', 12.125, -3, true, '2026-05-01 12:00:00.25+02',
            '2026-05-01', '{\"a\": [1, null]}', E' two\\nlines, \"quoted\" ', 0.1, 9007199254740993),
           ('dev-2', null, null, null, null, null, null, null, null, '', 'NaN', null)",
    );
    let types = "columns = [\"tag\", \"kind\", \"weight\", \"floor\", \"active\", \"since\", \"built\", \"notes\", \"label\", \
                 \"level\", \"serial\"]\n\
                 types = { weight = \"float64\", floor = \"int16\", active = \"bool\", since = \"timestamp\", \
                 built = \"timestamp\", notes = \"json\", level = \"float64\", serial = \"int64\" }";
    let mut looked = Looked::enrich(&keys(&database.url, "SELECT * FROM devices", types)).opened();
    let rows = looked.rows(&["dev-1", "dev-2"]);
    let expected = json!({
        "device_id": "dev-1", "lat": 5.0, "lon": 5.0, "tag": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "kind": "outdoor",
        "weight": 12.125, "floor": -3, "active": true, "since": "2026-05-01T10:00:00.250Z",
        "built": "2026-05-01T00:00:00Z", "label": " two\nlines, \"quoted\" ", "level": 0.1,
        "serial": 9_007_199_254_740_993_i64,
    });
    for (column, value) in expected.as_object().unwrap() {
        assert_eq!(rows[0][column], *value, "{column}");
    }
    let notes: Value = match &rows[0]["notes"] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        other => other.clone(),
    };
    assert_eq!(notes, json!({ "a": [1, null] }));
    assert_eq!((&rows[1]["label"], &rows[1]["kind"]), (&json!(""), &Value::Null), "an empty text is no null");
}

#[test]
fn a_changed_answer_takes_the_old_ones_place_and_a_broken_one_does_not() {
    let database = Database::new(DEVICES);
    let mut looked = Looked::enrich(&sites(&database.url)).opened();
    assert_eq!(looked.value("dev-1", "site"), "north");
    database.execute("UPDATE devices SET site = 'west' WHERE id = 'dev-1'");
    looked.becomes("dev-1", "site", "west");
    assert_eq!(looked.count("reloads"), 1, "the same answer again is no change");

    database.execute("INSERT INTO devices VALUES ('dev-2', 'twice')");
    looked.counts_more_than("reload_failures", 0);
    assert_eq!(looked.value("dev-2", "site"), "south");
    assert_eq!(looked.count("reload_failures"), 1, "what is broken is told once");
    database.execute("ALTER TABLE devices RENAME TO gone");
    looked.counts_more_than("reload_failures", 2);
    assert_eq!(looked.value("dev-2", "site"), "south");
    database.execute("DELETE FROM gone WHERE site = 'south'; ALTER TABLE gone RENAME TO devices");
    looked.becomes("dev-2", "site", "twice");
}

#[test]
fn a_new_answer_of_the_wrong_type_or_beyond_the_limit_keeps_the_old_table() {
    let database =
        Database::new("CREATE TABLE devices (id text, lat_of text); INSERT INTO devices VALUES ('dev-1', '1.5')");
    let rest = "types = { lat_of = \"float64\" }\nrefresh = \"100ms\"\nmax_table_size = \"1KiB\"";
    let text = keys(&database.url, "SELECT * FROM devices", rest);
    let mut looked = Looked::enrich(&text).opened();
    database.execute("INSERT INTO devices VALUES ('dev-2', 'north')");
    looked.counts_more_than("reload_failures", 0);
    let error = permanent(&Looked::enrich(&text).refusal());
    assert!(error.contains("row 2: \"north\" in column \"lat_of\" is no float64"), "{error}");
    database.execute("UPDATE devices SET lat_of = repeat('1', 2000) WHERE id = 'dev-2'");
    looked.counts_more_than("reload_failures", 1);
    let error = permanent(&Looked::enrich(&text).refusal());
    assert!(error.contains("more than `max_table_size`, 1024"), "{error}");
    assert_eq!(looked.value("dev-1", "lat_of"), 1.5);
    assert_eq!(looked.count("reloads"), 0);
}

#[test]
fn a_database_that_goes_away_leaves_the_table_and_is_found_again() {
    let database = Database::new(DEVICES);
    let (door, url) = Door::before_url(&database.url);
    let mut looked = Looked::enrich(&sites(&url)).opened();
    door.shut();
    looked.counts_more_than("reload_failures", 1);
    assert_eq!(looked.value("dev-1", "site"), "north");
    database.execute("UPDATE devices SET site = 'west' WHERE id = 'dev-1'");
    let error = Looked::enrich(&sites(&url)).refusal();
    assert_eq!(error.fault(), Fault::Transient, "at the start it is waited for: {}", error.chain());
    door.open();
    looked.becomes("dev-1", "site", "west");
}

#[test]
fn what_needs_a_person_says_so_and_shows_no_password() {
    let database = Database::new(DEVICES);
    database.execute("CREATE TABLE written (n int)");
    let login = format!("reader_{}", database.url.rsplit_once('/').unwrap().1);
    database.execute(&format!("CREATE ROLE {login} LOGIN PASSWORD 'hunter2'"));
    let place = database.url.split_once('@').unwrap().1;
    let as_reader = format!("postgres://{login}:hunter2@{place}");
    let url = database.url.as_str();
    let cases = [
        (url, "SELECT id, site FROM nowhere", "relation \"nowhere\" does not exist"),
        (url, "SELECT id FROM devices", "it has no column \"site\". Its columns: \"id\"."),
        (url, "SELECT id, sit FROM devices", "column \"sit\" does not exist"),
        (url, "SELECT 1; SELECT 2", "multiple commands"),
        (url, "INSERT INTO written VALUES (1) RETURNING n", "may only read"),
        (url, "CREATE TABLE made (n int)", "gives no rows"),
        (as_reader.as_str(), "SELECT id, site FROM devices", "GRANT what is missing"),
    ];
    for (url, query, part) in cases {
        let error = permanent(&Looked::enrich(&keys(url, query, "columns = [\"site\"]")).refusal());
        assert!(error.contains(part) && !error.contains("hunter2"), "{query}: {error}");
        assert!(error.contains("the query to \"lookup_"), "{query}: {error}");
    }
    database.execute("DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM written); END $$");
}

#[test]
fn rows_never_wait_for_a_table_that_is_being_read() {
    let database = Database::new(DEVICES);
    let mut looked = Looked::enrich(&sites(&database.url)).opened();
    database.runtime.block_on(async {
        let connected = async || {
            let (client, connection) = tokio_postgres::connect(&database.url, NoTls).await.expect("the database");
            tokio::spawn(connection);
            client
        };
        // What is going on is frozen within a transaction: another connection looks at it.
        let (mut writer, onlooker) = (connected().await, connected().await);
        let change = writer.transaction().await.expect("a transaction");
        change.batch_execute("LOCK TABLE devices; UPDATE devices SET site = 'west'").await.expect("a lock");
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let seen = async {
            while onlooker.query_one(waiting, &[]).await.expect("a count").get::<_, i64>(0) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(240), seen).await.expect("the table is read again");
        assert_eq!(looked.value("dev-1", "site"), "north", "the table is being read, and the old one is there");
        change.commit().await.expect("the change");
    });
    looked.becomes("dev-1", "site", "west");
    assert_eq!(looked.count("reload_failures"), 0);
}

#[test]
fn a_query_that_takes_too_long_is_given_up() {
    let database = Database::new(DEVICES);
    let rest = "columns = [\"site\"]\nread_timeout = \"300ms\"";
    let slow = "SELECT id, site FROM devices, pg_sleep(600)";
    let error = Looked::enrich(&keys(&database.url, slow, rest)).refusal();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
}

#[test]
fn zones_can_be_the_rows_of_a_query() {
    let database = Database::new(
        "CREATE TABLE zones (name text, area text);
         INSERT INTO zones VALUES ('five', 'POLYGON ((4 4, 6 4, 6 6, 4 6, 4 4))')",
    );
    let text = format!(
        "query = \"SELECT name, area AS geometry FROM zones\"\nurl = \"{}\"\nlatitude = \"lat\"\nlongitude = \"lon\"\n\
         columns = {{ zone = \"name\" }}\nrefresh = \"100ms\"",
        database.url
    );
    let mut looked = Looked::built(toml::from_str::<GeofenceConfig>(&text).expect("a valid configuration")).opened();
    assert_eq!((looked.value("dev-1", "zone"), looked.value("dev", "zone")), (json!("five"), Value::Null));
    database.execute("INSERT INTO zones VALUES ('three', 'POLYGON ((2 2, 4 4, 2 4, 4 2, 2 2))')");
    looked.counts_more_than("reload_failures", 0);
    assert_eq!(looked.value("dev", "zone"), Value::Null, "its edges cross");
    database.execute("UPDATE zones SET area = 'POLYGON ((2 2, 4 2, 4 4, 2 4, 2 2))' WHERE name = 'three'");
    looked.becomes("dev", "zone", "three");
}
