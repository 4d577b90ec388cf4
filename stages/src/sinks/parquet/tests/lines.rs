//! JSON lines and prefixes: the same exactness as Parquet by day, and the same proof.

use std::fs;

use futures::TryStreamExt;
use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use pipeline_engine::dlq::LetterFilter;
use pipeline_engine::stage::Advance;

use super::*;

const PACKINGS: [&str; 3] = ["gzip", "zstd", "none"];

fn sink_of(dir: &TempDir, input: &SchemaRef, mut keys: Value) -> Box<dyn Sink> {
    keys["url"] = json!(dir.path().join("lake"));
    let config: ParquetConfig = serde_json::from_value(keys).unwrap();
    let cx = testing::build_context("lake", "").with_data_dir(dir.path().join("data"));
    config.build(input, &cx).unwrap().sink
}

fn group(from: u64, to: u64, rows: RecordBatch) -> Group {
    let partition = Partition::new("p/1");
    let batch = Batch::new(rows, partition.open(Span::new(from + 1, to), 7));
    let advance = Advance {
        input: "valid".to_owned(),
        partition: "p/1".to_owned(),
        from: (from > 0).then(|| from.into()),
        to: to.into(),
        tenure: None,
    };
    Group::advancing(vec![batch], vec![advance])
}

#[tokio::test]
async fn lines_are_stored_once_and_prove_it_as_parquet_does() {
    for packing in PACKINGS {
        let dir = TempDir::new().unwrap();
        let keys = || json!({ "format": "json", "compression": packing, "time_column": "time" });
        for (from, to) in [(0, 3), (3, 5)] {
            // A new run each time, and a group that is asked for again.
            let mut sink = sink_of(&dir, &input(), keys());
            sink.open().await.unwrap();
            let times: Vec<i64> = (from + 1..=to).map(|row| row as i64 * DAY_US).collect();
            for _ in 0..2 {
                sink.write(&group(from, to, rows(&times))).await.unwrap();
            }
        }
        assert_eq!(files(&dir.path().join("lake")).len(), 5, "a file a day: {packing}");
        let account = sink_of(&dir, &input(), keys()).account().await.unwrap().expect("an account");
        assert_eq!(account.rows_found, 5);
        assert_eq!(account.contradictions, Vec::<String>::new(), "{packing}");
        assert_eq!(account.rows_recorded, (packing != "none").then_some(5), "{packing}: {}", account.found_in);
    }
}

#[tokio::test]
async fn a_missing_group_of_packed_lines_is_told() {
    let dir = TempDir::new().unwrap();
    let keys = || json!({ "format": "json", "prefix": "raw/!{firehose:random-string}/" });
    let mut sink = sink_of(&dir, &input(), keys());
    sink.open().await.unwrap();
    for group_number in 0..3 {
        let (from, to) = (group_number * 2, group_number * 2 + 2);
        sink.write(&group(from, to, rows(&[from as i64, to as i64]))).await.unwrap();
    }
    drop(sink);
    let is_second = |path: &&PathBuf| {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(fs::File::open(path).unwrap()), &mut text)
            .unwrap();
        text.contains(".000004Z") && text.contains(".000002Z")
    };
    let all = files(&dir.path().join("lake"));
    fs::remove_file(all.iter().find(is_second).expect("the second group")).unwrap();
    let account = sink_of(&dir, &input(), keys()).account().await.unwrap().unwrap();
    assert_eq!(account.contradictions, ["\"valid\": nothing is there between 2 and 4"]);
}

/// Without positions the name alone tells groups apart.
#[tokio::test]
async fn the_same_lines_of_other_positions_are_other_rows_also_where_they_are_not_packed() {
    for packing in PACKINGS {
        let dir = TempDir::new().unwrap();
        for received_at_us in [7, 8, 8] {
            let mut sink = sink_of(&dir, &input(), json!({ "format": "json", "compression": packing }));
            sink.write(&received(&Partition::new("p"), rows(&[1, 2, 3]), received_at_us)).await.unwrap();
        }
        assert_eq!(files(&dir.path().join("lake")).len(), 2, "{packing}: the third is a group that is read again");
    }
}

#[tokio::test]
async fn devices_lie_in_folders_of_their_own_and_hostile_ones_below_the_prefix() {
    let dir = TempDir::new().unwrap();
    let keys =
        json!({ "prefix": "by/device=!{partitionKeyFromQuery:device}/", "format": "json", "compression": "none" });
    let mut sink = sink_of(&dir, &input(), keys);
    sink.open().await.unwrap();
    let devices = StringArray::from(vec!["a", "../../../outside", "a", "/etc/passwd", &*"x".repeat(300)]);
    let times = TimestampMicrosecondArray::from(vec![0; 5]).with_timezone("UTC");
    let values = Float64Array::from(vec![0.5; 5]);
    let rows = RecordBatch::try_new(input(), vec![Arc::new(times), Arc::new(devices), Arc::new(values)]).unwrap();
    sink.write(&group(0, 5, rows)).await.unwrap();
    let root = dir.path().join("lake");
    let folders: Vec<_> = files(&root)
        .iter()
        .map(|path| path.parent().unwrap().strip_prefix(&root).unwrap().display().to_string())
        .collect();
    let expected = [
        "by/device=%2Fetc%2Fpasswd",
        "by/device=..%2F..%2F..%2Foutside",
        "by/device=a",
        "errors/key-too-long/1970/01/01/00",
    ];
    assert_eq!(folders, expected);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "lake and data alone: {names:?}");
    let text = fs::read_to_string(&files(&root)[2]).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.starts_with("{\"time\":\"1970-01-01T00:00:00Z\",\"device\":\"a\",\"value\":0.5}\n"), "{text}");
}

#[tokio::test]
async fn dead_letters_in_lines_are_read_back_as_they_came() {
    for packing in PACKINGS {
        let dir = TempDir::new().unwrap();
        let mut letters = DeadLetters::default();
        let payload = [b"\xff\x00{".repeat(700_000), b"{}".to_vec()];
        for (payload, reason) in payload.iter().zip(["invalid_json", "range.temperature"]) {
            let (stage, topic, position) = ("telemetry", Some("iot/\n1"), Some("17"));
            letters.push(DeadLetter { received_at_us: 7, stage, reason, detail: None, topic, position, payload });
        }
        let letters = letters.take();
        let keys = json!({
            "format": "json",
            "compression": packing,
            "error_output_prefix": "bad/!{firehose:error-output-type}/!{timestamp:yyyy}/",
        });
        let mut sink = sink_of(&dir, &letters.schema(), keys);
        sink.open().await.unwrap();
        sink.write(&group(0, 2, letters)).await.unwrap();
        let mut store = sink.dead_letters().expect("a store of letters");
        let filter = LetterFilter::default();
        let mut found: Vec<_> = store.read(&filter).await.unwrap().try_collect().await.unwrap();
        found.sort_by_key(|letter| letter.payload.len());
        assert_eq!(found.len(), 2, "{packing}");
        assert_eq!((&found[1].payload[..], found[1].reason.as_str()), (&payload[0][..], "invalid_json"));
        assert_eq!((&found[0].payload[..], found[0].topic.as_deref()), (&payload[1][..], Some("iot/\n1")));
        assert!(files(&dir.path().join("lake"))[0].starts_with(dir.path().join("lake/bad/invalid_json/1970")));
    }
}
