//! The source as the engine runs it, on a store in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuildError, BuiltSource, Position, SourceConfig};
use pipeline_engine::storage::FsStorage;
use pipeline_engine::testing::{self, Outlet, build_context, deliver};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

const SCHEMA: &str = "[schema.t]\nn = { type = \"int64\", required = true }\n";

type Run = JoinHandle<Result<(), StageError>>;

/// A bucket, and what a pipeline keeps between its runs.
struct House {
    store: Arc<dyn ObjectStore>,
    data: TempDir,
}

/// What came out by the main port: key ranges are told by the rows; dead letters by reason, key and line.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    rows: Vec<i64>,
    letters: Vec<String>,
    /// The last position that was delivered.
    after: Option<(String, Position)>,
}

impl House {
    fn new() -> Self {
        Self { store: Arc::new(InMemory::new()), data: tempfile::tempdir().unwrap() }
    }

    async fn put(&self, key: &str, content: impl Into<PutPayload>) {
        self.store.put(&Path::from(key), content.into()).await.unwrap();
    }

    fn built(&self, more: &str) -> Result<BuiltSource, BuildError> {
        let text = format!("url = \"s3://bucket/in/\"\n{more}");
        let mut config: S3SourceConfig = toml::from_str(&text).unwrap();
        config.store = Some(self.store.clone());
        config.build(&build_context("in", SCHEMA).with_data_dir(self.data.path()))
    }

    fn start(&self, more: &str, after: Option<&(String, Position)>) -> (Outlet, Run) {
        let after: BTreeMap<_, _> = after.cloned().into_iter().collect();
        let (cx, outlet) = testing::resumed_source(100_000, after, Arc::new(FsStorage));
        (outlet, tokio::spawn(self.built(more).unwrap().source.run(cx)))
    }

    /// To its end.
    async fn run(&self, more: &str, after: Option<&(String, Position)>) -> Outcome {
        let (outlet, run) = self.start(more, after);
        let outcome = collect(outlet).await;
        run.await.unwrap().unwrap();
        outcome
    }
}

const LINES: &str = "format = \"jsonl\"\nschema = \"t\"\n";

async fn collect(mut outlet: Outlet) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(batch) = outlet.next().await {
        take(batch, &mut outcome);
    }
    while let Some(batch) = outlet.next_rejected().await {
        take_letters(batch, &mut outcome);
    }
    outcome
}

fn take(batch: Batch, outcome: &mut Outcome) {
    outcome.rows.extend(batch.rows.column(0).as_primitive::<arrow::datatypes::Int64Type>().values());
    let (partition, span) = batch.ack().span().unwrap();
    outcome.after = Some((partition.to_owned(), span.last));
    deliver(batch);
}

fn take_letters(batch: Batch, outcome: &mut Outcome) {
    let column = |name: &str| batch.rows.column_by_name(name).unwrap().as_string::<i32>().clone();
    let (reason, topic, position) = (column("reason"), column("topic"), column("position"));
    for row in 0..batch.rows.num_rows() {
        outcome.letters.push(format!("{} {}:{}", reason.value(row), topic.value(row), position.value(row)));
    }
    deliver(batch);
}

fn lines(numbers: std::ops::Range<i64>) -> String {
    numbers.fold(String::new(), |mut text, n| {
        writeln!(text, "{{\"n\":{n}}}").unwrap();
        text
    })
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn parquet(numbers: std::ops::Range<i64>) -> Vec<u8> {
    let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(numbers)) as _)]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.into_inner().unwrap()
}

#[tokio::test]
async fn objects_leave_whole_and_in_the_order_of_their_keys_however_they_are_packed() {
    let house = House::new();
    house.put("in/a.jsonl", lines(0..10_000)).await;
    house.put("in/b.gz", gzip(lines(10_000..30_000).as_bytes())).await;
    house.put("in/c", zstd::stream::encode_all(lines(30_000..40_000).as_bytes(), 1).unwrap()).await;
    house.put("in/d/", "").await;
    house.put("in/e/f", lines(40_000..40_001)).await;
    house.put("inside", lines(7..8)).await;
    house.put("other/a", lines(7..8)).await;
    let outcome = house.run(LINES, None).await;
    assert_eq!(outcome.rows, (0..40_001).collect::<Vec<_>>());
    assert_eq!(outcome.letters, Vec::<String>::new());
}

#[tokio::test]
async fn parquet_and_csv_are_read_as_well() {
    let house = House::new();
    house.put("in/a", parquet(0..20_000)).await;
    house.put("in/b", parquet(20_000..20_001)).await;
    let outcome = house.run("format = \"parquet\"\nschema = \"t\"\n", None).await;
    assert_eq!(outcome.rows, (0..20_001).collect::<Vec<_>>());
    let house = House::new();
    house.put("in/a.csv", "x,n\n\"1\n2\",1\n,2\n").await;
    house.put("in/b.csv", "n\n3\n").await;
    let outcome = house.run("format = \"csv\"\nschema = \"t\"\n", None).await;
    assert_eq!(outcome.rows, [1, 2, 3]);
}

#[tokio::test]
async fn an_object_is_read_once_over_restarts_and_another_content_is_another_object() {
    let house = House::new();
    house.put("in/a", lines(0..3)).await;
    let first = house.run(LINES, None).await;
    assert_eq!(first.rows, [0, 1, 2]);
    // A restart that goes on where it has come to; one that has lost its checkpoint; new objects before and behind.
    assert_eq!(house.run(LINES, first.after.as_ref()).await.rows, Vec::<i64>::new());
    assert_eq!(house.run(LINES, None).await.rows, Vec::<i64>::new());
    house.put("in/0", lines(10..11)).await;
    house.put("in/b", lines(20..21)).await;
    assert_eq!(house.run(LINES, first.after.as_ref()).await.rows, [10, 20]);
    house.put("in/a", lines(30..31)).await;
    assert_eq!(house.run(LINES, None).await.rows, [30]);
}

#[tokio::test]
async fn bad_lines_are_dead_letters_by_key_and_line() {
    let house = House::new();
    house.put("in/a", "{\"n\":1}\n\n{\"n\":\n{\"x\":1}\n{\"n\":2}\n").await;
    let outcome = house.run(LINES, None).await;
    assert_eq!(outcome.rows, [1, 2]);
    assert_eq!(outcome.letters, ["invalid_json in/a:3", "missing in/a:4"]);
}

#[tokio::test]
async fn an_object_that_can_not_be_read_is_one_dead_letter_and_the_others_go_on() {
    let house = House::new();
    let whole = gzip(lines(0..30_000).as_bytes());
    house.put("in/a.gz", whole[..whole.len() / 2].to_vec()).await;
    house.put("in/b.gz", gzip(&vec![b'\n'; 4 << 20])).await;
    house.put("in/c", lines(50_000..50_001)).await;
    let outcome = house.run(&format!("{LINES}unpacked_max = \"2MiB\"\n"), None).await;
    let read = outcome.rows.len() - 1;
    assert!(read > CHUNK_ROWS, "what came before is there: {read}");
    assert_eq!(outcome.rows[..read], (0..read as i64).collect::<Vec<_>>());
    assert_eq!(outcome.rows[read], 50_000);
    let damaged = format!("object_damaged in/a.gz:{read}");
    assert_eq!(outcome.letters, [damaged, "object_too_large in/b.gz:0".to_owned()]);
    assert_eq!(house.run(LINES, None).await.rows, Vec::<i64>::new(), "they are done with");

    let house = House::new();
    house.put("in/a", "no parquet").await;
    house.put("in/b", parquet(0..1)).await;
    let outcome = house.run("format = \"parquet\"\nschema = \"t\"\n", None).await;
    assert_eq!((outcome.rows, outcome.letters), (vec![0], vec!["object_damaged in/a:0".to_owned()]));
    let house = House::new();
    house.put("in/a", "x\n1\n").await;
    let outcome = house.run("format = \"csv\"\nschema = \"t\"\n", None).await;
    assert_eq!(outcome.letters, ["invalid_header in/a:0"]);
}

const CHUNK_ROWS: usize = crate::sources::records::CHUNK_RECORDS_MAX;

#[tokio::test]
async fn an_object_that_goes_or_changes_before_it_is_read_is_told() {
    let house = House::new();
    for key in ["in/a", "in/b", "in/c"] {
        house.put(key, lines(0..1)).await;
    }
    // Nobody takes the rows, so nothing is read beyond the first; all have their numbers.
    let (outlet, run) = house.start(&format!("{LINES}parallel = 1\n"), None);
    let ledger = house.data.path().join("in/objects");
    while std::fs::read_to_string(&ledger).unwrap_or_default().lines().count() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.abort();
    run.await.unwrap_err();
    drop(outlet);
    house.store.delete(&Path::from("in/a")).await.unwrap();
    house.put("in/b", lines(5..7)).await;
    let outcome = house.run(LINES, None).await;
    assert_eq!(outcome.letters, ["object_gone in/a:0", "object_changed in/b:0"]);
    assert_eq!(outcome.rows, [0, 5, 6], "its new content is an object of its own");
}

#[tokio::test]
async fn new_objects_are_found_while_it_runs_and_a_stop_ends_it() {
    let house = House::new();
    house.put("in/a", lines(0..1)).await;
    let (mut outlet, run) = house.start(&format!("{LINES}poll = \"10ms\"\n"), None);
    let mut outcome = Outcome::default();
    for n in 1..4 {
        take(outlet.next().await.unwrap(), &mut outcome);
        house.put(&format!("in/{n}"), lines(n..n + 1)).await;
    }
    take(outlet.next().await.unwrap(), &mut outcome);
    assert_eq!(outcome.rows, [0, 1, 2, 3]);
    outlet.stop();
    assert_eq!(collect(outlet).await.rows, Vec::<i64>::new());
    run.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_bounds_of_batches_are_those_of_the_content() {
    let house = House::new();
    house.put("in/a", lines(0..20_000)).await;
    house.put("in/b", lines(20_000..20_010)).await;
    let (mut outlet, run) = house.start(LINES, None);
    let mut spans = Vec::new();
    while let Some(batch) = outlet.next().await {
        let span = batch.ack().span().unwrap().1;
        spans.push((span.first.0[2], span.first.0[3], span.last.0[3]));
        deliver(batch);
    }
    run.await.unwrap().unwrap();
    let expected = [(1, 1, 8_192), (1, 8_193, 16_384), (1, 16_385, read::END), (2, 1, read::END)];
    assert_eq!(spans, expected);
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    let house = House::new();
    for (text, key, message) in [
        ("format = \"csv\"", "schema", "needs a schema"),
        ("format = \"parquet\"\ncompression = \"gzip\"", "compression", "compressed inside"),
        ("format = \"jsonl\"\nparallel = 0", "parallel", "not between 1 and 64"),
        ("format = \"jsonl\"\npoll = \"0s\"", "poll", "finds nothing sooner"),
        ("format = \"jsonl\"\nline_bytes_max = \"0B\"", "line_bytes_max", "zero bytes"),
        ("format = \"jsonl\"\nendpoint = \"http://s3.example.com\"", "endpoint", "not encrypted"),
        ("format = \"jsonl\"\nschema = \"x\"", "schema", "no schema is named"),
    ] {
        let error = house.built(text).err().unwrap_or_else(|| panic!("{text} is refused"));
        assert_eq!(error.key, key, "{text}");
        assert!(error.message.contains(message), "{text}: {}", error.message);
    }
}

#[tokio::test]
async fn without_a_schema_the_rows_are_the_lines() {
    let house = House::new();
    house.put("in/a", "one\ntwo\n").await;
    let (mut outlet, run) = house.start("format = \"jsonl\"\n", None);
    let batch = outlet.next().await.unwrap();
    let text = String::from_utf8(json_lines(&batch.rows).unwrap()).unwrap();
    assert!(text.contains("\"topic\":\"in/a\"") && text.lines().count() == 2, "{text}");
    deliver(batch);
    drop(collect(outlet).await);
    run.await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Whatever place a run is ended at, the next one brings exactly what is behind it.
    #[test]
    fn a_run_goes_on_behind_any_batch(sizes in prop::collection::vec(0_i64..20_000, 1..4), taken in 0_usize..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new();
            let mut total = 0;
            for (index, size) in sizes.iter().enumerate() {
                house.put(&format!("in/{index}"), lines(total..total + size)).await;
                total += size;
            }
            let (mut outlet, run) = house.start(LINES, None);
            let mut first = Outcome::default();
            for _ in 0..taken {
                match outlet.next().await {
                    Some(batch) => take(batch, &mut first),
                    None => break,
                }
            }
            run.abort();
            run.await.ok();
            drop(outlet);
            let second = house.run(LINES, first.after.as_ref()).await;
            let rows = [first.rows, second.rows].concat();
            assert_eq!(rows, (0..total).collect::<Vec<_>>());
        });
    }
}
