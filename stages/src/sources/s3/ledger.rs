//! Which objects there have been: the source's own record, so that each is read once, over restarts too.
//!
//! An object gets a number and a line here, durably, before any of its rows leave. Numbers are positions: what a
//! checkpoint or a sink knows of a row is the number of its object and its place in there. So after a crash the same
//! numbers mean the same objects, in the same order.
//!
//! On disk: `objects`, lines of JSON. The first holds the epoch, which makes the positions of a record that was lost, and
//! begun anew, come behind all earlier ones. A last line that a crash has cut short was never acted upon.

use std::collections::HashMap;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::RandomState;
use pipeline_engine::now_us;
use pipeline_engine::storage::{Storage, StorageFile, StorageLock};
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher24};

const NAME: &str = "objects";
const NEW_NAME: &str = "objects.new";
/// What is read of it at once.
const READ_BYTES: usize = 1 << 20;

/// An object, as it was when it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// Its key in the bucket.
    pub(super) key: String,
    /// What tells one content of the key from another.
    pub(super) etag: String,
    pub(super) bytes: u64,
    /// When it was written, by the store's clock; microseconds since 1970.
    pub(super) modified_us: i64,
}

/// An object and its number, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) object: Object,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first: which life of the record this is.
    Epoch(u64),
    Object(Object),
    /// All objects up to this number are stored, for runs that take no checkpoints.
    Done(u64),
}

/// Why the record can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    #[error("another process has it")]
    Locked,
    #[error("line {line} is damaged")]
    Damaged { line: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The open record. One process has it.
pub(super) struct Ledger {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// `None` after a failure: what it holds is then unknown.
    file: Option<Box<dyn StorageFile>>,
    epoch: u64,
    /// Numbers of the newest object of each identity.
    known: HashMap<u128, u64, RandomState>,
    count: u64,
    done: u64,
    _lock: Box<dyn StorageLock>,
}

impl Ledger {
    /// Opens the record in a folder, which is made if it isn't there. Gives the objects behind those that are known to be
    /// done. Blocks.
    ///
    /// # Errors
    /// Another process has it, it is damaged, or the disk refuses.
    pub(super) fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<(Self, Vec<Entry>), LedgerError> {
        storage.create_dir(dir)?;
        let lock = storage.lock(&dir.join("lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LedgerError::Locked,
            _ => LedgerError::Io(error),
        })?;
        let lines = read(&*storage, &dir.join(NAME))?;
        let epoch = match lines.first() {
            Some(Line::Epoch(epoch)) => *epoch,
            Some(_) => return Err(LedgerError::Damaged { line: 1 }),
            None => now_us().unsigned_abs(),
        };
        let mut ledger = Self {
            storage,
            dir: dir.to_owned(),
            file: None,
            epoch,
            known: HashMap::default(),
            count: 0,
            done: 0,
            _lock: lock,
        };
        let mut entries = Vec::new();
        for line in lines {
            match line {
                Line::Epoch(_) => {}
                Line::Object(object) => {
                    ledger.count += 1;
                    ledger.known.insert(identity(&object.key, &object.etag), ledger.count);
                    entries.push(Entry { number: ledger.count, object });
                }
                Line::Done(number) => ledger.done = ledger.done.max(number),
            }
        }
        entries.retain(|entry| entry.number > ledger.done);
        ledger.write_anew()?;
        Ok((ledger, entries))
    }

    /// Which life of the record this is.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many objects have numbers.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The number of an object that has been found before.
    pub(super) fn number_of(&self, key: &str, etag: &str) -> Option<u64> {
        self.known.get(&identity(key, etag)).copied()
    }

    /// Gives numbers to objects that are new, durably on return; others are left out. Blocks.
    ///
    /// # Errors
    /// None of them has a number: to be called again.
    pub(super) fn admit(&mut self, objects: Vec<Object>) -> io::Result<Vec<Entry>> {
        let mut fresh: Vec<Object> = Vec::new();
        for object in objects {
            let is_same = |other: &Object| other.key == object.key && other.etag == object.etag;
            if self.number_of(&object.key, &object.etag).is_none() && !fresh.iter().any(is_same) {
                fresh.push(object);
            }
        }
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let mut text = Vec::new();
        for object in &fresh {
            put(&mut text, &Line::Object(object.clone()))?;
        }
        self.append(&text)?;
        let admit = |object: Object| {
            self.count += 1;
            self.known.insert(identity(&object.key, &object.etag), self.count);
            Entry { number: self.count, object }
        };
        Ok(fresh.into_iter().map(admit).collect())
    }

    /// Notes that all objects up to this number are stored. Blocks.
    ///
    /// # Errors
    /// It is not noted: a restart would read them again.
    pub(super) fn mark_done(&mut self, number: u64) -> io::Result<()> {
        if number <= self.done {
            return Ok(());
        }
        let mut text = Vec::new();
        put(&mut text, &Line::Done(number))?;
        self.append(&text)?;
        self.done = number;
        Ok(())
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.write_anew().map_err(|error| match error {
                LedgerError::Io(error) => error,
                other => io::Error::other(other.to_string()),
            })?;
        }
        let Some(mut file) = self.file.take() else { return Err(io::ErrorKind::NotFound.into()) };
        // Of a write that fails any part may be there, and a sync that fails is never tried again on the same file.
        file.append(text)?;
        file.sync_data()?;
        self.file = Some(file);
        Ok(())
    }

    /// Copies what counts to a new file, which takes the place of the old one: without what a crash or a failure has
    /// left behind the last whole line.
    fn write_anew(&mut self) -> Result<(), LedgerError> {
        let (old, new) = (self.dir.join(NAME), self.dir.join(NEW_NAME));
        let mut lines = read(&*self.storage, &old)?;
        if lines.is_empty() {
            lines.push(Line::Epoch(self.epoch));
        }
        // Whole lines that have come to disk by a call that failed: they have no number.
        let mut objects = 0;
        lines.retain(|line| match line {
            Line::Object(_) => {
                objects += 1;
                objects <= self.count
            }
            Line::Epoch(_) | Line::Done(_) => true,
        });
        let mut text = Vec::new();
        for line in &lines {
            put(&mut text, line)?;
        }
        let mut file = self.storage.create(&new)?;
        file.append(&text)?;
        file.sync_data()?;
        self.storage.rename(&new, &old)?;
        self.storage.sync_dir(&self.dir)?;
        self.file = Some(file);
        Ok(())
    }
}

fn put(text: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *text, line)?;
    text.push(b'\n');
    Ok(())
}

/// The whole lines of the record; none if there is none.
fn read(storage: &dyn Storage, path: &Path) -> Result<Vec<Line>, LedgerError> {
    let file = match storage.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let (mut text, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        let count = file.read_at(text.len() as u64, &mut buffer)?;
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
    }
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate();
    lines
        .map(|(index, line)| serde_json::from_slice(line).map_err(|_| LedgerError::Damaged { line: index + 1 }))
        .collect()
}

/// 128 bits of a key and a content, the same in every process.
fn identity(key: &str, etag: &str) -> u128 {
    let mut hasher = SipHasher24::new();
    hasher.write_usize(key.len());
    hasher.write(key.as_bytes());
    hasher.write(etag.as_bytes());
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use pipeline_engine::spool::testing::SimulatedDisk;

    use super::*;

    fn object(key: &str, etag: &str) -> Object {
        Object { key: key.to_owned(), etag: etag.to_owned(), bytes: 7, modified_us: 1 }
    }

    fn numbers(entries: &[Entry]) -> Vec<(u64, &str)> {
        entries.iter().map(|entry| (entry.number, entry.object.key.as_str())).collect()
    }

    fn dir() -> &'static Path {
        Path::new("/data/in")
    }

    #[test]
    fn an_object_has_one_number_for_good() {
        let disk = SimulatedDisk::new(1);
        let (mut ledger, found) = Ledger::open(disk.mount(), dir()).unwrap();
        assert_eq!(found, []);
        let epoch = ledger.epoch();
        let admitted = ledger.admit(vec![object("a", "1"), object("b", "1"), object("a", "1")]).unwrap();
        assert_eq!(numbers(&admitted), [(1, "a"), (2, "b")]);
        assert_eq!(numbers(&ledger.admit(vec![object("b", "1"), object("a", "2")]).unwrap()), [(3, "a")]);
        ledger.mark_done(1).unwrap();
        drop(ledger);
        disk.cut_power();

        let (mut ledger, found) = Ledger::open(disk.mount(), dir()).unwrap();
        assert_eq!((numbers(&found), ledger.epoch()), (vec![(2, "b"), (3, "a")], epoch));
        assert_eq!((ledger.number_of("a", "1"), ledger.number_of("a", "2")), (Some(1), Some(3)));
        assert_eq!(ledger.admit(vec![object("a", "1"), object("b", "1")]).unwrap(), []);
        assert_eq!(numbers(&ledger.admit(vec![object("c", "1")]).unwrap()), [(4, "c")]);
    }

    #[test]
    fn a_crash_at_any_step_leaves_whole_entries_and_none_twice() {
        let steps = {
            let disk = SimulatedDisk::new(7);
            admit_three(&disk).unwrap();
            disk.operations()
        };
        for step in 1..=steps {
            let disk = SimulatedDisk::new(step);
            disk.stop_at(step);
            let told = admit_three(&disk).unwrap_or_default();
            disk.cut_power();
            let (mut ledger, found) = Ledger::open(disk.mount(), dir()).unwrap();
            let found = numbers(&found).into_iter().map(|(number, key)| (number, key.to_owned())).collect::<Vec<_>>();
            assert!(found.starts_with(&told), "step {step}: {told:?} were told, {found:?} are there");
            let keys = ["a", "b", "c"];
            ledger.admit(keys.iter().map(|key| object(key, "1")).collect()).unwrap();
            let all: Vec<_> = keys.iter().filter_map(|key| ledger.number_of(key, "1")).collect();
            assert_eq!(all, [1, 2, 3], "step {step}");
        }
    }

    /// What was told to have a number before the disk stopped.
    fn admit_three(disk: &SimulatedDisk) -> Option<Vec<(u64, String)>> {
        let (mut ledger, _) = Ledger::open(disk.mount(), dir()).ok()?;
        let mut told = Vec::new();
        for keys in [&["a", "b"][..], &["c"]] {
            let objects = keys.iter().map(|key| object(key, "1")).collect();
            let Ok(admitted) = ledger.admit(objects) else { break };
            told.extend(admitted.into_iter().map(|entry| (entry.number, entry.object.key)));
        }
        Some(told)
    }

    #[test]
    fn a_disk_that_is_full_for_a_while_costs_no_number() {
        let disk = SimulatedDisk::new(3);
        let (mut ledger, _) = Ledger::open(disk.mount(), dir()).unwrap();
        ledger.admit(vec![object("a", "1")]).unwrap();
        disk.set_capacity(0);
        assert!(ledger.admit(vec![object("b", "1")]).is_err());
        assert!(ledger.admit(vec![object("b", "1")]).is_err());
        disk.set_capacity(1 << 30);
        assert_eq!(numbers(&ledger.admit(vec![object("b", "1")]).unwrap()), [(2, "b")]);
        drop(ledger);
        let (_, found) = Ledger::open(disk.mount(), dir()).unwrap();
        assert_eq!(numbers(&found), [(1, "a"), (2, "b")]);
    }

    #[test]
    fn damage_and_a_second_process_are_told() {
        let disk = SimulatedDisk::new(1);
        let (first, _) = Ledger::open(disk.mount(), dir()).unwrap();
        assert!(matches!(Ledger::open(disk.mount(), dir()), Err(LedgerError::Locked)));
        drop(first);
        let storage = disk.mount();
        let mut file = storage.create(&dir().join(NAME)).unwrap();
        file.append(b"{\"epoch\":1}\n{\"object\":{}}\n").unwrap();
        assert!(matches!(Ledger::open(storage, dir()), Err(LedgerError::Damaged { line: 2 })));
    }
}
