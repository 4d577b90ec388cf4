//! A file of this machine: read again once its size or time has changed and is at rest.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use pipeline_engine::stage::StageError;

use super::{Content, too_large};
use crate::transforms::tables::place::Place;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Stamp {
    /// `None`: there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self { modified: found.modified().ok(), bytes: found.len() })
    }
}

/// Looks at a file now and then. A change counts once it has been the same for two looks.
#[derive(Default)]
pub(super) struct FileFetcher {
    looked: Option<Looks>,
}

struct Looks {
    /// The state of the file that was dealt with, whether it could be read or not.
    settled: Option<Stamp>,
    /// The state at the last look.
    seen: Option<Stamp>,
}

impl FileFetcher {
    pub(super) fn fetch(&mut self, place: &Place, path: &Path) -> Result<Option<Content>, StageError> {
        // Before it is read: a change while it is read shows as one.
        let stamp = Stamp::of(path);
        match &mut self.looked {
            None => self.looked = Some(Looks { settled: stamp, seen: stamp }),
            Some(looks) => {
                let is_at_rest = stamp == looks.seen;
                looks.seen = stamp;
                if stamp == looks.settled || !is_at_rest {
                    return Ok(None);
                }
                looks.settled = stamp;
            }
        }
        read(place, path).map(Some)
    }
}

fn read(place: &Place, path: &Path) -> Result<Content, StageError> {
    let file = File::open(path).map_err(|error| {
        let error = place.broken("can't be opened").because(error);
        if path.is_relative() { error.hint("The path is relative to the working directory.") } else { error }
    })?;
    let bytes = file.metadata().map_err(|error| place.broken("can't be opened").because(error))?.len();
    if bytes > place.bytes_max {
        return Err(too_large(place, bytes));
    }
    let mut content = Vec::new();
    // It may grow while it is read.
    let mut bounded = file.take(place.bytes_max.saturating_add(1));
    bounded.read_to_end(&mut content).map_err(|error| place.broken("can't be read").because(error))?;
    if content.len() as u64 > place.bytes_max {
        return Err(too_large(place, content.len() as u64));
    }
    Ok(Content::Bytes(content.into()))
}
