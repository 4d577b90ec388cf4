use super::*;
use crate::sinks::parquet::config::plain;
use crate::sinks::parquet::format::Packing;

/// The key and the text of the mistake.
fn mistake(keys: Value, input: &SchemaRef) -> (String, String) {
    let error = build(keys, input).err().expect("must be refused");
    (error.key, error.message)
}

#[test]
fn the_defaults_are_those_that_the_documentation_names() {
    let built = build(json!({}), &input()).unwrap();
    assert_eq!(built.grouping.rows_max, 1_000_000);
    assert_eq!(built.grouping.bytes_max, 64 << 20);
    assert_eq!(built.grouping.linger, std::time::Duration::from_secs(60));
    let config: ParquetConfig = serde_json::from_value(json!({ "url": "./lake" })).unwrap();
    assert_eq!(config.form().unwrap(), Form::Parquet(Codec::ZSTD(ZstdLevel::try_new(1).unwrap())));
    let config: ParquetConfig = serde_json::from_value(json!({ "url": "./lake", "format": "json" })).unwrap();
    assert_eq!(config.form().unwrap(), Form::Json(Packing::Gzip(6)));
}

fn hints(size_in_mbs: u64, interval_in_seconds: u64) -> Value {
    json!({ "buffering_hints": { "size_in_mbs": size_in_mbs, "interval_in_seconds": interval_in_seconds } })
}

#[test]
fn hints_of_aws_are_size_and_age_by_other_names() {
    let built = build(hints(128, 300), &input()).unwrap();
    assert_eq!(built.grouping.bytes_max, 128 << 20);
    assert_eq!(built.grouping.linger, std::time::Duration::from_secs(300));
    assert!(build(hints(1, 0), &input()).unwrap().grouping.linger.is_zero());
    for key in ["roll_size", "roll_age"] {
        let mut both = hints(128, 300);
        both[key] = json!(if key == "roll_size" { "64MiB" } else { "1m" });
        assert_eq!(
            mistake(both, &input()),
            (key.to_owned(), format!("\"{key}\" and \"buffering_hints\" say the same"))
        );
    }
}

#[test]
fn mistakes_name_the_key() {
    let cases = [
        (
            json!({ "compression": "snappy", "compression_level": 3 }),
            "compression_level",
            "only zstd and gzip have levels",
        ),
        (json!({ "format": "json", "compression_level": 10 }), "compression_level", "the levels of gzip are 1 to 9"),
        (json!({ "compression": "gzip" }), "compression", "Parquet is not packed as gzip here"),
        (json!({ "format": "json", "compression": "snappy" }), "compression", "lines are not packed as snappy here"),
        (hints(0, 300), "buffering_hints.size_in_mbs", "AWS allows 1 to 128"),
        (hints(128, 901), "buffering_hints.interval_in_seconds", "AWS allows 0 to 900"),
        (json!({ "partitions_max": 0 }), "partitions_max", "a group fills 1 to 10000 folders"),
        (
            json!({ "prefix": "raw!{firehose:random-string}" }),
            "prefix",
            "a prefix names folders, and this one ends without a slash",
        ),
        (json!({ "compression_level": 23 }), "compression_level", "the levels of zstd are 1 to 22"),
        (json!({ "roll_rows": 0 }), "roll_rows", "a file holds one row at least"),
        (json!({ "roll_size": "2GiB" }), "roll_size", "a file is above zero and at most 1 GiB large"),
        (
            json!({ "partition_by": "received_at", "time_column": "time" }),
            "time_column",
            "nothing reads the time column",
        ),
        (json!({ "partition_by": "event_time" }), "partition_by", "no column is named for the event time"),
        (json!({ "region": "eu-west-1" }), "region", "a folder of this machine has no such setting"),
        (
            json!({ "partition_by": "event_time", "time_column": "value" }),
            "time_column",
            "column \"value\" is Float64, not a timestamp",
        ),
        (
            json!({ "url": "s3://lake", "endpoint": "http://s3.example.com" }),
            "endpoint",
            "\"http://s3.example.com\" is not encrypted",
        ),
    ];
    for (keys, key, message) in cases {
        assert_eq!(mistake(keys, &input()), (key.to_owned(), message.to_owned()));
    }
}

#[test]
fn a_column_named_as_a_folder_is_refused() {
    let input = Arc::new(Schema::new(vec![Field::new("day", DataType::Utf8, true)]));
    let (_, message) = mistake(json!({}), &input);
    assert_eq!(message, "column \"day\" has the name of a folder");
}

#[test]
fn no_name_leads_out_of_the_prefix() {
    assert_eq!(plain("../a b/ü"), "___a_b__");
}
