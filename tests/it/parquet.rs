//! Sink `parquet` against a real S3 store, and its files against the readers that people use.

mod conditions;
pub mod old_store;
mod resumed;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{Batch, Fault, Group, Sink, SinkConfig};
use pipeline_engine::{Partition, Span, testing};
use pipeline_stages::sinks::parquet::ParquetConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::services;

const HOUR_US: i64 = 3_600_000_000;
/// 2026-01-31T00:00:00Z
const DAY_US: i64 = 1_769_817_600_000_000;

/// A row an hour, the first at `start_us`, or without a time where `start_us` is `None`.
fn readings(start_us: Option<i64>, rows: i64) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("timestamp", timestamp_type(), true),
        Field::new("device_id", DataType::Utf8, false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("seq", DataType::Int64, false),
        Field::new("raw", DataType::Binary, true),
    ]);
    let times = (0..rows).map(|row| start_us.map(|start| start + row * HOUR_US));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_iter(times).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("device-{}", row % 3)))),
        Arc::new(Float64Array::from_iter((0..rows).map(|row| (row % 4 != 0).then_some(20.0 + row as f64 / 8.0)))),
        Arc::new(Int64Array::from_iter_values(0..rows)),
        Arc::new(BinaryArray::from_iter((0..rows).map(|row| (row % 2 == 0).then(|| row.to_be_bytes())))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("the columns are those of the schema")
}

/// One group of a partition of its own: written again, it has the same positions and times of receipt.
fn group(batches: &[RecordBatch]) -> Group {
    let partition = Partition::new("mqtt");
    let acked = |(number, rows): (usize, &RecordBatch)| {
        let position = number as u64;
        Batch::new(rows.clone(), partition.open(Span::new(position, position), DAY_US + number as i64))
    };
    Group::new(batches.iter().enumerate().map(acked).collect())
}

fn sink(keys: Value, environment: impl IntoIterator<Item = (String, String)>) -> Box<dyn Sink> {
    let config: ParquetConfig = serde_json::from_value(keys).expect("a valid configuration");
    let built = config.environment(environment).build(&readings(None, 0).schema(), &testing::build_context("lake", ""));
    built.expect("a valid configuration").sink
}

fn lake_keys(bucket: &str) -> Value {
    json!({ "url": format!("s3://{bucket}/lake"), "time_column": "timestamp" })
}

fn lake(bucket: &str) -> Box<dyn Sink> {
    sink(lake_keys(bucket), services::s3().environment())
}

async fn objects(bucket: &str) -> Vec<ObjectMeta> {
    let mut found: Vec<_> = services::s3().client(bucket).list(None).try_collect().await.expect("a listing");
    found.sort_by(|left: &ObjectMeta, right| left.location.cmp(&right.location));
    found
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(future)
}

#[test]
fn rows_read_back_from_s3_as_they_were_and_each_in_the_folder_of_its_day() {
    let bucket = services::bucket();
    block_on(async {
        let mut sink = lake(&bucket);
        sink.open().await.expect("the store is there");
        assert!(objects(&bucket).await.is_empty(), "the probe leaves nothing");
        // 20:00 to 03:00: across midnight and the end of a month.
        let rows = readings(Some(DAY_US + 20 * HOUR_US), 8);
        sink.write(&group(&[rows.slice(0, 5), rows.slice(5, 3)])).await.expect("it is stored");

        let folders: Vec<String> = objects(&bucket).await.iter().map(folder).collect();
        assert_eq!(folders, ["lake/year=2026/month=01/day=31", "lake/year=2026/month=02/day=01"]);
        let stored = services::read_parquet(&bucket, "lake").await;
        assert_eq!(concat_batches(&rows.schema(), &stored).expect("one schema"), rows);
    });
}

fn folder(object: &ObjectMeta) -> String {
    object.location.as_ref().rsplit_once('/').expect("a folder").0.to_owned()
}

#[test]
fn one_group_written_by_eight_at_once_is_one_object() {
    let bucket = services::bucket();
    block_on(async {
        let writers = (0..8).map(|_| {
            let mut sink = lake(&bucket);
            tokio::spawn(async move {
                sink.open().await.expect("the store is there");
                let group = group(&[readings(Some(DAY_US), 10)]);
                // Transient while another is about to write the same key: tried again, as the engine does.
                while let Err(error) = sink.write(&group).await {
                    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no panic");
        }
        assert_eq!(objects(&bucket).await.len(), 1);
        assert_eq!(services::read_parquet(&bucket, "lake").await, [readings(Some(DAY_US), 10)]);
    });
}

#[test]
fn an_object_with_other_content_is_an_error_and_left_alone() {
    let bucket = services::bucket();
    block_on(async {
        let group = group(&[readings(Some(DAY_US), 10)]);
        let mut first = lake(&bucket);
        first.open().await.expect("the store is there");
        first.write(&group).await.expect("it is stored");
        let object = objects(&bucket).await.remove(0).location;
        let client = services::s3().client(&bucket);
        client.put(&object, "somebody else's".into()).await.expect("it is stored");

        let mut second = lake(&bucket);
        second.open().await.expect("the store is there");
        let error = second.write(&group).await.expect_err("the name is taken");
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.to_string().contains(object.as_ref()), "{error}");
        let kept = client.get(&object).await.expect("the object").bytes().await.expect("its bytes");
        assert_eq!(kept, "somebody else's");
    });
}

#[test]
fn a_lost_reply_costs_a_second_try_and_no_second_object() {
    let bucket = services::bucket();
    block_on(async {
        let relay = Relay::start(&services::s3().endpoint).await;
        let keys = json!({ "url": format!("s3://{bucket}/lake"), "time_column": "timestamp", "endpoint": relay.url });
        let mut sink = sink(keys, services::s3().environment());
        sink.open().await.expect("the store is there");
        let group = group(&[readings(Some(DAY_US), 10)]);
        relay.loses_replies.store(true, Ordering::SeqCst);
        let error = sink.write(&group).await.expect_err("nobody answered");
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        assert_eq!(objects(&bucket).await.len(), 1, "the object was stored all the same");
        relay.loses_replies.store(false, Ordering::SeqCst);
        sink.write(&group).await.expect("it is found there");
        assert_eq!(objects(&bucket).await.len(), 1);
    });
}

/// Stands between the sink and the store, and throws answers away when told to.
struct Relay {
    url: String,
    loses_replies: Arc<AtomicBool>,
}

impl Relay {
    async fn start(endpoint: &str) -> Self {
        let store = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let loses_replies = Arc::new(AtomicBool::new(false));
        let loses = loses_replies.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let outside = TcpStream::connect(&store).await.expect("the store is there");
                tokio::spawn(relay(client, outside, loses.clone()));
            }
        });
        Self { url, loses_replies }
    }
}

async fn relay(client: TcpStream, store: TcpStream, loses_replies: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_store, mut to_store) = store.into_split();
    let requests = async { copy(&mut from_client, &mut to_store).await.map(drop) };
    let replies = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from_store.read(&mut buffer).await?;
            // The store has answered, so it has done what was asked. Ending both halves closes the connection.
            if read == 0 || loses_replies.load(Ordering::SeqCst) {
                return std::io::Result::Ok(());
            }
            to_client.write_all(&buffer[..read]).await?;
        }
    };
    tokio::select! {
        _ = requests => {}
        _ = replies => {}
    }
}

#[test]
fn what_is_wrong_with_the_store_is_said_before_anything_is_read() {
    let bucket = services::bucket();
    let s3 = services::s3();
    let open = |url: String, changes: &[(&str, &str)]| {
        let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment: Vec<_> = s3.environment().into_iter().chain(changes).collect();
        let error = block_on(sink(json!({ "url": url }), environment).open()).expect_err("it must not open");
        (error.fault(), error.to_string(), error.chain())
    };
    let ours = format!("s3://{bucket}/lake");

    let (fault, text, chain) = open("s3://no-such-bucket-here/lake".to_owned(), &[]);
    assert_eq!((fault, text.as_str()), (Fault::Permanent, "there is no bucket \"no-such-bucket-here\""), "{chain}");
    assert!(chain.ends_with("Create it, or correct \"url\", \"endpoint\" or \"region\"."), "{chain}");

    for wrong in [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")] {
        let (fault, text, chain) = open(ours.clone(), &[wrong]);
        let expected = format!("bucket \"{bucket}\" can't be written to with these credentials");
        assert_eq!((fault, text), (Fault::Permanent, expected), "{chain}");
        assert!(chain.contains("Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{chain}");
    }

    // Nobody listens there: it may come up.
    let (fault, text, chain) = open(ours, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]);
    assert_eq!((fault, text), (Fault::Transient, format!("bucket \"{bucket}\" was not written to")), "{chain}");
}

/// Prints what each reader makes of the folder: rows, rows of one day, sum, nulls, times.
const READERS: &str = r#"
import json, sys
import duckdb, pyarrow.dataset as dataset, pyarrow.compute as compute
folder = sys.argv[1]
table = dataset.dataset(folder, partitioning="hive").to_table()
day = table.filter(compute.equal(table["day"], 31))
times = table["timestamp"].drop_null()
connection = duckdb.connect()
connection.execute("set timezone = 'UTC'")
files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
one = lambda sql: connection.execute(sql.format(files=files)).fetchone()
print(json.dumps({
    "pyarrow": {
        "rows": table.num_rows,
        "day": day.num_rows,
        "sum": compute.sum(table["temperature"]).as_py(),
        "nulls": table["temperature"].null_count,
        "type": str(table.schema.field("timestamp").type),
        "first": compute.min(times).as_py().isoformat(),
        "raw": sorted(value for value in table["raw"].to_pylist() if value)[1].hex(),
    },
    "duckdb": {
        "rows": one("select count(*) from {files}")[0],
        "day": one("select count(*) from {files} where day = 31")[0],
        "sum": one("select sum(temperature) from {files}")[0],
        "nulls": one("select count(*) from {files} where temperature is null")[0],
        "type": one("select typeof(timestamp) from {files} limit 1")[0],
        "first": one("select strftime(min(timestamp), '%Y-%m-%dT%H:%M:%S') from {files}")[0] + "+00:00",
        "raw": one("select lower(hex(raw)) from {files} where seq = 2 and timestamp is not null")[0],
    },
}))
"#;

#[test]
fn pyarrow_and_duckdb_read_what_was_written() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("lake");
    let keys = json!({ "url": path, "time_column": "timestamp" });
    block_on(async {
        let mut sink = sink(keys, []);
        sink.open().await.expect("the folder can be written");
        let timed = readings(Some(DAY_US + 20 * HOUR_US), 8);
        sink.write(&group(&[timed, readings(None, 4)])).await.expect("it is stored");
    });
    let read = readers(&path);
    for (reader, timestamp) in [("pyarrow", "timestamp[us, tz=UTC]"), ("duckdb", "TIMESTAMP WITH TIME ZONE")] {
        let expected = json!({
            "rows": 12,
            "day": 4,
            // Of 0 to 7 all but 0 and 4, of 0 to 3 all but 0: 9 rows, a base of 20 and an eighth a step.
            "sum": 9.0 * 20.0 + f64::from(1 + 2 + 3 + 5 + 6 + 7 + 1 + 2 + 3) / 8.0,
            "nulls": 3,
            "type": timestamp,
            "first": "2026-01-31T20:00:00+00:00",
            "raw": if reader == "pyarrow" { "0000000000000000" } else { "0000000000000002" },
        });
        assert_eq!(read[reader], expected, "{reader}");
    }
}

fn readers(folder: &Path) -> Value {
    let output = Command::new(services::python()).args(["-c", READERS]).arg(folder).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}
