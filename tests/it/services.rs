//! The real services that tests talk to, started on first use by `tests/services/services`.
//!
//! They are shared by all tests of a run (and left up, for the next run): a test uses tables, topics
//! and buckets of its own, named by [`unique`].

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

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
    run(script().args(["up", service]));
    variables_of(&run(script().arg("env")))
}

fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services"))
}

/// What `services env` prints, by name.
fn variables_of(env: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(&env.stdout);
    let words = text.lines().flat_map(|line| line.trim_start_matches("export ").split(' '));
    words
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

/// A set of services of some test's own, for what the shared ones can't take. Left up at the end, as
/// they are.
pub struct OwnSet {
    /// Data, logs and pids, one folder a service.
    pub state: PathBuf,
    pub first_port: u16,
    variables: &'static [(&'static str, &'static str)],
    /// Other runs of these tests on this machine wait for it.
    pub lock: File,
}

impl OwnSet {
    /// Ports of its services start at `first_port`. Locked; the variables are for the script.
    pub fn named(name: &str, first_port: u16, variables: &'static [(&'static str, &'static str)]) -> Self {
        let state = std::env::temp_dir().join(format!("pipeline-services-{name}"));
        std::fs::create_dir_all(&state).expect("the folder for temporary files can be written");
        let lock = File::create(state.join("lock")).expect("a folder of ours");
        lock.lock().expect("a lock");
        Self { state, first_port, variables, lock }
    }

    /// Runs the services script on this set.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = script();
        command.args(arguments).env("SERVICES_STATE", &self.state).env("SERVICES_PORT", self.first_port.to_string());
        run(command.envs(self.variables.iter().copied()))
    }

    /// What `services env` prints of the services that are up.
    pub fn variables(&self) -> BTreeMap<String, String> {
        variables_of(&self.run(&["env"]))
    }
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
#[derive(Clone)]
pub struct S3 {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// A real S3 API.
pub fn s3() -> S3 {
    S3::of(|name| variable("s3", name))
}

impl S3 {
    /// By the variables that `services env` prints.
    pub fn of(variable: impl Fn(&str) -> String) -> Self {
        Self {
            endpoint: variable("TEST_S3_ENDPOINT"),
            access_key: variable("TEST_S3_ACCESS_KEY"),
            secret_key: variable("TEST_S3_SECRET_KEY"),
            region: variable("TEST_S3_REGION"),
        }
    }

    /// AWS's variables for a program that uses it.
    pub fn environment(&self) -> [(String, String); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            ("AWS_REGION", &self.region),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
    }

    /// A client for one of its buckets.
    pub fn client(&self, bucket: &str) -> object_store::aws::AmazonS3 {
        object_store::aws::AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_endpoint(&self.endpoint)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .with_region(&self.region)
            .with_allow_http(true)
            .build()
            .expect("a valid configuration")
    }

    /// A new bucket. `object_store` makes none, but signs the request that does.
    pub fn new_bucket(&self) -> String {
        use object_store::signer::Signer;
        use std::io::{Read, Write};
        let name = unique("test").replace('_', "-");
        let client = self.client(&name);
        let put = "PUT".parse().expect("a method");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let path = Default::default();
        let url = runtime.block_on(client.signed_url(put, &path, Duration::from_secs(60))).expect("a URL");
        let authority = format!("{}:{}", url.host_str().expect("a host"), url.port_or_known_default().expect("a port"));
        let query = url.query().expect("a signature");
        let request = format!(
            "PUT {}?{query} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            url.path()
        );
        let mut connection = TcpStream::connect(&authority).expect("the S3 store");
        connection.write_all(request.as_bytes()).expect("the S3 store reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("the S3 store answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        name
    }

    /// Every row of every Parquet object of a bucket under a prefix.
    pub async fn read_parquet(&self, bucket: &str, prefix: &str) -> Vec<RecordBatch> {
        let store = self.client(bucket);
        let objects: Vec<_> = store.list(Some(&prefix.into())).try_collect().await.expect("a listing");
        let mut batches = Vec::new();
        for object in objects.iter().filter(|object| object.location.as_ref().ends_with(".parquet")) {
            let bytes = store.get(&object.location).await.expect("the object").bytes().await.expect("its bytes");
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet");
            batches.extend(reader.build().expect("Parquet").map(|batch| batch.expect("rows")));
        }
        batches
    }
}

/// A new bucket of the shared store.
pub fn bucket() -> String {
    s3().new_bucket()
}

/// A new database with the TimescaleDB extension in the shared server, dropped by nobody: the set of
/// services is thrown away as a whole. Gives its URL.
pub fn database(prefix: &str) -> String {
    database_beside(&database_url(), prefix)
}

/// A new database in the server of another one.
pub fn database_beside(url: &str, prefix: &str) -> String {
    let name = unique(prefix);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let own = format!("{}/{name}", url.rsplit_once('/').expect("a URL with a database").0);
    runtime.block_on(async {
        execute(url, &format!("create database {name}")).await;
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

/// The address of a Kinesis emulator.
pub fn kinesis_endpoint() -> String {
    variable("kinesis", "TEST_KINESIS_ENDPOINT")
}

/// Publishes messages with QoS 1 and waits until the broker has them all.
pub async fn publish<'a>(messages: impl Iterator<Item = (String, &'a [u8])>) {
    use rumqttc_v5::{AsyncClient, Event, Incoming, MqttOptions, PublishOptions};
    let url = mqtt_url();
    let (host, port) = url.trim_start_matches("mqtt://").split_once(':').expect("host and port");
    let mut options = MqttOptions::new(unique("publisher"), (host, port.parse::<u16>().expect("a port")));
    options.set_max_packet_size(Some(1 << 20));
    let (client, mut events) = AsyncClient::builder(options).capacity(10).build();
    let messages: Vec<(String, Vec<u8>)> = messages.map(|(topic, payload)| (topic, payload.to_vec())).collect();
    let mut missing = messages.len();
    let sending = tokio::spawn(async move {
        for (topic, payload) in messages {
            client.publish(topic, payload, PublishOptions::at_least_once()).await.expect("the broker takes it");
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

/// Puts one of the Parquet objects there a second time, under a name that its sink could have given it.
pub async fn copy_an_object(bucket: &str, prefix: &str) {
    use futures::TryStreamExt;
    use object_store::{ObjectStore, ObjectStoreExt};
    let store = s3().client(bucket);
    let objects: Vec<_> = store.list(Some(&prefix.into())).try_collect().await.expect("a listing");
    let from = objects[0].location.clone();
    let (stem, hash) = from.as_ref().trim_end_matches(".parquet").split_at(from.as_ref().len() - ".parquet".len() - 32);
    let turned: String = hash.chars().rev().collect();
    store.copy(&from, &format!("{stem}{turned}.parquet").into()).await.expect("a copy");
}

/// Every row of every Parquet object of a bucket of the shared store under a prefix.
pub async fn read_parquet(bucket: &str, prefix: &str) -> Vec<RecordBatch> {
    s3().read_parquet(bucket, prefix).await
}

/// A Python that has pyarrow and DuckDB, the readers that most people bring, and pandas and shapely, by which results
/// are checked. Installed on first use, beside the services' own software.
pub fn python() -> PathBuf {
    python_with("python", "installed-pyarrow-duckdb-pandas-shapely", &["pyarrow", "duckdb", "pandas", "shapely"])
}

/// A Python that has AWS's library for packed Kinesis records, which wants a protobuf of its time.
pub fn python_of_kinesis() -> PathBuf {
    python_with("python-kinesis", "installed", &["aws_kinesis_agg==1.2.3", "protobuf<4", "six"])
}

/// A Python with these packages, in a folder of the cache; `done` is the name of the file that says so.
fn python_with(folder: &str, done: &str, packages: &[&str]) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(Into::into)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home folder")).join(".cache"));
    let folder = cache.join("pipeline").join(folder);
    std::fs::create_dir_all(&folder).expect("the cache folder can be written");
    // Tests of several checkouts may come at once: one installs, the others wait.
    let lock = File::create(folder.join("lock")).expect("the cache folder can be written");
    lock.lock().expect("a lock");
    let (python, done) = (folder.join("venv/bin/python"), folder.join(done));
    if !done.exists() {
        let venv = folder.join("venv");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
        run(Command::new(&python).args(pip).args(packages));
        std::fs::write(done, "").expect("the cache folder can be written");
    }
    python
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
