//! The HTTP source as the real binary, into a real TimescaleDB: killed in the midst of posts.

mod client;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tempfile::TempDir;

use crate::http::free_port;
use crate::process::{Process, wait_until};
use crate::services;
use client::{Answer, firehose_body, firehose_headers, post};

/// A pipeline that stores what is posted in a table without a key: nothing hides what is stored twice.
struct House {
    folder: TempDir,
    file: PathBuf,
    port: u16,
    database: String,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, port, database) = (folder.path().join("p.toml"), free_port(), services::database("http_source"));
        std::fs::write(&file, stages(folder.path(), port, &database)).expect("writable");
        Self { folder, file, port, database }
    }

    fn start(&self, name: &str) -> Process {
        let variables = [("INGEST_TOKEN", "secret")];
        let arguments = ["run".as_ref(), self.file.as_os_str()];
        let mut pipeline = Process::start(&arguments, &variables, self.folder.path(), name);
        pipeline.wait_for_log("takes in posts");
        pipeline
    }

    fn query<T: Send>(&self, sql: &str, read: impl Fn(&tokio_postgres::Row) -> T) -> Vec<T> {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let client = crate::timescaledb::connect(&self.database).await;
            client.query(sql, &[]).await.expect("an answer").iter().map(&read).collect()
        })
    }

    /// Numbers that are stored, with how often.
    fn stored(&self) -> Vec<(i64, i64)> {
        self.query("SELECT seq, count(*) FROM readings GROUP BY seq ORDER BY seq", |row| (row.get(0), row.get(1)))
    }

    fn wait_for(&self, rows: i64) {
        wait_until("all rows to be stored", || {
            let exists = self.query("SELECT to_regclass('readings') IS NOT NULL", |row| row.get::<_, bool>(0));
            let stored = || self.query("SELECT count(*) FROM readings", |row| row.get::<_, i64>(0))[0];
            (exists == [true] && stored() >= rows).then_some(())
        });
    }
}

fn stages(folder: &Path, port: u16, database: &str) -> String {
    format!(
        r#"
[pipeline]
name = "http_source"
data_dir = {:?}
checkpoint_interval = "200ms"
[http]
listen = "off"
[schema.reading]
device_id = {{ type = "text", topic_segment = 2 }}
seq = {{ type = "int64", required = true }}
timestamp = {{ type = "timestamp", required = true }}
[sources.readings]
type = "http"
address = "127.0.0.1:{port}"
tokens = ["${{INGEST_TOKEN}}"]
body_max = "1MiB"
schema = "reading"
[sinks.table]
type = "timescaledb"
inputs = ["readings"]
url = {database:?}
table = "readings"
create = true
time_column = "timestamp"
key = []
[sinks.refused]
type = "timescaledb"
inputs = ["readings.rejected", "table.rejected"]
url = {database:?}
table = "refused"
create = true
time_column = "received_at"
key = []
"#,
        folder.join("data")
    )
}

fn reading(seq: u64) -> String {
    format!(r#"{{"seq": {seq}, "timestamp": "2026-01-31T12:00:00Z"}}"#)
}

/// Clients that post numbered readings, each again under its key until it has an answer.
struct Clients {
    /// The next number that nobody has posted.
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Clients {
    fn start(port: u16, count: u64) -> Self {
        let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..count).map(|client| {
            let (next, stop) = (next.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut again = 0;
                while !stop.load(Ordering::Relaxed) {
                    let first = next.fetch_add(20, Ordering::Relaxed);
                    again += deliver(port, client, first);
                }
                again
            })
        });
        let threads = threads.collect();
        Self { next, stop, threads }
    }

    /// How many readings were acknowledged, which all are in the end, and how many posts came more than once.
    fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let again = self.threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
        (self.next.load(Ordering::Relaxed), again)
    }
}

/// Posts twenty readings until they are acknowledged: half of the clients as a Firehose does. Gives how often it was tried
/// in vain.
fn deliver(port: u16, client: u64, first: u64) -> u64 {
    let readings: Vec<String> = (first..first + 20).map(reading).collect();
    let id = format!("{client}-{first}");
    for tries in 0.. {
        let answer = if client.is_multiple_of(2) {
            let headers = [("Authorization", "Bearer secret"), ("Idempotency-Key", id.as_str())];
            post(port, "/iot/d7", &headers, format!("[{}]", readings.join(",")).as_bytes())
        } else {
            post(port, "/iot/d7", &firehose_headers(&id, "secret"), firehose_body(&id, &readings).as_bytes())
        };
        match answer {
            Ok(Answer { status: 200, .. }) => return tries,
            Ok(Answer { status: 429 | 503, .. }) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(other) => panic!("{other:?}"),
        }
    }
    unreachable!("there is no end to the tries")
}

#[test]
fn a_pipeline_that_is_killed_in_the_midst_of_posts_stores_each_acknowledged_reading_once() {
    let house = House::new();
    let seed = rand::random();
    println!("seed {seed}");
    let mut chance = Pcg64Mcg::seed_from_u64(seed);
    let mut pipeline = house.start("pipeline-0");
    let clients = Clients::start(house.port, 4);
    for round in 1..=12 {
        std::thread::sleep(Duration::from_millis(chance.random_range(50..800)));
        pipeline.kill();
        pipeline = house.start(&format!("pipeline-{round}"));
    }
    std::thread::sleep(Duration::from_millis(500));
    let (acknowledged, again) = clients.finish();
    house.wait_for(acknowledged.cast_signed());
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    let expected: Vec<(i64, i64)> = (0..acknowledged.cast_signed()).map(|seq| (seq, 1)).collect();
    assert!(acknowledged > 1_000, "{acknowledged} readings are no load");
    assert!(again > 0, "no kill came in the midst of a post");
    assert!(house.stored() == expected, "{} of {acknowledged} readings", house.stored().len());
    println!("{acknowledged} readings acknowledged, {again} tries in vain: 0 lost, 0 twice");
}

#[test]
fn posts_and_firehose_requests_are_answered_as_documented() {
    let house = House::new();
    let pipeline = house.start("pipeline");
    let known = ("Authorization", "Bearer secret");
    let answer = |headers: &[(&str, &str)], body: &str| {
        post(house.port, "/iot/d7", headers, body.as_bytes()).expect("an answer")
    };
    assert_eq!(answer(&[known], &reading(1)).body, r#"{"messages":1}"#);
    let bad = format!("[{}, {{\"seq\": \"x\"}}, {}]", reading(2), reading(3));
    assert_eq!(answer(&[known], &bad).body, r#"{"messages":3}"#);
    let no_json = answer(&[known], "seq=4");
    assert_eq!(no_json.status, 400);
    assert!(no_json.body.contains("the body is no JSON: expected value at line 1 column 1"), "{no_json:?}");
    assert_eq!(answer(&[], &reading(5)).status, 401);
    assert_eq!(answer(&[known], &" ".repeat(1 << 21)).status, 413);

    let records = [reading(6), format!("{}\n{}\n", reading(7), reading(8))];
    for _ in 0..3 {
        let taken = answer(&firehose_headers("r-1", "secret"), &firehose_body("r-1", &records));
        assert_eq!(taken.status, 200, "{taken:?}");
        assert!(taken.body.starts_with(r#"{"requestId":"r-1","timestamp":"#), "{taken:?}");
        assert!(taken.head.contains("content-type: application/json"), "{taken:?}");
    }
    let wrong = answer(&firehose_headers("r-2", "other"), &firehose_body("r-2", &records));
    assert_eq!(wrong.status, 401);
    let body: serde_json::Value = serde_json::from_str(&wrong.body).expect("JSON");
    assert_eq!((&body["requestId"], body["errorMessage"].is_string()), (&"r-2".into(), true));
    let large = answer(&firehose_headers("r-3", "secret"), &firehose_body("r-3", &[" ".repeat(1 << 20)]));
    assert_eq!(large.status, 413);

    house.wait_for(6);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert_eq!(house.stored(), [1, 2, 3, 6, 7, 8].map(|seq| (seq, 1)));
    let refused =
        house.query("SELECT reason, topic FROM refused", |row| (row.get::<_, String>(0), row.get::<_, String>(1)));
    assert_eq!(refused, [("wrong_type".to_owned(), "iot/d7".to_owned())]);
    assert!(!log.contains("secret"), "no token is told: {log}");
}
