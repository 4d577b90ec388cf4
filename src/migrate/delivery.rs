//! A Firehose, as `aws firehose describe-delivery-stream` prints it.

use serde_json::Value;

use super::{Remarks, is_plain, region_of, text_at};

const PLACE: &str = "firehose";
/// The folders of a Firehose without a prefix.
const BY_HOUR: &str = "!{timestamp:yyyy/MM/dd/HH/}";

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
    /// The folders of objects, with expressions; ends with a slash.
    pub prefix: String,
    /// Those of what could not be delivered; empty if the Firehose has none.
    pub error_prefix: String,
    /// Where folders' days begin, if that is not UTC.
    pub time_zone: Option<String>,
    pub objects: Objects,
    pub size_mbs: Option<u64>,
    pub interval_seconds: Option<u64>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objects {
    Parquet,
    /// A JSON object a line, packed by `gzip` or `none`.
    Lines {
        compression: &'static str,
    },
}

/// Settings of a destination in S3, why they don't map, and what to do.
const OF_DESTINATION: [(&str, &str, &str); 5] = [
    (
        "ProcessingConfiguration",
        "It has records changed on their way, by a function or otherwise.",
        "Do the same by transforms: `rule`, `compute`, `filter`, or `exec` for a program of yours.",
    ),
    (
        "DynamicPartitioningConfiguration",
        "Its keys are made by jq or a function, and here they are columns.",
        "Put `!{partitionKeyFromQuery:COLUMN}` into `prefix` of the sink; `compute` or `rule` make a column.",
    ),
    (
        "S3BackupDescription",
        "There is no second copy of the source records.",
        "Add a sink `parquet` that reads \"telemetry\".",
    ),
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
    let zone = text_at(settings, &["CustomTimeZone"]).filter(|zone| *zone != "UTC" && !zone.is_empty());
    let time_zone = zone.filter(|zone| is_plain(zone, "/_+-")).map(str::to_owned);
    if zone.is_some() && time_zone.is_none() {
        remarks.add(PLACE, "CustomTimeZone", "It is no name of a time zone.", "Set `custom_time_zone` of the sink.");
    }
    let hint = |key: &str| settings.get("BufferingHints").and_then(|hints| hints.get(key)).and_then(Value::as_u64);
    Some(Bucket {
        name: name.to_owned(),
        prefix: folders(text_at(settings, &["Prefix"]).unwrap_or(BY_HOUR), "Prefix", BY_HOUR, remarks),
        error_prefix: folders(
            text_at(settings, &["ErrorOutputPrefix"]).unwrap_or(""),
            "ErrorOutputPrefix",
            "",
            remarks,
        ),
        time_zone,
        objects: objects(settings, remarks),
        size_mbs: hint("SizeInMBs").filter(|size| (1..=128).contains(size)),
        interval_seconds: hint("IntervalInSeconds").filter(|seconds| *seconds <= 900),
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
}

fn objects(settings: &Value, remarks: &mut Remarks) -> Objects {
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
        return Objects::Parquet;
    }
    match text_at(settings, &["CompressionFormat"]).unwrap_or("UNCOMPRESSED") {
        "GZIP" => Objects::Lines { compression: "gzip" },
        "UNCOMPRESSED" => Objects::Lines { compression: "none" },
        other => {
            remarks.add(
                PLACE,
                &format!("CompressionFormat {other:?}"),
                "JSON lines are packed by gzip, zstd or not at all.",
                "Let readers read gzip, or have Parquet: remove `format` and `compression` of the sink.",
            );
            Objects::Lines { compression: "gzip" }
        }
    }
}

/// Folders in the Firehose's own language, which the sink speaks too; `otherwise` where it has more than that.
fn folders(prefix: &str, what: &str, otherwise: &str, remarks: &mut Remarks) -> String {
    if prefix.is_empty() {
        return otherwise.to_owned();
    }
    if !is_understood(prefix, what) {
        remarks.add(
            PLACE,
            what,
            "It has expressions or letters that are not taken over.",
            "Set `prefix` or `error_output_prefix` of the sink.",
        );
        return otherwise.to_owned();
    }
    let prefix = prefix.trim_start_matches('/');
    if prefix.ends_with('/') {
        return prefix.to_owned();
    }
    // With an expression at its end, or none at all, what ends it is as good as a slash.
    if !prefix.ends_with('}') {
        remarks.add(
            PLACE,
            what,
            "It ends within the name of an object, and here with a folder.",
            "Let readers list by folder.",
        );
    }
    if prefix.ends_with("/}") { prefix.to_owned() } else { format!("{prefix}/") }
}

/// Whether a prefix is made of plain folders, dates, random strings and types of error.
fn is_understood(prefix: &str, what: &str) -> bool {
    let mut rest = prefix;
    while let Some((fixed, after)) = rest.split_once("!{") {
        let Some((expression, behind)) = after.split_once('}') else { return false };
        let is_known = match expression.split_once(':') {
            Some(("timestamp", pattern)) => {
                !pattern.is_empty() && pattern.chars().all(|letter| "yMdH/=_-".contains(letter))
            }
            Some(("firehose", "random-string")) => true,
            Some(("firehose", "error-output-type")) => what == "ErrorOutputPrefix",
            _ => false,
        };
        if !is_known || !is_fixed(fixed) {
            return false;
        }
        rest = behind;
    }
    is_fixed(rest)
}

fn is_fixed(part: &str) -> bool {
    part.is_empty() || (is_plain(part, "/_-=.") && !part.contains("//") && !part.contains(".."))
}
