//! The real services that tests talk to, started on first use by `tests/services/services`.
//!
//! They are shared by all tests of a run (and left up, for the next run): a test uses tables, topics
//! and buckets of its own, named by [`unique`].

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

static VARIABLES: OnceLock<Mutex<BTreeMap<String, BTreeMap<String, String>>>> = OnceLock::new();

/// Starts a service if it is not up, and gives a variable that `services env` prints for it, such as
/// `TEST_MQTT_URL`. A variable that is set already wins: the service is then somebody else's.
pub fn variable(service: &str, name: &str) -> String {
    if let Ok(value) = std::env::var(name) {
        return value;
    }
    // One at a time: the lock is held while the service starts.
    let mut all = VARIABLES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let variables = all.entry(service.to_owned()).or_insert_with(|| up(service));
    variables.get(name).unwrap_or_else(|| panic!("`services env` prints no {name}")).clone()
}

fn up(service: &str) -> BTreeMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services");
    let up = Command::new(script).args(["up", service]).output().expect("bash runs the services script");
    assert!(up.status.success(), "{service} did not come up: {}", String::from_utf8_lossy(&up.stderr));
    let env = Command::new(script).arg("env").output().expect("bash runs the services script");
    let text = String::from_utf8(env.stdout).expect("variables are text");
    let words = text.lines().flat_map(|line| line.trim_start_matches("export ").split(' '));
    words
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

/// A name that no other test and no earlier run has used: lower-case letters, digits, underscores.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    format!("{prefix}_{:x}_{}_{}", since.as_millis(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The URL of a real Mosquitto without authentication.
pub fn mqtt_url() -> String {
    variable("mosquitto", "TEST_MQTT_URL")
}

/// The URL of a real TimescaleDB, as a superuser.
pub fn database_url() -> String {
    variable("timescaledb", "TEST_DATABASE_URL")
}

/// A real S3 API: endpoint, access key, secret key, region.
pub struct S3 {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// A real S3 API.
pub fn s3() -> S3 {
    let get = |name| variable("s3", name);
    S3 {
        endpoint: get("TEST_S3_ENDPOINT"),
        access_key: get("TEST_S3_ACCESS_KEY"),
        secret_key: get("TEST_S3_SECRET_KEY"),
        region: get("TEST_S3_REGION"),
    }
}

/// A new database with the TimescaleDB extension, dropped by nobody: the set of services is thrown away
/// as a whole. Gives its URL.
pub fn database(prefix: &str) -> String {
    let url = database_url();
    let name = unique(prefix);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let own = format!("{}/{name}", url.rsplit_once('/').expect("a URL with a database").0);
    runtime.block_on(async {
        execute(&url, &format!("create database {name}")).await;
        execute(&own, "create extension if not exists timescaledb").await;
    });
    own
}

async fn execute(url: &str, sql: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("the database");
    let serving = tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    drop(client);
    serving.await.expect("no panic").ok();
}

/// Publishes messages with QoS 1 and waits until the broker has them all.
pub async fn publish<'a>(messages: impl Iterator<Item = (String, &'a [u8])>) {
    use rumqttc_v5::{AsyncClient, Event, Incoming, MqttOptions, mqttbytes::QoS};
    let url = mqtt_url();
    let (host, port) = url.trim_start_matches("mqtt://").split_once(':').expect("host and port");
    let mut options = MqttOptions::new(unique("publisher"), (host, port.parse::<u16>().expect("a port")));
    options.set_max_packet_size(Some(1 << 20));
    let (client, mut events) = AsyncClient::new(options, 10);
    let messages: Vec<(String, Vec<u8>)> = messages.map(|(topic, payload)| (topic, payload.to_vec())).collect();
    let mut missing = messages.len();
    let sending = tokio::spawn(async move {
        for (topic, payload) in messages {
            client.publish(topic, QoS::AtLeastOnce, false, payload).await.expect("the broker takes it");
        }
        client
    });
    while missing > 0 {
        if let Event::Incoming(Incoming::PubAck(_)) = events.poll().await.expect("a connection") {
            missing -= 1;
        }
    }
    drop(sending.await.expect("no panic"));
}

/// Every row of every Parquet object of a bucket under a prefix.
pub async fn read_parquet(bucket: &str, prefix: &str) -> Vec<arrow::record_batch::RecordBatch> {
    use futures::TryStreamExt;
    use object_store::{ObjectStore, ObjectStoreExt};
    let s3 = s3();
    let store = object_store::aws::AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_endpoint(s3.endpoint)
        .with_access_key_id(s3.access_key)
        .with_secret_access_key(s3.secret_key)
        .with_region(s3.region)
        .with_allow_http(true)
        .build()
        .expect("a valid configuration");
    let objects: Vec<_> = store.list(Some(&prefix.into())).try_collect().await.expect("a listing");
    let mut batches = Vec::new();
    for object in objects.iter().filter(|object| object.location.as_ref().ends_with(".parquet")) {
        let bytes = store.get(&object.location).await.expect("the object").bytes().await.expect("its bytes");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet");
        batches.extend(reader.build().expect("Parquet").map(|batch| batch.expect("rows")));
    }
    batches
}
