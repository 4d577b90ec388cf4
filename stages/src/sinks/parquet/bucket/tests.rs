use std::fmt;

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
    PutResult,
};
use pipeline_engine::stage::Fault;

use super::*;
use crate::sinks::parquet::store::Version;

/// What goes wrong in a store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weakness {
    None,
    /// The object is stored, and the answer never comes.
    LosesReplies,
    /// `If-None-Match` means nothing to it.
    Overwrites,
    /// `If-Match` means nothing to it.
    Updates,
    /// Knows an ETag only without its quotes, as Ceph does.
    Bare,
    /// Answers 501 to `If-None-Match`.
    Refuses,
    /// Takes a request and says nothing.
    Hangs,
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
    async fn put_opts(&self, at: &Path, content: PutPayload, mut how: PutOptions) -> object_store::Result<PutResult> {
        match self.1 {
            Weakness::Overwrites => how.mode = PutMode::Overwrite,
            Weakness::Updates if matches!(how.mode, PutMode::Update(_)) => how.mode = PutMode::Overwrite,
            Weakness::Bare => {
                if let PutMode::Update(seen) = &mut how.mode {
                    // The store beneath wants the quotes.
                    seen.e_tag = seen.e_tag.take().map(|tag| format!("\"{tag}\""));
                }
            }
            Weakness::Conflicts => {
                return Err(Error::AlreadyExists { path: at.to_string(), source: "409 Conflict".into() });
            }
            Weakness::Refuses if how.mode == PutMode::Create => {
                return Err(generic("501 Not Implemented: <Error><Code>NotImplemented</Code></Error>"));
            }
            Weakness::Answers(text) => return Err(generic(text)),
            Weakness::Hangs => std::future::pending().await,
            Weakness::None | Weakness::LosesReplies | Weakness::Refuses | Weakness::Updates => {}
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
    Bucket::over(Arc::new(Weak(InMemory::new(), weakness)))
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

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_asked_again() {
    let error = bucket(Weakness::Hangs).create(&object("rows")).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    assert!(error.to_string().contains("gave no answer in 30 s"), "{error}");
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
async fn a_store_without_conditions_is_looked_at_before_it_is_written_to() {
    for weakness in [Weakness::Overwrites, Weakness::Refuses] {
        let mut bucket = bucket(weakness);
        bucket.guard = bucket.probe().await.unwrap();
        bucket.create(&object("rows")).await.unwrap();
        bucket.create(&object("rows")).await.unwrap();
        let error = bucket.create(&object("swor")).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert_eq!(content(&bucket).await, "rows");
    }
}

#[tokio::test]
async fn a_conflict_without_an_object_passes() {
    let error = bucket(Weakness::Conflicts).create(&object("rows")).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
}

#[tokio::test]
async fn the_probe_tells_whether_conditions_are_honoured_and_leaves_nothing() {
    for (weakness, guard) in
        [(Weakness::None, Guard::Store), (Weakness::Overwrites, Guard::Sink), (Weakness::Refuses, Guard::Sink)]
    {
        let bucket = bucket(weakness);
        assert_eq!(bucket.probe().await.unwrap(), guard);
        let left = bucket.client().unwrap().list(None).count().await;
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn a_probe_that_could_not_be_deleted_is_no_obstacle() {
    let bucket = bucket(Weakness::None);
    let left = Path::from("raw/_pipeline/iot-lake.probe");
    bucket.client().unwrap().put(&left, PutPayload::from_static(b"probe")).await.unwrap();
    assert_eq!(bucket.probe().await.unwrap(), Guard::Store);
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

#[tokio::test]
async fn a_record_is_changed_only_by_whoever_has_seen_it_last() {
    let bucket = bucket(Weakness::None);
    let swap = async |content: &'static str, seen: Option<&Version>| {
        bucket.swap("_pipeline/heads/x.head", content.into(), seen).await.unwrap()
    };
    let first = swap("first", None).await.unwrap();
    assert_eq!(swap("other", None).await, None, "one is there");
    let second = swap("second", Some(&first)).await.unwrap();
    assert_eq!(swap("other", Some(&first)).await, None, "it was changed");
    let read = bucket.read("_pipeline/heads/x.head", 0).await.unwrap();
    assert_eq!(read, Some(("second".into(), second.clone())));
    assert_eq!(bucket.list_below("_pipeline/heads").await.unwrap(), ["_pipeline/heads/x.head"]);
    bucket.remove("_pipeline/heads/x.head").await.unwrap();
    bucket.remove("_pipeline/heads/x.head").await.unwrap();
    assert_eq!(swap("other", Some(&second)).await, None, "it is gone");
    assert_eq!(bucket.read("_pipeline/heads/x.head", 0).await.unwrap(), None);
}

#[tokio::test]
async fn several_workers_are_refused_a_store_that_does_not_keep_both_conditions() {
    for (weakness, tags) in [(Weakness::None, Tags::Quoted), (Weakness::Bare, Tags::Bare)] {
        let bucket = bucket(weakness);
        assert_eq!(bucket.probe_records().await.unwrap(), tags);
        assert_eq!(bucket.client().unwrap().list(None).count().await, 0, "the probe is gone");
    }
    for (weakness, condition) in [
        (Weakness::Updates, "(If-Match)"),
        (Weakness::Overwrites, "(If-None-Match)"),
        (Weakness::Refuses, "(If-None-Match)"),
    ] {
        let mut bucket = bucket(weakness);
        bucket.guard = bucket.probe().await.unwrap();
        let error = bucket.probe_records().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.to_string().ends_with(condition), "{error}");
    }
}

#[tokio::test]
async fn a_file_is_set_aside_once_and_an_answer_that_was_lost_is_no_matter() {
    let put =
        async |bucket: &Bucket, rows: &'static str| bucket.put("staged/x", vec!["head".into(), rows.into()]).await;
    let losing = bucket(Weakness::LosesReplies);
    assert_eq!(put(&losing, "rows").await.unwrap_err().fault(), Fault::Transient);
    put(&losing, "rows").await.unwrap();
    assert_eq!(losing.read("staged/x", 8).await.unwrap().unwrap().0, "headrows");
    assert_eq!(put(&losing, "more rows").await.unwrap_err().fault(), Fault::Permanent);
    // Another request for the same key is being carried out, and may yet fail.
    assert_eq!(put(&bucket(Weakness::Conflicts), "rows").await.unwrap_err().fault(), Fault::Transient);
}
