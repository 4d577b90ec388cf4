//! Keeps a table as it is outside: a thread that looks there now and then.
//!
//! The running stage takes the table of the moment with one lock and no wait: the lock is held for the
//! exchange of a pointer, never while a table is read. What goes wrong after the first reading is told here, and
//! leaves the old table in place.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};

use pipeline_engine::Counter;
use pipeline_engine::stage::{BuildContext, Fault, StageError};
use tokio::runtime::{Builder, Runtime};

use super::fetch::{Content, Fetcher};
use super::place::Place;

/// What is counted.
#[derive(Debug, Clone, Default)]
pub(in crate::transforms) struct Reloads {
    pub done: Counter,
    pub failed: Counter,
}

impl Reloads {
    /// The stage's own counters.
    pub fn of(cx: &BuildContext) -> Self {
        Self { done: cx.counter("reloads"), failed: cx.counter("reload_failures") }
    }
}

/// A table in memory, made of what was read.
pub(in crate::transforms) trait Loaded: Sized + Send + Sync + 'static {
    /// What it must hold.
    type Spec: Send + Sync + 'static;

    /// Makes the table.
    ///
    /// # Errors
    /// Permanent: it breaks a rule that the spec has for it.
    fn load(spec: &Self::Spec, content: Content) -> Result<Self, StageError>;

    /// How many entries it has, for the log.
    fn rows(&self) -> usize;
}

/// A table that is read when it is first asked for, and follows its place from then on until it is dropped.
pub(in crate::transforms) struct Followed<T: Loaded> {
    place: Arc<Place>,
    spec: Arc<T::Spec>,
    reloads: Reloads,
    open: Option<Open<T>>,
}

struct Open<T> {
    current: Arc<Mutex<Arc<T>>>,
    /// Dropped with the table, which ends the thread.
    _stop: mpsc::Sender<()>,
}

impl<T: Loaded> Followed<T> {
    pub fn unread(place: Arc<Place>, spec: T::Spec, reloads: Reloads) -> Self {
        Self { place, spec: Arc::new(spec), reloads, open: None }
    }

    pub fn spec(&self) -> &T::Spec {
        &self.spec
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The table of the moment. Waits where it has not been read yet.
    ///
    /// # Errors
    /// It can't be read; the next call tries again. Transient: what holds it is away.
    pub fn current(&mut self) -> Result<Arc<T>, StageError> {
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::start(&self.place, &self.spec, &self.reloads)?),
        };
        Ok(open.current.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Reads the table, for `pipeline check --connect`.
    ///
    /// # Errors
    /// Why it can't be read now.
    pub fn probe(&mut self) -> Result<String, StageError> {
        let table = self.current()?;
        Ok(format!("{}, rows: {}", self.place, table.rows()))
    }
}

impl<T: Loaded> Open<T> {
    /// Reads the table on a thread of its own, which then goes on to follow it: clients of databases and
    /// stores need a runtime, and a transform must not hold up the one that it runs on.
    fn start(place: &Arc<Place>, spec: &Arc<T::Spec>, reloads: &Reloads) -> Result<Self, StageError> {
        let (stop, stopped) = mpsc::channel();
        let (first, read) = mpsc::sync_channel(1);
        let (place, spec, reloads, every) = (place.clone(), spec.clone(), reloads.clone(), place.refresh);
        let follow = move || {
            let started = runtime().and_then(|runtime| {
                let follower = runtime.block_on(Follower::<T>::open(Fetcher::new(place), spec, reloads))?;
                Ok((runtime, follower))
            });
            let (runtime, mut follower) = match started {
                Ok(started) => started,
                Err(error) => return first.send(Err(error)).unwrap_or_default(),
            };
            // Nobody waits any more where the run was given up meanwhile; then `stopped` says so too.
            first.send(Ok(follower.current.clone())).ok();
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                runtime.block_on(follower.look());
            }
        };
        let thread = std::thread::Builder::new().name("table".to_owned()).spawn(follow);
        thread.map_err(|error| StageError::permanent("no thread could be started").because(error))?;
        let read = read.recv().map_err(|_| StageError::bug("reading the table panicked"))?;
        Ok(Self { current: read?, _stop: stop })
    }
}

fn runtime() -> Result<Runtime, StageError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| StageError::permanent("no runtime could be started").because(error))
}

/// The thread's own side.
struct Follower<T: Loaded> {
    fetcher: Fetcher,
    spec: Arc<T::Spec>,
    current: Arc<Mutex<Arc<T>>>,
    reloads: Reloads,
    /// What went wrong at the last look, to be told once.
    trouble: Option<Trouble>,
}

/// A library that takes a broken file for granted must not end the thread: nobody would follow the table any more.
fn load<T: Loaded>(spec: &T::Spec, content: Content) -> Result<T, StageError> {
    let loaded = catch_unwind(AssertUnwindSafe(|| T::load(spec, content)));
    loaded.unwrap_or_else(|_| Err(StageError::permanent("reading the table panicked: it may be damaged")))
}

struct Trouble {
    text: String,
    /// What holds the table is away: the next look that finds it ends the trouble, also if nothing has changed.
    is_passing: bool,
}

impl<T: Loaded> Follower<T> {
    async fn open(mut fetcher: Fetcher, spec: Arc<T::Spec>, reloads: Reloads) -> Result<Self, StageError> {
        let content = fetcher.fetch().await?;
        let content = content.ok_or_else(|| StageError::bug("a table was not read at the first look"))?;
        let table = load::<T>(&spec, content)?;
        tracing::info!(table = %fetcher.place(), rows = table.rows(), "table read");
        let current = Arc::new(Mutex::new(Arc::new(table)));
        Ok(Self { fetcher, spec, current, reloads, trouble: None })
    }

    /// Puts the new table in the place of the old one, if there is one and it is good.
    async fn look(&mut self) {
        let fetched = self.fetcher.fetch().await;
        match fetched.and_then(|content| content.map(|content| load::<T>(&self.spec, content)).transpose()) {
            Ok(Some(table)) => {
                tracing::info!(table = %self.fetcher.place(), rows = table.rows(), "table read again");
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
                self.reloads.done.increment();
                self.trouble = None;
            }
            Ok(None) if self.trouble.take_if(|trouble| trouble.is_passing).is_some() => {
                tracing::info!(table = %self.fetcher.place(), "the table can be read again, and is as it was");
            }
            Ok(None) => {}
            Err(error) => {
                self.reloads.failed.increment();
                self.tell(&error);
            }
        }
    }

    /// Tells of a failure that is not the same as at the last look.
    fn tell(&mut self, error: &StageError) {
        let text = error.chain();
        if self.trouble.as_ref().is_some_and(|trouble| trouble.text == text) {
            return tracing::debug!(error = text, "the old table stays");
        }
        let is_passing = error.fault() == Fault::Transient;
        if is_passing {
            tracing::warn!(error = text, "the old table stays until the new one can be read");
        } else {
            tracing::error!(error = text, "the old table stays, the new one can't be read");
        }
        self.trouble = Some(Trouble { text, is_passing });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;

    /// A table of text that must hold a word.
    struct Words(String);

    impl Loaded for Words {
        type Spec = &'static str;

        fn load(spec: &&'static str, content: Content) -> Result<Self, StageError> {
            let Content::Bytes(bytes) = content else { panic!("a file is bytes") };
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            assert!(!text.contains("panic"), "planned panic");
            if text.contains(spec) { Ok(Self(text)) } else { Err(StageError::permanent("it lacks the word")) }
        }

        fn rows(&self) -> usize {
            self.0.lines().count()
        }
    }

    struct Fixture {
        folder: tempfile::TempDir,
        reloads: Reloads,
    }

    impl Fixture {
        fn new(text: &str) -> Self {
            let fixture = Self { folder: tempfile::tempdir().unwrap(), reloads: Reloads::default() };
            fixture.write(text);
            fixture
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("words.txt")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).unwrap();
        }

        async fn follower(&self) -> Follower<Words> {
            let place = Place::file(self.path(), Duration::from_millis(1));
            Follower::open(Fetcher::new(place), Arc::new("north"), self.reloads.clone()).await.unwrap()
        }

        fn counts(&self) -> (u64, u64) {
            (self.reloads.done.get(), self.reloads.failed.get())
        }
    }

    fn text(follower: &Follower<Words>) -> String {
        follower.current.lock().unwrap().0.clone()
    }

    #[tokio::test]
    async fn a_changed_file_is_read_once_it_is_at_rest() {
        let fixture = Fixture::new("north");
        let mut follower = fixture.follower().await;
        follower.look().await;
        fixture.write("north and south");
        follower.look().await;
        assert_eq!(text(&follower), "north", "it may still be growing");
        fixture.write("north, south and west");
        follower.look().await;
        assert_eq!(text(&follower), "north", "it was");
        follower.look().await;
        assert_eq!(text(&follower), "north, south and west");
        follower.look().await;
        assert_eq!(fixture.counts(), (1, 0), "it is read once for each change");
    }

    #[tokio::test]
    async fn a_broken_or_missing_new_file_keeps_the_old_table() {
        let fixture = Fixture::new("north");
        let mut follower = fixture.follower().await;
        fixture.write("south alone");
        for _ in 0..4 {
            follower.look().await;
        }
        assert_eq!(fixture.counts(), (0, 1), "it is told once for each change");
        fs::remove_file(fixture.path()).unwrap();
        for _ in 0..4 {
            follower.look().await;
        }
        assert_eq!(fixture.counts(), (0, 2));
        fixture.write(&"north ".repeat(1 << 18));
        for _ in 0..4 {
            follower.look().await;
        }
        assert_eq!(fixture.counts(), (0, 3), "it is larger than a table may be");
        assert_eq!(text(&follower), "north");
        fixture.write("north panics");
        for _ in 0..4 {
            follower.look().await;
        }
        assert_eq!(fixture.counts(), (0, 4), "what reads it has a mistake");
        fixture.write("north, mended");
        for _ in 0..4 {
            follower.look().await;
        }
        assert_eq!((text(&follower).as_str(), fixture.counts()), ("north, mended", (1, 4)));
    }

    #[test]
    fn the_thread_follows_the_file_until_the_table_is_dropped() {
        let fixture = Fixture::new("north");
        let place = Place::file(fixture.path(), Duration::from_millis(1));
        let mut followed = Followed::<Words>::unread(place, "north", fixture.reloads.clone());
        assert_eq!(followed.current().unwrap().0, "north");
        fixture.write("north and south");
        let deadline = Instant::now() + Duration::from_secs(60);
        while followed.current().unwrap().0 == "north" {
            assert!(Instant::now() < deadline, "the change was not seen");
            std::thread::yield_now();
        }
        let weak = Arc::downgrade(&followed.open.as_ref().unwrap().current);
        drop(followed);
        while weak.upgrade().is_some() {
            assert!(Instant::now() < deadline, "the thread goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_missing_file_at_the_start_needs_a_person() {
        let fixture = Fixture::new("");
        fs::remove_file(fixture.path()).unwrap();
        let place = Place::file(fixture.path(), Duration::from_millis(1));
        let Err(error) = Followed::<Words>::unread(place, "north", Reloads::default()).current() else {
            panic!("must be refused")
        };
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains("words.txt\": can't be opened: No such file"), "{}", error.chain());
    }
}
