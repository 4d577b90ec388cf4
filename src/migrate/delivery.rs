//! A Firehose, as `aws firehose describe-delivery-stream` prints it.

use serde_json::Value;

use super::{Remarks, is_plain, region_of, text_at};

const PLACE: &str = "firehose";

/// What a delivery stream says.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub name: String,
    /// The stream of Kinesis that it reads, if it reads one.
    pub stream: Option<Stream>,
    /// Where it delivers to, if that is a bucket.
    pub bucket: Option<Bucket>,
}

/// A stream of Kinesis.
#[derive(Debug, Clone)]
pub struct Stream {
    pub name: String,
    pub region: Option<String>,
}

/// A destination in S3.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: String,
    /// The prefix up to its first expression, without slashes at its ends.
    pub prefix: String,
    /// That of what could not be delivered.
    pub error_prefix: String,
    pub size_mbs: Option<u64>,
    pub interval_seconds: Option<u64>,
}

/// Settings of a destination in S3, why they don't map, and what to do.
const OF_DESTINATION: [(&str, &str, &str); 6] = [
    (
        "ProcessingConfiguration",
        "It has records changed on their way, by a function or otherwise.",
        "Do the same by transforms: `rule`, `compute`, `filter`, or `exec` for a program of yours.",
    ),
    (
        "DynamicPartitioningConfiguration",
        "Objects lie in year=/month=/day= folders here, and by no other key.",
        "Use `route` and a sink for each part, or filter when reading: Parquet skips what does not match.",
    ),
    (
        "S3BackupDescription",
        "There is no second copy of the source records.",
        "Add a sink `parquet` that reads \"telemetry\".",
    ),
    ("CustomTimeZone", "Folders are of UTC.", "Nothing, unless readers take them for local days."),
    ("FileExtension", "Objects are named by what is in them.", "Nothing, unless readers look for the ending."),
    ("SecretsManagerConfiguration", "No secret is read from AWS here.", "Use `${file:/run/secrets/NAME}`."),
];

impl Delivery {
    /// Reads a delivery stream.
    ///
    /// # Errors
    /// It is none.
    pub fn read(document: &Value, remarks: &mut Remarks) -> Result<Self, String> {
        let stream = document.get("DeliveryStreamDescription").unwrap_or(document);
        let Some(name) = text_at(stream, &["DeliveryStreamName"]) else {
            return Err(
                "the Firehose has no \"DeliveryStreamName\": print it by `aws firehose describe-delivery-stream \
                        --delivery-stream-name NAME`"
                    .to_owned(),
            );
        };
        if text_at(stream, &["DeliveryStreamEncryptionConfiguration", "Status"]) == Some("ENABLED") {
            remarks.add(
                PLACE,
                "DeliveryStreamEncryptionConfiguration",
                "The spool, which takes the buffer's place, is not encrypted by the pipeline.",
                "Put `data_dir` on an encrypted disk.",
            );
        }
        let delivery = Self { name: name.to_owned(), stream: source(stream, remarks), bucket: bucket(stream, remarks) };
        Ok(delivery)
    }
}

fn source(stream: &Value, remarks: &mut Remarks) -> Option<Stream> {
    let source = stream.get("Source")?.as_object()?;
    for (kind, settings) in source {
        let arn = text_at(settings, &["KinesisStreamARN"]);
        let name = arn.and_then(|arn| arn.rsplit_once(":stream/")).map(|(_, name)| name);
        match name.filter(|name| is_plain(name, "_.-")) {
            Some(name) => return Some(Stream { name: name.to_owned(), region: arn.and_then(region_of) }),
            None => remarks.add(
                PLACE,
                &format!("Source {kind}"),
                "This source is not read here.",
                "Use `mqtt`, `kinesis` or `http` in its place, or let it write to one of these.",
            ),
        }
    }
    None
}

fn bucket(stream: &Value, remarks: &mut Remarks) -> Option<Bucket> {
    let mut found = None;
    for destination in stream.get("Destinations").and_then(Value::as_array).into_iter().flatten() {
        for (kind, settings) in destination.as_object().into_iter().flatten() {
            match kind.as_str() {
                "DestinationId" => {}
                // The same in fewer words, and printed beside it.
                "S3DestinationDescription" if destination.get("ExtendedS3DestinationDescription").is_some() => {}
                "ExtendedS3DestinationDescription" | "S3DestinationDescription" if found.is_none() => {
                    found = of_settings(settings, remarks);
                }
                other => remarks.add(
                    PLACE,
                    other,
                    "Only deliveries to S3 are taken over.",
                    "Find a sink that reaches it: `pipeline stages`. Until then let the Firehose go on.",
                ),
            }
        }
    }
    if found.is_none() {
        remarks.add(PLACE, "Destinations", "None is a bucket of S3.", "Add a sink `parquet` where objects are wanted.");
    }
    found
}

fn of_settings(settings: &Value, remarks: &mut Remarks) -> Option<Bucket> {
    let arn = text_at(settings, &["BucketARN"])?;
    let name = arn.rsplit(':').next().filter(|name| is_plain(name, "-.") && *name == name.to_lowercase())?;
    for (what, why, instead) in OF_DESTINATION {
        let value = settings.get(what);
        let is_on = value.is_some_and(|value| {
            !value.is_null()
                && value.get("Enabled").and_then(Value::as_bool) != Some(false)
                && value.as_str() != Some("")
        });
        if is_on && value.and_then(Value::as_str) != Some("UTC") {
            remarks.add(PLACE, what, why, instead);
        }
    }
    tell_common(settings, remarks);
    let hint = |key: &str| settings.get("BufferingHints").and_then(|hints| hints.get(key)).and_then(Value::as_u64);
    Some(Bucket {
        name: name.to_owned(),
        prefix: static_part(text_at(settings, &["Prefix"]), "Prefix", remarks),
        error_prefix: static_part(text_at(settings, &["ErrorOutputPrefix"]), "ErrorOutputPrefix", remarks),
        size_mbs: hint("SizeInMBs").filter(|size| (1..=1024).contains(size)),
        interval_seconds: hint("IntervalInSeconds").filter(|seconds| *seconds <= 3600),
    })
}

fn tell_common(settings: &Value, remarks: &mut Remarks) {
    if settings.get("CloudWatchLoggingOptions").and_then(|options| options.get("Enabled")) == Some(&Value::Bool(true)) {
        remarks.add(
            PLACE,
            "CloudWatchLoggingOptions",
            "Nothing is sent to CloudWatch.",
            "Use the log on stderr, /metrics and the alerts of ops/prometheus.",
        );
    }
    if settings.get("EncryptionConfiguration").is_some_and(|options| options.get("KMSEncryptionConfig").is_some()) {
        remarks.add(
            PLACE,
            "EncryptionConfiguration",
            "The sink names no key of KMS.",
            "Make it the bucket's default encryption, and allow the role kms:GenerateDataKey.",
        );
    }
    let conversion = settings.get("DataFormatConversionConfiguration");
    let is_converted = conversion.is_some_and(|it| it.get("Enabled").and_then(Value::as_bool) != Some(false));
    if is_converted {
        remarks.add(
            PLACE,
            "SchemaConfiguration",
            "The table of Glue that has the columns is not read.",
            "See that [schema.telemetry] has the same columns.",
        );
        if conversion.is_some_and(|it| it.pointer("/OutputFormatConfiguration/Serializer/OrcSerDe").is_some()) {
            remarks.add(PLACE, "OrcSerDe", "Objects are Parquet here.", "Let readers read Parquet.");
        }
    } else {
        let compression = text_at(settings, &["CompressionFormat"]).unwrap_or("UNCOMPRESSED");
        remarks.add(
            PLACE,
            &format!("CompressionFormat {compression:?} of JSON lines"),
            "Objects are Parquet with zstd here: smaller, and with columns.",
            "Turn those that read the objects to Parquet. Old objects are read by the source `s3`: pipelines/backfill.toml.",
        );
    }
}

/// A prefix up to its first expression. Folders by day follow, as the sink makes them.
fn static_part(prefix: Option<&str>, what: &str, remarks: &mut Remarks) -> String {
    let prefix = prefix.unwrap_or_default();
    let dates = ["year=!{timestamp:yyyy}", "month=!{timestamp:MM}", "day=!{timestamp:dd}"];
    let cut = dates.iter().filter_map(|date| prefix.find(date)).chain(prefix.find("!{")).min().unwrap_or(prefix.len());
    let (fixed, rest) = prefix.split_at(cut);
    let rest = dates.iter().fold(rest.to_owned(), |rest, date| rest.replace(date, ""));
    let is_other =
        rest.chars().any(|letter| letter != '/') && rest.trim_matches('/') != "!{firehose:error-output-type}";
    if is_other || (cut == prefix.len() && what == "Prefix") {
        remarks.add(
            PLACE,
            what,
            "Objects lie in folders year=YYYY/month=MM/day=DD below the fixed part of it, by the day of the reading.",
            "Turn those that read the objects to these folders.",
        );
    }
    let fixed = fixed.trim_matches('/');
    if fixed.is_empty() || (is_plain(fixed, "/_-=.") && !fixed.contains("//") && !fixed.contains("..")) {
        return fixed.to_owned();
    }
    remarks.add(PLACE, what, "It has letters that are not taken over.", "Set `url` of the sink.");
    String::new()
}
