//! Where objects lie: a bucket, and what their keys begin with.

use std::sync::Arc;

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore};
use pipeline_engine::stage::{BuildError, StageError};

use super::ledger::Object;
use crate::s3::fault::{self, code_in, whole_text};
use crate::s3::{ASIDE, S3Settings};

const FORMS: &str =
    "Write \"s3://bucket/prefix\": all keys that begin with the prefix are read, a folder's with a slash at its end.";

/// A bucket, and what keys in it begin with.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) settings: S3Settings,
    /// Any beginning of a key, not only whole folders.
    pub(super) prefix: String,
    /// Keys up to this one are left out.
    pub(super) start_after: Option<String>,
    /// In place of the bucket.
    #[cfg(test)]
    pub(super) store: Option<Arc<dyn ObjectStore>>,
}

/// The bucket and the prefix of a URL.
pub(super) fn parse(url: &str) -> Result<(String, String), BuildError> {
    let refuse = |text: String| BuildError::invalid("url", text).hint(FORMS);
    let Some(rest) = url.strip_prefix("s3://") else {
        return Err(refuse(format!("\"{url}\" names no bucket")));
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    if bucket.is_empty() || !bucket.chars().all(allowed) {
        return Err(refuse(format!("\"{bucket}\" is no name of a bucket")));
    }
    if let Err(error) = Path::parse(prefix) {
        return Err(refuse(format!("\"{prefix}\" is no prefix: {error}")));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

impl Place {
    pub(super) async fn connect(&self) -> Result<Arc<dyn ObjectStore>, StageError> {
        #[cfg(test)]
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        self.settings.connect().await
    }

    /// For a person.
    pub(super) fn url(&self) -> String {
        format!("s3://{}/{}", self.settings.bucket, self.prefix)
    }

    /// Whether an object of that key is one of ours. What a sink keeps beside its objects is none.
    pub(super) fn holds(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
            && self.start_after.as_deref().is_none_or(|after| key > after)
            && !key.split('/').any(|part| part == ASIDE)
    }

    /// Whether no key from this one on is ours, in the order of a listing.
    pub(super) fn is_beyond(&self, key: &str) -> bool {
        !key.starts_with(&self.prefix) && key > self.prefix.as_str()
    }

    /// Objects of the store from where ours begin, in the order of their keys; some are none of ours.
    pub(super) fn list(&self, client: &Arc<dyn ObjectStore>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        // The client lists whole folders; from the first key on that can be ours.
        let folder = self
            .prefix
            .rsplit_once('/')
            // As it stands: a path that is put together of parts has some characters written in another way.
            .and_then(|(folder, _)| Path::parse(folder).ok());
        let before_prefix = self.prefix.char_indices().next_back().map(|(last, _)| &self.prefix[..last]);
        let offset = before_prefix.into_iter().chain(self.start_after.as_deref()).max();
        match offset.map(|offset| offset.trim_end_matches('/')).filter(|offset| !offset.is_empty()) {
            Some(offset) => match Path::parse(offset) {
                Ok(offset) => client.list_with_offset(folder.as_ref(), &offset),
                Err(_) => client.list(folder.as_ref()),
            },
            None => client.list(folder.as_ref()),
        }
    }

    /// Whose an error of the store is.
    pub(super) fn failed(&self, verb: &str, error: Error) -> StageError {
        if let Error::InvalidPath { .. } = error {
            return StageError::permanent(format!("a key of bucket \"{}\" can't be {verb}", self.settings.bucket))
                .because(error)
                .hint("Rename the object, or leave it out by a longer prefix or \"start_after\".");
        }
        fault::of(error, &self.settings.bucket, verb, "s3:ListBucket and s3:GetObject")
    }
}

/// Whether an error says that there is no such object, rather than no such bucket.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && code_in(&whole_text(error)) != Some("NoSuchBucket")
}

/// An object as a listing has it; `None` for what stands for a folder, or holds nothing.
pub(super) fn object_of(meta: &ObjectMeta) -> Option<Object> {
    (meta.size > 0).then(|| Object {
        key: meta.location.to_string(),
        etag: meta.e_tag.clone().unwrap_or_default().trim_matches('"').to_owned(),
        bytes: meta.size,
        modified_us: meta.last_modified.timestamp_micros(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(prefix: &str, start_after: Option<&str>) -> Place {
        let settings =
            S3Settings { bucket: "b".to_owned(), endpoint: None, region: None, allow_http: false, environment: None };
        Place { settings, prefix: prefix.to_owned(), start_after: start_after.map(str::to_owned), store: None }
    }

    #[test]
    fn a_url_names_a_bucket_and_any_beginning_of_keys() {
        let parsed = |url| parse(url).unwrap();
        assert_eq!(parsed("s3://lake"), ("lake".to_owned(), String::new()));
        assert_eq!(parsed("s3://lake/"), ("lake".to_owned(), String::new()));
        assert_eq!(parsed("s3://my.lake/raw/2026-01"), ("my.lake".to_owned(), "raw/2026-01".to_owned()));
        assert_eq!(parsed("s3://lake/raw/"), ("lake".to_owned(), "raw/".to_owned()));
        for url in ["lake/raw", "s3://", "s3://My Lake/", "s3:///raw", "gs://lake", "s3://lake/a//b"] {
            assert_eq!(parse(url).expect_err(url).hint.as_deref(), Some(FORMS), "{url}");
        }
    }

    #[test]
    fn keys_are_ours_by_their_beginning_and_from_a_key_on() {
        let place = place("raw/2026-01", Some("raw/2026-01-05"));
        for (key, held, beyond) in [
            ("raw/2025-12-31/a", false, false),
            ("raw/2026-01-04/a", false, false),
            ("raw/2026-01-05", false, false),
            ("raw/2026-01-05/a", true, false),
            ("raw/2026-01-31/a", true, false),
            ("raw/2026-01-31/_pipeline/heads/a", false, false),
            ("raw/2026-02-01/a", false, true),
        ] {
            assert_eq!((place.holds(key), place.is_beyond(key)), (held, beyond), "{key}");
        }
    }

    #[tokio::test]
    async fn a_listing_begins_no_later_than_the_first_key_that_is_ours() {
        use futures::TryStreamExt;
        use object_store::ObjectStoreExt;

        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let keys = ["a", "raw/2025/x", "raw/2026-01-01/x", "raw/2026-01-02/x", "raw/2026-02/x", "raw0/x", "z"];
        for key in keys {
            store.put(&Path::from(key), "x".into()).await.unwrap();
        }
        for (prefix, after, expected) in [
            ("", None, &keys[..]),
            ("raw/", None, &keys[1..5]),
            ("raw", None, &keys[1..6]),
            ("raw/2026-01", None, &keys[2..4]),
            ("raw/2026-01-02/x", None, &keys[3..4]),
            ("raw/2026-01", Some("raw/2026-01-01/x"), &keys[3..4]),
            ("", Some("raw0"), &keys[5..]),
        ] {
            let place = place(prefix, after);
            let listed: Vec<ObjectMeta> = place.list(&store).try_collect().await.unwrap();
            let mut listed: Vec<String> = listed.iter().map(|meta| meta.location.to_string()).collect();
            listed.retain(|key| place.holds(key));
            listed.sort();
            assert_eq!(listed, expected, "{prefix} after {after:?}");
        }
    }
}
