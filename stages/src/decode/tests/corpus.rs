//! The committed corpus of payloads, each among good neighbours.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use super::*;

#[derive(Deserialize)]
struct Expected {
    payload: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    format: Format,
    expect: String,
    #[serde(default = "one")]
    rows: usize,
}

fn one() -> usize {
    1
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/payloads"))
}

fn good(format: Format) -> Vec<u8> {
    let value = json!({ "device_id": "good", "timestamp": 1 });
    match format {
        Format::Json => serde_json::to_vec(&value).unwrap(),
        Format::Cbor => cbor4ii::serde::to_vec(Vec::new(), &value).unwrap(),
        Format::MessagePack => rmp_serde::to_vec(&value).unwrap(),
    }
}

#[test]
fn every_payload_of_the_corpus_has_its_outcome_and_good_neighbours() {
    let index = std::fs::read_to_string(folder().join("EXPECTED.toml")).unwrap();
    let cases = toml::from_str::<Expected>(&index).unwrap().payload;
    let schema = build_context("s", &index).schema("schema", "corpus").unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        let payload = std::fs::read(folder().join(&case.file)).unwrap();
        let mut decoder = Decoder::new(Some(&schema), case.format, "devices");
        let neighbour = good(case.format);
        for payload in [&neighbour, &payload, &neighbour] {
            decoder.push(message(payload, 1));
        }
        let decoded = decoder.take();
        let rows = decoded.rows.num_rows() - 2;
        let found = match refusals(&decoded.rejected).as_slice() {
            [] => "row".to_owned(),
            refusals => refusals.concat(),
        };
        let rows_expected = if case.expect == "row" { case.rows } else { 0 };
        if found.split(':').next() != Some(&case.expect) || rows != rows_expected {
            failures.push(format!("{}: expected {}, found {rows} rows and {found}", case.file, case.expect));
        }
        let devices = decoded.rows.column(0).as_string::<i32>();
        assert_eq!((devices.value(0), devices.value(rows + 1)), ("good", "good"), "{}", case.file);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_index_of_the_corpus_names_every_file() {
    let index = std::fs::read_to_string(folder().join("EXPECTED.toml")).unwrap();
    let named: BTreeSet<_> =
        toml::from_str::<Expected>(&index).unwrap().payload.into_iter().map(|case| case.file).collect();
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter(|name| name != "EXPECTED.toml" && !name.starts_with('.')).collect();
    assert_eq!(named, files);
}
