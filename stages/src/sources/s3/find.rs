//! Finds objects and gives them numbers.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::ObjectStore;
use pipeline_engine::Backoff;
use pipeline_engine::stage::{Fault, SourceContext, StageError};
use pipeline_engine::storage::Storage;
use tokio::sync::mpsc;

use super::ledger::{Entry, Ledger, LedgerError, Object};
use super::patience::Patience;
use super::place::{Place, object_of};

/// Objects that get their numbers by one sync to disk.
const ADMITTED_AT_ONCE: usize = 256;
/// A run that has just ended may still hold the ledger for so many tenths of a second.
const LOCKED_ATTEMPTS: u32 = 20;

/// The ledger, for whoever may block on it beside the runtime.
#[derive(Clone)]
pub(super) struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// Opens the ledger. Gives the objects behind those that are known to be done.
    ///
    /// # Errors
    /// It can't be used.
    pub(super) async fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<(Self, Vec<Entry>), StageError> {
        let mut attempts = 0;
        loop {
            let (storage, place) = (storage.clone(), dir.to_owned());
            let opened = tokio::task::spawn_blocking(move || Ledger::open(storage, &place)).await;
            match opened.map_err(|error| StageError::bug("opening the ledger panicked").because(error))? {
                Ok((ledger, entries)) => return Ok((Self(Arc::new(Mutex::new(ledger))), entries)),
                Err(LedgerError::Locked) if attempts < LOCKED_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(unusable(dir, error)),
            }
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch()
    }

    /// How many objects have numbers.
    pub(super) fn count(&self) -> u64 {
        self.lock().count()
    }

    fn number_of(&self, object: &Object) -> Option<u64> {
        self.lock().number_of(&object.key, &object.etag)
    }

    /// Gives numbers to objects that are new; waits for a disk that is full.
    async fn admit(&self, objects: Vec<Object>, patience: &Patience) -> Result<Vec<Entry>, StageError> {
        let mut patience = patience.with(Backoff::new(Duration::from_millis(100), Duration::from_secs(5)));
        loop {
            let wanted = objects.clone();
            match self.beside(move |ledger| ledger.admit(wanted)).await? {
                Ok(entries) => return Ok(entries),
                Err(error) => {
                    let error = StageError::transient("the ledger of objects could not be written").because(error);
                    patience.wait_after(&error).await;
                }
            }
        }
    }

    /// Notes that all objects up to this one are stored. A failure is told and costs a later reading, no more.
    pub(super) async fn mark_done(&self, number: u64, stage: &str) -> Result<(), StageError> {
        if let Err(error) = self.beside(move |ledger| ledger.mark_done(number)).await? {
            tracing::warn!(stage, %error, "the ledger of objects could not be written: a restart reads some of them again");
        }
        Ok(())
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> io::Result<T> + Send + 'static,
    ) -> Result<io::Result<T>, StageError> {
        let shared = self.clone();
        tokio::task::spawn_blocking(move || work(&mut shared.lock()))
            .await
            .map_err(|error| StageError::bug("the ledger panicked").because(error))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unusable(dir: &Path, error: LedgerError) -> StageError {
    let hint = match &error {
        LedgerError::Locked => "Is this pipeline running already? A second one needs a `data_dir` of its own.",
        LedgerError::Damaged { .. } => {
            "Move the file \"objects\" there away: all objects are then read again, and the sinks' keys make one row of two."
        }
        LedgerError::Io(_) => "Set `data_dir` in [pipeline] to a folder on a local disk that this user may write to.",
    };
    StageError::permanent(format!("can't use the ledger of objects in \"{}\"", dir.display())).because(error).hint(hint)
}

/// Where objects get their numbers and go in to be read, in the order of these, whoever finds them.
pub(super) struct Door {
    patience: Patience,
    ledger: SharedLedger,
    found: tokio::sync::Mutex<mpsc::Sender<Entry>>,
}

impl Door {
    pub(super) fn new(patience: Patience, ledger: SharedLedger, found: mpsc::Sender<Entry>) -> Self {
        Self { patience, ledger, found: tokio::sync::Mutex::new(found) }
    }

    /// Lets in what is new. Gives the highest number of these objects, 0 if there are none; `None` where nobody wants
    /// objects any more.
    ///
    /// # Errors
    /// The ledger can't be used.
    pub(super) async fn let_in(&self, objects: Vec<Object>) -> Result<Option<u64>, StageError> {
        // Held to the end: numbers go in as they are given.
        let found = self.found.lock().await;
        let known = objects.iter().filter_map(|object| self.ledger.number_of(object)).max().unwrap_or(0);
        let fresh = self.ledger.admit(objects, &self.patience).await?;
        let last = fresh.last().map_or(0, |entry| entry.number);
        for entry in fresh {
            if found.send(entry).await.is_err() {
                return Ok(None);
            }
        }
        Ok((!found.is_closed()).then_some(known.max(last)))
    }

    fn is_known(&self, object: &Object) -> bool {
        self.ledger.number_of(object).is_some()
    }
}

/// Looks for objects by listing.
pub(super) struct Listing {
    pub(super) patience: Patience,
    pub(super) place: Place,
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) door: Arc<Door>,
    /// `None`: once.
    pub(super) poll: Option<Duration>,
}

impl Listing {
    /// Lets in objects as they are found, until there will be no more or nobody wants them.
    ///
    /// # Errors
    /// What does not pass.
    pub(super) async fn run(self) -> Result<(), StageError> {
        loop {
            if !self.pass().await? {
                return Ok(());
            }
            let Some(poll) = self.poll else { return Ok(()) };
            tokio::time::sleep(poll).await;
        }
    }

    /// One listing to its end. Answers whether objects are still wanted.
    async fn pass(&self) -> Result<bool, StageError> {
        let mut patience = self.patience.clone();
        loop {
            match self.list().await {
                Ok(is_wanted) => return Ok(is_wanted),
                // From the start again: what was found has its number.
                Err(error) if error.fault() == Fault::Transient => patience.wait_after(&error).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn list(&self) -> Result<bool, StageError> {
        let mut listed = self.place.list(&self.client);
        let mut fresh = Vec::new();
        loop {
            let next = listed.try_next().await.map_err(|error| self.place.failed("listed", error))?;
            let is_last = next.as_ref().is_none_or(|meta| self.place.is_beyond(meta.location.as_ref()));
            if let Some(object) = next.as_ref().and_then(object_of)
                && self.place.holds(&object.key)
                && !self.door.is_known(&object)
            {
                fresh.push(object);
            }
            if fresh.len() < ADMITTED_AT_ONCE && !is_last {
                continue;
            }
            let is_wanted = self.door.let_in(std::mem::take(&mut fresh)).await?.is_some();
            if is_last || !is_wanted {
                return Ok(is_wanted);
            }
        }
    }
}

/// Connects, and waits for whatever passes.
///
/// # Errors
/// What does not pass; `None` where the source is asked to stop first.
pub(super) async fn connect(
    cx: &SourceContext,
    place: &Place,
    mut patience: Patience,
) -> Result<Option<Arc<dyn ObjectStore>>, StageError> {
    loop {
        match place.connect().await {
            Ok(client) => return Ok(Some(client)),
            Err(error) if error.fault() != Fault::Transient => return Err(error),
            Err(error) => tokio::select! {
                () = patience.wait_after(&error) => {}
                () = cx.stop_requested() => return Ok(None),
            },
        }
    }
}
