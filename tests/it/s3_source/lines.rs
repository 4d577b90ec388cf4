//! What the sink lays down as a Firehose would, gzip JSON lines below a prefix of its language, read back by the source: also
//! where devices have names that are no names of folders.

use std::collections::BTreeSet;

use super::*;

const DEVICES: [&str; 5] = ["d1", "../../outside", "aa:bb:cc/7 %2F", "_hidden", "Zürich"];

#[test]
fn gzip_lines_below_a_prefix_read_back_from_s3_as_they_were_written() {
    let house = House::new();
    let rows = 0..1_000_i64;
    let text = rows.clone().fold(String::new(), |mut text, seq| {
        let device = DEVICES[seq as usize % DEVICES.len()];
        let time = format!("2026-01-31T{:02}:00:00Z", 22 + seq % 2);
        writeln!(text, r#"{{"device_id": "{device}", "seq": {seq}, "timestamp": "{time}", "raw": "/wA="}}"#)
            .expect("text");
        text
    });
    house.put("raw/a.jsonl", text);
    let schema = r#"
[schema.reading]
device_id = { type = "text", required = true }
seq = { type = "int64", required = true }
timestamp = { type = "timestamp", required = true }
raw = "binary"
"#;
    let head = |name: &str| {
        let data = house.folder.path().join(name);
        format!("[pipeline]\nname = {name:?}\ndata_dir = {data:?}\n[http]\nlisten = \"off\"\n{schema}")
    };
    let source = |prefix: &str| {
        let bucket = &house.bucket;
        format!(
            "[sources.objects]\ntype = \"s3\"\nurl = \"s3://{bucket}/{prefix}/\"\nschema = \"reading\"\nformat = \"jsonl\"\n"
        )
    };
    let firehose = format!(
        r#"{}{}
[sinks.firehose]
type = "parquet"
format = "json"
compression = "gzip"
inputs = ["objects"]
url = "s3://{}/lake"
time_column = "timestamp"
prefix = "!{{timestamp:yyyy/MM/dd/HH}}/!{{partitionKeyFromQuery:device_id}}/"
buffering_hints = {{ size_in_mbs = 1, interval_in_seconds = 1 }}
"#,
        head("firehose"),
        source("raw"),
        house.bucket
    );
    let back = format!(
        "{}{}[sinks.table]\ntype = \"timescaledb\"\ninputs = [\"objects\"]\nurl = {:?}\ntable = \"readings\"\ncreate = true\n\
         time_column = \"timestamp\"\nkey = []\n",
        head("back"),
        source("lake"),
        house.database
    );
    let write = |name: &str, text: &str| {
        let file = house.folder.path().join(name);
        std::fs::write(&file, text).expect("writable");
        file
    };
    let firehose = write("firehose.toml", &firehose);
    house.run(&firehose, "firehose");
    let folder = |key: &String| key.rsplit_once('/').expect("a folder").0.to_owned();
    let folders: BTreeSet<String> = house.keys("lake").iter().map(folder).collect();
    let names = ["d1", "%2E.%2F..%2Foutside", "aa%3Abb%3Acc%2F7%20%252F", "%5Fhidden", "Zürich"];
    let below = |hour| names.iter().map(move |name| format!("lake/2026/01/31/{hour}/{name}"));
    assert_eq!(folders, below("22").chain(below("23")).collect());

    let reconciled = house.finish(&["reconcile", firehose.to_str().expect("text")], "reconcile");
    assert!(reconciled.contains("nothing is missing, and nothing is there twice"), "{reconciled}");

    house.run(&write("back.toml", &back), "back");
    assert_eq!(house.stored(), once(rows));
    let mut stored = house.query("SELECT device_id, count(*), count(raw) FROM readings GROUP BY 1", |row| {
        (row.get::<_, String>(0), row.get::<_, i64>(1), row.get::<_, i64>(2))
    });
    let mut devices = DEVICES.map(|device| (device.to_owned(), 200, 200)).to_vec();
    devices.sort();
    stored.sort();
    assert_eq!(stored, devices);
}
