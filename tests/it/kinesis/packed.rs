//! Packed records of AWS's own Python library decode record for record, and it takes ours apart.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pipeline_engine::stage::{Batch, Group, SinkConfig, SourceConfig};
use pipeline_engine::testing;
use pipeline_stages::sinks::kinesis::KinesisSinkConfig;
use pipeline_stages::sources::kinesis::KinesisSourceConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::stream::{Put, Stream};
use crate::services;

/// What the library makes of records.
fn ask(what: &str, records: &[Put]) -> Vec<Put> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kinesis/packed.py");
    let mut command = Command::new(services::python_of_kinesis());
    command.arg(script).arg(what).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines: String = records
        .iter()
        .map(|(key, data)| format!("{}\n", json!({ "key": key, "data": STANDARD.encode(data) })))
        .collect();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success(), "{what}");
    let record = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["key"].as_str().unwrap().to_owned(), STANDARD.decode(line["data"].as_str().unwrap()).unwrap())
    };
    String::from_utf8(output.stdout).unwrap().lines().map(record).collect()
}

/// Records of any bytes and sizes, some of none.
fn records(seed: u64, count: usize) -> Vec<Put> {
    let mut chance = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|number| {
            let key = format!("device-{}-ü", chance.random_range(0..40));
            let bytes = chance.random_range(0..400);
            let mut data: Vec<u8> = (0..bytes).map(|_| chance.random()).collect();
            data.extend(number.to_be_bytes());
            (key, data)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_another_library_has_packed_are_read_one_by_one() {
    let records = records(1, 3000);
    let asked = records.clone();
    let packed = tokio::task::spawn_blocking(move || ask("pack", &asked)).await.unwrap();
    assert!(packed.len() > 10 && packed.len() < 100, "{} packed records", packed.len());
    let stream = Stream::new("packed", 1).await;
    for (number, record) in packed.into_iter().enumerate() {
        // Among others that are not packed.
        stream.put([record, ("plain".to_owned(), format!("plain {number}").into_bytes())]).await;
    }
    let text = format!("stream = \"{}\"\nbatch_rows = 50", stream.name);
    let config: KinesisSourceConfig = toml::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cx = testing::build_context("telemetry", "").with_data_dir(folder.path());
    let built = config.environment(stream.environment(None)).build(&cx).unwrap();
    let (cx, mut outlet) = testing::source(20_000);
    let task = tokio::spawn(built.source.run(cx));
    let mut found: Vec<Put> = Vec::new();
    while found.len() < records.len() {
        use arrow::array::AsArray;
        let batch = outlet.next().await.unwrap();
        let rows = batch.rows.clone();
        testing::deliver(batch);
        let (keys, data) = (rows.column(0).as_string::<i32>(), rows.column(1).as_binary::<i32>());
        let read = (0..rows.num_rows()).map(|row| (keys.value(row).to_owned(), data.value(row).to_owned()));
        found.extend(read.filter(|(key, _)| key != "plain"));
    }
    assert!(found == records, "the records are those that were packed, in their order");
    outlet.stop();
    while let Some(batch) = outlet.next().await {
        testing::deliver(batch);
    }
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_sink_has_packed_are_taken_apart_by_another_library() {
    let records = records(2, 2000);
    let topics: ArrayRef = std::sync::Arc::new(StringArray::from_iter_values(records.iter().map(|(key, _)| key)));
    let payloads: ArrayRef = std::sync::Arc::new(BinaryArray::from_iter_values(records.iter().map(|(_, data)| data)));
    let rows = RecordBatch::try_from_iter([("topic", topics), ("payload", payloads)]).unwrap();
    let stream = Stream::new("ours", 1).await;
    let config: KinesisSinkConfig = toml::from_str(&format!("stream = \"{}\"\naggregate = true", stream.name)).unwrap();
    let config = config.environment(stream.environment(None));
    let mut sink = config.build(&rows.schema(), &testing::build_context("stream", "")).unwrap().sink;
    sink.open().await.unwrap();
    sink.write(&Group::new(vec![Batch::detached(rows)])).await.unwrap();
    let packed = stream.read_all().await.concat();
    assert!(packed.len() < 100, "{} records", packed.len());
    let mut found = tokio::task::spawn_blocking(move || ask("unpack", &packed)).await.unwrap();
    // In order for each key; keys are put in any order.
    let mut expected = records;
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(found == expected, "what comes out is what went in");
}
