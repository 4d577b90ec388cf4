//! Streams that are not there, are kept too short, or can't be reached; and who we are to AWS.

use super::Patient;
use crate::kinesis::stream::Stream;
use crate::services::{S3, bucket, s3};

fn examined(stream: &str) -> Patient {
    let source = format!("[sources.in]\ntype = \"kinesis\"\nstream = \"{stream}\"\nschema = \"reading\"\n");
    let sink = format!(
        "[sinks.out]\ntype = \"kinesis\"\ninputs = [\"in\"]\nstream = \"{stream}\"\npartition_key = \"device_id\"\n"
    );
    Patient::new(&format!("{source}{sink}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_there_passes_and_its_retention_is_told() {
    let stream = Stream::new("doctor", 2).await;
    let found = examined(&stream.name).set(stream.environment(None)).examine();
    found
        .says("in", "credentials", "pass", &[&stream.endpoint])
        .says("in", "stream", "pass", &["2 open shards"])
        .says("in", "retention", "warn", &["24 hours"])
        .says("in", "shards", "pass", &["2 are listed"])
        .says("in", "read", "pass", &["can be read"])
        .says("out", "capacity", "pass", &["2000 records"]);
    assert_eq!(stream.read_all().await.concat(), [], "nothing was put");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_is_named_and_so_is_a_service_that_is_away() {
    let stream = Stream::new("doctor", 1).await;
    let found = examined("not-there").set(stream.environment(None)).examine();
    found.says("in", "stream", "fail", &["no stream \"not-there\"", "Create it"]).says(
        "out",
        "stream",
        "fail",
        &["no stream \"not-there\""],
    );
    let away = examined("not-there").set(stream.environment(Some("http://127.0.0.1:1"))).examine();
    away.says("in", "stream", "fail", &["not described", "Connection refused"]);
    let nowhere = stream.environment(None).into_iter().filter(|(name, _)| name != "AWS_REGION");
    let nowhere = nowhere.chain([("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned())]);
    examined("not-there").set(nowhere).examine().says("in", "credentials", "fail", &["no region", "AWS_REGION"]);
}

#[test]
fn a_profile_serves_buckets_as_it_does_streams() {
    let (store, name) = (s3(), bucket());
    let S3 { endpoint, access_key, secret_key, region } = store;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let text =
        format!("[lake]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\nregion = {region}\n");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let lake = format!(
        "{}[sinks.lake]\ntype = \"parquet\"\ninputs = [\"in\"]\nurl = \"s3://{name}/raw\"\ntime_column = \"timestamp\"\n",
        super::SIMULATOR
    );
    let variables = |profile: &str| {
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_SHARED_CREDENTIALS_FILE", &file),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_PROFILE", profile),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    Patient::new(&lake).set(variables("lake")).examine().says("lake", "create", "pass", &["only where none is"]);
    let found = Patient::new(&lake).set(variables("nobody")).examine();
    found.says("lake", "credentials", "fail", &["credentials for AWS"]);
    assert!(!found.text.contains(&secret_key), "{}", found.text);
}
