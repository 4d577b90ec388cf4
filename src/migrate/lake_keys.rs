//! How the settings of a Firehose's bucket are spelled as keys of the lake sink: the one place that knows.

use super::delivery::Bucket;

/// Objects of the pipeline lie beside those of the Firehose: what is triggered by its prefix must not take them for its own.
const BESIDE: &str = "pipeline";

/// `url` of the sink that stores.
pub(super) fn url(bucket: &Bucket) -> String {
    place(bucket, &bucket.prefix)
}

/// `url` of the sink that keeps what was refused.
pub(super) fn error_url(bucket: &Bucket) -> String {
    place(bucket, if bucket.error_prefix.is_empty() { "errors" } else { &bucket.error_prefix })
}

fn place(bucket: &Bucket, prefix: &str) -> String {
    let path: Vec<&str> = [BESIDE, prefix].into_iter().filter(|part| !part.is_empty()).collect();
    format!("${{S3_URL:-s3://{}}}/{}", bucket.name, path.join("/"))
}

/// The other keys, a line each: `BufferingHints`, of which an object is written at whichever comes first.
pub(super) fn buffering(bucket: &Bucket) -> Vec<String> {
    let size = bucket.size_mbs.map(|size| format!("roll_size = \"{size}MiB\"          # SizeInMBs, of rows in memory"));
    let age = bucket.interval_seconds.map(|seconds| {
        // Zero means no buffering there; an object has one row at least.
        format!("roll_age = \"{}s\"            # IntervalInSeconds", seconds.max(1))
    });
    size.into_iter().chain(age).collect()
}
