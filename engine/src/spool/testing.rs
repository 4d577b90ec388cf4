//! A disk in memory that forgets, tears, fills up and fails on demand: for tests of the spool and of
//! whatever stands on it.
//!
//! It keeps apart what was written from what is durable. [`SimulatedDisk::kill_process`] loses open
//! files and locks, nothing else; [`SimulatedDisk::cut_power`] also loses whatever was not synced,
//! in part and in any order, in sectors of 512 bytes. A failed sync behaves as on Linux: the bytes
//! can still be read, the next sync succeeds, and they are never written.
//!
//! All chance comes from the seed: the same calls give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;

use crate::storage::{Storage, StorageFile, StorageLock};

const SECTOR_BYTES: usize = 512;

/// The disk. Clones are the same disk; [`SimulatedDisk::copy`] is another.
#[derive(Clone)]
pub struct SimulatedDisk {
    shared: Arc<Mutex<Disk>>,
}

struct Disk {
    files: Vec<FileContent>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last sync of their directory. One entry is atomic.
    unsynced_names: Vec<Vec<(PathBuf, Option<usize>)>>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Open files and locks of an earlier process are void.
    process: u64,
    operations: u64,
    stop_at: Option<u64>,
    stopped: bool,
    stop: Arc<Notify>,
    failing_syncs: u32,
    failing_writes: u32,
    failing_reads: u32,
    forgetful_names: bool,
    capacity_bytes: u64,
    rng: StdRng,
}

#[derive(Clone, Default)]
struct FileContent {
    /// What a read gives.
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Written since the last sync.
    unsynced: Vec<Range<usize>>,
    /// Given up by a failed sync: visible, and never written by a later one.
    dropped: Vec<Range<usize>>,
}

impl SimulatedDisk {
    /// An empty disk of 1 GiB.
    pub fn new(seed: u64) -> Self {
        let disk = Disk {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            dirs: BTreeSet::new(),
            locks: BTreeSet::new(),
            process: 0,
            operations: 0,
            stop_at: None,
            stopped: false,
            stop: Arc::default(),
            failing_syncs: 0,
            failing_writes: 0,
            failing_reads: 0,
            forgetful_names: false,
            capacity_bytes: 1 << 30,
            rng: StdRng::seed_from_u64(seed),
        };
        Self { shared: Arc::new(Mutex::new(disk)) }
    }

    /// The disk for the process that runs now; void once [`SimulatedDisk::kill_process`] or
    /// [`SimulatedDisk::cut_power`] has ended it.
    pub fn mount(&self) -> Arc<dyn Storage> {
        Arc::new(Mount { shared: self.shared.clone(), process: self.lock().process })
    }

    /// Another disk with the same content, whose chance comes from another seed.
    pub fn copy(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        let (mut to, from) = (copy.lock(), self.lock());
        to.files.clone_from(&from.files);
        to.names.clone_from(&from.names);
        to.durable_names.clone_from(&from.durable_names);
        to.unsynced_names.clone_from(&from.unsynced_names);
        to.dirs.clone_from(&from.dirs);
        drop(to);
        copy
    }

    /// Ends the process as `kill -9` does: what was written stays visible, synced or not.
    pub fn kill_process(&self) {
        self.lock().end_process();
    }

    /// Ends the machine: of what was not synced, any part may be there afterwards.
    pub fn cut_power(&self) {
        let mut disk = self.lock();
        disk.end_process();
        disk.forget_unsynced();
    }

    /// The operation of this number, counted from 1, and all after it fail, until the process or
    /// the power ends. Whether that operation still has its effect is left to chance.
    pub fn stop_at(&self, operation: u64) {
        self.lock().stop_at = Some(operation);
    }

    /// The process has come to the operation that it ends at.
    pub fn has_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Resolves when the process has come to the operation that it ends at.
    pub async fn stopped(&self) {
        let stop = self.lock().stop.clone();
        stop.notified().await;
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The next so many syncs of files fail.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().failing_syncs = count;
    }

    /// The next so many writes fail after a part of the bytes.
    pub fn fail_writes(&self, count: u32) {
        self.lock().failing_writes = count;
    }

    /// The next so many reads of files fail, whatever they read.
    pub fn fail_reads(&self, count: u32) {
        self.lock().failing_reads = count;
    }

    /// Directories are no longer synced though they say so.
    pub fn forget_names(&self) {
        self.lock().forgetful_names = true;
    }

    /// How much all files may take.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity_bytes = bytes;
    }

    /// How much all files take.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// All files by name, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let disk = self.lock();
        disk.names.iter().map(|(path, file)| (path.clone(), disk.files[*file].visible.len())).collect()
    }

    /// Turns one bit around, for readers at once and for good.
    ///
    /// # Panics
    /// There is no such file or bit: the test's own mistake.
    pub fn flip_bit(&self, path: &Path, bit: usize) {
        let mut disk = self.lock();
        let file = disk.names[path];
        let content = &mut disk.files[file];
        content.visible[bit / 8] ^= 1 << (bit % 8);
        if let Some(byte) = content.durable.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Cuts a file short.
    ///
    /// # Panics
    /// There is no such file: the test's own mistake.
    pub fn truncate(&self, path: &Path, bytes: usize) {
        let mut disk = self.lock();
        let file = disk.names[path];
        let content = &mut disk.files[file];
        content.visible.truncate(bytes);
        content.durable.truncate(bytes);
        content.unsynced.retain(|range| range.end <= bytes);
    }

    /// Deletes a file behind everybody's back.
    pub fn lose_file(&self, path: &Path) {
        let mut disk = self.lock();
        disk.names.remove(path);
        disk.durable_names.remove(path);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedDisk").finish_non_exhaustive()
    }
}

/// Whether an operation is the one that the process ends in.
enum Fate {
    Lives,
    /// Has its effect, and nobody learns of it.
    DiesAfter,
}

impl Disk {
    fn begin(&mut self) -> io::Result<Fate> {
        self.operations += 1;
        if self.stopped {
            return Err(stopped());
        }
        if self.stop_at.is_some_and(|at| self.operations >= at) {
            self.stopped = true;
            self.stop.notify_one();
            return if self.rng.random() { Ok(Fate::DiesAfter) } else { Err(stopped()) };
        }
        Ok(Fate::Lives)
    }

    fn end_process(&mut self) {
        self.process += 1;
        self.locks.clear();
        if self.stopped {
            (self.stop_at, self.stopped) = (None, false);
            self.stop = Arc::default();
        }
        (self.failing_syncs, self.failing_writes, self.failing_reads) = (0, 0, 0);
    }

    fn forget_unsynced(&mut self) {
        let rng = &mut self.rng;
        for file in &mut self.files {
            file.forget_unsynced(rng);
        }
        for changes in std::mem::take(&mut self.unsynced_names) {
            if self.rng.random() {
                apply(&mut self.durable_names, changes);
            }
        }
        self.names = self.durable_names.clone();
    }

    fn rename_all(&mut self, changes: Vec<(PathBuf, Option<usize>)>) {
        apply(&mut self.names, changes.clone());
        self.unsynced_names.push(changes);
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].visible.len() as u64).sum()
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl FileContent {
    fn forget_unsynced(&mut self, rng: &mut StdRng) {
        let lost_share: f64 = [0.0, 0.5, 1.0][rng.random_range(0..3)];
        let mut content = std::mem::take(&mut self.durable);
        for range in self.unsynced.drain(..).chain(self.dropped.drain(..)) {
            let mut at = range.start;
            while at < range.end {
                let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(range.end).min(self.visible.len());
                if !rng.random_bool(lost_share) && at < end {
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    content[at..end].copy_from_slice(&self.visible[at..end]);
                }
                at = end.max(at + 1);
            }
        }
        self.visible = content.clone();
        self.durable = content;
    }

    fn sync(&mut self) {
        for range in std::mem::take(&mut self.unsynced) {
            if self.durable.len() < range.end {
                self.durable.resize(range.end, 0);
            }
            self.durable[range.clone()].copy_from_slice(&self.visible[range]);
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, changes: Vec<(PathBuf, Option<usize>)>) {
    for (path, file) in changes {
        match file {
            Some(file) => names.insert(path, file),
            None => names.remove(&path),
        };
    }
}

fn stopped() -> io::Error {
    io::Error::other("the simulated process has ended")
}

fn finish(fate: Fate) -> io::Result<()> {
    match fate {
        Fate::Lives => Ok(()),
        Fate::DiesAfter => Err(stopped()),
    }
}

/// The disk as one process sees it.
struct Mount {
    shared: Arc<Mutex<Disk>>,
    process: u64,
}

/// Starts an operation of a process, unless that has ended.
fn begin(shared: &Mutex<Disk>, process: u64) -> io::Result<(MutexGuard<'_, Disk>, Fate)> {
    let mut disk = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if disk.process != process {
        return Err(stopped());
    }
    let fate = disk.begin()?;
    Ok((disk, fate))
}

impl Mount {
    fn begin(&self) -> io::Result<(MutexGuard<'_, Disk>, Fate)> {
        begin(&self.shared, self.process)
    }

    fn file(&self, file: usize) -> Box<dyn StorageFile> {
        Box::new(SimulatedFile { shared: self.shared.clone(), file, process: self.process })
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Storage for Mount {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        // Directories are durable at once: the real one syncs their parents.
        disk.dirs.insert(dir.to_owned());
        finish(fate)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let (mut disk, fate) = self.begin()?;
        let file = disk.files.len();
        disk.files.push(FileContent::default());
        disk.rename_all(vec![(path.to_owned(), Some(file))]);
        finish(fate)?;
        Ok(self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let (disk, fate) = self.begin()?;
        finish(fate)?;
        let file = disk.find(path)?;
        Ok(self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        let file = disk.find(from)?;
        disk.rename_all(vec![(to.to_owned(), Some(file)), (from.to_owned(), None)]);
        finish(fate)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        disk.find(path)?;
        disk.rename_all(vec![(path.to_owned(), None)]);
        finish(fate)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let (disk, fate) = self.begin()?;
        finish(fate)?;
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        if !disk.forgetful_names {
            let inside =
                |changes: &Vec<(PathBuf, Option<usize>)>| changes.iter().any(|(path, _)| path.parent() == Some(dir));
            let (synced, others) = std::mem::take(&mut disk.unsynced_names).into_iter().partition(inside);
            disk.unsynced_names = others;
            let synced: Vec<_> = synced;
            for changes in synced {
                apply(&mut disk.durable_names, changes);
            }
        }
        finish(fate)
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        let (disk, fate) = self.begin()?;
        finish(fate)?;
        Ok(disk.capacity_bytes.saturating_sub(disk.used_bytes()))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        let (mut disk, fate) = self.begin()?;
        finish(fate)?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimulatedLock { shared: self.shared.clone(), path: path.to_owned(), process: self.process }))
    }
}

struct SimulatedLock {
    shared: Arc<Mutex<Disk>>,
    path: PathBuf,
    process: u64,
}

impl StorageLock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut disk = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.process == self.process {
            disk.locks.remove(&self.path);
        }
    }
}

struct SimulatedFile {
    shared: Arc<Mutex<Disk>>,
    file: usize,
    process: u64,
}

impl SimulatedFile {
    fn begin(&self) -> io::Result<(MutexGuard<'_, Disk>, Fate)> {
        begin(&self.shared, self.process)
    }
}

impl StorageFile for SimulatedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        let free = usize::try_from(disk.capacity_bytes.saturating_sub(disk.used_bytes())).unwrap_or(usize::MAX);
        let mut written = bytes.len().min(free);
        let mut outcome = if written < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { finish(fate) };
        if disk.failing_writes > 0 {
            disk.failing_writes -= 1;
            outcome = Err(io::Error::other("simulated write error"));
        }
        if outcome.is_err() {
            written = disk.rng.random_range(0..=written);
        }
        let content = &mut disk.files[self.file];
        let start = content.visible.len();
        content.visible.extend_from_slice(&bytes[..written]);
        content.unsynced.push(start..start + written);
        outcome
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let (mut disk, fate) = self.begin()?;
        if disk.failing_syncs > 0 {
            disk.failing_syncs -= 1;
            let content = &mut disk.files[self.file];
            let unsynced = std::mem::take(&mut content.unsynced);
            content.dropped.extend(unsynced);
            return Err(io::Error::other("simulated sync error"));
        }
        disk.files[self.file].sync();
        finish(fate)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut disk, fate) = self.begin()?;
        finish(fate)?;
        if disk.failing_reads > 0 {
            disk.failing_reads -= 1;
            return Err(io::Error::other("simulated read error"));
        }
        let visible = &disk.files[self.file].visible;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(visible.len());
        let count = buffer.len().min(visible.len() - start);
        buffer[..count].copy_from_slice(&visible[start..start + count]);
        Ok(count)
    }

    fn bytes(&self) -> io::Result<u64> {
        let (disk, fate) = self.begin()?;
        finish(fate)?;
        Ok(disk.files[self.file].visible.len() as u64)
    }
}
