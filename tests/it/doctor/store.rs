//! Object stores that don't know us, have no such bucket, or keep no conditions.

use super::{Patient, SIMULATOR};
use crate::parquet::old_store::{Condition, OldStore};
use crate::services::{S3, bucket, s3};

fn lake(bucket: &str, store: &S3) -> Patient {
    lake_of(SIMULATOR, bucket, store)
}

fn lake_of(source: &str, bucket: &str, store: &S3) -> Patient {
    let sink = format!(
        "[sinks.lake]\ntype = \"parquet\"\ninputs = [\"in\"]\nurl = \"s3://{bucket}/raw\"\ntime_column = \"timestamp\"\n"
    );
    Patient::new(&format!("{source}{sink}")).set(store.environment())
}

/// A source that several workers share. Nobody answers it, which is no matter of the lake's.
fn shared_lake(bucket: &str, store: &S3) -> Patient {
    let source = "[sources.in]\ntype = \"kinesis\"\nstream = \"none\"\nschema = \"reading\"\n\
                  workers = { application = \"none\" }\n";
    let nobody = |name: &str| (name.to_owned(), "http://127.0.0.1:1".to_owned());
    let nobody = [nobody("AWS_ENDPOINT_URL_KINESIS"), nobody("AWS_ENDPOINT_URL_DYNAMODB")];
    lake_of(source, bucket, store).set(nobody)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_well_passes_and_is_left_empty() {
    use futures::TryStreamExt;
    use object_store::ObjectStore;
    let name = tokio::task::spawn_blocking(bucket).await.unwrap();
    let found = lake(&name, &s3()).examine();
    found
        .says("lake", "list", "pass", &[&name])
        .says("lake", "create", "pass", &["only where none is"])
        .says("lake", "read", "pass", &["comes back"])
        .says("lake", "clock", "pass", &["agree"])
        .says("lake", "multipart", "pass", &["given up"])
        .says("lake", "delete", "pass", &["gone again"])
        .blames_only("nobody");
    let left: Vec<_> = s3().client(&name).list(None).try_collect().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_missing_bucket_is_named() {
    lake("no-such-bucket-here", &s3()).examine().says("lake", "bucket", "fail", &["\"no-such-bucket-here\"", "Create"]);
}

#[test]
fn a_wrong_secret_key_is_told_and_never_shown() {
    let store = S3 { secret_key: "canary-secret".to_owned(), ..s3() };
    let found = lake("any-bucket", &store).examine();
    found.says("lake", "credentials", "fail", &["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"]).blames_only("lake");
    assert!(!found.text.contains("canary"), "{}", found.text);
}

#[test]
fn an_unknown_access_key_is_told_and_never_shown() {
    let store = S3 { access_key: "canary-key".to_owned(), ..s3() };
    let found = lake("any-bucket", &store).examine();
    found.says("lake", "credentials", "fail", &["InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"]);
    assert!(!found.text.contains("canary"), "{}", found.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_keeps_no_conditions_and_whose_clock_is_wrong_is_told() {
    // Its clock stands at the first second of 2026.
    let store = OldStore::start(Condition::Ignored).await;
    let found = lake("old", &S3 { endpoint: store.url.clone(), ..s3() }).examine();
    found.says("lake", "create", "warn", &["If-None-Match", "Let only one run"]).says(
        "lake",
        "clock",
        "fail",
        &["the clock of the object store is", "behind this machine's"],
    );
    assert_eq!(store.paths(), [""; 0], "nothing is left there");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_need_a_store_that_keeps_both_conditions() {
    let name = tokio::task::spawn_blocking(bucket).await.unwrap();
    shared_lake(&name, &s3())
        .examine()
        .says("lake", "create", "pass", &["only where none is"])
        .says("lake", "swap", "pass", &["If-Match"])
        .says("lake", "delete", "pass", &["gone again"]);
    for (condition, check, names) in
        [(Condition::Kept, "swap", "(If-Match)"), (Condition::Ignored, "create", "(If-None-Match)")]
    {
        let store = OldStore::start(condition).await;
        let found = shared_lake("old", &S3 { endpoint: store.url.clone(), ..s3() }).examine();
        found.says("lake", check, "fail", &["several workers can't share", names, "without \"workers\""]);
        assert_eq!(store.paths(), [""; 0], "nothing is left there");
    }
}
