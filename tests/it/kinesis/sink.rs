//! The sink alone: what the stream has in the end, whatever became of requests on the way.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use pipeline_engine::stage::{Batch, Fault, Group, Sink, SinkConfig};
use pipeline_engine::testing;
use pipeline_stages::sinks::kinesis::KinesisSinkConfig;
use serde_json::Value;

use super::door::{Door, Faults};
use super::reading::{Run, assert_complete};
use super::stream::Stream;

/// Readings of devices in turn.
fn rows(devices: usize, seqs: std::ops::Range<i64>) -> RecordBatch {
    let pairs: Vec<(String, i64)> = seqs.flat_map(|seq| (0..devices).map(move |d| (format!("d{d}"), seq))).collect();
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(pairs.iter().map(|(device, _)| device)));
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(pairs.iter().map(|(_, seq)| *seq)));
    RecordBatch::try_from_iter([("device", names), ("seq", numbers)]).unwrap()
}

fn sink(stream: &Stream, keys: &str, endpoint: Option<&str>) -> Box<dyn Sink> {
    let text = format!("stream = \"{}\"\npartition_key = \"device\"\n{keys}", stream.name);
    let config: KinesisSinkConfig = toml::from_str(&text).unwrap();
    let cx = testing::build_context("stream", "");
    config.environment(stream.environment(endpoint)).build(&rows(0, 0..0).schema(), &cx).unwrap().sink
}

/// As the engine does: a group that was not written for a passing reason is written again.
async fn write(sink: &mut dyn Sink, rows: RecordBatch) {
    let group = Group::new(vec![Batch::detached(rows)]);
    for _ in 0..1000 {
        match sink.write(&group).await {
            Ok(()) => return,
            Err(error) => assert_eq!(error.fault(), Fault::Transient, "{}", error.chain()),
        }
    }
    panic!("the stream takes nothing");
}

/// The numbers of each device, in the order of the stream.
async fn stored(stream: &Stream) -> BTreeMap<String, Vec<i64>> {
    let mut by_device: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (key, data) in stream.read_all().await.into_iter().flatten() {
        let row: Value = serde_json::from_slice(&data).unwrap();
        assert_eq!(row["device"], key.as_str());
        by_device.entry(key).or_default().push(row["seq"].as_i64().unwrap());
    }
    by_device
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_is_put_again_and_no_key_gets_out_of_order() {
    let stream = Stream::new("partial", 3).await;
    let faults = Faults { not_taken: 0.3, internal: 0.1, ..Faults::default() };
    let door = Door::before(&stream.endpoint, 11, faults).await;
    let mut sink = sink(&stream, "", Some(&door.endpoint));
    while let Err(error) = sink.open().await {
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    }
    write(sink.as_mut(), rows(40, 0..25)).await;
    write(sink.as_mut(), rows(40, 25..50)).await;
    assert!(door.injected() > 300, "only {} refusals", door.injected());
    let stored = stored(&stream).await;
    assert_eq!(stored.len(), 40);
    for (device, seqs) in stored {
        assert_eq!(seqs, (0..50).collect::<Vec<i64>>(), "{device}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_rows_come_back_in_their_order_through_a_split() {
    let stream = Stream::new("packs", 2).await;
    let faults = Faults { not_taken: 0.2, ..Faults::default() };
    let door = Door::before(&stream.endpoint, 13, faults).await;
    let mut sink = sink(&stream, "aggregate = true", Some(&door.endpoint));
    sink.open().await.unwrap();
    write(sink.as_mut(), rows(30, 0..100)).await;
    stream.split(0).await;
    write(sink.as_mut(), rows(30, 100..200)).await;
    let records: usize = stream.read_all().await.iter().map(Vec::len).sum();
    assert!(records < 200, "{records} records for 6,000 rows");
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(&stream, "batch_rows = 7", folder.path(), None);
    assert_complete(&run.take(6000).await, 30, 0..200);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_needs_a_person() {
    let stream = Stream::new("absent", 1).await;
    let absent = Stream { name: "not-there".to_owned(), ..stream };
    let error = sink(&absent, "", None).open().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
    assert!(error.to_string().starts_with("there is no stream \"not-there\""), "{}", error.chain());
}
