//! Keeps a table as its file is: a thread that looks at the file now and then.
//!
//! The running stage takes the table of the moment with one lock and no wait: the lock is held for the
//! exchange of a pointer, never while a file is read.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pipeline_engine::Counter;
use pipeline_engine::stage::StageError;

use super::table::{Table, TableSpec};

/// How often the file is looked at. A change counts once it has been the same for two looks.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Reloads {
    pub(super) done: Counter,
    pub(super) failed: Counter,
}

/// A table that follows its file until it is dropped.
pub(super) struct WatchedTable {
    current: Arc<Mutex<Arc<Table>>>,
    /// Dropped with the table, which ends the thread.
    _stop: mpsc::Sender<()>,
}

impl WatchedTable {
    /// Reads the table and starts to watch its file.
    ///
    /// # Errors
    /// Permanent: the table can't be read.
    pub(super) fn open(spec: Arc<TableSpec>, reloads: Reloads, every: Duration) -> Result<Self, StageError> {
        let mut watcher = Watcher::open(spec, reloads)?;
        let current = watcher.current.clone();
        let (stop, stopped) = mpsc::channel();
        let watch = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                watcher.look();
            }
        };
        let thread = std::thread::Builder::new().name("enrich-table".to_owned()).spawn(watch);
        thread.map_err(|error| StageError::permanent("no thread could be started").because(error))?;
        Ok(Self { current, _stop: stop })
    }

    /// The table of the moment.
    pub(super) fn current(&self) -> Arc<Table> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

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

/// The thread's own side.
struct Watcher {
    spec: Arc<TableSpec>,
    current: Arc<Mutex<Arc<Table>>>,
    reloads: Reloads,
    /// The state of the file that was dealt with, whether it could be read or not.
    settled: Option<Stamp>,
    /// The state at the last look.
    seen: Option<Stamp>,
}

impl Watcher {
    fn open(spec: Arc<TableSpec>, reloads: Reloads) -> Result<Self, StageError> {
        // Before it is read: a change while it is read shows as one.
        let stamp = Stamp::of(&spec.path);
        let table = spec.load()?;
        tracing::info!(table = %spec.path.display(), rows = table.rows(), "table read");
        let current = Arc::new(Mutex::new(Arc::new(table)));
        Ok(Self { spec, current, reloads, settled: stamp, seen: stamp })
    }

    /// Reads the file again if it has changed and is at rest: the same as at the last look.
    fn look(&mut self) {
        let stamp = Stamp::of(&self.spec.path);
        let is_at_rest = stamp == self.seen;
        self.seen = stamp;
        if stamp == self.settled || !is_at_rest {
            return;
        }
        self.settled = stamp;
        match self.spec.load() {
            Ok(table) => {
                tracing::info!(table = %self.spec.path.display(), rows = table.rows(), "table read again");
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
                self.reloads.done.increment();
            }
            Err(error) => {
                tracing::error!(error = error.chain(), "the old table stays, the new one can't be read");
                self.reloads.failed.increment();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use arrow::array::AsArray;
    use pipeline_engine::schema::ColumnType;
    use pipeline_engine::stage::Fault;

    use super::*;
    use crate::transforms::enrich::table::TableFormat;

    struct Fixture {
        folder: tempfile::TempDir,
        spec: Arc<TableSpec>,
        reloads: Reloads,
    }

    impl Fixture {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let spec = TableSpec {
                path: folder.path().join("devices.csv"),
                format: TableFormat::Csv,
                key: "id".to_owned(),
                is_text_key: true,
                columns: vec![("site".to_owned(), ColumnType::Text)],
                bytes_max: 1 << 20,
            };
            let fixture = Self { folder, spec: Arc::new(spec), reloads: Reloads::default() };
            fixture.write(text);
            fixture
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("devices.csv")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).unwrap();
        }

        fn watcher(&self) -> Watcher {
            Watcher::open(self.spec.clone(), self.reloads.clone()).unwrap()
        }

        fn counts(&self) -> (u64, u64) {
            (self.reloads.done.get(), self.reloads.failed.get())
        }
    }

    fn first_site(current: &Mutex<Arc<Table>>) -> String {
        current.lock().unwrap().columns[0].as_string::<i32>().value(0).to_owned()
    }

    #[test]
    fn a_changed_file_is_read_once_it_is_at_rest() {
        let fixture = Fixture::new("id,site\na,north\n");
        let mut watcher = fixture.watcher();
        watcher.look();
        fixture.write("id,site\na,southern\n");
        watcher.look();
        assert_eq!(first_site(&watcher.current), "north", "it may still be growing");
        fixture.write("id,site\na,southern\nb,north\n");
        watcher.look();
        assert_eq!(first_site(&watcher.current), "north", "it was");
        watcher.look();
        assert_eq!(first_site(&watcher.current), "southern");
        watcher.look();
        assert_eq!(fixture.counts(), (1, 0), "it is read once for each change");
    }

    #[test]
    fn a_broken_or_missing_new_file_keeps_the_old_table() {
        let fixture = Fixture::new("id,site\na,north\n");
        let mut watcher = fixture.watcher();
        fixture.write("id,site\na,south\na,south again\n");
        (0..4).for_each(|_| watcher.look());
        assert_eq!(fixture.counts(), (0, 1), "it is told once for each change");
        fs::remove_file(fixture.path()).unwrap();
        (0..4).for_each(|_| watcher.look());
        assert_eq!(fixture.counts(), (0, 2));
        assert_eq!(first_site(&watcher.current), "north");
        fixture.write("id,site\na,mended\n");
        (0..4).for_each(|_| watcher.look());
        assert_eq!((first_site(&watcher.current).as_str(), fixture.counts()), ("mended", (1, 2)));
    }

    #[test]
    fn the_thread_follows_the_file_until_the_table_is_dropped() {
        let fixture = Fixture::new("id,site\na,north\n");
        let every = Duration::from_millis(1);
        let watched = WatchedTable::open(fixture.spec.clone(), fixture.reloads.clone(), every).unwrap();
        fixture.write("id,site\na,southern\n");
        let deadline = Instant::now() + Duration::from_secs(60);
        while watched.current().columns[0].as_string::<i32>().value(0) != "southern" {
            assert!(Instant::now() < deadline, "the change was not seen");
            std::thread::yield_now();
        }
        let weak = Arc::downgrade(&watched.current);
        drop(watched);
        while weak.upgrade().is_some() {
            assert!(Instant::now() < deadline, "the thread goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_missing_file_at_the_start_needs_a_person() {
        let fixture = Fixture::new("");
        fs::remove_file(fixture.path()).unwrap();
        let Err(error) = WatchedTable::open(fixture.spec.clone(), Reloads::default(), EVERY) else {
            panic!("must be refused")
        };
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains("devices.csv\": can't be opened: No such file"), "{}", error.chain());
    }
}
