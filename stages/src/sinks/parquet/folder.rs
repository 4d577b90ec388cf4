//! Objects in a local folder: written aside, synced, then linked to their name.
//!
//! A reader never sees half a file: the name appears by a hard link after the content is on disk,
//! and a link never replaces what is there. `object_store`'s own local store is not used since it
//! writes beside the target under a name that readers of a whole folder pick up, and leaves that
//! behind after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;
use pipeline_engine::stage::StageError;

use super::disk::{failed, not_synced, off_the_runtime};
use super::store::{Guard, Listed, Object, Reader, Store, taken};

/// Where files are written aside, below the root. Readers leave out folders that begin with a dot;
/// one folder for all days, so that cleaning up after a crash looks at one folder.
const STAGING: &str = ".staging";

/// A folder of this machine.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
    /// What our files in [`STAGING`] begin with.
    owner: String,
}

#[async_trait]
impl Store for Folder {
    async fn open(&mut self) -> Result<Guard, StageError> {
        let folder = self.clone();
        off_the_runtime(move || folder.prepare()).await?;
        Ok(Guard::Store)
    }

    async fn create(&self, object: &Object) -> Result<(), StageError> {
        let (folder, object) = (self.clone(), object.clone());
        off_the_runtime(move || folder.publish(&object)).await
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        Some(Box::new(self.clone()))
    }
}

#[async_trait]
impl Reader for Folder {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    async fn list(&mut self) -> Result<Vec<Listed>, StageError> {
        let root = self.root.clone();
        off_the_runtime(move || {
            let mut listed = Vec::new();
            list(&root, "", &mut listed).map_err(|error| failed("list", &root, error))?;
            Ok(listed)
        })
        .await
    }

    async fn get(&mut self, key: &str) -> Result<Option<Bytes>, StageError> {
        let path = self.root.join(key);
        off_the_runtime(move || match fs::read(&path) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        })
        .await
    }
}

/// The files below a folder; none if there is no such folder.
fn list(folder: &Path, prefix: &str, listed: &mut Vec<Listed>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Not one of ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{prefix}{name}/"), listed)?;
        } else {
            let made_at = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let made_at_us = i64::try_from(made_at.as_micros()).unwrap_or(i64::MAX);
            listed.push(Listed { key: format!("{prefix}{name}"), made_at_us });
        }
    }
    Ok(())
}

impl Folder {
    pub(super) fn new(root: PathBuf, owner: String) -> Self {
        Self { root, owner }
    }

    /// Removes what a crash left behind, and proves that files can be written and linked.
    fn prepare(&self) -> Result<(), StageError> {
        let staging = self.root.join(STAGING);
        let missing: Vec<_> = staging.ancestors().take_while(|folder| !folder.exists()).collect();
        fs::create_dir_all(&staging).map_err(|error| failed("create", &staging, error))?;
        for created in missing {
            // Below the root, each object syncs the folders that lead to it.
            sync_folder(created.parent().unwrap_or(created))?;
        }
        for entry in fs::read_dir(&staging).map_err(|error| failed("read", &staging, error))? {
            let entry = entry.map_err(|error| failed("read", &staging, error))?;
            if entry.file_name().to_string_lossy().starts_with(&self.owner) {
                // Should it belong to a second instance that runs: its link fails, and it tries again.
                remove(&entry.path())?;
            }
        }
        let linked = self.aside("linked");
        let probe = self.write_aside(b"probe")?;
        let outcome = fs::hard_link(&probe, &linked).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::Unsupported => {
                StageError::permanent(format!("\"{}\" has no hard links", self.root.display()))
                    .because(error)
                    .hint("The sink needs a file system that has them, such as ext4 or xfs.")
            }
            _ => failed("link", &linked, error),
        });
        remove(&probe)?;
        outcome.and_then(|()| remove(&linked))
    }

    /// Gives the content its name, durable on return.
    fn publish(&self, object: &Object) -> Result<(), StageError> {
        let target = self.root.join(&object.key);
        let folder = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(|error| failed("create", folder, error))?;
        let written = self.write_aside(&object.content)?;
        let linked = fs::hard_link(&written, &target);
        remove(&written)?;
        match linked {
            Ok(()) => {}
            // A crash may have come between that link and its sync: the syncs below are for both.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.compare(&target, object)?,
            Err(error) => return Err(failed("create", &target, error)),
        }
        // The name is an entry of its folder, which is an entry of the month, and so on.
        for folder in target.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root)) {
            sync_folder(folder)?;
        }
        Ok(())
    }

    fn compare(&self, target: &Path, object: &Object) -> Result<(), StageError> {
        let length = fs::metadata(target).map_err(|error| failed("read", target, error))?.len();
        let same = length == object.content.len() as u64
            && fs::read(target).map_err(|error| failed("read", target, error))? == object.content;
        if same { Ok(()) } else { Err(taken(&target.display().to_string())) }
    }

    /// A new file with this content, on disk on return, where no reader looks.
    fn write_aside(&self, content: &[u8]) -> Result<PathBuf, StageError> {
        let staging = self.root.join(STAGING);
        // Somebody may have tidied up while we run.
        fs::create_dir_all(&staging).map_err(|error| failed("create", &staging, error))?;
        let path = self.aside("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| failed("create", &path, error))?;
        let written = file
            .write_all(content)
            .map_err(|error| failed("write", &path, error))
            .and_then(|()| file.sync_all().map_err(|error| not_synced(&path, error)));
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                // The write's own error is the one to report; the next start finds what is left.
                drop(remove(&path));
                Err(error)
            }
        }
    }

    /// A path that nobody else uses.
    fn aside(&self, word: &str) -> PathBuf {
        self.root.join(STAGING).join(format!("{}{word}-{:016x}.tmp", self.owner, rand::random::<u64>()))
    }
}

/// Makes the entries of a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StageError> {
    // The parent of a relative path's first part is written as nothing.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| not_synced(folder, error))
}

fn remove(path: &Path) -> Result<(), StageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;
    use tempfile::TempDir;

    use super::*;

    const KEY: &str = "year=2026/month=01/day=31/iot-lake-0.parquet";

    fn folder(dir: &TempDir) -> Folder {
        Folder::new(dir.path().join("lake"), "iot-lake-".to_owned())
    }

    fn object(content: &'static str) -> Object {
        Object { key: KEY.to_owned(), content: content.into() }
    }

    fn staged(folder: &Folder) -> Vec<String> {
        let entries = fs::read_dir(folder.root.join(STAGING)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_object_appears_whole_and_nothing_else_stays() {
        let dir = TempDir::new().unwrap();
        let mut folder = folder(&dir);
        folder.open().await.unwrap();
        folder.create(&object("rows")).await.unwrap();
        assert_eq!(fs::read_to_string(folder.root.join(KEY)).unwrap(), "rows");
        assert_eq!(staged(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn a_second_try_with_the_same_content_finds_it_done() {
        let dir = TempDir::new().unwrap();
        let folder = folder(&dir);
        folder.create(&object("rows")).await.unwrap();
        folder.create(&object("rows")).await.unwrap();
        assert_eq!(staged(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn other_content_is_never_overwritten() {
        let dir = TempDir::new().unwrap();
        let folder = folder(&dir);
        folder.create(&object("rows")).await.unwrap();
        for other in ["swor", "more rows"] {
            let error = folder.create(&object(other)).await.unwrap_err();
            assert_eq!(error.fault(), Fault::Permanent);
            assert!(error.to_string().ends_with("exists with other content than its name says"), "{error}");
        }
        assert_eq!(fs::read_to_string(folder.root.join(KEY)).unwrap(), "rows");
        assert_eq!(staged(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn what_a_crash_left_behind_is_removed_but_nothing_of_others() {
        let dir = TempDir::new().unwrap();
        let mut folder = folder(&dir);
        folder.create(&object("rows")).await.unwrap();
        for name in ["iot-lake-new-00ff.tmp", "other-lake-new-00ff.tmp"] {
            fs::write(folder.root.join(STAGING).join(name), "half").unwrap();
        }
        folder.open().await.unwrap();
        assert_eq!(staged(&folder), ["other-lake-new-00ff.tmp"]);
        assert_eq!(fs::read_to_string(folder.root.join(KEY)).unwrap(), "rows", "objects are left alone");
    }

    #[tokio::test]
    async fn a_staging_folder_that_was_tidied_away_comes_back() {
        let dir = TempDir::new().unwrap();
        let mut folder = folder(&dir);
        folder.open().await.unwrap();
        fs::remove_dir_all(folder.root.join(STAGING)).unwrap();
        folder.create(&object("rows")).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_the_folder_needs_a_person() {
        let dir = TempDir::new().unwrap();
        let mut folder = folder(&dir);
        fs::write(&folder.root, "a file").unwrap();
        let error = folder.open().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().ends_with("A file is where a folder should be."), "{}", error.chain());
    }
}
