//! One installation: a broker, a database, a bucket, proxies before each, the pipeline, its fleet.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::NoTls;

use super::daemons::{Broker, BrokerSettings, Daemons};
use super::fleet::{Fleet, now_us};
use super::oracle::{Verdict, judge};
use super::places;
use super::proxy::{Protocol, Proxy};
use super::record::Record;
use super::table::Table;
use crate::process::{Process, wait_until};
use crate::services;

/// Nothing arrives for so long: nothing more will. Longer than any wait between two attempts of a sink.
const SILENCE: Duration = Duration::from_secs(75);

/// These tests kill services, and each wants the machine for itself.
static TURN: Mutex<()> = Mutex::new(());

pub struct Site {
    pub runtime: tokio::runtime::Runtime,
    pub daemons: Daemons,
    pub broker: Broker,
    pub mqtt: Proxy,
    pub postgres: Proxy,
    pub s3: Proxy,
    pub record: Record,
    database_url: String,
    bucket: String,
    topic: String,
    client_id: String,
    /// Further variables of the pipeline file.
    variables: Vec<(&'static str, String)>,
    file: PathBuf,
    runs: u32,
    folder: Folder,
    _turn: MutexGuard<'static, ()>,
}

/// Everything on this machine's disk; kept for a look at it where the test fails, or where
/// `DELIVERY_KEEP` is set.
struct Folder(Option<TempDir>);

impl Folder {
    fn path(&self) -> &std::path::Path {
        self.0.as_ref().expect("there until it is dropped").path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if (std::thread::panicking() || std::env::var_os("DELIVERY_KEEP").is_some())
            && let Some(folder) = self.0.take()
        {
            eprintln!("logs and data: {}", folder.keep().display());
        }
    }
}

impl Site {
    pub fn new(name: &str, broker: BrokerSettings) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let daemons = Daemons::up();
        let folder = TempDir::with_prefix(format!("delivery-{name}-")).expect("a folder");
        let broker = Broker::start(&folder.path().join("broker"), broker);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let database_url = services::database_beside(&daemons.database_url, name);
        let bucket = daemons.s3.new_bucket();
        let proxy = |protocol, target: &str| runtime.block_on(Proxy::start(protocol, target));
        Self {
            mqtt: proxy(Protocol::Mqtt, Broker::PLACE),
            postgres: proxy(Protocol::Postgres, place_of(&database_url)),
            s3: proxy(Protocol::S3, daemons.s3.endpoint.trim_start_matches("http://")),
            runtime,
            daemons,
            broker,
            record: Record::default(),
            database_url,
            bucket,
            topic: services::unique("delivery"),
            client_id: services::unique(name),
            variables: Vec::new(),
            file: "tests/it/delivery/pipeline.toml".into(),
            runs: 0,
            folder: Folder(Some(folder)),
            _turn: turn,
        }
    }

    /// Sets a variable of the pipeline file, for all starts from now on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.to_owned()));
    }

    /// Runs another pipeline file, from now on.
    pub fn run_file(&mut self, file: &Path) {
        self.file = file.to_owned();
    }

    /// Starts the pipeline; its log has the number of the run.
    pub fn start(&mut self) -> Process {
        self.runs += 1;
        self.start_as(&format!("pipeline-{:04}", self.runs), &[])
    }

    /// Starts it with other variables than usual, such as `DATA_DIR`.
    pub fn start_as(&self, name: &str, changes: &[(&str, &str)]) -> Process {
        let s3 = services::S3 { endpoint: format!("http://{}", self.s3.address()), ..self.daemons.s3.clone() };
        let database = self.database_url.replace(place_of(&self.database_url), &self.postgres.address());
        let ours = [
            ("DATA_DIR", self.data_dir().display().to_string()),
            ("MQTT_URL", format!("mqtt://{}", self.mqtt.address())),
            ("MQTT_TOPIC", self.topic.clone()),
            ("MQTT_CLIENT_ID", self.client_id.clone()),
            ("DATABASE_URL", database),
            ("S3_URL", format!("s3://{}", self.bucket)),
        ];
        let ours = ours.map(|(name, value)| (name.to_owned(), value));
        let all: Vec<(String, String)> = ours.into_iter().chain(s3.environment()).collect();
        let mut all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.extend(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        all.extend(changes);
        Process::start(&["run".as_ref(), self.file.as_os_str()], &all, self.folder.path(), name)
    }

    /// Starts the pipeline for the first time: from then on the broker keeps what comes for it, and there
    /// are tables to look into.
    pub fn start_and_subscribe(&mut self) -> Process {
        let mut pipeline = self.start();
        pipeline.wait_for_log("subscribed");
        let tables = "select count(*) from pg_tables where tablename in ('keyed', 'keyless', 'dead_letters')";
        wait_until("the tables", || (self.number(tables) == 3).then_some(()));
        pipeline
    }

    /// Where the pipeline keeps what must survive.
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// A name in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn fleet(&self, per_second: u32) -> Fleet {
        let _inside = self.runtime.enter();
        Fleet::start(Broker::PLACE, &self.topic, &self.record, per_second)
    }

    /// One number from the database, past the proxy.
    pub fn number(&self, sql: &str) -> i64 {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.database_url, NoTls).await.expect("the database");
            tokio::spawn(connection);
            client.query_one(sql, &[]).await.expect(sql).get(0)
        })
    }

    pub fn rows(&self, table: &str) -> u64 {
        self.number(&format!("select count(*) from {table}")).unsigned_abs()
    }

    /// Waits for a row of a device's time after this, in the table with a key.
    pub fn wait_for_row_after(&self, at_us: i64) {
        let sql =
            format!("select count(*) from (select from keyed where timestamp > to_timestamp({at_us} / 1e6) limit 1)");
        wait_until("a new row", || (self.number(&sql) > 0).then_some(()));
    }

    /// Rows in the lake, by all its objects.
    pub fn rows_in_lake(&self) -> u64 {
        let batches = self.runtime.block_on(self.daemons.s3.read_parquet(&self.bucket, "lake"));
        batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    /// How long ago the last object of the lake was made, by the store's clock of whole seconds.
    pub fn age_of_newest_object(&self) -> Duration {
        use futures::TryStreamExt;
        use object_store::ObjectStore;
        let store = self.daemons.s3.client(&self.bucket);
        let lake = "lake".into();
        let objects: Vec<_> = self.runtime.block_on(store.list(Some(&lake)).try_collect()).expect("a listing");
        let newest = objects.iter().map(|object| object.last_modified.timestamp_micros()).max().unwrap_or(0);
        Duration::from_micros(u64::try_from(now_us() - newest).unwrap_or(0))
    }

    /// Ends the fleet, waits until everything has arrived or nothing more does, and stops the pipeline; returns its log.
    pub fn settle(&self, fleet: Fleet, pipeline: Process) -> String {
        self.runtime.block_on(fleet.finish());
        self.wait_for_all();
        let (status, log) = pipeline.stop();
        assert!(status.success(), "{log}");
        log
    }

    /// What the runs of the pipeline have said that none should ever say.
    pub fn alarms(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path()).expect("the test's own folder").flatten();
        let logs = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|ending| ending == "log"));
        let texts = logs.map(|log| std::fs::read_to_string(log).expect("a log of ours"));
        let alarming = |line: &&str| ["panicked", "accounted for"].iter().any(|word| line.contains(word));
        texts.flat_map(|text| text.lines().filter(alarming).map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Waits until the tables hold what is owed, or hold nothing new for a long while.
    pub fn wait_for_all(&self) {
        let owed = self.record.rows_owed();
        let letters_owed = self.record.acknowledged() - owed;
        let (mut last, mut since) = ((0, 0, 0), Instant::now());
        loop {
            let now = (self.rows("keyed"), self.rows("keyless"), self.rows("dead_letters"));
            if now.0 >= owed && now.1 >= owed && now.2 >= letters_owed {
                return;
            }
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > SILENCE {
                eprintln!("only {now:?} of {owed} rows and {letters_owed} letters have arrived");
                return;
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Compares all that was sent with all that is stored; prints the table with the verdict, and fails
    /// the test unless that is clean.
    pub fn conclude(&self, title: &str, mut table: Table) {
        let verdict = self.verdict();
        table.row("verdict", verdict.to_string().trim_end());
        table.print(title);
        assert!(verdict.is_clean(), "{verdict}");
        let alarms = self.alarms();
        assert!(alarms.is_empty(), "{alarms:#?}");
    }

    pub fn verdict(&self) -> Verdict {
        let readings = self.record.each();
        let reading = places::read_all(&self.database_url, &self.daemons.s3, &self.bucket, &readings);
        judge(&readings, self.runtime.block_on(reading))
    }
}

/// `host:port` of a database's URL.
fn place_of(url: &str) -> &str {
    url.rsplit_once('@').and_then(|(_, rest)| rest.split('/').next()).expect("a user, a host and a port")
}
