//! `enrich` with `as_of` against `pandas.merge_asof`.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use pipeline_engine::stage::{Batch, BuildContext, Emitter, TransformConfig};
use pipeline_engine::time::format_us;
use pipeline_stages::transforms::enrich::EnrichConfig;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{SECOND, agrees, lines};

const START: i64 = 1_769_860_800 * SECOND;
const DAY: i64 = 86_400;

/// A row of the table: its device, its beginning and its end in microseconds.
type Row = (String, i64, Option<i64>);

/// Rows of up to 40 a device, in no order; no two of a device begin at once.
fn table(rng: &mut StdRng) -> Vec<Row> {
    let mut rows = Vec::new();
    for device in 0..20 {
        let mut begin_us = START;
        for _ in 0..rng.random_range(0..40) {
            begin_us += rng.random_range(1..4 * DAY) * SECOND + rng.random_range(0..2);
            let end_us = rng.random_bool(0.5).then(|| begin_us + rng.random_range(1..6 * DAY) * SECOND);
            rows.push((format!("dev-{device}"), begin_us, end_us));
        }
    }
    rows.shuffle(rng);
    rows
}

/// Readings at any time, and some at the very moment that a row begins or ends, or one beside it.
fn readings(rng: &mut StdRng, table: &[Row]) -> Vec<(String, i64)> {
    let reading = |_| {
        if rng.random_bool(0.5) {
            let (device, begin_us, end_us) = &table[rng.random_range(0..table.len())];
            let edge_us = end_us.filter(|_| rng.random_bool(0.5)).unwrap_or(*begin_us);
            return (device.clone(), edge_us + rng.random_range(-1..2));
        }
        (format!("dev-{}", rng.random_range(0..22)), START + rng.random_range(-DAY..100 * DAY) * SECOND)
    };
    (0..3_000).map(reading).collect()
}

/// The entry that `enrich` finds for each reading, in batches that cut anywhere.
fn entries(config: &str, readings: &[(String, i64)]) -> Vec<Option<i64>> {
    let batch = |part: &[(String, i64)]| {
        let times = TimestampMicrosecondArray::from_iter_values(part.iter().map(|row| row.1)).with_timezone("UTC");
        RecordBatch::try_from_iter([
            ("device_id", Arc::new(StringArray::from_iter_values(part.iter().map(|row| &row.0))) as ArrayRef),
            ("timestamp", Arc::new(times) as ArrayRef),
        ])
        .unwrap()
    };
    let config: EnrichConfig = toml::from_str(config).unwrap();
    let built = config.build(&batch(&[]).schema(), &BuildContext::detached("as_of", Default::default())).unwrap();
    let (mut transform, mut out) = (built.transform, Emitter::default());
    transform.open().unwrap();
    for part in readings.chunks(701) {
        transform.apply(Batch::detached(batch(part)), &mut out).unwrap();
    }
    let found = out.take().into_iter().flat_map(|(_, batch)| {
        let column = batch.rows.column_by_name("entry").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().clone();
        column.iter().collect::<Vec<_>>()
    });
    found.collect()
}

#[test]
fn rows_as_of_a_time_are_those_of_pandas() {
    for (seed, (keys, max_age)) in
        [("", None), (", valid_to = \"valid_to\"", None), (", max_age = \"36h\"", Some(36 * 3_600 * SECOND))]
            .into_iter()
            .enumerate()
    {
        let mut rng = StdRng::seed_from_u64(seed as u64);
        let table = table(&mut rng);
        let readings = readings(&mut rng, &table);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let cells = table.iter().enumerate().map(|(entry, (device, begin_us, end_us))| {
            format!("{device},{entry},{},{}\n", end_us.map_or(String::new(), format_us), format_us(*begin_us))
        });
        fs::write(path("table.csv"), format!("device_id,entry,valid_to,valid_from\n{}", cells.collect::<String>()))
            .unwrap();
        let config = format!(
            "table = \"{}\"\nkey = \"device_id\"\ntypes = {{ entry = \"int64\" }}\n\
             as_of = {{ time = \"timestamp\", valid_from = \"valid_from\"{keys} }}",
            path("table.csv").display()
        );
        let numbered = |(number, entry): (usize, &Option<i64>)| json!({ "number": number, "entry": entry });
        let found = entries(&config, &readings);
        fs::write(path("ours.jsonl"), lines(found.iter().enumerate().map(numbered))).unwrap();
        let rows = table.iter().enumerate().map(|(entry, (device, begin_us, end_us))| {
            json!({ "device_id": device, "entry": entry, "valid_from": begin_us, "valid_to": end_us })
        });
        fs::write(path("table.jsonl"), lines(rows)).unwrap();
        let asked = readings
            .iter()
            .enumerate()
            .map(|(number, (device, time_us))| json!({ "number": number, "device_id": device, "timestamp": time_us }));
        fs::write(path("readings.jsonl"), lines(asked)).unwrap();
        let config: Value = json!({ "max_age": max_age, "has_ends": keys.contains("valid_to") });
        fs::write(path("config.json"), config.to_string()).unwrap();
        let files = ["table.jsonl", "readings.jsonl", "ours.jsonl", "config.json"];
        agrees("as_of.py", &files, folder.path(), keys);
    }
}
