//! The source alone, with the test in the place of the pipeline behind it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use pipeline_engine::Position;
use pipeline_engine::stage::{SourceConfig, StageError};
use pipeline_engine::testing::{self, Outlet};
use pipeline_stages::sources::kinesis::KinesisSourceConfig;
use tokio::task::JoinHandle;

use super::door::{Door, Faults};
use super::stream::{Put, Stream};

const SCHEMA: &str = "[schema.reading]\ndevice = { type = \"text\", required = true }\n\
                      seq = { type = \"int64\", required = true }\n";
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run of the source. Its promises are kept as soon as its rows are seen.
pub struct Run {
    outlet: Outlet,
    task: JoinHandle<Result<(), StageError>>,
}

/// Device and number of a reading.
pub type Reading = (String, i64);

impl Run {
    pub fn start(stream: &Stream, keys: &str, data_dir: &Path, endpoint: Option<&str>) -> Self {
        let text = format!("stream = \"{}\"\nschema = \"reading\"\n{keys}", stream.name);
        let config: KinesisSourceConfig = toml::from_str(&text).unwrap();
        let cx = testing::build_context("telemetry", SCHEMA).with_data_dir(data_dir);
        let built = config.environment(stream.environment(endpoint)).build(&cx).unwrap();
        let (cx, outlet) = testing::source(20_000);
        Self { outlet, task: tokio::spawn(built.source.run(cx)) }
    }

    /// The readings of the next batch, in order.
    pub async fn next(&mut self) -> Vec<Reading> {
        let waiting = tokio::time::timeout(PATIENCE, self.outlet.next());
        let Some(batch) = waiting.await.expect("a batch in time") else {
            panic!("the source has ended: {:?}", (&mut self.task).await)
        };
        let rows = batch.rows.clone();
        testing::deliver(batch);
        let (devices, seqs) = (rows.column_by_name("device").unwrap(), rows.column_by_name("seq").unwrap());
        let device = |row| devices.as_string::<i32>().value(row).to_owned();
        (0..rows.num_rows()).map(|row| (device(row), seqs.as_primitive::<Int64Type>().value(row))).collect()
    }

    /// So many readings, or more.
    pub async fn take(&mut self, count: usize) -> Vec<Reading> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.next().await);
        }
        all
    }

    /// Stops the source, of which everything was read.
    pub async fn stop(mut self) {
        self.outlet.stop();
        while let Some(batch) = tokio::time::timeout(PATIENCE, self.outlet.next()).await.expect("the end in time") {
            assert_eq!(batch.rows.num_rows(), 0, "nothing more was put");
            testing::deliver(batch);
        }
        self.task.await.unwrap().unwrap();
    }

    pub fn counter(&self, name: &'static str) -> u64 {
        self.outlet.counter(name)
    }
}

/// Readings of devices in turn, as JSON.
pub fn readings(devices: usize, seqs: std::ops::Range<i64>) -> Vec<Put> {
    let record = |device: usize, seq: i64| {
        let name = format!("d{device}");
        let data = format!("{{\"device\":\"{name}\",\"seq\":{seq}}}").into_bytes();
        (name, data)
    };
    seqs.flat_map(|seq| (0..devices).map(move |device| record(device, seq))).collect()
}

/// Fails unless each device has each number once, in order.
pub fn assert_complete(found: &[Reading], devices: usize, seqs: std::ops::Range<i64>) {
    let mut by_device: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    found.iter().for_each(|(device, seq)| by_device.entry(device).or_default().push(*seq));
    assert_eq!(by_device.len(), devices);
    let expected: Vec<i64> = seqs.collect();
    for (device, seqs) in by_device {
        assert_eq!(seqs, expected, "{device}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_read_once_and_in_order_through_splits_and_merges() {
    let stream = Stream::new("reshard", 4).await;
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "batch_rows = 100", folder.path(), None);
    stream.put(readings(50, 0..10)).await;
    let mut found = run.take(500).await;
    stream.split(1).await;
    stream.put(readings(50, 10..20)).await;
    stream.merge().await;
    stream.put(readings(50, 20..30)).await;
    found.extend(run.take(1000).await);
    run.stop().await;
    assert_complete(&found, 50, 0..30);
    // A run that begins now finds all the shards there ever were, and reads them in their order.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut anew = Run::start(&stream, "", elsewhere.path(), None);
    assert_complete(&anew.take(1500).await, 50, 0..30);
    anew.stop().await;
    // And the next one goes on behind it.
    stream.put(readings(50, 30..31)).await;
    let mut on = Run::start(&stream, "", elsewhere.path(), None);
    assert_complete(&on.take(50).await, 50, 30..31);
    on.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_expired_iterators_and_lost_answers_change_nothing() {
    let stream = Stream::new("faults", 3).await;
    let faults = Faults { expired: 0.2, throttled: 0.2, internal: 0.1, answer_lost: 0.1, ..Faults::default() };
    let door = Door::before(&stream.endpoint, 7, faults).await;
    let folder = tempfile::tempdir().unwrap();
    let keys = "poll_records = 40\nbatch_rows = 30";
    let mut run = Run::start(&stream, keys, folder.path(), Some(&door.endpoint));
    stream.put(readings(20, 0..40)).await;
    let found = run.take(800).await;
    assert_complete(&found, 20, 0..40);
    assert!(door.injected() > 20, "only {} faults", door.injected());
    assert!(run.counter("throttled") > 0 && run.counter("retries") > 0);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_is_what_comes_after_the_first_start_also_for_later_runs() {
    let stream = Stream::new("latest", 2).await;
    stream.put(readings(10, 0..5)).await;
    // The emulators know arrival by the second.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let folder = tempfile::tempdir().unwrap();
    let latest = "start = \"latest\"";
    let first = Run::start(&stream, latest, folder.path(), None);
    wait_for_roster(folder.path()).await;
    first.stop().await;
    // Nothing came before the end of the first run, and this comes while nobody reads.
    stream.put(readings(10, 5..10)).await;
    let mut second = Run::start(&stream, latest, folder.path(), None);
    assert_complete(&second.take(50).await, 10, 5..10);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_skips_nothing_where_its_iterator_expires_before_the_first_answer() {
    let stream = Stream::new("expired", 1).await;
    let door = Door::before(&stream.endpoint, 7, Faults { expired: 1.0, ..Faults::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "start = \"latest\"", folder.path(), Some(&door.endpoint));
    wait_until(|| door.injected() >= 1).await;
    // The first iterator is behind these, and any that is asked for at the latest from now on is behind them too.
    stream.put(readings(10, 0..5)).await;
    let before = door.injected();
    wait_until(|| door.injected() >= before + 2).await;
    door.play(Faults::default());
    assert_complete(&run.take(50).await, 10, 0..5);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_listed_no_more_before_its_parent_is_read_is_told_and_holds_nobody_up() {
    let stream = Stream::new("unlisted", 2).await;
    stream.put(readings(20, 0..5)).await;
    stream.split(0).await;
    stream.split(0).await;
    stream.put(readings(20, 5..10)).await;
    let shards = stream.shards().await;
    let children = |parent: usize| {
        let parent = shards[parent].shard_id();
        shards.iter().filter(move |shard| shard.parent_shard_id() == Some(parent)).map(|shard| shard.shard_id())
    };
    let slow = shards[0].shard_id();
    let [gone, _] = children(0).collect::<Vec<_>>()[..] else { panic!("{shards:?}") };
    let late: Vec<&str> = children(1).collect();
    let held = stream.read_all().await;
    let count = |id: &str| held[shards.iter().position(|shard| shard.shard_id() == id).unwrap()].len();

    let door = Door::before(&stream.endpoint, 7, Faults::default()).await;
    // Of one shard nothing can be read, and the other's children are not listed: so the list is asked for again and again.
    door.close(&[slow]);
    door.unlist(&late);
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "", folder.path(), Some(&door.endpoint));
    let mut found = run.take(count(shards[1].shard_id())).await;
    door.unlist(&[&late[..], &[gone]].concat());
    let before = door.lists();
    wait_until(|| door.lists() >= before + 2).await;
    door.close(&[]);
    let others: usize = late.iter().chain([&gone]).map(|id| count(id)).sum();
    found.extend(run.take(200 - found.len() - others).await);
    assert_eq!(run.counter("expired_shards"), 1);
    // Where the list had it wrong, what it names again is read.
    door.unlist(&[]);
    found.extend(run.take(others).await);
    assert_complete(&found, 20, 0..10);
    run.stop().await;
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("in time");
}

/// A run has put down where each shard starts.
async fn wait_for_roster(folder: &Path) {
    let file = folder.join("telemetry/shards.json");
    while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("latest")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_time_leaves_out_what_arrived_before() {
    let stream = Stream::new("time", 2).await;
    stream.put(readings(10, 0..5)).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    // Not all emulators know arrival more exactly than by the second.
    let now_us = pipeline_engine::now_us();
    let between = pipeline_engine::time::format_us(now_us - now_us % 1_000_000);
    stream.put(readings(10, 5..10)).await;
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, &format!("start = \"{between}\""), folder.path(), None);
    assert_complete(&run.take(50).await, 10, 5..10);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_is_a_dead_letter_with_its_shard_and_number_and_its_neighbours_go_on() {
    let stream = Stream::new("bad", 1).await;
    stream.put([("d0".to_owned(), b"{\"device\":".to_vec())]).await;
    stream.put(readings(1, 0..1)).await;
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "", folder.path(), None);
    let letters = tokio::time::timeout(PATIENCE, run.outlet.next_rejected()).await.unwrap().unwrap();
    let text = |name: &str| letters.rows.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(text("reason"), "invalid_json");
    assert_eq!(text("topic"), "d0");
    let place = text("position");
    let [shard, sequence, sub_sequence] = place.split('/').collect::<Vec<_>>()[..] else { panic!("{place}") };
    assert_eq!((shard, sub_sequence), ("shardId-000000000000", "0"));
    assert!(sequence.parse::<Position>().is_ok(), "{place}");
    let payload = letters.rows.column_by_name("payload").unwrap().as_binary::<i32>().value(0).to_owned();
    assert_eq!(payload, b"{\"device\":");
    testing::deliver(letters);
    assert_complete(&run.take(1).await, 1, 0..1);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_needs_a_person() {
    let stream = Stream::new("there", 1).await;
    let absent = Stream { name: "not-there".to_owned(), ..stream };
    let folder = tempfile::tempdir().unwrap();
    let run = Run::start(&absent, "", folder.path(), None);
    let error = run.task.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("there is no stream \"not-there\""), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_push_what_arrives_to_a_consumer_of_its_own() {
    let stream = Stream::new("pushed", 2).await;
    let summary = stream.client.describe_stream_summary().stream_name(&stream.name).send().await.unwrap();
    let arn = summary.stream_description_summary().unwrap().stream_arn().to_owned();
    let request = stream.client.register_stream_consumer().stream_arn(&arn).consumer_name("probe");
    if request.send().await.is_err() {
        eprintln!("skipped: this emulator knows no consumers");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = "fan_out = \"pipeline\"";
    let mut run = Run::start(&stream, keys, folder.path(), None);
    stream.put(readings(20, 0..10)).await;
    let mut found = run.take(200).await;
    stream.split(0).await;
    stream.put(readings(20, 10..20)).await;
    found.extend(run.take(200).await);
    assert_complete(&found, 20, 0..20);
    run.stop().await;
    stream.put(readings(20, 20..21)).await;
    let mut on = Run::start(&stream, keys, folder.path(), None);
    assert_complete(&on.take(20).await, 20, 20..21);
    on.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_under_the_same_name_is_read_from_its_beginning() {
    let stream = Stream::new("anew", 1).await;
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "", folder.path(), None);
    stream.put(readings(3, 0..2)).await;
    assert_complete(&run.take(6).await, 3, 0..2);
    run.stop().await;
    // The age of a stream is known by the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stream.client.delete_stream().stream_name(&stream.name).send().await.unwrap();
    loop {
        let gone = stream.client.describe_stream_summary().stream_name(&stream.name).send().await;
        if gone.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stream.client.create_stream().stream_name(&stream.name).shard_count(1).send().await.unwrap();
    stream.wait_until_active().await;
    stream.put(readings(3, 7..9)).await;
    let mut anew = Run::start(&stream, "", folder.path(), None);
    assert_complete(&anew.take(6).await, 3, 7..9);
    anew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_goes_back_into_the_stream_by_its_own_key() {
    use pipeline_engine::dlq::{Letter, LetterForm, LetterId};
    let stream = Stream::new("replayed", 1).await;
    let config: KinesisSourceConfig = toml::from_str(&format!("stream = \"{}\"", stream.name)).unwrap();
    let built = config.environment(stream.environment(None)).build(&testing::build_context("telemetry", "")).unwrap();
    let mut resender = built.source.resender().unwrap();
    let letter = |reason: &str, topic: Option<&str>| Letter {
        id: LetterId([1; 16]),
        received_at_us: 1,
        stage: "telemetry".to_owned(),
        reason: reason.to_owned(),
        detail: None,
        topic: topic.map(str::to_owned),
        position: None,
        payload: "{".into(),
    };
    let message = |letter: &Letter, to| resender.message(letter, LetterForm::Message, to);
    let known = message(&letter("invalid_json", Some("d1")), Some("d2")).unwrap();
    let named = message(&letter("invalid_json", None), Some("d2")).unwrap();
    assert!(message(&letter("invalid_json", None), None).unwrap_err().contains("--to"));
    assert!(message(&letter("aggregate_damaged", Some("d1")), None).is_err());
    assert_eq!(resender.send(&[known, named]).await.unwrap(), [Ok(()), Ok(())]);
    let expected = ["d1", "d2"].map(|key| (key.to_owned(), b"{".to_vec()));
    assert_eq!(stream.read_all().await.concat(), expected);
}
