//! Objects in an S3 bucket: one conditional PUT each.
//!
//! A single PUT is all or nothing, and `If-None-Match: *` keeps it from replacing an object. Some
//! stores ignore or refuse that condition, which opening finds out: there the sink looks first
//! whether the object is there. The client retries nothing by itself: the engine does, for all sinks
//! alike.
//!
//! **Danger.** Looking first is no condition: what somebody else writes under the same name between
//! the look and the write is replaced. Names are made of the content, so another run of the same
//! pipeline replaces an object by its like.

mod examine;
mod read;
mod records;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use pipeline_engine::stage::{Examination, StageError};

use self::records::Tags;
use super::store::{Guard, Object, Reader, Records, Store, taken};
use crate::s3::fault::{self, code_in, whole_text};
use crate::s3::{ASIDE, S3Settings};

/// Codes of stores that refuse a request for its condition, and not for what it asks.
const CONDITION_REFUSED_CODES: [&str; 4] = ["NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed"];

/// How long the store may take to answer once it has an object.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes a second through which an object must fit: the uplink of a remote site.
const SLOWEST_LINE: u64 = 32 << 10;

/// A prefix of a bucket.
pub(super) struct Bucket {
    settings: S3Settings,
    prefix: Path,
    /// What the objects that probe the store are called, below the prefix, where no reader looks.
    probe: String,
    client: Option<Arc<dyn ObjectStore>>,
    guard: Guard,
    tags: Tags,
}

impl Bucket {
    pub(super) fn new(settings: S3Settings, prefix: Path, owner: &str) -> Self {
        let probe = owner.trim_end_matches('-').to_owned();
        Self { settings, prefix, probe, client: None, guard: Guard::Store, tags: Tags::Quoted }
    }

    /// Open, over any store.
    #[cfg(test)]
    pub(super) fn over(client: Arc<dyn ObjectStore>) -> Self {
        let (bucket, endpoint) = ("lake".to_owned(), None);
        let settings = S3Settings { bucket, endpoint, region: None, allow_http: false, environment: None };
        Self { client: Some(client), ..Self::new(settings, Path::from("raw"), "iot-lake-") }
    }

    fn client(&self) -> Result<&Arc<dyn ObjectStore>, StageError> {
        self.client.as_ref().ok_or_else(|| StageError::bug("the bucket was used before it was opened"))
    }

    /// Finds out whether the bucket can be reached and written, and whether the store creates an object
    /// only where none is.
    async fn probe(&self) -> Result<Guard, StageError> {
        let fixed = self.aside(&format!("{}.probe", self.probe));
        if self.keeps_condition(&fixed).await? {
            return Ok(Guard::Store);
        }
        // Another run that starts at this moment may have deleted the probe in between: asked again
        // with a probe that nobody else knows.
        let own = self.aside(&format!("{}-{:016x}.probe", self.probe, rand::random::<u64>()));
        Ok(if self.keeps_condition(&own).await? { Guard::Store } else { Guard::Sink })
    }

    /// Creates an object twice: whether the second time is refused.
    async fn keeps_condition(&self, probe: &Path) -> Result<bool, StageError> {
        let client = self.client()?;
        let put = |mode: PutMode| client.put_opts(probe, PutPayload::from_static(b"probe"), mode.into());
        let mut kept = false;
        for _ in 0..2 {
            match put(PutMode::Create).await {
                Ok(_) => continue,
                // At once, if a run left it that may write but not delete.
                Err(Error::AlreadyExists { .. }) => kept = true,
                Err(error) if refuses_condition(&error) => {
                    put(PutMode::Overwrite).await.map_err(|error| self.failed("written to", error))?;
                }
                Err(error) => return Err(self.failed("written to", error)),
            }
            break;
        }
        if let Err(error) = client.delete(probe).await {
            // A lake's writer need not be allowed to delete: the next run finds the probe and is content.
            tracing::debug!(%error, "the probe object stays");
        }
        Ok(kept)
    }

    /// Where the object of a key lies. The key is taken as it is: whoever made it has escaped what must be.
    fn location(&self, key: &str) -> Result<Path, StageError> {
        let below = Path::parse(key).map_err(|error| StageError::bug(format!("\"{key}\" is no key")).because(error))?;
        Ok(Path::from_iter(self.prefix.parts().chain(below.parts())))
    }

    fn aside(&self, name: &str) -> Path {
        self.prefix.clone().join(ASIDE).join(name)
    }

    /// What the store holds under a key that was taken.
    async fn compare(&self, location: &Path, object: &Object) -> Result<(), StageError> {
        let found = match self.client()?.get(location).await {
            Ok(found) => found,
            // S3 answers so too while somebody else writes the same key.
            Err(Error::NotFound { .. }) => {
                return Err(StageError::transient(format!("\"{location}\" was being written by somebody else")));
            }
            Err(error) => return Err(self.failed("read", error)),
        };
        let same = found.meta.size == object.content.len() as u64
            && found.bytes().await.map_err(|error| self.failed("read", error))? == object.content;
        if same { Ok(()) } else { Err(taken(location.as_ref())) }
    }

    /// Whose an error of the store is; `verb` says what the bucket was not.
    fn failed(&self, verb: &str, error: Error) -> StageError {
        fault::of(error, &self.settings.bucket, verb, "s3:PutObject and s3:GetObject below the prefix")
    }
}

#[async_trait]
impl Store for Bucket {
    fn reader(&self) -> Option<Box<dyn Reader>> {
        Some(self.reader_of())
    }

    async fn examine(&mut self, report: &Examination) {
        self.examine_all(report).await;
    }

    async fn open(&mut self) -> Result<Guard, StageError> {
        self.client = Some(self.settings.connect().await?);
        self.guard = self.probe().await?;
        if self.guard == Guard::Sink {
            tracing::warn!(
                bucket = self.settings.bucket,
                store = self.settings.place(),
                "the store does not keep the condition \"only if no object is there\" (If-None-Match): the sink looks \
                 before it writes, which is as good while this pipeline runs once and nobody else writes under its \
                 names; what somebody writes between the look and the write is replaced"
            );
        }
        Ok(self.guard)
    }

    async fn create(&self, object: &Object) -> Result<(), StageError> {
        // An object that is there although its answer did not come is found by the next try.
        self.answered("written to", object.content.len(), self.create_once(object)).await
    }

    fn records(&self) -> Option<&dyn Records> {
        Some(self)
    }

    async fn open_records(&mut self) -> Result<(), StageError> {
        self.tags = self.probe_records().await?;
        Ok(())
    }
}

impl Bucket {
    /// The answer to a request that carries so many bytes, unless it takes longer than a slow line would need.
    async fn answered<T>(
        &self,
        verb: &str,
        bytes: usize,
        request: impl Future<Output = Result<T, StageError>>,
    ) -> Result<T, StageError> {
        let patience = ANSWER_TIMEOUT + Duration::from_secs(bytes as u64 / SLOWEST_LINE);
        tokio::time::timeout(patience, request).await.unwrap_or_else(|_| {
            let (place, seconds) = (self.settings.place(), patience.as_secs());
            let text =
                format!("bucket \"{}\" was not {verb}: {place} gave no answer in {seconds} s", self.settings.bucket);
            Err(StageError::transient(text))
        })
    }

    async fn create_once(&self, object: &Object) -> Result<(), StageError> {
        let location = self.location(&object.key)?;
        let client = self.client()?;
        let mode = match self.guard {
            Guard::Store => PutMode::Create,
            Guard::Sink => match client.head(&location).await {
                Ok(_) => return self.compare(&location, object).await,
                Err(Error::NotFound { .. }) => PutMode::Overwrite,
                Err(error) => return Err(self.failed("read", error)),
            },
        };
        match client.put_opts(&location, PutPayload::from(object.content.clone()), mode.into()).await {
            Ok(_) => Ok(()),
            // By an earlier try whose answer was lost, or in an earlier run.
            Err(Error::AlreadyExists { .. }) => self.compare(&location, object).await,
            Err(error) => Err(self.failed("written to", error)),
        }
    }
}

fn refuses_condition(error: &Error) -> bool {
    let text = whole_text(error);
    matches!(error, Error::NotImplemented { .. })
        || code_in(&text).is_some_and(|code| CONDITION_REFUSED_CODES.contains(&code))
        || text.contains("501 Not Implemented")
}

#[cfg(test)]
mod tests;
