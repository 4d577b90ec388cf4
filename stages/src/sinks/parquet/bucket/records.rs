//! Records that change by compare-and-swap: a PUT with `If-Match` and the ETag that was seen last, or with `If-None-Match: *`
//! where nothing was.
//!
//! Amazon S3 takes an ETag as it gives it, in quotes; Ceph's gateway (18.2) takes it without. Opening finds out which, and that a
//! stale one is refused.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use pipeline_engine::stage::StageError;

use super::{Bucket, refuses_condition};
use crate::sinks::parquet::store::{Guard, Records, Version, taken};

const WHO_SWAPS: &str = "Several workers need a store that keeps If-Match and If-None-Match, as Amazon S3 and Ceph do. On this one \
                         let one worker write the lake: read the stream once more for it, in a pipeline without \"workers\".";

pub(super) const IF_NONE_MATCH: &str = "\"only if no object is there\" (If-None-Match)";
pub(super) const IF_MATCH: &str = "\"only if the object is as it was seen last\" (If-Match)";

/// A record is some hundred bytes for each input.
const RECORD_BYTES: usize = 64 << 10;

/// How the store takes an ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tags {
    /// As it gives it.
    Quoted,
    /// Without the quotes.
    Bare,
}

impl Tags {
    fn mode(self, seen: &Version) -> PutMode {
        let tag = match self {
            Self::Quoted => seen.0.clone(),
            Self::Bare => seen.0.trim_matches('"').to_owned(),
        };
        PutMode::Update(UpdateVersion { e_tag: Some(tag), version: None })
    }
}

impl Bucket {
    /// Finds out how the store takes ETags.
    ///
    /// # Errors
    /// Permanent where it does not keep both conditions.
    pub(super) async fn probe_records(&self) -> Result<Tags, StageError> {
        if self.guard == Guard::Sink {
            return Err(self.refused(IF_NONE_MATCH));
        }
        let probe = self.aside(&format!("{}-{:016x}.probe", self.probe, rand::random::<u64>()));
        let tags = self.answered("written to", RECORD_BYTES, self.tags_taken(&probe)).await;
        if let Err(error) = self.client()?.delete(&probe).await {
            tracing::debug!(%error, "the probe object stays");
        }
        tags?.ok_or_else(|| self.refused(IF_MATCH))
    }

    /// Why several workers can't write there.
    pub(super) fn refused(&self, condition: &str) -> StageError {
        let (bucket, store) = (&self.settings.bucket, self.settings.place());
        let text =
            format!("several workers can't share bucket \"{bucket}\": {store} does not keep the condition {condition}");
        StageError::permanent(text).hint(WHO_SWAPS)
    }

    /// Changes an object that nobody else knows. `None` where the store does not do so by its ETag alone.
    pub(super) async fn tags_taken(&self, probe: &Path) -> Result<Option<Tags>, StageError> {
        let client = self.client()?;
        let put = async |content: &'static str, mode: PutMode| match client
            .put_opts(probe, PutPayload::from_static(content.as_bytes()), mode.into())
            .await
        {
            Ok(put) => Ok(Some(put.e_tag)),
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Ok(None),
            Err(error) if refuses_condition(&error) => Ok(None),
            Err(error) => Err(self.failed("written to", error)),
        };
        let tag = match put("first", PutMode::Create).await? {
            Some(tag) => tag,
            // It is there already.
            None => client.head(probe).await.map_err(|error| self.failed("read", error))?.e_tag,
        };
        let Some(first) = tag.map(Version) else { return Ok(None) };
        for tags in [Tags::Quoted, Tags::Bare] {
            if put("second", tags.mode(&first)).await?.is_some() {
                let is_taken_when_stale = put("third", tags.mode(&first)).await?.is_some();
                return Ok((!is_taken_when_stale).then_some(tags));
            }
        }
        Ok(None)
    }

    async fn read_once(&self, key: &str) -> Result<Option<(Bytes, Version)>, StageError> {
        let found = match self.client()?.get(&self.location(key)?).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed("read", error)),
        };
        let untold = || StageError::permanent(format!("\"{key}\" came without an ETag")).hint(WHO_SWAPS);
        let version = Version(found.meta.e_tag.clone().ok_or_else(untold)?);
        let content = found.bytes().await.map_err(|error| self.failed("read", error))?;
        Ok(Some((content, version)))
    }

    async fn swap_once(
        &self,
        key: &str,
        content: Bytes,
        seen: Option<&Version>,
    ) -> Result<Option<Version>, StageError> {
        let mode = seen.map_or(PutMode::Create, |seen| self.tags.mode(seen));
        match self.client()?.put_opts(&self.location(key)?, content.into(), mode.into()).await {
            Ok(put) => {
                let untold = || StageError::transient(format!("\"{key}\" was written, and came without an ETag"));
                put.e_tag.map(Version).ok_or_else(untold).map(Some)
            }
            // The second also while somebody else writes the same key.
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Ok(None),
            Err(error) => Err(self.failed("written to", error)),
        }
    }
}

#[async_trait]
impl Records for Bucket {
    async fn read(&self, key: &str, bytes: usize) -> Result<Option<(Bytes, Version)>, StageError> {
        self.answered("read", bytes, self.read_once(key)).await
    }

    async fn swap(&self, key: &str, content: Bytes, seen: Option<&Version>) -> Result<Option<Version>, StageError> {
        self.answered("written to", content.len(), self.swap_once(key, content, seen)).await
    }

    async fn put(&self, key: &str, parts: Vec<Bytes>) -> Result<(), StageError> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let location = self.location(key)?;
        let put = async {
            let client = self.client()?;
            match client.put_opts(&location, PutPayload::from_iter(parts), PutMode::Create.into()).await {
                Ok(_) => Ok(()),
                // By a request before whose answer was lost, or that is still being carried out.
                Err(Error::AlreadyExists { .. }) => match client.head(&location).await {
                    Ok(found) if found.size == bytes as u64 => Ok(()),
                    Ok(_) => Err(taken(location.as_ref())),
                    Err(Error::NotFound { .. }) => {
                        Err(StageError::transient(format!("\"{location}\" was being written by another request")))
                    }
                    Err(error) => Err(self.failed("read", error)),
                },
                Err(error) => Err(self.failed("written to", error)),
            }
        };
        self.answered("written to", bytes, put).await
    }

    async fn remove(&self, key: &str) -> Result<(), StageError> {
        let location = self.location(key)?;
        let removed = async {
            match self.client()?.delete(&location).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.failed("cleared", error).hint(
                    "Of a lake that several workers write, the sink needs s3:DeleteObject below \"_pipeline/\".",
                )),
            }
        };
        self.answered("cleared", 0, removed).await
    }

    async fn list_below(&self, folder: &str) -> Result<Vec<String>, StageError> {
        let below = self.location(folder)?;
        let listed = async {
            let listed: Result<Vec<_>, _> = self.client()?.list(Some(&below)).try_collect().await;
            listed.map_err(|error| self.failed("listed", error))
        };
        let listed = self.answered("listed", 0, listed).await?;
        Ok(listed.iter().filter_map(|object| self.key_of(&object.location)).collect())
    }
}
