//! What a pipeline file may say.

use pipeline_engine::stage::{BuildError, Port, SourceConfig};
use pipeline_engine::testing;

use super::*;

const SCHEMA: &str = "[schema.reading]\ndevice_id = { type = \"text\", required = true }\n";

fn built(keys: &str) -> Result<BuiltSource, BuildError> {
    let config: KinesisSourceConfig = toml::from_str(keys).unwrap();
    config.build(&testing::build_context("telemetry", SCHEMA))
}

fn mistake(keys: &str) -> BuildError {
    match built(keys) {
        Ok(_) => panic!("{keys} is taken"),
        Err(mistake) => mistake,
    }
}

#[test]
fn a_stream_is_all_that_must_be_named() {
    let built = built("stream = \"readings\"\nschema = \"reading\"").unwrap();
    assert!(built.source.is_resumable());
    assert_eq!(built.outputs.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [Port::MAIN, Port::REJECTED]);
}

#[test]
fn what_is_wrong_is_told_at_its_key() {
    for (key, keys) in [
        ("stream", "stream = \"arn:aws:kinesis:eu-west-1:123456789012:stream/readings\""),
        ("endpoint", "stream = \"readings\"\nendpoint = \"http://kinesis.example.com\""),
        ("batch_rows", "stream = \"readings\"\nbatch_rows = 0"),
        ("poll_records", "stream = \"readings\"\npoll_records = 10001"),
        ("poll_interval", "stream = \"readings\"\npoll_interval = \"100ms\""),
        ("fan_out", "stream = \"readings\"\nfan_out = \"\""),
        ("schema", "stream = \"readings\"\nschema = \"no\""),
    ] {
        assert_eq!(mistake(keys).key, key);
    }
}

#[test]
fn a_start_is_a_word_or_a_time() {
    let start = |text: &str| {
        toml::from_str::<KinesisSourceConfig>(&format!("stream = \"s\"\nstart = \"{text}\"")).map(|config| config.start)
    };
    assert_eq!(start("horizon").unwrap(), StartAt::Horizon);
    assert_eq!(start("latest").unwrap(), StartAt::Latest);
    assert_eq!(start("1970-01-01T00:00:01.5Z").unwrap(), StartAt::Time(1_500_000));
    assert!(start("yesterday").is_err());
    assert_eq!(toml::from_str::<KinesisSourceConfig>("stream = \"s\"").unwrap().start, StartAt::Horizon);
}
