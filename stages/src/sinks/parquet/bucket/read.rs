//! Objects of a bucket, read back. Needs no right to write.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use pipeline_engine::stage::StageError;

use super::Bucket;
use crate::sinks::parquet::store::{Listed, Reader};

impl Bucket {
    pub(super) fn reader_of(&self) -> Box<dyn Reader> {
        Box::new(Self::new(self.settings.clone(), self.prefix.clone(), &self.probe))
    }

    async fn connected(&mut self) -> Result<Arc<dyn ObjectStore>, StageError> {
        if self.client.is_none() {
            self.client = Some(self.settings.connect().await?);
        }
        self.client().cloned()
    }

    pub(super) fn key_of(&self, location: &Path) -> Option<String> {
        let parts: Vec<_> = location.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }
}

#[async_trait]
impl Reader for Bucket {
    fn place(&self) -> String {
        let slash = if self.prefix.as_ref().is_empty() { "" } else { "/" };
        format!("s3://{}{slash}{}", self.settings.bucket, self.prefix)
    }

    async fn list(&mut self) -> Result<Vec<Listed>, StageError> {
        let client = self.connected().await?;
        let objects: Vec<_> =
            client.list(Some(&self.prefix)).try_collect().await.map_err(|error| self.failed("listed", error))?;
        let listed = objects.iter().filter_map(|object| {
            Some(Listed { key: self.key_of(&object.location)?, made_at_us: object.last_modified.timestamp_micros() })
        });
        Ok(listed.collect())
    }

    async fn get(&mut self, key: &str) -> Result<Option<Bytes>, StageError> {
        let client = self.connected().await?;
        let location = self.location(key)?;
        let found = match client.get(&location).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed("read", error)),
        };
        found.bytes().await.map(Some).map_err(|error| self.failed("read", error))
    }
}
