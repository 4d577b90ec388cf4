//! The S3 source as the real binary, from a real S3 API into a real TimescaleDB and back to Parquet.

mod lines;
mod queue;
mod replay;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tempfile::TempDir;

use crate::process::{Process, wait_until};
use crate::services;

/// A bucket, a database, and a pipeline that brings one into the other.
struct House {
    folder: TempDir,
    bucket: String,
    database: String,
    runtime: tokio::runtime::Runtime,
}

impl House {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            bucket: services::bucket(),
            database: services::database("s3_source"),
            runtime: tokio::runtime::Runtime::new().expect("a runtime"),
        }
    }

    fn put(&self, key: &str, content: impl Into<PutPayload>) {
        let store = services::s3().client(&self.bucket);
        self.runtime.block_on(store.put(&Path::from(key), content.into())).expect("an object is stored");
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        let store = services::s3().client(&self.bucket);
        let listing = store.list(Some(&Path::from(prefix)));
        let listed: Vec<_> = self.runtime.block_on(listing.try_collect()).expect("a listing");
        listed.into_iter().map(|object: object_store::ObjectMeta| object.location.to_string()).collect()
    }

    fn delete(&self, key: &str) {
        let store = services::s3().client(&self.bucket);
        self.runtime.block_on(store.delete(&Path::from(key))).expect("an object is deleted");
    }

    /// A pipeline file: rows into a table without a key, where nothing hides what is stored twice, and into a lake.
    fn file(&self, source: &str) -> PathBuf {
        let file = self.folder.path().join("p.toml");
        let text = format!(
            r#"
[pipeline]
name = "s3_source"
data_dir = {data:?}
checkpoint_interval = "200ms"
[http]
listen = "off"
[schema.reading]
device_id = {{ type = "text", required = true }}
seq = {{ type = "int64", required = true }}
timestamp = {{ type = "timestamp", required = true }}
received = {{ type = "timestamp", message = "received_at" }}
object = {{ type = "text", message = "topic" }}
[sources.objects]
type = "s3"
url = "s3://{bucket}/in/"
schema = "reading"
{source}
[sinks.table]
type = "timescaledb"
inputs = ["objects"]
url = {database:?}
table = "readings"
create = true
time_column = "timestamp"
key = []
[sinks.lake]
type = "parquet"
inputs = ["objects"]
url = "s3://{bucket}/lake"
time_column = "timestamp"
roll_age = "200ms"
[sinks.refused]
type = "timescaledb"
inputs = ["objects.rejected", "table.rejected"]
url = {database:?}
table = "refused"
create = true
time_column = "received_at"
key = []
"#,
            data = self.folder.path().join("data"),
            bucket = self.bucket,
            database = self.database,
        );
        std::fs::write(&file, text).expect("writable");
        file
    }

    fn start(&self, arguments: &[&str], name: &str) -> Process {
        let environment = services::s3().environment();
        let variables: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Process::start(arguments, &variables, self.folder.path(), name)
    }

    /// Runs a pipeline file to its end.
    fn run(&self, file: &std::path::Path, name: &str) -> String {
        self.finish(&["run", file.to_str().expect("text")], name)
    }

    fn finish(&self, arguments: &[&str], name: &str) -> String {
        let mut process = self.start(arguments, name);
        let status = process.wait();
        assert!(status.success(), "{}", process.log());
        process.log()
    }

    fn query<T: Send>(&self, sql: &str, read: impl Fn(&tokio_postgres::Row) -> T) -> Vec<T> {
        self.runtime.block_on(async {
            let client = crate::timescaledb::connect(&self.database).await;
            client.query(sql, &[]).await.expect("an answer").iter().map(&read).collect()
        })
    }

    /// Numbers that are stored, with how often.
    fn stored(&self) -> Vec<(i64, i64)> {
        self.query("SELECT seq, count(*) FROM readings GROUP BY seq ORDER BY seq", |row| (row.get(0), row.get(1)))
    }

    /// The same of the lake.
    fn in_lake(&self) -> Vec<i64> {
        use arrow::array::AsArray;
        use arrow::datatypes::Int64Type;
        let batches = self.runtime.block_on(services::read_parquet(&self.bucket, "lake"));
        let seq = |batch: &arrow::array::RecordBatch| {
            batch.column_by_name("seq").expect("a column").as_primitive::<Int64Type>().values().to_vec()
        };
        let mut all: Vec<i64> = batches.iter().flat_map(seq).collect();
        all.sort_unstable();
        all
    }
}

fn lines(numbers: std::ops::Range<i64>) -> String {
    numbers.fold(String::new(), |mut text, seq| {
        let device = seq % 50;
        writeln!(text, r#"{{"device_id": "d{device}", "seq": {seq}, "timestamp": "2026-01-31T12:00:00Z"}}"#)
            .expect("text");
        text
    })
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

fn once(numbers: std::ops::Range<i64>) -> Vec<(i64, i64)> {
    numbers.map(|seq| (seq, 1)).collect()
}

#[test]
fn each_object_is_stored_once_whatever_it_is_packed_in_and_a_second_run_changes_nothing() {
    let house = House::new();
    house.put("in/2026/a.jsonl", lines(0..3_000));
    house.put("in/2026/b.jsonl.gz", gzip(&lines(3_000..30_000)));
    let mut bad = lines(30_000..30_002);
    bad.insert_str(0, "{\"seq\": \n");
    house.put("in/2026/c.jsonl", bad);
    house.put("in/2026/d.gz", gzip(&lines(40_000..60_000))[..20_000].to_vec());
    let file = house.file("format = \"jsonl\"");
    house.run(&file, "first");
    let stored = house.stored();
    let whole = stored.iter().filter(|(seq, _)| *seq < 40_000).copied().collect::<Vec<_>>();
    assert_eq!(whole, once(0..30_002));
    assert!(stored.iter().all(|(_, times)| *times == 1) && stored.len() > whole.len(), "{} rows", stored.len());
    assert_eq!(house.in_lake(), stored.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
    let refused = house.query("SELECT reason, topic, position FROM refused ORDER BY topic", |row| {
        [0, 1, 2].map(|column| row.get::<_, String>(column))
    });
    let last = (stored.len() - whole.len()).to_string();
    assert_eq!(refused, [["invalid_json", "in/2026/c.jsonl", "1"], ["object_damaged", "in/2026/d.gz", last.as_str()]]);
    // The time of receipt is that of the object.
    let meta = house
        .runtime
        .block_on(services::s3().client(&house.bucket).head(&Path::from("in/2026/a.jsonl")))
        .expect("it is there");
    let received = house.query(
        "SELECT DISTINCT floor(extract(epoch FROM received))::bigint FROM readings WHERE object = 'in/2026/a.jsonl'",
        |row| row.get::<_, i64>(0),
    );
    assert_eq!(received, [meta.last_modified.timestamp()]);

    house.run(&file, "second");
    assert_eq!(house.stored(), stored);
    assert_eq!(house.in_lake().len(), stored.len());
    house.put("in/2026/e.jsonl", lines(90_000..90_001));
    house.run(&file, "third");
    assert_eq!(house.stored().len(), stored.len() + 1);
}

#[test]
fn runs_that_are_killed_at_any_moment_leave_every_row_once_in_table_and_lake() {
    let house = House::new();
    let seed = rand::random();
    println!("seed {seed}");
    let mut chance = Pcg64Mcg::seed_from_u64(seed);
    let mut total = 0;
    for object in 0..24 {
        let rows = chance.random_range(1..40_000);
        let text = lines(total..total + rows);
        match object % 3 {
            0 => house.put(&format!("in/{object:02}.jsonl"), text),
            1 => house.put(&format!("in/{object:02}.gz"), gzip(&text)),
            _ => {
                house.put(&format!("in/{object:02}.zst"), zstd::stream::encode_all(text.as_bytes(), 1).expect("memory"))
            }
        }
        total += rows;
    }
    let file = house.file("format = \"jsonl\"\nparallel = 3");
    let arguments = ["run", file.to_str().expect("text")];
    let mut kills = 0;
    for round in 0.. {
        let mut pipeline = house.start(&arguments, &format!("pipeline-{round}"));
        let patience = Duration::from_millis(chance.random_range(200..1_500) * (1 + round / 10));
        std::thread::sleep(patience);
        if let Some(status) = pipeline.status() {
            assert!(status.success(), "{}", pipeline.log());
            break;
        }
        pipeline.kill();
        kills += 1;
    }
    assert!(kills > 0, "it was never killed");
    assert!(house.stored() == once(0..total), "{} of {total} rows", house.stored().len());
    assert!(house.in_lake() == (0..total).collect::<Vec<_>>(), "{} of {total} rows in the lake", house.in_lake().len());
    println!("{kills} kills, {total} rows: 0 lost, 0 twice");
}

#[test]
fn objects_are_found_as_they_come_and_may_go_once_they_are_stored() {
    let house = House::new();
    let file = house.file("format = \"jsonl\"\npoll = \"200ms\"");
    let mut pipeline = house.start(&["run", file.to_str().expect("text")], "pipeline");
    pipeline.wait_for_log("starts");
    for n in 0..5 {
        let key = format!("in/{n}.jsonl");
        house.put(&key, lines(n * 10..n * 10 + 10));
        wait_until("the object to be stored", || {
            let exists = house.query("SELECT to_regclass('readings') IS NOT NULL", |row| row.get::<_, bool>(0));
            (exists == [true] && house.stored().len() as i64 == n * 10 + 10).then_some(())
        });
        house.delete(&key);
    }
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert_eq!(house.stored(), once(0..50));
}
