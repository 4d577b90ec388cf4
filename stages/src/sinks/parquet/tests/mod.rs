//! The sink as the engine drives it.

mod config;
mod crashes;
mod journaled;
mod lines;
mod shared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression as Codec, ZstdLevel};
use pipeline_engine::spool::FsStorage;
use pipeline_engine::stage::{Batch, BuildError, BuiltSink, Fault, SinkConfig};
use pipeline_engine::{Counter, Partition, Span, schema, testing};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::format::Encoder;
use super::layout::{Clock, Layout, LayoutText};
use super::store::Store;
use super::*;

const DAY_US: i64 = 86_400_000_000;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("time", schema::timestamp_type(), true),
        Field::new("device", DataType::Utf8, false),
        Field::new("value", DataType::Float64, true),
    ]))
}

fn rows(times_us: &[i64]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
    let devices = StringArray::from_iter_values(times_us.iter().map(|time| format!("device-{}", time % 3)));
    let values = Float64Array::from_iter_values(times_us.iter().map(|time| *time as f64));
    RecordBatch::try_new(input(), vec![Arc::new(times), Arc::new(devices), Arc::new(values)]).unwrap()
}

/// `url` is a folder unless `keys` say otherwise.
fn build(mut keys: Value, input: &SchemaRef) -> Result<BuiltSink, BuildError> {
    let url = keys.as_object_mut().unwrap().entry("url");
    url.or_insert(json!("./lake"));
    let config: ParquetConfig = serde_json::from_value(keys).unwrap();
    config.build(input, &testing::build_context("lake", ""))
}

fn sink(dir: &TempDir) -> Box<dyn Sink> {
    build(json!({ "url": dir.path().join("lake") }), &input()).unwrap().sink
}

/// All files below a folder that a reader sees, by their path below it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with('.') {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(Result::unwrap).collect()
}

fn days(root: &Path) -> Vec<(String, usize)> {
    let day = |path: &PathBuf| path.parent().unwrap().strip_prefix(root).unwrap().display().to_string();
    files(root).iter().map(|path| (day(path), read(path).iter().map(RecordBatch::num_rows).sum())).collect()
}

const PLAIN: Form = Form::Parquet(Codec::UNCOMPRESSED);

/// A sink that lays rows by their own time into this store.
fn on(store: Box<dyn Store>, journal: Journal, form: Form) -> Parquet {
    let encoder = Encoder { pipeline: "iot".to_owned(), stage: "lake".to_owned(), schema: input(), form };
    let by_day = LayoutText { prefix: None, error_prefix: None, time_zone: None, partitions_max: 1 };
    let writer = Writer {
        store,
        encoder: Arc::new(encoder),
        layout: Arc::new(Layout::new(by_day, Clock::Column(0), &input()).unwrap()),
        owner: "iot-lake-".to_owned(),
        files: Counter::default(),
        bytes: Counter::default(),
    };
    Parquet { writer, journal, shared: None, made: VecDeque::new() }
}

/// A group of one batch of a partition's first rows.
fn received(partition: &Partition, rows: RecordBatch, received_at_us: i64) -> Group {
    let span = Span::new(1, rows.num_rows() as u64);
    Group::new(vec![Batch::new(rows, partition.open(span, received_at_us))])
}

#[tokio::test]
async fn a_group_that_spans_days_makes_one_file_a_day() {
    let dir = TempDir::new().unwrap();
    let keys = json!({ "url": dir.path().join("lake"), "time_column": "time" });
    let mut sink = build(keys, &input()).unwrap().sink;
    sink.open().await.unwrap();
    let group = Group::new(vec![
        Batch::detached(rows(&[DAY_US - 1, DAY_US, DAY_US + 1])),
        Batch::detached(rows(&[2, 32 * DAY_US])),
    ]);
    sink.write(&group).await.unwrap();
    let expected =
        [("year=1970/month=01/day=01", 2), ("year=1970/month=01/day=02", 2), ("year=1970/month=02/day=02", 1)];
    let root = dir.path().join("lake");
    assert_eq!(days(&root), expected.map(|(day, rows)| (day.to_owned(), rows)));
    let first = read(&files(&root)[0]);
    assert_eq!(first, [rows(&[DAY_US - 1, 2])], "in order of arrival");
}

#[tokio::test]
async fn by_receipt_a_group_lies_where_it_was_received_whatever_its_rows_say() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(&dir);
    let partition = Partition::new("p");
    sink.write(&received(&partition, rows(&[0, 5 * DAY_US]), 3 * DAY_US)).await.unwrap();
    assert_eq!(days(&dir.path().join("lake")), [("year=1970/month=01/day=04".to_owned(), 2)]);
}

#[tokio::test]
async fn a_group_that_is_read_again_finds_its_file_in_the_next_run() {
    let dir = TempDir::new().unwrap();
    for _run in 0..2 {
        let mut sink = sink(&dir);
        sink.open().await.unwrap();
        sink.write(&received(&Partition::new("p"), rows(&[1, 2, 3]), 7)).await.unwrap();
    }
    assert_eq!(days(&dir.path().join("lake")), [("year=1970/month=01/day=01".to_owned(), 3)]);
}

#[tokio::test]
async fn the_same_rows_at_the_same_positions_of_another_run_are_other_rows() {
    let dir = TempDir::new().unwrap();
    for received_at_us in [7, 8] {
        let mut sink = sink(&dir);
        sink.write(&received(&Partition::new("p"), rows(&[1, 2, 3]), received_at_us)).await.unwrap();
    }
    assert_eq!(days(&dir.path().join("lake")).iter().map(|(_, rows)| rows).sum::<usize>(), 6);
}

#[tokio::test]
async fn the_same_rows_by_two_ways_are_stored_twice_and_a_rerun_finds_both() {
    let dir = TempDir::new().unwrap();
    for _run in 0..2 {
        let mut sink = sink(&dir);
        let partition = Partition::new("p");
        for _way in 0..2 {
            sink.write(&received(&partition, rows(&[1, 2, 3]), 7)).await.unwrap();
        }
        assert_eq!(files(&dir.path().join("lake")).len(), 2);
    }
}

#[tokio::test]
async fn a_damaged_file_stops_the_run_and_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let group = || received(&Partition::new("p"), rows(&[1, 2, 3]), 7);
    sink(&dir).write(&group()).await.unwrap();
    let path = files(&dir.path().join("lake")).remove(0);
    std::fs::write(&path, "damaged").unwrap();
    let error = sink(&dir).write(&group()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "damaged");
}

/// A store that refuses each object once, then stores it and loses the reply, then answers.
#[derive(Clone, Default)]
struct Flaky(Arc<Mutex<BTreeMap<String, Asked>>>);

/// How often an object was to be created, and what is kept of it.
type Asked = (u32, Option<Bytes>);

#[async_trait]
impl Store for Flaky {
    async fn open(&mut self) -> Result<Guard, StageError> {
        Ok(Guard::Store)
    }

    async fn create(&self, object: &Object) -> Result<(), StageError> {
        let mut kept = self.0.lock().unwrap();
        let (tries, content) = kept.entry(object.key.clone()).or_default();
        *tries += 1;
        if *tries == 1 {
            return Err(StageError::transient("refused"));
        }
        assert_eq!(*content.get_or_insert_with(|| object.content.clone()), object.content);
        if *tries == 2 { Err(StageError::transient("the reply was lost")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_group_tried_again_until_it_is_stored_is_stored_once() {
    let store = Flaky::default();
    let mut sink = on(Box::new(store.clone()), Journal::new(Arc::new(FsStorage), "never made".into()), PLAIN);
    let times: Vec<i64> = (0..20).map(|day| day * DAY_US).collect();
    let group = received(&Partition::new("p"), rows(&times), 7);
    let mut tries = 1;
    while let Err(error) = sink.write(&group).await {
        assert_eq!(error.fault(), Fault::Transient);
        tries += 1;
        assert!(tries <= 41, "two failures for each of 20 objects");
    }
    assert!(tries > 2);
    let kept = store.0.lock().unwrap();
    assert_eq!(kept.len(), 20, "one file a day");
    assert!(kept.values().all(|(_, content)| content.is_some()));
    assert_eq!(sink.writer.files.get(), 20);
}
