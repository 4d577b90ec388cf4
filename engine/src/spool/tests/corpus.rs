//! The committed corpus of damaged spools: what a person is told of each, what can be taken out of it, and
//! what a start makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde::Deserialize;

use super::*;

/// What must become of one spool. Ranges of records are written as `1-8 11-18`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// What comes out of it: by `export`, and by a reader once it is open.
    #[serde(default)]
    records: String,
    /// What comes out by a reader, if that is something else.
    #[serde(default)]
    read: String,
    /// What the reader reports as lost.
    #[serde(default)]
    lost: String,
    /// The number of the next record.
    #[serde(default)]
    next: u64,
    /// The sentences about damage.
    #[serde(default)]
    damage: Vec<String>,
    /// Bytes at the end that are no frame.
    #[serde(default)]
    torn: u64,
    /// The cursors can't be read.
    #[serde(default)]
    cursors_damaged: bool,
    /// It can't be looked at, for this reason.
    #[serde(default)]
    error: String,
    /// It can't be opened, for this reason.
    #[serde(default)]
    open_error: String,
}

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/spools"))
}

fn index() -> BTreeMap<String, Expected> {
    toml::from_str(&fs::read_to_string(corpus().join("EXPECTED.toml")).expect("the index")).expect("valid TOML")
}

/// Whose spools they are, by the folders that they lie in.
fn options() -> SpoolOptions {
    // Nothing is old enough to be trimmed.
    SpoolOptions { retain: Duration::MAX, pipeline: "corpus".to_owned(), source: "spools".to_owned(), ..small() }
}

fn ranges(lsns: impl IntoIterator<Item = u64>) -> String {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for lsn in lsns {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == lsn => *last = lsn,
            _ => found.push((lsn, lsn)),
        }
    }
    found.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(" ")
}

/// A record of the corpus says in its payload which one it is.
fn check(lsn: u64, record: &Record) {
    let payload = format!("{{\"device_id\": \"d{}\", \"n\": {lsn}}}", lsn % 3);
    assert_eq!(String::from_utf8_lossy(&record.payload), payload);
    assert_eq!(record.topic, format!("devices/{}", lsn % 3));
}

/// The path is the test's own.
fn without_path(error: &SpoolError, dir: &Path) -> String {
    error.to_string().replace(&format!("{}/", dir.display()), "")
}

fn looked_at(dir: &Path, found: &mut Expected) {
    let verified = match verify(dir, &FsStorage) {
        Ok(inspection) => inspection,
        Err(error) => return found.error = without_path(&error, dir),
    };
    found.damage = verified.damage.iter().map(ToString::to_string).collect();
    found.torn = verified.torn_tail.as_ref().map_or(0, |torn| torn.bytes);
    found.cursors_damaged = verified.cursors_damaged;
    let mut lsns = Vec::new();
    let exported = export(dir, &FsStorage, 1..=u64::MAX, |exported| {
        check(exported.lsn, &exported.record);
        lsns.push(exported.lsn);
        ControlFlow::Continue(())
    });
    let exported = exported.expect("it could be verified");
    assert_eq!((&exported.damage, &exported.torn_tail), (&verified.damage, &verified.torn_tail));
    found.records = ranges(lsns);
    let counted: u64 = verified.segments.iter().filter_map(|segment| segment.counts).map(|counts| counts.records).sum();
    assert_eq!(ranges_len(&found.records), counted, "as many records come out as were counted");
}

fn ranges_len(ranges: &str) -> u64 {
    let len = |range: &str| {
        let (first, last) = range.split_once('-').expect("a range");
        last.parse::<u64>().expect("a number") - first.parse::<u64>().expect("a number") + 1
    };
    ranges.split_whitespace().map(len).sum()
}

/// Opens the spool, reads all of it, writes a record and reads that after another start.
async fn opened(dir: &Path, found: &mut Expected) {
    let (spool, mut writer, report) = match Spool::open(dir, options(), Arc::new(FsStorage)) {
        Ok(opened) => opened,
        Err(error) => return found.open_error = without_path(&error, dir),
    };
    found.next = report.next_lsn;
    let new = Record { received_at_us: 0, flags: 0, mark: 0, topic: "new".into(), payload: "new".into() };
    let lsn = writer.append(&new).await.expect("it is open");
    assert_eq!(lsn, found.next);
    writer.close().await.expect("the disk is fine");
    let (read, lost) = all_of(&spool, lsn).await;
    found.lost = ranges(lost);
    let read_ranges = ranges(read.clone());
    if read_ranges != found.records {
        found.read = read_ranges;
    }
    drop(spool);
    let (spool, writer, again) = Spool::open(dir, options(), Arc::new(FsStorage)).expect("it could be opened");
    assert!(again.damage.iter().all(|damage| damage.known || damage.bytes == 0), "{again:?}");
    writer.close().await.expect("the disk is fine");
    assert_eq!(all_of(&spool, lsn).await.0, read, "a second start finds the same");
}

/// What a reader reads before the new record, and what it says is lost.
async fn all_of(spool: &Spool, new_lsn: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut read, mut lost) = (Vec::new(), Vec::new());
    let mut reader = spool.reader(1);
    while let Some(replay) = reader.next().await.expect("the disk is fine") {
        match replay {
            Replay::Frame(frame) => {
                for (lsn, record) in (frame.first_lsn..).zip(&frame.records) {
                    if lsn < new_lsn {
                        check(lsn, record);
                    }
                    read.push(lsn);
                }
            }
            Replay::Lost(lsns) => {
                assert!(lsns.clone().count() < 1_000, "{lsns:?}");
                lost.extend(lsns);
            }
        }
    }
    assert_eq!(read.pop(), Some(new_lsn), "the new record comes last");
    (read, lost)
}

fn copy_of(spool: &str, to: &Path) -> PathBuf {
    let dir = to.join("corpus/spools").join(spool);
    copy(&corpus().join(spool), &dir);
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("readable");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("it can be copied");
        }
    }
}

#[tokio::test]
async fn every_spool_of_the_corpus_has_its_verdict() {
    let home = tempfile::tempdir().expect("a directory");
    let mut failures = Vec::new();
    for (name, expected) in index() {
        let mut found = Expected { next: 0, ..toml::from_str("").expect("all have defaults") };
        let dir = copy_of(&name, home.path());
        looked_at(&dir, &mut found);
        opened(&dir, &mut found).await;
        if found != expected {
            failures.push(format!("{name}: found {found:?}"));
        }
    }
    assert!(failures.is_empty(), "{} of the corpus:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_index_of_the_corpus_names_every_spool() {
    let named: BTreeSet<String> = index().into_keys().collect();
    let entries = fs::read_dir(corpus()).expect("a directory").map(|entry| entry.expect("readable"));
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().into_string());
    let folders: BTreeSet<String> = folders.map(|name| name.expect("text")).collect();
    assert_eq!(folders.symmetric_difference(&named).collect::<Vec<_>>(), [""; 0]);
}
