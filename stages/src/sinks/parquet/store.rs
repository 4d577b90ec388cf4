//! What the sink asks of the place where its objects lie.

use async_trait::async_trait;
use bytes::Bytes;
use pipeline_engine::stage::{Examination, StageError};

/// One file on its way to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// Folders and name, below the sink's own prefix. Values of rows in it are escaped (see [`super::layout`]).
    pub(super) key: String,
    /// The whole file.
    pub(super) content: Bytes,
}

/// Who keeps an object from being replaced by another of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// The store: it creates an object only where none is.
    Store,
    /// The sink, which looks first: the store replaces what is there. Good for one writer alone.
    Sink,
}

/// A place where objects are created, each at once or not at all.
#[async_trait]
pub(super) trait Store: Send + Sync {
    /// Reaches the place and finds out whether and how objects can be created there.
    async fn open(&mut self) -> Result<Guard, StageError>;

    /// Looks at all that creating and reading back objects needs, for `pipeline doctor`; leaves nothing behind.
    /// Opening writes a probe and removes it, which is all there is to know of a folder.
    async fn examine(&mut self, report: &Examination) {
        report.begin("folder");
        match self.open().await {
            Ok(_) => report.pass("folder", "files can be written and linked there"),
            Err(error) => report.fail("folder", &error),
        }
    }

    /// The object is there and durable on return. One with the same content that is there already
    /// counts; one with other content is never overwritten.
    async fn create(&self, object: &Object) -> Result<(), StageError>;

    /// A way to read back what lies there; `None` if there is none.
    fn reader(&self) -> Option<Box<dyn Reader>> {
        None
    }

    /// What several workers need of the place besides; `None` of one that is this machine's alone.
    fn records(&self) -> Option<&dyn Records> {
        None
    }

    /// Finds out, once the place is open, whether it keeps records as [`Records::swap`] says.
    ///
    /// # Errors
    /// Permanent where it doesn't.
    async fn open_records(&mut self) -> Result<(), StageError> {
        Err(StageError::bug("a place that is this machine's alone was opened for several workers"))
    }
}

/// Small objects that are changed by whoever has seen them last, and files that are set aside for a while. Keys are those of
/// [`Object`]s; each request is all or nothing, and one that fails may have been carried out nevertheless.
#[async_trait]
pub(super) trait Records: Send + Sync {
    /// A record or a file, `bytes` of it at most where that is known, and what it is told apart from later ones by; `None` if it is
    /// not there.
    async fn read(&self, key: &str, bytes: usize) -> Result<Option<(Bytes, Version)>, StageError>;

    /// Puts a record in the place of the one that was seen last, or with `None` where none was. `None` in return: another one is
    /// there, or being written, and nothing was changed.
    async fn swap(&self, key: &str, content: Bytes, seen: Option<&Version>) -> Result<Option<Version>, StageError>;

    /// Sets a file aside, which consists of these parts. Its name says what is in it: one of that name and size that is there
    /// already counts.
    async fn put(&self, key: &str, parts: Vec<Bytes>) -> Result<(), StageError>;

    /// Removes a record or a file. That it is not there is as good.
    async fn remove(&self, key: &str) -> Result<(), StageError>;

    /// The keys below a folder.
    async fn list_below(&self, folder: &str) -> Result<Vec<String>, StageError>;
}

/// What a content of a record is told apart from other contents by: an ETag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version(pub(super) String);

/// Reads what a sink has created, changing nothing. Connects when it is first asked something.
#[async_trait]
pub(super) trait Reader: Send + Sync {
    /// The place, for a person.
    fn place(&self) -> String;

    /// All objects there are now, those of others too, in any order.
    async fn list(&mut self) -> Result<Vec<Listed>, StageError>;

    /// The keys of all objects there are now, those of others too, in any order.
    async fn keys(&mut self) -> Result<Vec<String>, StageError> {
        Ok(self.list().await?.into_iter().map(|listed| listed.key).collect())
    }

    /// The content of an object; `None` if it is gone.
    async fn get(&mut self, key: &str) -> Result<Option<Bytes>, StageError>;
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    /// When it was made, by the store's clock; microseconds since 1970.
    pub(super) made_at_us: i64,
}

/// The key is taken by something that is not ours.
pub(super) fn taken(key: &str) -> StageError {
    StageError::permanent(format!("\"{key}\" exists with other content than its name says"))
        .hint("It was damaged or written by somebody else. Move it away, then start again: nothing was overwritten.")
}
