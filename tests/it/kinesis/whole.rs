//! Whole pipelines: the real binary between a real stream, TimescaleDB and S3.
//!
//! | what | short form | long form |
//! |---|---|---|
//! | killed while a stream of 4 shards is split and merged | with all tests | `KINESIS_RECORDS=1000000 tests/run kinesis::whole -- --nocapture` |

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::stream::{Put, Stream};
use crate::process::{Process, wait_until};
use crate::services;

const DEVICES: usize = 100;

/// A stream, a database and a bucket of a test's own.
struct Installation {
    runtime: tokio::runtime::Runtime,
    stream: Stream,
    database: Client,
    bucket: String,
    folder: TempDir,
    variables: Vec<(String, String)>,
    runs: u32,
}

impl Installation {
    fn new(name: &str, shards: i32) -> Self {
        let database_url = services::database(name);
        let (s3, bucket) = (services::s3(), services::bucket());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stream = runtime.block_on(Stream::new(name, shards));
        let database = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&database_url, NoTls).await.expect("the test database");
            tokio::spawn(connection);
            client
        });
        let folder = TempDir::new().unwrap();
        let mut variables = s3.environment().to_vec();
        for (variable, value) in [
            ("AWS_ENDPOINT_URL_KINESIS", stream.endpoint.clone()),
            ("KINESIS_STREAM", stream.name.clone()),
            ("DATABASE_URL", database_url),
            ("S3_URL", format!("s3://{bucket}")),
            ("DATA_DIR", folder.path().join("data").display().to_string()),
        ] {
            variables.push((variable.to_owned(), value));
        }
        Self { runtime, stream, database, bucket, folder, variables, runs: 0 }
    }

    fn start(&mut self, file: &str, changes: &[(&str, &str)]) -> Process {
        self.runs += 1;
        let mut variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        variables.extend(changes);
        Process::start(&["run", file], &variables, self.folder.path(), &format!("run-{}", self.runs))
    }

    fn number(&self, sql: &str) -> i64 {
        self.runtime.block_on(self.database.query_one(sql, &[])).expect(sql).get(0)
    }

    /// Waits until a table holds so many rows, for as long as it grows.
    fn wait_for_rows(&self, table: &str, owed: i64) {
        let (mut last, mut since) = (-1, Instant::now());
        loop {
            let now = self.number(&format!("select count(*) from {table}"));
            if now >= owed {
                return;
            }
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < Duration::from_secs(120), "only {now} of {owed} rows have come to {table}");
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Device and number of each row of the lake.
    fn lake(&self, prefix: &str, device: &str) -> Vec<(String, i64)> {
        let batches = self.runtime.block_on(services::read_parquet(&self.bucket, prefix));
        let mut rows = Vec::new();
        for batch in batches {
            let devices = batch.column_by_name(device).unwrap().as_string::<i32>();
            let seqs = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>();
            rows.extend((0..batch.num_rows()).map(|row| (devices.value(row).to_owned(), seqs.value(row))));
        }
        rows
    }
}

fn records_owed() -> usize {
    std::env::var("KINESIS_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40_000)
}

/// Readings of all devices in turn: each puts its numbers in order.
fn readings(seqs: std::ops::Range<usize>) -> impl Iterator<Item = Put> {
    let reading = |device: usize, seq: usize| {
        let at = 1_767_225_600 + seq;
        let data = format!("{{\"device\":\"d{device}\",\"seq\":{seq},\"at\":{at}}}");
        (format!("d{device}"), data.into_bytes())
    };
    seqs.flat_map(move |seq| (0..DEVICES).map(move |device| reading(device, seq)))
}

/// Puts all readings, with a split after a third of them and a merge after two.
async fn put_all(stream: &Stream, seqs: usize) {
    for third in 0..3 {
        match third {
            1 => stream.split(1).await,
            2 => stream.merge().await,
            _ => {}
        }
        // A few devices' requests at a time, as producers do.
        let (from, to) = (seqs * third / 3, seqs * (third + 1) / 3);
        for start in (from..to).step_by(50) {
            stream.put(readings(start..(start + 50).min(to))).await;
        }
    }
}

#[test]
fn a_pipeline_killed_again_and_again_stores_each_record_of_a_resharded_stream_once_and_in_order() {
    let owed = records_owed();
    let seqs = owed / DEVICES;
    let kills = (owed / 5_000).min(60);
    // Of a million records so many have to be read in a life that some come far.
    let life_ms_max = if owed > 100_000 { 12_000 } else { 3_000 };
    let mut site = Installation::new("killed", 4);
    let table =
        "create table readings (id bigserial, device text not null, seq bigint not null, at timestamptz not null)";
    site.runtime.block_on(site.database.batch_execute(table)).unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let putting = {
        let stream =
            Stream { name: site.stream.name.clone(), endpoint: String::new(), client: site.stream.client.clone() };
        site.runtime.spawn(async move { put_all(&stream, seqs).await })
    };
    let mut kill = 0;
    while kill < kills || !putting.is_finished() {
        kill += 1;
        let mut pipeline = site.start("tests/it/kinesis/pipeline.toml", &[]);
        std::thread::sleep(Duration::from_millis(chance.random_range(200..life_ms_max)));
        assert_eq!(pipeline.status(), None, "{}", pipeline.log());
        pipeline.kill();
        println!("kill {kill}: {} rows", site.number("select count(*) from readings"));
    }
    let mut pipeline = site.start("tests/it/kinesis/pipeline.toml", &[]);
    // All may be stored already, and what has not begun can't be asked to stop.
    pipeline.wait_for_log("starts");
    site.runtime.block_on(putting).unwrap();
    site.wait_for_rows("readings", (seqs * DEVICES) as i64);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");
    println!("{owed} records, {kill} kills, {:.0} s", began.elapsed().as_secs_f64());

    assert_eq!(site.number("select count(*) from readings"), (seqs * DEVICES) as i64);
    assert_eq!(
        site.number("select count(*) from (select distinct device, seq from readings)"),
        (seqs * DEVICES) as i64
    );
    let back = "select count(*) from (select seq - lag(seq) over (partition by device order by id) as step from readings) \
                where step <> 1";
    assert_eq!(site.number(back), 0, "rows of a device are stored in the order in which it sent them");
    assert_eq!(site.number("select count(*) from dead_letters"), 0);
    let mut by_device: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    site.lake("lake", "device").into_iter().for_each(|(device, seq)| by_device.entry(device).or_default().push(seq));
    assert_eq!(by_device.len(), DEVICES);
    for (device, mut found) in by_device {
        found.sort_unstable();
        assert!(found.iter().copied().eq(0..seqs as i64), "the lake's rows of {device} are not each there once");
    }
    assert_reconciled(&site);
}

/// `pipeline reconcile` finds nothing missing and nothing twice.
fn assert_reconciled(site: &Installation) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["reconcile", "tests/it/kinesis/pipeline.toml"])
        .envs(site.variables.iter().map(|(name, value)| (name, value)))
        .current_dir(crate::process::root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn what_devices_publish_at_the_edge_is_stored_once_behind_the_stream() {
    const SEQS: usize = 50;
    let mut site = Installation::new("edge", 2);
    let topic = format!("iot/telemetry/{}", services::unique("edge"));
    let (mqtt, client) = (services::mqtt_url(), services::unique("edge"));
    let (edge_dir, dir) = (site.folder.path().join("edge"), site.folder.path().join("cloud"));
    let refused = site.folder.path().join("refused").display().to_string();
    let (edge_dir, dir) = (edge_dir.display().to_string(), dir.display().to_string());
    let (filter, listen) = (format!("{topic}/#"), "[http]\nlisten = \"off\"");
    let cloud = without_page(&site, "pipelines/kinesis.toml", listen);
    let box_ = without_page(&site, "pipelines/edge.toml", listen);
    let pipeline = site.start(&cloud, &[("PIPELINE_DATA_DIR", &dir), ("ROLL_AGE", "1s")]);
    let at_edge = [
        ("PIPELINE_DATA_DIR", edge_dir.as_str()),
        ("MQTT_URL", &mqtt),
        ("MQTT_TOPIC", &filter),
        ("MQTT_CLIENT_ID", &client),
        ("REFUSED", &refused),
    ];
    let mut edge = site.start(&box_, &at_edge);
    edge.wait_for_log("subscribed");
    let message = |device: usize, seq: usize| {
        let at = 1_767_225_600 + seq;
        let temperature = 20.0 + seq as f64 / 10.0;
        format!("{{\"device_id\":\"d{device}\",\"seq\":{seq},\"timestamp\":{at},\"temperature\":{temperature}}}")
    };
    let messages: Vec<(String, String)> = (0..SEQS)
        .flat_map(|seq| (0..DEVICES).map(move |device| (device, seq)))
        .map(|(device, seq)| (format!("{topic}/d{device}"), message(device, seq)))
        .collect();
    let published = messages.iter().map(|(topic, payload)| (topic.clone(), payload.as_bytes()));
    site.runtime.block_on(services::publish(published));
    let owed = (SEQS * DEVICES) as i64;
    let there = "select count(*) from pg_tables where tablename = 'telemetry'";
    wait_until("the table", || (site.number(there) > 0).then_some(()));
    site.wait_for_rows("telemetry", owed);
    for process in [edge, pipeline] {
        let (status, log) = process.stop();
        assert!(status.success(), "{log}");
        assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");
    }
    assert_eq!(site.number("select count(*) from telemetry"), owed);
    assert_eq!(site.number("select count(*) from dead_letters"), 0);
    let mut lake = site.lake("telemetry", "device_id");
    assert_eq!(lake.len() as i64, owed);
    lake.sort_unstable();
    lake.dedup();
    assert_eq!(lake.len() as i64, owed, "each row is in the lake once");
    let records: usize = site.runtime.block_on(site.stream.read_all()).iter().map(Vec::len).sum();
    assert!(records < SEQS * DEVICES, "the edge packs messages: {records} records");
    assert_eq!(files(Path::new(&refused)), 0, "nothing was refused");
}

/// How many files there are in a folder and in those below it.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// A pipeline that ships, without its page: two run at once.
fn without_page(site: &Installation, file: &str, http: &str) -> String {
    let text = std::fs::read_to_string(crate::process::root().join(file)).unwrap();
    let name = file.rsplit('/').next().unwrap();
    let copy = site.folder.path().join(name);
    std::fs::write(&copy, format!("{text}\n{http}\n")).unwrap();
    copy.display().to_string()
}
