//! `pipelines/iot.toml` as it ships, against real Mosquitto, TimescaleDB and S3.

mod corpus;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::process::{Process, wait_until};
use crate::services;

/// A database, a bucket and a topic of a test's own, and the pipeline between them.
struct Installation {
    folder: TempDir,
    runtime: tokio::runtime::Runtime,
    database: Client,
    topic: String,
    bucket: String,
    variables: Vec<(&'static str, String)>,
}

impl Installation {
    fn new(name: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let database_url = services::database(name);
        let s3 = services::s3();
        let bucket = services::bucket();
        let topic = format!("iot/telemetry/{}", services::unique(name));
        let folder = TempDir::new().expect("a folder");
        let variables = vec![
            ("PIPELINE_DATA_DIR", folder.path().join("data").display().to_string()),
            ("MQTT_URL", services::mqtt_url()),
            ("MQTT_TOPIC", format!("{topic}/#")),
            ("MQTT_CLIENT_ID", services::unique(name)),
            ("DATABASE_URL", database_url.clone()),
            ("S3_URL", format!("s3://{bucket}/lake")),
            ("AWS_ENDPOINT_URL", s3.endpoint),
            ("AWS_ACCESS_KEY_ID", s3.access_key),
            ("AWS_SECRET_ACCESS_KEY", s3.secret_key),
            ("AWS_REGION", s3.region),
        ];
        let database = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&database_url, NoTls).await.expect("the test database");
            tokio::spawn(connection);
            client
        });
        Self { folder, runtime, database, topic, bucket, variables }
    }

    fn start(&self) -> Process {
        let mut pipeline = self.process(&["run", "pipelines/iot.toml"], "pipeline");
        pipeline.wait_for_log("subscribed");
        pipeline
    }

    fn process(&self, arguments: &[&str], name: &str) -> Process {
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::start(arguments, &variables, self.folder.path(), name)
    }

    /// Publishes with `pipeline simulate` and waits for its end.
    fn simulate(&self, arguments: &[&str]) {
        let broker = services::mqtt_url();
        let topic = format!("{}/fleet", self.topic);
        let mut all = vec!["simulate", "--mqtt-broker", broker.as_str(), "--topic", topic.as_str()];
        all.extend(arguments);
        let mut fleet = self.process(&all, "simulate");
        let status = fleet.wait();
        assert!(status.success(), "{}", fleet.log());
    }

    fn count(&self, sql: &str) -> i64 {
        self.runtime.block_on(self.database.query_one(sql, &[])).expect(sql).get(0)
    }

    fn wait_for_rows(&self, table: &str, rows: i64) {
        let sql = format!("select count(*) from {table}");
        wait_until(&format!("{rows} rows in {table}"), || (self.count(&sql) >= rows).then_some(()));
    }

    /// Telemetry in the table, by device, time in microseconds and sequence number.
    fn table(&self) -> Vec<Reading> {
        let sql = "select device_id, (extract(epoch from timestamp) * 1000000)::int8, seq, temperature, humidity
                   from telemetry";
        let rows = self.runtime.block_on(self.database.query(sql, &[])).expect("the telemetry table");
        let reading = |row: &tokio_postgres::Row| Reading {
            key: (row.get(0), row.get(1), row.get(2)),
            bits: [row.get::<_, Option<f64>>(3).map(f64::to_bits), row.get::<_, Option<f64>>(4).map(f64::to_bits)],
        };
        rows.iter().map(reading).collect()
    }

    /// Telemetry in the lake, read back from every object.
    fn lake(&self) -> Vec<Reading> {
        let batches = self.runtime.block_on(services::read_parquet(&self.bucket, "lake/telemetry"));
        let mut readings = Vec::new();
        for batch in batches {
            let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}")).clone();
            let (device, time, seq) = (column("device_id"), column("timestamp"), column("seq"));
            let (temperature, humidity) = (column("temperature"), column("humidity"));
            for row in 0..batch.num_rows() {
                use arrow::array::{Array, AsArray};
                use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
                let bits = |column: &arrow::array::ArrayRef| {
                    let column = column.as_primitive::<Float64Type>();
                    column.is_valid(row).then(|| column.value(row).to_bits())
                };
                readings.push(Reading {
                    key: (
                        device.as_string::<i32>().value(row).to_owned(),
                        time.as_primitive::<TimestampMicrosecondType>().value(row),
                        seq.as_primitive::<Int64Type>().value(row),
                    ),
                    bits: [bits(&temperature), bits(&humidity)],
                });
            }
        }
        readings
    }
}

type Key = (String, i64, i64);

/// One reading, its values by their bits: equal means the same to the last digit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    key: Key,
    bits: [Option<u64>; 2],
}

fn by_key(readings: &[Reading], place: &str) -> HashMap<Key, [Option<u64>; 2]> {
    let mut all = HashMap::new();
    for reading in readings {
        assert!(all.insert(reading.key.clone(), reading.bits).is_none(), "{:?} is twice in {place}", reading.key);
    }
    all
}

/// Lines of a truth file that `pipeline simulate --truth` writes.
fn truth(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the truth file");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn messages() -> i64 {
    std::env::var("E2E_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000)
}

#[test]
fn every_message_is_stored_once_in_the_table_and_in_the_lake() {
    let messages = messages();
    let installation = Installation::new("fleet");
    let truth_file = installation.folder.path().join("truth.jsonl");
    let pipeline = installation.start();
    let (count, path) = (messages.to_string(), truth_file.display().to_string());
    // The runbook's file, for the one setting that has no flag.
    let config = installation.folder.path().join("simulator.yaml");
    std::fs::write(&config, "anomaly:\n  probability: 0.005\n").expect("writable");
    let config = config.display().to_string();
    installation.simulate(&[
        "--config",
        &config,
        "--device-count",
        "1000",
        "--rate",
        "5000",
        "--count",
        &count,
        "--seed",
        "42",
        "--truth",
        &path,
    ]);
    installation.wait_for_rows("telemetry", messages);
    print_latency(&installation);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");

    let table = by_key(&installation.table(), "the table");
    let lake = by_key(&installation.lake(), "the lake");
    assert_eq!(table.len() as i64, messages);
    assert!(table == lake, "the lake holds the same rows as the table, value for value");
    let mut per_device: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    table.keys().for_each(|(device, _, seq)| per_device.entry(device).or_default().push(*seq));
    for (device, mut sequence) in per_device {
        sequence.sort_unstable();
        let first = sequence[0];
        let gapless = sequence.iter().zip(first..).all(|(found, expected)| *found == expected);
        assert!(gapless, "a message of {device} is missing");
    }
    assert_eq!(installation.count("select count(*) from dead_letters"), 0);
    assert_anomalies(&installation, &truth(&truth_file));
    assert_minutes(&installation);
    assert_status(&installation);
    assert_reconciled(&installation, messages);
}

/// Each minute that was told is what the readings of it make.
fn assert_minutes(installation: &Installation) {
    let told = installation.count("select count(*) from telemetry_minutes");
    // None where all of the run lies within a minute.
    println!("{told} minutes of devices");
    let differ = "select count(*) from telemetry_minutes m
        left join (select device_id, date_trunc('minute', timestamp) as minute, count(*) as readings,
                          avg(temperature) as mean, min(humidity) as least, max(temperature) as greatest
                   from telemetry group by 1, 2) t
        on m.device_id = t.device_id and m.window_start = t.minute
        where m.readings is distinct from t.readings or m.humidity_min is distinct from t.least
           or m.temperature_max is distinct from t.greatest
           or abs(m.temperature_mean - t.mean) > 1e-9 * abs(t.mean)";
    assert_eq!(installation.count(differ), 0, "of {told} minutes");
}

/// Each device stands in its table once, with its last reading.
fn assert_status(installation: &Installation) {
    let devices = installation.count("select count(distinct device_id) from telemetry");
    assert_eq!(installation.count("select count(*) from device_status"), devices);
    let behind = "select count(*) from device_status s
        where s.timestamp <> (select max(t.timestamp) from telemetry t where t.device_id = s.device_id)";
    assert_eq!(installation.count(behind), 0);
}

/// What was stored proves itself, until somebody puts an object there a second time.
fn assert_reconciled(installation: &Installation, messages: i64) {
    let reconcile = || {
        let mut process = installation.process(&["reconcile", "pipelines/iot.toml"], "reconcile");
        (process.wait().code(), process.log())
    };
    let (code, log) = reconcile();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains(&format!("telemetry/spool: {messages} messages received")), "{log}");
    assert!(log.contains(&format!("telemetry_table: {messages} rows stored, {messages} are there, in table")), "{log}");
    assert!(log.contains(&format!("lake: {messages} rows stored, {messages} are there, in")), "{log}");
    assert!(log.contains("nothing is missing, and nothing is there twice"), "{log}");
    installation.runtime.block_on(services::copy_an_object(&installation.bucket, "lake/telemetry"));
    let (code, log) = reconcile();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("CONTRADICTION lake: the group up to "), "{log}");
}

/// Time from the device's stamp to the commit that made the row visible. Printed, never asserted.
fn print_latency(installation: &Installation) {
    let sql = "select percentile_cont(array[0.5, 0.99]) within group
                 (order by extract(epoch from pg_xact_commit_timestamp(xmin) - timestamp) * 1000)
               from telemetry";
    match installation.runtime.block_on(installation.database.query_one(sql, &[])) {
        Ok(row) => {
            let percentiles: Vec<f64> = row.get(0);
            println!("latency from device to row: p50 {:.0} ms, p99 {:.0} ms", percentiles[0], percentiles[1]);
        }
        Err(error) => println!("latency unknown: {error}"),
    }
}

/// Every reading that the pipeline scored above its threshold is in `anomalies`, once, and every planted
/// one is among them, once the window holds the device's usual noise and nothing else.
fn assert_anomalies(installation: &Installation, truth: &[Value]) {
    let sql = "select device_id, metric, (extract(epoch from event_time) * 1000000)::int8 from anomalies";
    let rows = installation.runtime.block_on(installation.database.query(sql, &[])).expect("the anomalies table");
    let found: HashSet<(String, String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found.len(), rows.len(), "no anomaly twice");
    let above = installation.count(&format!(
        "select (count(*) filter (where abs(temperature_score) >= {THRESHOLD})
               + count(*) filter (where abs(humidity_score) >= {THRESHOLD})) from telemetry"
    ));
    assert_eq!(above, rows.len() as i64, "a score above the threshold is an anomaly, and nothing else is");
    let planted: Vec<_> = truth.iter().filter(|line| line["kind"] == "anomaly").collect();
    let judged: Vec<_> = planted.iter().filter(|line| line["seq"].as_i64() > Some(WARM_UP + WINDOW)).collect();
    assert!(judged.len() * 2 > planted.len(), "{} of {} planted anomalies are judged", judged.len(), planted.len());
    let is_found = |line: &&&&Value| {
        let text = |key: &str| line[key].as_str().expect("text").to_owned();
        found.contains(&(text("device_id"), text("metric"), micros(&text("timestamp"))))
    };
    let missed: Vec<_> = judged.iter().filter(|line| !is_found(line)).collect();
    println!(
        "{} anomalies planted, {} judged, {} missed, {} alerts",
        planted.len(),
        judged.len(),
        missed.len(),
        found.len()
    );
    assert!(missed.is_empty(), "missed: {missed:?}");
}

/// Defaults of `anomaly`: readings before anything is judged, and readings that a judgement rests on. A
/// spike within the former is learned, and has left the window after the latter.
const WARM_UP: i64 = 20;
const WINDOW: i64 = 60;
const THRESHOLD: f64 = 4.0;

fn micros(rfc3339: &str) -> i64 {
    let column = arrow::array::StringArray::from(vec![rfc3339]);
    let kind = arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("+00:00".into()));
    let cast = arrow::compute::cast(&column, &kind).expect("a valid time");
    use arrow::array::AsArray;
    cast.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0)
}

#[test]
fn real_sensor_series_arrive_value_for_value() {
    let Some(data) = std::env::var_os("PIPELINE_TEST_DATA") else {
        println!("skipped: PIPELINE_TEST_DATA names no folder with the series");
        return;
    };
    let folder = Path::new(&data).join("nab/realKnownCause");
    let installation = Installation::new("series");
    let pipeline = installation.start();
    let mut expected: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
    for name in ["machine_temperature_system_failure", "ambient_temperature_system_failure"] {
        let file = folder.join(format!("{name}.csv"));
        let text = std::fs::read_to_string(&file).expect("the series");
        let series = text.lines().skip(1).map(|line| {
            let (time, value) = line.split_once(',').expect("timestamp,value");
            (micros(&format!("{}Z", time.replace(' ', "T"))), value.parse::<f64>().expect("a number").to_bits())
        });
        let mut series: Vec<_> = series.collect();
        series.sort_unstable();
        expected.insert(name.to_owned(), series);
        // The pipeline's schema calls the value a temperature; nothing else of the series is touched.
        let renamed = installation.folder.path().join(format!("{name}.csv"));
        std::fs::write(&renamed, text.replacen("timestamp,value", "timestamp,temperature", 1)).expect("writable");
        installation.simulate(&["--replay", &renamed.display().to_string(), "--speed", "max"]);
    }
    installation.wait_for_rows("telemetry", expected.values().map(|series| series.len() as i64).sum());
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    for (place, readings) in [("table", installation.table()), ("lake", installation.lake())] {
        let mut found: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
        for reading in readings {
            let (device, time, _) = reading.key;
            found.entry(device).or_default().push((time, reading.bits[0].expect("a temperature")));
        }
        found.values_mut().for_each(|series| series.sort_unstable());
        assert!(found == expected, "the {place} holds every value of both series and nothing else");
    }
}
