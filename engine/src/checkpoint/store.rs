//! Checkpoints on disk: two files in turn, so that a damaged one leaves the one before it.
//!
//! ```text
//! file    magic 8 | head_len u32 | head (JSON) | states, one after the other | crc32 u32
//! head    id, positions by partition, name and length of each state
//! ```
//! Integers are little-endian; the checksum covers all before it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::position::Position;
use crate::storage::{self, Storage, StorageLock};

const FILES: [&str; 2] = ["checkpoint-a", "checkpoint-b"];
const MAGIC: [u8; 8] = *b"pipeckp1";

/// Everything at or before `positions` is stored in every sink, and `states` are those of the
/// transforms after it and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Counts the checkpoints of a data directory, from 1.
    pub id: u64,
    /// Partitions by their full names.
    pub positions: BTreeMap<String, Position>,
    /// Transforms by name.
    pub states: BTreeMap<String, Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    id: u64,
    positions: BTreeMap<String, [u64; 4]>,
    states: Vec<(String, usize)>,
}

/// The data directory of a pipeline, held by this process alone.
pub(crate) struct CheckpointStore {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    _lock: Box<dyn StorageLock>,
}

impl CheckpointStore {
    /// Takes the directory, made if it isn't there, and gives the last checkpoint in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it, or as the filesystem says.
    pub(crate) fn open(storage: Arc<dyn Storage>, dir: &Path) -> io::Result<(Self, Option<Checkpoint>)> {
        storage.create_dir(dir)?;
        let lock = storage.lock(&dir.join("lock"))?;
        let mut last: Option<Checkpoint> = None;
        for file in FILES {
            let path = dir.join(file);
            let bytes = match storage::read_all(&*storage, &path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match decode(&bytes) {
                Some(found) if last.as_ref().is_none_or(|last| last.id < found.id) => last = Some(found),
                Some(_) => {}
                None => tracing::error!("\"{}\" is damaged; the checkpoint before it is used", path.display()),
            }
        }
        Ok((Self { storage, dir: dir.to_owned(), _lock: lock }, last))
    }

    /// Keeps a checkpoint, in place of the last but one. Durable on return.
    ///
    /// # Errors
    /// As the filesystem says; the checkpoints before are still there.
    pub(crate) fn keep(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let file = FILES[usize::from(checkpoint.id.is_multiple_of(2))];
        storage::replace(&*self.storage, &self.dir, file, &[&encode(checkpoint)]).map(drop)
    }
}

pub(super) fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let head = Head {
        id: checkpoint.id,
        positions: checkpoint.positions.iter().map(|(name, position)| (name.clone(), position.0)).collect(),
        states: checkpoint.states.iter().map(|(name, state)| (name.clone(), state.len())).collect(),
    };
    let head = serde_json::to_vec(&head).expect("names and numbers are JSON");
    let head_len = u32::try_from(head.len()).expect("a head is a few names long");
    let mut bytes = [&MAGIC[..], &head_len.to_le_bytes(), &head].concat();
    checkpoint.states.values().for_each(|state| bytes.extend_from_slice(state));
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (bytes, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*crc) {
        return None;
    }
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (head_len, rest) = rest.split_first_chunk::<4>()?;
    let (head, mut rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*head_len)).ok()?)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let mut states = BTreeMap::new();
    for (name, len) in head.states {
        let (state, after) = rest.split_at_checked(len)?;
        states.insert(name, state.to_vec());
        rest = after;
    }
    let positions = head.positions.into_iter().map(|(name, words)| (name, Position(words))).collect();
    Some(Checkpoint { id: head.id, positions, states })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::testing::SimulatedDisk;

    fn checkpoint(id: u64) -> Checkpoint {
        Checkpoint {
            id,
            positions: [("mqtt/spool".to_owned(), Position([0, 0, 7, id]))].into(),
            states: [("scored".to_owned(), vec![1; 100]), ("thinned".to_owned(), Vec::new())].into(),
        }
    }

    fn open(disk: &SimulatedDisk) -> (CheckpointStore, Option<Checkpoint>) {
        CheckpointStore::open(disk.mount(), Path::new("/data")).expect("the disk works")
    }

    #[test]
    fn the_last_checkpoint_comes_back() {
        let disk = SimulatedDisk::new(1);
        let (store, last) = open(&disk);
        assert_eq!(last, None);
        for id in 1..=3 {
            store.keep(&checkpoint(id)).expect("the disk works");
        }
        drop(store);
        assert_eq!(open(&disk).1, Some(checkpoint(3)));
    }

    #[test]
    fn one_process_has_the_directory() {
        let disk = SimulatedDisk::new(1);
        let _held = open(&disk);
        let second = CheckpointStore::open(disk.mount(), Path::new("/data"));
        assert_eq!(second.err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_damaged_checkpoint_leaves_the_one_before_it() {
        let bytes = encode(&checkpoint(2));
        assert_eq!(decode(&bytes), Some(checkpoint(2)));
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 4;
            assert_eq!(decode(&damaged), None, "byte {place}");
            assert_eq!(decode(&bytes[..place]), None, "cut at {place}");
        }
    }
}
