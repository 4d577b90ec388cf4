//! Copies of damaged bytes, kept as evidence in `quarantine/` below the spool. The damaged file
//! itself is never changed.

use std::ops::Range;
use std::path::Path;

use super::inspect::Quarantined;
use super::segment;
use crate::storage::{self, Storage};

const DIR: &str = "quarantine";
/// All copies together stay below this: evidence must not take the room of records.
const BYTES_MAX: u64 = 256 << 20;

/// What became of damaged bytes.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The copy, below the spool's directory.
    pub path: Option<String>,
    /// It was there before.
    pub known: bool,
}

/// Copies a range of a segment, once.
pub(crate) fn keep_range(storage: &dyn Storage, dir: &Path, segment: &str, range: Range<u64>) -> Kept {
    let name = format!("{segment}-{:012}-{}", range.start, range.end - range.start);
    keep(storage, dir, &name, range.end - range.start, || {
        storage.open(&dir.join(segment)).map(|file| segment::read_range(&*file, range).bytes).unwrap_or_default()
    })
}

/// Copies a damaged file that is about to be replaced.
pub(crate) fn keep_file(storage: &dyn Storage, dir: &Path, file: &str, bytes: &[u8]) -> Kept {
    let name = format!("{file}-{:08x}", crc32fast::hash(bytes));
    keep(storage, dir, &name, bytes.len() as u64, || bytes.to_vec())
}

/// The copies there are, by name.
pub(crate) fn list(storage: &dyn Storage, dir: &Path) -> Vec<Quarantined> {
    let folder = dir.join(DIR);
    let mut names = storage.list(&folder).unwrap_or_default();
    names.sort_unstable();
    let copy = |name: String| {
        let bytes = storage.open(&folder.join(&name)).and_then(|file| file.bytes()).ok()?;
        Some(Quarantined { path: format!("{DIR}/{name}"), bytes })
    };
    names.into_iter().filter_map(copy).collect()
}

fn keep(storage: &dyn Storage, dir: &Path, name: &str, bytes: u64, read: impl FnOnce() -> Vec<u8>) -> Kept {
    let folder = dir.join(DIR);
    let path = Some(format!("{DIR}/{name}"));
    let names = storage.list(&folder).unwrap_or_default();
    if names.iter().any(|other| other == name) {
        return Kept { path, known: true };
    }
    let held: u64 = names.iter().filter_map(|name| storage.open(&folder.join(name)).ok()?.bytes().ok()).sum();
    if bytes == 0 || held + bytes > BYTES_MAX {
        return Kept::default();
    }
    let written = storage.create_dir(&folder).and_then(|()| storage::replace(storage, &folder, name, &[&read()]));
    match written {
        Ok(_) => Kept { path, known: false },
        Err(error) => {
            // The damaged bytes are still in their segment.
            tracing::warn!(%error, "damaged bytes could not be copied to \"{DIR}\"");
            Kept::default()
        }
    }
}
