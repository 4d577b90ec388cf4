//! The seam between the engine and the disk: everything that spools, checkpoints and journals ask of a
//! filesystem, and no more.
//!
//! [`FsStorage`] is the real one; [`SimulatedDisk`](crate::spool::testing::SimulatedDisk) forgets, tears
//! and lies as disks do. Whoever writes relies on exactly what stands at each method, in particular that
//! a name is durable only after [`Storage::sync_dir`] and bytes only after
//! [`StorageFile::sync_data`].

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A filesystem. All calls block.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Makes a directory and those above it, durably; fine if it is there.
    ///
    /// # Errors
    /// As the filesystem says.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// A new empty file for appending; one of that name is emptied first.
    ///
    /// # Errors
    /// As the filesystem says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// An existing file for reading.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or as the filesystem says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Gives a file another name of the same directory, in place of any that has it. Atomic.
    ///
    /// # Errors
    /// As the filesystem says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away; readers that have it open go on.
    ///
    /// # Errors
    /// As the filesystem says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a directory, in any order.
    ///
    /// # Errors
    /// As the filesystem says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// On return every name created, changed or removed in the directory before is durable.
    ///
    /// # Errors
    /// Whether the names are durable is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be written to the filesystem of `dir`.
    ///
    /// # Errors
    /// It can't be known.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;

    /// Takes the lock file for this process until the returned value is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it, or as the filesystem says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>>;
}

/// A lock that is held until it is dropped.
pub trait StorageLock: Send + Sync {}

/// An open file.
pub trait StorageFile: Send + Sync {
    /// Writes all bytes at the end.
    ///
    /// # Errors
    /// Any part of them may then be in the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// On return all bytes appended so far are durable, though not the file's name.
    ///
    /// # Errors
    /// The unsynced bytes may be lost for good, even if a later call succeeds and even if they can
    /// still be read: never retried.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Fills the buffer from `offset`; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// As the filesystem says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// The length of the file.
    ///
    /// # Errors
    /// As the filesystem says.
    fn bytes(&self) -> io::Result<u64>;
}

/// The filesystem of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct FsStorage;

impl Storage for FsStorage {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.create_dir(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(parent),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Asks `df`, as the standard library has no statvfs: a few milliseconds, so not for each group.
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        let mut df = Command::new("df");
        df.args(["-Pk", "--"]).arg(dir).stdin(Stdio::null()).stderr(Stdio::null());
        let answer = df.output()?.stdout;
        free_space_in(&String::from_utf8_lossy(&answer))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "df gave no answer that can be read"))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(Box::new(file))
    }
}

/// The column before the only one in percent, since names may hold spaces on both sides of them.
fn free_space_in(answer: &str) -> Option<u64> {
    let columns: Vec<&str> = answer.lines().nth(1)?.split_whitespace().collect();
    let used = columns.iter().position(|column| column.ends_with('%'))?;
    columns.get(used.checked_sub(1)?)?.parse::<u64>().ok()?.checked_mul(1024)
}

impl StorageLock for File {}

impl StorageFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// A file that replaces another at once or not at all: written beside it, synced, renamed, and its
/// name synced.
///
/// # Errors
/// As the filesystem says. The file then holds what it did, or all that is new.
pub fn replace(storage: &dyn Storage, dir: &Path, name: &str, parts: &[&[u8]]) -> io::Result<Box<dyn StorageFile>> {
    let beside = dir.join(format!("{name}.tmp"));
    let written = (|| {
        let mut file = storage.create(&beside)?;
        for part in parts {
            file.append(part)?;
        }
        file.sync_data()?;
        storage.rename(&beside, &dir.join(name))?;
        storage.sync_dir(dir)?;
        Ok(file)
    })();
    if written.is_err() {
        // If this fails too, the next attempt or the next start takes the file away.
        drop(storage.remove(&beside));
    }
    written
}

/// All bytes of a file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`], or as the filesystem says.
pub fn read_all(storage: &dyn Storage, path: &Path) -> io::Result<Vec<u8>> {
    let file = storage.open(path)?;
    let len = usize::try_from(file.bytes()?).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; len];
    let filled = file.read_at(0, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_read_from_names_with_spaces() {
        let answer =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n//nas/my disk 100 40 60 40% /mnt/my disk\n";
        assert_eq!(free_space_in(answer), Some(60 * 1024));
        assert_eq!(free_space_in("nonsense"), None);
    }

    #[test]
    fn this_filesystem_has_free_space() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(FsStorage.free_space(dir.path()).expect("an answer") > 0);
    }
}
