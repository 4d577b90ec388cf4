//! How the settings of a Firehose's bucket are spelled as keys of the lake sink, which has them by AWS's names: the one place
//! that knows.

use super::delivery::{Bucket, Objects};

/// Objects of the pipeline lie beside those of the Firehose: what is triggered by its prefix must not take them for its own.
const BESIDE: &str = "pipeline";

/// The keys of the sink that stores, a line each.
pub(super) fn of_stored(bucket: &Bucket) -> Vec<String> {
    let mut lines = vec![url(bucket)];
    if let Objects::Lines { compression } = bucket.objects {
        lines.push("format = \"json\"".to_owned());
        lines.push(format!("compression = \"{compression}\""));
    }
    lines.push(format!("prefix = \"{}\"", bucket.prefix));
    lines.extend(time_zone(bucket));
    lines.extend(buffering(bucket));
    lines
}

/// The keys of the sink that keeps what was refused.
pub(super) fn of_refused(bucket: &Bucket) -> Vec<String> {
    let mut lines = vec![url(bucket)];
    if !bucket.error_prefix.is_empty() {
        lines.push(format!("error_output_prefix = \"{}\"", bucket.error_prefix));
    }
    lines.extend(time_zone(bucket));
    lines
}

fn url(bucket: &Bucket) -> String {
    format!("url = \"${{S3_URL:-s3://{}}}/{BESIDE}\"", bucket.name)
}

fn time_zone(bucket: &Bucket) -> Option<String> {
    bucket.time_zone.as_ref().map(|zone| format!("custom_time_zone = \"{zone}\""))
}

fn buffering(bucket: &Bucket) -> Option<String> {
    match (bucket.size_mbs, bucket.interval_seconds) {
        (Some(size), Some(age)) => {
            Some(format!("buffering_hints = {{ size_in_mbs = {size}, interval_in_seconds = {age} }}"))
        }
        (Some(size), None) => Some(format!("roll_size = \"{size}MiB\"")),
        // Zero means no buffering there; an object has one row at least.
        (None, Some(age)) => Some(format!("roll_age = \"{}s\"", age.max(1))),
        (None, None) => None,
    }
}
