//! The committed corpus of payloads: each has its outcome, and leaves its neighbours alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

/// `tests/corpus/payloads/EXPECTED.toml`.
#[derive(Deserialize)]
struct Expected {
    group: Vec<Group>,
}

/// Payloads of one folder, whose first level is their format.
#[derive(Deserialize)]
struct Group {
    folder: String,
    schema: String,
    topic: Option<String>,
    /// A topic of so many letters, too long to be written out.
    topic_bytes: Option<usize>,
    expect: BTreeMap<String, Expect>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expect {
    Reason(String),
    Count(usize),
    Rows(Vec<String>),
}

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/payloads"))
}

fn index() -> (String, Vec<Group>) {
    let text = std::fs::read_to_string(corpus().join("EXPECTED.toml")).unwrap();
    let expected: Expected = toml::from_str(&text).unwrap();
    (text, expected.group)
}

impl Group {
    fn ending(&self) -> &str {
        self.folder.split('/').next().unwrap()
    }

    fn format(&self) -> Format {
        match self.ending() {
            "json" => Format::Json,
            "cbor" => Format::Cbor,
            "msgpack" => Format::MessagePack,
            other => panic!("no format is named {other}"),
        }
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}.{}", self.folder, self.ending())
    }
}

fn encoded(format: Format, value: &serde_json::Value) -> Vec<u8> {
    match format {
        Format::Json => serde_json::to_vec(value).unwrap(),
        Format::Cbor => cbor4ii::serde::to_vec(Vec::new(), value).unwrap(),
        Format::MessagePack => rmp_serde::to_vec(value).unwrap(),
    }
}

/// What becomes of a payload between two good ones: its rows as JSON, or its reason.
fn outcome(decoder: &mut Decoder, format: Format, topic: Option<&str>, payload: &[u8]) -> Result<Vec<String>, String> {
    // Good under every schema of the corpus; a column of each is in it.
    let good = encoded(format, &json!({ "device_id": "good", "timestamp": 1, "i16": 1, "i32": 1 }));
    let neighbour = || Message { topic: Some("good/good"), payload: &good, received_at_us: 0, position: 1.into() };
    decoder.push(neighbour());
    let alone = decoder.take();
    assert_eq!((alone.rows.num_rows(), alone.rejected.num_rows()), (1, 0));
    for message in [neighbour(), Message { topic, payload, ..neighbour() }, neighbour()] {
        decoder.push(message);
    }
    let decoded = decoder.take();
    let mut rows: Vec<String> = lines(&decoded.rows).lines().map(str::to_owned).collect();
    let good = lines(&alone.rows);
    assert_eq!((rows.pop().as_deref(), rows.remove(0).as_str()), (Some(good.trim_end()), good.trim_end()));
    match refusals(&decoded.rejected).as_slice() {
        [] => Ok(rows),
        [refusal] => {
            assert_eq!(rows, [""; 0], "a refused message leaves no rows");
            let kept = decoded.rejected.column_by_name("payload").unwrap().as_binary::<i32>().value(0);
            assert!(kept == payload, "the letter holds the payload as it came");
            Err(refusal.split(':').next().unwrap_or_default().to_owned())
        }
        more => panic!("one message, {} dead letters", more.len()),
    }
}

fn is_as_expected(expect: &Expect, found: &Result<Vec<String>, String>) -> bool {
    match (expect, found) {
        (Expect::Reason(expected), Err(found)) => expected == found,
        (Expect::Count(expected), Ok(rows)) => *expected == rows.len(),
        (Expect::Rows(expected), Ok(rows)) => expected == rows,
        _ => false,
    }
}

#[test]
fn every_payload_of_the_corpus_has_its_outcome_and_good_neighbours() {
    let (text, groups) = index();
    let cx = build_context("s", &text);
    let mut failures = Vec::new();
    for group in &groups {
        let schema = cx.schema("schema", &group.schema).unwrap();
        let format = group.format();
        let long = group.topic_bytes.map(|bytes| format!("a/{}", "x".repeat(bytes - 2)));
        let topic = group.topic.as_deref().or(long.as_deref());
        for (name, expect) in &group.expect {
            let payload = std::fs::read(corpus().join(group.file(name))).unwrap();
            let mut decoder = Decoder::new(Some(&schema), format, "devices");
            let found = outcome(&mut decoder, format, topic, &payload);
            if !is_as_expected(expect, &found) {
                failures.push(format!("{}: found {found:?}", group.file(name)));
            }
            // What came before must not show: another decoder has met everything that changes one.
            let mut seasoned = Decoder::new(Some(&schema), format, "devices");
            for before in [b"\xc1\xa0".as_slice(), b"\xbf\xff", b"{", &payload] {
                seasoned.push(Message { topic, ..message(before, 1) });
            }
            seasoned.take();
            let again = outcome(&mut seasoned, format, topic, &payload);
            if again != found {
                failures.push(format!("{}: found {found:?}, and after other messages {again:?}", group.file(name)));
            }
        }
    }
    assert!(failures.is_empty(), "{} of the corpus:\n{}", failures.len(), failures.join("\n"));
}

fn files_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.insert(path.strip_prefix(corpus()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn the_index_of_the_corpus_names_every_file() {
    let named = index().1.iter().flat_map(|group| group.expect.keys().map(|name| group.file(name))).collect();
    let mut files = BTreeSet::new();
    files_below(&corpus(), &mut files);
    files.remove("EXPECTED.toml");
    assert_eq!(files.symmetric_difference(&named).collect::<Vec<_>>(), [""; 0]);
}
