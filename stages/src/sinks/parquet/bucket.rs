//! Objects in an S3 bucket: one conditional PUT each.
//!
//! A single PUT is all or nothing, and `If-None-Match: *` keeps it from replacing an object. The
//! client retries nothing by itself: the engine does, for all sinks alike.

use std::error::Error as StdError;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use pipeline_engine::stage::StageError;

use super::s3_settings::S3Settings;
use super::store::{Object, Store, taken};

/// Codes of S3 for requests that will fail again until a person has changed something. Errors of
/// other codes, and those without any, count as passing.
const PERMANENT_CODES: [(&str, &str); 8] = [
    ("AuthorizationHeaderMalformed", WRONG_REGION),
    ("PermanentRedirect", WRONG_REGION),
    ("IllegalLocationConstraintException", WRONG_REGION),
    ("ExpiredToken", "Get a new AWS_SESSION_TOKEN."),
    ("InvalidToken", "Check AWS_SESSION_TOKEN: it does not belong to the access key."),
    ("InvalidBucketName", "Check \"url\"."),
    ("EntityTooLarge", "Lower \"roll_size\"."),
    ("NotImplemented", "The store lacks conditional PUT (If-None-Match), which the sink needs."),
];

const WRONG_REGION: &str = "Set \"region\" or AWS_REGION to the region of the bucket.";

/// A prefix of a bucket.
pub(super) struct Bucket {
    settings: S3Settings,
    prefix: Path,
    /// The object that probes the store on opening; below the prefix, and left out by readers.
    probe: Path,
    client: Option<Arc<dyn ObjectStore>>,
}

impl Bucket {
    pub(super) fn new(settings: S3Settings, prefix: Path, owner: &str) -> Self {
        let probe = prefix.clone().join(format!("_{owner}probe"));
        Self { settings, prefix, probe, client: None }
    }

    fn client(&self) -> Result<&Arc<dyn ObjectStore>, StageError> {
        self.client.as_ref().ok_or_else(|| StageError::bug("the bucket was used before it was opened"))
    }

    /// Writes an object twice on the condition that it is not there: shows whether the bucket can
    /// be reached and written, and whether the store keeps to the condition.
    async fn probe(&self) -> Result<bool, StageError> {
        let client = self.client()?;
        let create = || client.put_opts(&self.probe, PutPayload::from_static(b"probe"), PutMode::Create.into());
        let honoured = match create().await {
            // Left by a run that may write but not delete.
            Err(Error::AlreadyExists { .. }) => true,
            Err(error) => return Err(self.failed("written to", error)),
            Ok(_) => match create().await {
                Err(Error::AlreadyExists { .. }) => true,
                Err(error) => return Err(self.failed("written to", error)),
                Ok(_) => false,
            },
        };
        if let Err(error) = client.delete(&self.probe).await {
            // A lake's writer need not be allowed to delete: the next run finds the probe and is content.
            tracing::debug!(%error, "the probe object stays");
        }
        Ok(honoured)
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
        let bucket = &self.settings.bucket;
        if let Error::NotFound { .. } = error {
            return StageError::permanent(format!("there is no bucket \"{bucket}\""))
                .because(error)
                .hint("Create it, or correct \"url\", \"endpoint\" or \"region\".");
        }
        if let Error::PermissionDenied { .. } | Error::Unauthenticated { .. } = error {
            return StageError::permanent(format!("bucket \"{bucket}\" can't be {verb} with these credentials"))
                .because(error)
                .hint(
                    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the role; it needs s3:PutObject and \
                     s3:GetObject below the prefix.",
                );
        }
        let chain = whole_text(&error);
        let code = chain.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        let known = PERMANENT_CODES.iter().find(|(permanent, _)| code == Some(permanent));
        let error = match known {
            Some((_, hint)) => {
                StageError::permanent(format!("bucket \"{bucket}\" can't be {verb}")).because(error).hint(*hint)
            }
            None => StageError::transient(format!("bucket \"{bucket}\" was not {verb}")).because(error),
        };
        match code {
            Some(code) => error.code(code),
            None => error,
        }
    }
}

#[async_trait]
impl Store for Bucket {
    async fn open(&mut self) -> Result<(), StageError> {
        self.client = Some(self.settings.connect().await?);
        if !self.probe().await? {
            tracing::warn!(
                bucket = self.settings.bucket,
                "the store ignores the condition \"only if the object is not there\": a retry overwrites its object, \
                 with the same content"
            );
        }
        Ok(())
    }

    async fn create(&self, object: &Object) -> Result<(), StageError> {
        let location = Path::from_iter(self.prefix.parts().chain(Path::from(object.key.as_str()).parts()));
        let content = PutPayload::from(object.content.clone());
        match self.client()?.put_opts(&location, content, PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            // By an earlier try whose answer was lost, or in an earlier run.
            Err(Error::AlreadyExists { .. }) => self.compare(&location, object).await,
            Err(error) => Err(self.failed("written to", error)),
        }
    }
}

/// The error and all beneath it: `object_store` keeps the answer's status and body in private types.
fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push('\n');
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use futures::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
        PutResult,
    };
    use pipeline_engine::stage::Fault;

    use super::*;

    /// What goes wrong in a store.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Weakness {
        None,
        /// The object is stored, and the answer never comes.
        LosesReplies,
        /// `If-None-Match` means nothing to it.
        Overwrites,
        /// As S3 while another writer creates the same key.
        Conflicts,
        /// Answers with this status and code of S3.
        Answers(&'static str),
    }

    #[derive(Debug)]
    struct Weak(InMemory, Weakness);

    impl fmt::Display for Weak {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Weak")
        }
    }

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    #[async_trait]
    impl ObjectStore for Weak {
        async fn put_opts(
            &self,
            at: &Path,
            content: PutPayload,
            mut how: PutOptions,
        ) -> object_store::Result<PutResult> {
            match self.1 {
                Weakness::Overwrites => how.mode = PutMode::Overwrite,
                Weakness::Conflicts => {
                    return Err(Error::AlreadyExists { path: at.to_string(), source: "409 Conflict".into() });
                }
                Weakness::Answers(text) => return Err(generic(text)),
                Weakness::None | Weakness::LosesReplies => {}
            }
            let done = self.0.put_opts(at, content, how).await?;
            if self.1 == Weakness::LosesReplies { Err(generic("connection reset")) } else { Ok(done) }
        }

        async fn get_opts(&self, at: &Path, how: GetOptions) -> object_store::Result<GetResult> {
            self.0.get_opts(at, how).await
        }

        async fn put_multipart_opts(
            &self,
            _: &Path,
            _: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            unimplemented!("multipart uploads have no conditional create")
        }

        fn delete_stream(
            &self,
            all: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            self.0.delete_stream(all)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> object_store::Result<()> {
            self.0.copy_opts(from, to, how).await
        }
    }

    fn bucket(weakness: Weakness) -> Bucket {
        let settings = S3Settings {
            bucket: "lake".to_owned(),
            endpoint: None,
            region: None,
            allow_http: false,
            environment: None,
        };
        let mut bucket = Bucket::new(settings, Path::from("raw"), "iot-lake-");
        bucket.client = Some(Arc::new(Weak(InMemory::new(), weakness)));
        bucket
    }

    fn object(content: &'static str) -> Object {
        Object { key: "year=2026/month=01/day=31/iot-lake-0.parquet".to_owned(), content: content.into() }
    }

    async fn content(bucket: &Bucket) -> bytes::Bytes {
        let location = Path::from("raw/year=2026/month=01/day=31/iot-lake-0.parquet");
        bucket.client().unwrap().get(&location).await.unwrap().bytes().await.unwrap()
    }

    #[tokio::test]
    async fn an_object_whose_reply_was_lost_is_found_by_the_next_try() {
        let bucket = bucket(Weakness::LosesReplies);
        let lost = bucket.create(&object("rows")).await.unwrap_err();
        assert_eq!(lost.fault(), Fault::Transient);
        bucket.create(&object("rows")).await.unwrap();
        assert_eq!(content(&bucket).await, "rows");
    }

    #[tokio::test]
    async fn other_content_is_never_overwritten() {
        let bucket = bucket(Weakness::None);
        bucket.create(&object("rows")).await.unwrap();
        for other in ["swor", "more rows"] {
            let error = bucket.create(&object(other)).await.unwrap_err();
            assert_eq!(error.fault(), Fault::Permanent);
        }
        assert_eq!(content(&bucket).await, "rows");
    }

    #[tokio::test]
    async fn a_conflict_without_an_object_passes() {
        let error = bucket(Weakness::Conflicts).create(&object("rows")).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient);
    }

    #[tokio::test]
    async fn the_probe_tells_whether_conditions_are_honoured_and_leaves_nothing() {
        for (weakness, honoured) in [(Weakness::None, true), (Weakness::Overwrites, false)] {
            let bucket = bucket(weakness);
            assert_eq!(bucket.probe().await.unwrap(), honoured);
            let gone = bucket.client().unwrap().head(&bucket.probe).await;
            assert!(matches!(gone, Err(Error::NotFound { .. })));
        }
    }

    #[tokio::test]
    async fn a_probe_that_could_not_be_deleted_is_no_obstacle() {
        let bucket = bucket(Weakness::None);
        bucket.client().unwrap().put(&bucket.probe, PutPayload::from_static(b"probe")).await.unwrap();
        assert!(bucket.probe().await.unwrap());
    }

    #[tokio::test]
    async fn answers_of_the_store_are_told_apart() {
        let cases = [
            ("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>", Fault::Transient, Some("SlowDown")),
            ("400 Bad Request: <Error><Code>RequestTimeout</Code></Error>", Fault::Transient, Some("RequestTimeout")),
            ("502 Bad Gateway: <html>", Fault::Transient, None),
            ("400 Bad Request: <Error><Code>ExpiredToken</Code></Error>", Fault::Permanent, Some("ExpiredToken")),
            ("301: <Error><Code>PermanentRedirect</Code></Error>", Fault::Permanent, Some("PermanentRedirect")),
            ("501: <Error><Code>NotImplemented</Code></Error>", Fault::Permanent, Some("NotImplemented")),
        ];
        for (text, fault, code) in cases {
            let error = bucket(Weakness::Answers(text)).create(&object("rows")).await.unwrap_err();
            assert_eq!((error.fault(), error.outside_code()), (fault, code), "{text}");
        }
    }
}
