//! An object in S3: asked for on the condition that it is another than the last one (ETag, or the time of its
//! last change where the store gives none).

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore};
use pipeline_engine::stage::StageError;

use super::{Content, too_large};
use crate::s3::{S3Settings, fault};
use crate::transforms::tables::place::Place;

/// Keeps its client, whose credentials renew themselves, and what it has seen.
#[derive(Default)]
pub(super) struct ObjectFetcher {
    client: Option<Arc<dyn ObjectStore>>,
    /// The object that was dealt with, whether it could be used or not.
    settled: Option<ObjectMeta>,
}

impl ObjectFetcher {
    pub(super) async fn fetch(
        &mut self,
        place: &Place,
        settings: &S3Settings,
        key: &Path,
    ) -> Result<Option<Content>, StageError> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(settings.connect().await?).clone(),
        };
        let mut options = GetOptions::default();
        match &self.settled {
            Some(ObjectMeta { e_tag: Some(tag), .. }) => options.if_none_match = Some(tag.clone()),
            Some(settled) => options.if_modified_since = Some(settled.last_modified),
            None => {}
        }
        let failed = |error| failed(place, settings, error);
        let found = match client.get_opts(key, options).await {
            Ok(found) => found,
            Err(Error::NotModified { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // A store may ignore the condition.
        if self.settled.as_ref().is_some_and(|settled| is_same(settled, &found.meta)) {
            return Ok(None);
        }
        let meta = found.meta.clone();
        if meta.size > place.bytes_max {
            self.settled = Some(meta.clone());
            return Err(too_large(place, meta.size));
        }
        let content = found.bytes().await.map_err(failed)?;
        self.settled = Some(meta);
        Ok(Some(Content::Bytes(content)))
    }
}

fn is_same(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    match (&a.e_tag, &b.e_tag) {
        (Some(a), Some(b)) => a == b,
        _ => a.last_modified == b.last_modified && a.size == b.size,
    }
}

fn failed(place: &Place, settings: &S3Settings, error: Error) -> StageError {
    let is_bucket = fault::code_in(&fault::whole_text(&error)) == Some("NoSuchBucket");
    if matches!(error, Error::NotFound { .. }) && !is_bucket {
        return place.broken("there is no such object").because(error);
    }
    fault::of(error, &settings.bucket, "read", "s3:GetObject for the table")
}
