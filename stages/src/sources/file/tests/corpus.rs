//! The committed corpus of files: each has its rows and dead letters, or the error that ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;

/// `tests/corpus/files/EXPECTED.toml`.
#[derive(Deserialize)]
struct Expected {
    group: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    schema: String,
    line_bytes_max: Option<String>,
    expect: BTreeMap<String, Expect>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    rows: Option<Rows>,
    /// Line and reason of each.
    #[serde(default)]
    refused: Vec<String>,
    /// A part of it.
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Rows {
    Count(usize),
    All(Vec<String>),
}

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/files"))
}

fn index() -> (String, Vec<Group>) {
    let text = std::fs::read_to_string(corpus().join("EXPECTED.toml")).unwrap();
    let expected: Expected = toml::from_str(&text).unwrap();
    (text, expected.group)
}

/// What is wrong, if anything.
fn difference(expect: &Expect, found: &Outcome) -> Option<String> {
    let error = found.error.as_ref().map(StageError::chain);
    let refused: Vec<String> = found.refusals.iter().map(|(line, reason, _)| format!("{line} {reason}")).collect();
    let fits = match (&expect.error, &error) {
        (Some(part), Some(error)) => error.contains(part.as_str()),
        (None, None) => true,
        _ => false,
    };
    let rows = match &expect.rows {
        Some(Rows::Count(count)) => *count == found.rows.len(),
        Some(Rows::All(rows)) => *rows == found.rows,
        None => found.rows.is_empty(),
    };
    let all = fits && rows && refused == expect.refused;
    (!all).then(|| format!("found the rows {:?}, refused {refused:?}, {error:?}", found.rows))
}

#[tokio::test]
async fn every_file_of_the_corpus_has_its_outcome() {
    let (text, groups) = index();
    let mut failures = Vec::new();
    for group in &groups {
        for (name, expect) in &group.expect {
            let path = corpus().join(name);
            let format = if name.contains(".csv") { "csv" } else { "jsonl" };
            let limit = group.line_bytes_max.iter().map(|limit| format!("\nline_bytes_max = \"{limit}\""));
            let settings = format!("path = '{}'\nformat = \"{format}\"\nschema = \"{}\"", path.display(), group.schema);
            let found = run_with(&text, &(settings + &limit.collect::<String>())).await;
            failures.extend(difference(expect, &found).map(|difference| format!("{name}: {difference}")));
        }
    }
    assert!(failures.is_empty(), "{} of the corpus:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_index_of_the_corpus_names_every_file() {
    let named: BTreeSet<String> = index().1.iter().flat_map(|group| group.expect.keys().cloned()).collect();
    let folders = ["csv", "jsonl", "gzip"];
    let files = folders.iter().flat_map(|folder| {
        let entries = std::fs::read_dir(corpus().join(folder)).unwrap();
        entries.map(move |entry| format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap()))
    });
    let files: BTreeSet<String> = files.collect();
    assert_eq!(files.symmetric_difference(&named).collect::<Vec<_>>(), [""; 0]);
}
