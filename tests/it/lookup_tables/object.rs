//! Tables in a real S3 store.

use object_store::{ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use tokio::runtime::Runtime;

use super::door::Door;
use super::*;

/// A bucket of a test's own.
struct Bucket {
    name: String,
    runtime: Runtime,
}

impl Bucket {
    fn new() -> Self {
        Self { name: services::bucket(), runtime: Runtime::new().expect("a runtime") }
    }

    fn put(&self, key: &str, content: impl Into<Vec<u8>>) {
        let client = services::s3().client(&self.name);
        let payload = PutPayload::from(content.into());
        self.runtime.block_on(client.put(&key.into(), payload)).expect("the store takes it");
    }

    fn delete(&self, key: &str) {
        self.runtime.block_on(services::s3().client(&self.name).delete(&key.into())).expect("the store deletes it");
    }

    fn sites(&self, key: &str, rest: &str) -> String {
        let name = &self.name;
        format!(
            "table = \"s3://{name}/{key}\"\nkey = \"device_id\"\ntypes = {{ site = \"text\" }}\nrefresh = \"100ms\"\n{rest}\n"
        )
    }
}

fn parquet_of(sites: &[(&str, &str)]) -> Vec<u8> {
    let column = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    let rows = RecordBatch::try_from_iter([
        ("site", column(sites.iter().map(|(_, site)| *site).collect())),
        ("device_id", column(sites.iter().map(|(device, _)| *device).collect())),
    ])
    .expect("columns of one length");
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).expect("a schema");
    writer.write(&rows).expect("rows");
    writer.into_inner().expect("a file")
}

#[test]
fn an_object_is_read_again_once_it_is_another_one() {
    let bucket = Bucket::new();
    bucket.put("tables/devices.csv", "device_id,site\ndev-1,north\n");
    let (door, endpoint) = Door::before_url(&services::s3().endpoint);
    let text = bucket.sites("tables/devices.csv", &format!("endpoint = \"{endpoint}\""));
    let mut looked = Looked::enrich(&text).opened();
    assert_eq!(looked.value("dev-1", "site"), "north");

    // A table of 200 kB: looks that find it unchanged don't fetch it.
    let rows: String = (0..10_000).map(|number| format!("dev-{number},a-longer-site\n")).collect();
    bucket.put("tables/devices.csv", format!("device_id,site\n{rows}"));
    looked.becomes("dev-1", "site", "a-longer-site");
    let bytes = door.bytes_down();
    wait_until("some looks that find nothing new", || (door.bytes_down() > bytes + 2_000).then_some(()));
    assert!(door.bytes_down() < bytes + 100_000, "{} bytes", door.bytes_down() - bytes);
    assert_eq!((looked.count("reloads"), looked.count("reload_failures")), (1, 0));
}

#[test]
fn a_broken_larger_or_missing_object_keeps_the_old_table() {
    let bucket = Bucket::new();
    let key = "devices.parquet";
    bucket.put(key, parquet_of(&[("dev-1", "north"), ("dev-2", "south")]));
    let text = bucket.sites(key, "max_table_size = \"64KiB\"");
    let mut looked = Looked::enrich(&text).opened();
    let mut failures = 0;
    let mut breaks = |content: &[u8], part: &str| {
        bucket.put(key, content);
        looked.counts_more_than("reload_failures", failures);
        failures = looked.count("reload_failures");
        let error = permanent(&Looked::enrich(&text).refusal());
        assert!(error.contains(part) && error.contains(&format!("table \"s3://{}/{key}\"", bucket.name)), "{error}");
        assert_eq!(looked.value("dev-2", "site"), "south", "{part}");
    };
    breaks(b"no parquet", "it is not valid Parquet");
    breaks(&parquet_of(&[("dev-1", "a"), ("dev-1", "b")]), "row 2 has the same \"device_id\" as row 1");
    breaks(&vec![0; 100_000], "it has 100000 bytes, more than `max_table_size`, 65536");
    // Small as a file, large in memory.
    let same = "x".repeat(1_000);
    let devices: Vec<String> = (0..1_000).map(|number| format!("dev-{number}")).collect();
    let much = parquet_of(&devices.iter().map(|device| (device.as_str(), same.as_str())).collect::<Vec<_>>());
    assert!(much.len() < 64 << 10, "{}", much.len());
    breaks(&much, "its columns take more memory than `max_table_size`, 65536");
    bucket.delete(key);
    looked.counts_more_than("reload_failures", failures);
    let error = permanent(&Looked::enrich(&text).refusal());
    assert!(error.contains("there is no such object"), "{error}");
    assert_eq!(looked.value("dev-2", "site"), "south");
    bucket.put(key, parquet_of(&[("dev-2", "mended")]));
    looked.becomes("dev-2", "site", "mended");
    assert_eq!(looked.count("reloads"), 1);
}

#[test]
fn a_store_that_goes_away_leaves_the_table_and_is_found_again() {
    let bucket = Bucket::new();
    bucket.put("devices.csv", "device_id,site\ndev-1,north\n");
    let (door, endpoint) = Door::before_url(&services::s3().endpoint);
    let text = bucket.sites("devices.csv", &format!("endpoint = \"{endpoint}\""));
    let mut looked = Looked::enrich(&text).opened();
    door.shut();
    looked.counts_more_than("reload_failures", 1);
    assert_eq!(looked.value("dev-1", "site"), "north");
    let error = Looked::enrich(&text).refusal();
    assert_eq!(error.fault(), Fault::Transient, "at the start it is waited for: {}", error.chain());
    bucket.put("devices.csv", "device_id,site\ndev-1,west\n");
    door.open();
    looked.becomes("dev-1", "site", "west");
}

#[test]
fn what_the_credentials_do_not_reach_needs_a_person_and_no_secret_is_shown() {
    let bucket = Bucket::new();
    bucket.put("devices.csv", "device_id,site\ndev-1,north\n");
    let text = bucket.sites("devices.csv", "");
    let config = || toml::from_str::<EnrichConfig>(&text).expect("a valid configuration");
    let secret = "not-the-secret-of-this-key";
    let wrong = services::s3().environment().into_iter().map(|(name, value)| {
        let value = if name == "AWS_SECRET_ACCESS_KEY" { secret.to_owned() } else { value };
        (name, value)
    });
    let error = permanent(&Looked::built(config().environment(wrong)).refusal());
    assert!(error.contains("can't be read with these credentials") && !error.contains(secret), "{error}");
    let nowhere = text.replace(&bucket.name, "no-such-bucket-anywhere");
    let error = permanent(&Looked::enrich(&nowhere).refusal());
    assert!(error.contains("there is no bucket \"no-such-bucket-anywhere\""), "{error}");
    assert!(!error.contains(&services::s3().secret_key), "{error}");
}

#[test]
fn zones_can_lie_in_a_bucket() {
    let bucket = Bucket::new();
    let zone = |name: &str| {
        format!(
            r#"{{"type":"Feature","properties":{{"name":"{name}"}},"geometry":{{"type":"Polygon",
            "coordinates":[[[4,4],[6,4],[6,6],[4,6],[4,4]]]}}}}"#
        )
    };
    bucket.put("zones.geojson", zone("yard"));
    let text = format!(
        "table = \"s3://{}/zones.geojson\"\nlatitude = \"lat\"\nlongitude = \"lon\"\ncolumns = {{ zone = \"name\" }}\n\
         refresh = \"100ms\"",
        bucket.name
    );
    let config = toml::from_str::<GeofenceConfig>(&text).expect("a valid configuration");
    let mut looked = Looked::built(config.environment(services::s3().environment())).opened();
    assert_eq!(looked.value("dev-1", "zone"), "yard");
    bucket.put("zones.geojson", zone("court"));
    looked.becomes("dev-1", "zone", "court");
}
