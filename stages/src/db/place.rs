//! Where backups and archives lie: a folder of this machine or a prefix of a bucket.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutPayload};
use pipeline_engine::stage::StageError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::s3::{S3Settings, fault};
use crate::sinks::parquet::Destination;

/// Read and written in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;
/// A dump of 10,000 pieces, as S3 bounds an upload, is 160 GiB large so.
const UPLOAD_BYTES: usize = 16 << 20;

/// A folder or a prefix of a bucket, reached.
pub struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    shown: String,
    kind: Kind,
}

enum Kind {
    Bucket(String),
    Folder(PathBuf),
}

/// How large something is, and its SHA-256 as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    pub bytes: u64,
    pub sha256: String,
}

/// Measures what passes by.
pub(super) struct Meter {
    bytes: u64,
    digest: Context,
}

impl Meter {
    pub fn new() -> Self {
        Self { bytes: 0, digest: Context::new(&SHA256) }
    }

    pub fn take(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.digest.update(piece);
    }

    pub fn end(self) -> Measured {
        Measured { bytes: self.bytes, sha256: hex(self.digest.finish().as_ref()) }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Place {
    /// `text` is `s3://bucket/prefix`, with AWS's own variables, or a folder, which is made if it is not there.
    ///
    /// # Errors
    /// It names no place, or the place can't be reached.
    pub async fn open(text: &str) -> Result<Self, StageError> {
        let destination = Destination::parse(text).map_err(|error| {
            let refused = StageError::permanent(error.message);
            match error.hint {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        })?;
        match destination {
            Destination::Bucket { name, prefix } => {
                let bucket = name.clone();
                let settings =
                    S3Settings { bucket, endpoint: None, region: None, allow_http: false, environment: None };
                let store = settings.connect_patiently().await?;
                Ok(Self { store, prefix, shown: text.to_owned(), kind: Kind::Bucket(name) })
            }
            Destination::Folder(folder) => {
                let made = std::fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
                let unusable = |error: Box<dyn std::error::Error + Send + Sync>| {
                    StageError::permanent(format!("the folder \"{}\" can't be used", folder.display())).because(error)
                };
                let folder = made.map_err(|error| unusable(error.into()))?;
                let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| unusable(error.into()))?;
                let (shown, prefix) = (folder.display().to_string(), Path::default());
                Ok(Self { store: Arc::new(store), prefix, shown, kind: Kind::Folder(folder) })
            }
        }
    }

    /// As its user named it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn path(&self, name: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(name).parts()))
    }

    fn failed(&self, verb: &str, error: Error) -> StageError {
        match &self.kind {
            Kind::Bucket(bucket) => fault::of(
                error,
                bucket,
                verb,
                "s3:PutObject, s3:GetObject, s3:ListBucket and s3:DeleteObject below the prefix",
            ),
            Kind::Folder(_) => StageError::permanent(format!("\"{}\" was not {verb}", self.shown)).because(error),
        }
    }

    /// Writes all that comes from `source`; whole and durable on return.
    pub(super) async fn upload(&self, name: &str, mut source: impl AsyncRead + Unpin) -> Result<Measured, StageError> {
        let path = self.path(name);
        let mut writer = BufWriter::with_capacity(self.store.clone(), path, UPLOAD_BYTES);
        let mut meter = Meter::new();
        let mut piece = vec![0; PIECE_BYTES];
        let written = async {
            loop {
                let read = source.read(&mut piece).await?;
                if read == 0 {
                    return writer.shutdown().await;
                }
                meter.take(&piece[..read]);
                writer.write_all(&piece[..read]).await?;
            }
        };
        if let Err(error) = written.await {
            // What came so far is no dump; a bucket would keep it, and count it, for good.
            drop(writer.abort().await);
            return Err(StageError::transient(format!("\"{name}\" was not written to {}", self.shown)).because(error));
        }
        self.settle(name).await?;
        Ok(meter.end())
    }

    /// Writes a small object, in the place of one of that name.
    pub(super) async fn put(&self, name: &str, content: Bytes) -> Result<(), StageError> {
        let put = self.store.put(&self.path(name), PutPayload::from(content)).await;
        put.map_err(|error| self.failed("written to", error))?;
        self.settle(name).await
    }

    /// A bucket has what it has said it has; a disk has it once it was told to.
    async fn settle(&self, name: &str) -> Result<(), StageError> {
        let Kind::Folder(folder) = &self.kind else { return Ok(()) };
        let path = folder.join(name);
        let synced = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&path)?.sync_all()?;
            std::fs::File::open(path.parent().unwrap_or_else(|| FilePath::new("/")))?.sync_all()
        });
        let synced = synced.await.map_err(|panic| StageError::bug("syncing a file panicked").because(panic))?;
        synced.map_err(|error| StageError::permanent(format!("\"{name}\" can't be made durable")).because(error))
    }

    /// Every object below the prefix, at any depth, whose name ends so; sorted.
    pub(super) async fn all(&self, ending: &str) -> Result<Vec<Path>, StageError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let listed = self.store.list(prefix).map_ok(|object| object.location).try_collect::<Vec<Path>>().await;
        let mut all = listed.map_err(|error| self.failed("listed", error))?;
        // What begins with a dot is not finished yet.
        let is_whole = |path: &Path| path.parts().all(|part| !part.as_ref().starts_with('.'));
        all.retain(|path| path.as_ref().ends_with(ending) && is_whole(path));
        all.sort_unstable();
        Ok(all)
    }

    /// What is in an object; `None` if it is not there.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, StageError> {
        self.content(&self.path(name)).await
    }

    /// The same for one that was listed.
    pub(super) async fn content(&self, at: &Path) -> Result<Option<Bytes>, StageError> {
        match self.store.get(at).await {
            Ok(found) => found.bytes().await.map(Some).map_err(|error| self.failed("read", error)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// What is in an object, piece by piece.
    pub(super) async fn stream(&self, name: &str) -> Result<BoxStream<'static, Result<Bytes, Error>>, StageError> {
        let found = self.store.get(&self.path(name)).await.map_err(|error| self.failed("read", error))?;
        Ok(found.into_stream().boxed())
    }

    /// The names of the objects directly below the prefix.
    pub(super) async fn names(&self) -> Result<Vec<String>, StageError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let listed = self.store.list_with_delimiter(prefix).await.map_err(|error| self.failed("listed", error))?;
        Ok(listed.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect())
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StageError> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("emptied", error)),
        }
    }

    /// Reads an object once, giving each piece to `each`, and measures it.
    pub(super) async fn read_through(
        &self,
        name: &str,
        mut each: impl AsyncFnMut(Bytes) -> Result<(), StageError>,
    ) -> Result<Measured, StageError> {
        let mut meter = Meter::new();
        let mut pieces = self.stream(name).await?;
        while let Some(piece) = pieces.try_next().await.map_err(|error| self.failed("read", error))? {
            meter.take(&piece);
            each(piece).await?;
        }
        Ok(meter.end())
    }
}
