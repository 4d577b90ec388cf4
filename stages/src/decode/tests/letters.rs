//! The committed corpus of refused rows, of which messages are made again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;

/// `tests/corpus/letters/EXPECTED.toml`.
#[derive(Deserialize)]
struct Expected {
    row: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    schema: Option<String>,
    format: Format,
    expect: BTreeMap<String, Expect>,
}

/// A message, or why there is none.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    payload: Option<String>,
    topic: Option<String>,
    error: Option<String>,
}

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/letters"))
}

#[test]
fn every_refused_row_of_the_corpus_becomes_a_message_or_says_why_not() {
    let text = std::fs::read_to_string(corpus().join("EXPECTED.toml")).unwrap();
    let groups = toml::from_str::<Expected>(&text).unwrap().row;
    let cx = build_context("s", &text);
    let mut failures = Vec::new();
    let mut named = BTreeSet::new();
    for group in &groups {
        let schema = group.schema.as_ref().map(|name| cx.schema("schema", name).unwrap());
        for (name, expect) in &group.expect {
            let row = std::fs::read(corpus().join(format!("rows/{name}.json"))).unwrap();
            let message = RowMessage::of(schema.as_deref(), group.format, &row);
            let message = message.and_then(|message| Ok((message.topic(Some("other/d9/x"))?, message.payload)));
            let found = match message {
                Ok((topic, payload)) => {
                    Expect { payload: Some(String::from_utf8(payload).unwrap()), topic: Some(topic), error: None }
                }
                Err(why) => Expect { payload: None, topic: None, error: Some(why) },
            };
            if found != *expect {
                failures.push(format!("{name}: found {found:?}"));
            }
            named.insert(format!("{name}.json"));
        }
    }
    assert!(failures.is_empty(), "{} of the corpus:\n{}", failures.len(), failures.join("\n"));
    let files = std::fs::read_dir(corpus().join("rows")).unwrap();
    let files: BTreeSet<_> = files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files.symmetric_difference(&named).collect::<Vec<_>>(), [""; 0]);
}
