//! The journal's folder: which files are there when, and what a start makes of what it finds.
//!
//! | file | holds | appears and goes |
//! |---|---|---|
//! | `staged` | one group: its objects and how far they take the sink | durable before the first object is created; removed once `positions` says the same |
//! | `positions` | how far the sink has come | replaced once all objects of a group are durable |
//! | `lock` | nothing | held while a sink runs: two would both go on from the same position |
//!
//! Both are written beside (`.tmp`), synced, and then renamed: a file under its own name is whole,
//! or the disk has damaged it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pipeline_engine::stage::StageError;
use pipeline_engine::storage::{self, Storage, StorageLock};

use super::format::Unreadable;
use super::{Positions, Staged, Standing};
use crate::sinks::parquet::disk::{failed, not_synced};

const POSITIONS: &str = "positions";
const STAGED: &str = "staged";
const LOCK: &str = "lock";

/// A folder that may hold a journal.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) dir: PathBuf,
}

/// A folder that holds a journal, and is ours until the last clone is dropped.
#[derive(Clone)]
pub(super) struct Files {
    place: Place,
    _lock: Arc<dyn StorageLock>,
}

impl Place {
    /// Whether there is a journal.
    pub(super) fn is_taken_up(&self) -> Result<bool, StageError> {
        match self.storage.list(&self.dir) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("read", &self.dir, error)),
        }
    }

    /// Makes the folder.
    pub(super) fn take_up(&self) -> Result<(), StageError> {
        self.storage.create_dir(&self.dir).map_err(|error| failed("create", &self.dir, error))
    }

    /// Takes the lock.
    pub(super) fn seize(&self) -> Result<Files, StageError> {
        let path = self.dir.join(LOCK);
        let lock = self.storage.lock(&path).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => StageError::transient(format!("\"{}\" was in use by another run", path.display()))
                .hint("Two runs can't store the same rows once: stop one. The sink goes on when the other has ended."),
            _ => failed("lock", &path, error),
        })?;
        Ok(Files { place: self.clone(), _lock: lock.into() })
    }
}

impl Files {
    /// How far the sink has come, and the group that it had not finished.
    pub(super) fn load(&self) -> Result<(Positions, Option<Staged>), StageError> {
        for name in [POSITIONS, STAGED] {
            // Torn, or whole and never renamed: either way nothing has come of it.
            self.remove(&format!("{name}.tmp"))?;
        }
        let positions = match self.read(POSITIONS)? {
            None => Positions::default(),
            Some(bytes) => Positions::decode(&bytes).map_err(|why| self.unreadable(POSITIONS, why, POSITIONS_LOST))?,
        };
        let Some(bytes) = self.read(STAGED)? else { return Ok((positions, None)) };
        let staged = Staged::decode(&bytes).map_err(|why| self.unreadable(STAGED, why, STAGED_LOST))?;
        match positions.standing(&staged.advances) {
            Standing::Next => Ok((positions, Some(staged))),
            // Only the removal was missing.
            Standing::Reached => self.remove(STAGED).map(|()| (positions, None)),
            Standing::Elsewhere(what) => Err(StageError::permanent(format!(
                "\"{}\" does not go on from \"{POSITIONS}\": {what}",
                self.path(STAGED)
            ))
            .hint("The two belong together. Put both back as they were, or neither.")),
        }
    }

    /// The group is durable on return, in place of any other.
    pub(super) fn stage(&self, staged: &Staged) -> Result<(), StageError> {
        let head = staged.encode_head();
        let contents = staged.objects.iter().map(|object| &object.content[..]);
        self.replace(STAGED, [&head[..]].into_iter().chain(contents))
    }

    /// The positions are durable on return, and what was staged is gone or will be.
    pub(super) fn record(&self, positions: &Positions) -> Result<(), StageError> {
        self.replace(POSITIONS, [&positions.encode()[..]].into_iter())?;
        if let Err(error) = self.remove(STAGED) {
            // The next group takes its place, or the next start finds that it is recorded.
            tracing::debug!(error = error.chain(), "the staged group stays");
        }
        Ok(())
    }

    fn replace<'a>(&self, name: &str, parts: impl Iterator<Item = &'a [u8]>) -> Result<(), StageError> {
        let (storage, dir) = (&*self.place.storage, &*self.place.dir);
        let beside = dir.join(format!("{name}.tmp"));
        let written = write_synced(storage, &beside, parts)
            .and_then(|()| storage.rename(&beside, &dir.join(name)).map_err(|error| failed("rename", &beside, error)));
        match written {
            Ok(()) => storage.sync_dir(dir).map_err(|error| not_synced(dir, error)),
            Err(error) => {
                // On a full disk, half a file is in the way of all others. The write's own error is
                // the one to report; the next start finds what is left.
                drop(storage.remove(&beside));
                Err(error)
            }
        }
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, StageError> {
        let path = self.place.dir.join(name);
        match storage::read_all(&*self.place.storage, &path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), StageError> {
        let path = self.place.dir.join(name);
        match self.place.storage.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn unreadable(&self, name: &str, why: Unreadable, lost: &'static str) -> StageError {
        let hint = if let Unreadable::Format(_) = why { "Run the version that wrote it." } else { lost };
        StageError::permanent(format!("\"{}\" can't be used", self.path(name))).because(why).hint(hint)
    }

    fn path(&self, name: &str) -> String {
        self.place.dir.join(name).display().to_string()
    }
}

const POSITIONS_LOST: &str = "The disk has damaged the record of what is stored. The newest objects say it too, in \
                              their footers (pipeline.group). Once the file is deleted, rows that the source still \
                              holds are stored again: delete their objects first.";

const STAGED_LOST: &str = "The disk has damaged it. Its first line lists objects: delete those that are in the store, \
                           then the file. Their rows come again.";

fn write_synced<'a>(
    storage: &dyn Storage,
    path: &Path,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<(), StageError> {
    let mut file = storage.create(path).map_err(|error| failed("create", path, error))?;
    for part in parts {
        file.append(part).map_err(|error| failed("write", path, error))?;
    }
    file.sync_data().map_err(|error| not_synced(path, error))
}
