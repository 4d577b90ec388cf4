//! `pipeline replay`: what lies in a bucket, sent through the stages of a pipeline that reads something else.

use super::*;

/// A pipeline that reads a broker which is not there: a replay must not ask for it.
fn pipeline_file(house: &House) -> PathBuf {
    let file = house.folder.path().join("live.toml");
    let text = format!(
        r#"
[pipeline]
name = "live"
data_dir = {data:?}
[schema.reading]
device_id = {{ type = "text", required = true }}
seq = {{ type = "int64", required = true }}
timestamp = {{ type = "timestamp", required = true }}
[sources.telemetry]
type = "mqtt"
url = "mqtt://127.0.0.1:1"
topics = ["iot/#"]
schema = "reading"
[transforms.valid]
type = "validate"
inputs = ["telemetry"]
range = {{ seq = [0, 999] }}
[sinks.table]
type = "timescaledb"
inputs = ["valid"]
url = {database:?}
table = "readings"
create = true
time_column = "timestamp"
key = ["device_id", "timestamp", "seq"]
[sinks.lake]
type = "parquet"
inputs = ["valid"]
url = "s3://{bucket}/lake"
time_column = "timestamp"
[sinks.refused]
type = "timescaledb"
inputs = ["telemetry.rejected", "valid.rejected", "table.rejected"]
url = {database:?}
table = "refused"
create = true
time_column = "received_at"
key = []
"#,
        data = house.folder.path().join("data"),
        bucket = house.bucket,
        database = house.database,
    );
    std::fs::write(&file, text).expect("writable");
    file
}

#[test]
fn a_day_goes_through_the_same_stages_and_again_changes_nothing() {
    let house = House::new();
    let file = pipeline_file(&house);
    let file = file.to_str().expect("text");
    let url = format!("s3://{}/raw/2026-01-31", house.bucket);
    house.put("raw/2026-01-30/a.gz", gzip(&lines(500..600)));
    house.put("raw/2026-01-31/a.gz", gzip(&lines(0..400)));
    house.put("raw/2026-01-31/b", lines(400..402) + &lines(2_000..2_001));
    house.finish(&["replay", &url, file, "--without", "lake"], "first");
    assert_eq!(house.stored(), once(0..402));
    let refused = || house.query("SELECT reason FROM refused", |row| row.get::<_, String>(0));
    assert_eq!(refused(), ["range.seq"]);
    assert_eq!(house.in_lake(), Vec::<i64>::new());

    house.finish(&["replay", &url, file, "--without", "lake"], "second");
    assert_eq!((house.stored(), refused().len()), (once(0..402), 1));
    // What is replayed deliberately is known by the table's key.
    let log = house.finish(&["replay", &url, file, "--without", "lake", "--without", "refused", "--again"], "again");
    assert!(log.contains("402 duplicate"), "{log}");
    assert_eq!(house.stored(), once(0..402));
}

#[test]
fn what_can_not_be_replayed_says_why() {
    let house = House::new();
    let file = pipeline_file(&house);
    let file = file.to_str().expect("text");
    for (arguments, why) in [
        (&["replay", "/folder", file][..], "names no bucket"),
        (&["replay", "s3://b/p", file, "--source", "other"], "no source is named \"other\"; there are telemetry"),
        (&["replay", "s3://b/p", file, "--without", "telemetry"], "no transform and no sink is named \"telemetry\""),
        (&["replay", "s3://b/p", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        let mut process = house.start(arguments, "mistake");
        assert_eq!(process.wait().code(), Some(2), "{}", process.log());
        assert!(process.log().contains(why), "{}", process.log());
    }
}
