//! Several workers on one stream: real processes that are killed, stopped past their leases, woken and added, with a real
//! table of leases (moto's DynamoDB), a real TimescaleDB and a lake in a real S3 API (Ceph's).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::types::Shard;
use futures::TryStreamExt;
use object_store::ObjectStore;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::door::{Door, Faults};
use super::stream::{Put, Stream};
use crate::process::{Process, root, wait_until};
use crate::services;

pub(super) const DEVICES: usize = 60;
const SHARDS: usize = 8;
/// Short, so that a test sees many run out.
pub(super) const LEASE: &str = "3s";

/// A stream, and a database for those who share it.
pub(super) struct Site {
    pub(super) runtime: tokio::runtime::Runtime,
    stream: Stream,
    leases: aws_sdk_dynamodb::Client,
    pub(super) leases_endpoint: String,
    folder: TempDir,
    /// How long the leases of its workers last.
    pub(super) lease: &'static str,
}

/// A database and a bucket that runs store in.
pub(super) struct Store {
    url: String,
    client: Client,
    bucket: String,
}

impl Site {
    pub(super) fn new(name: &str, shards: i32) -> Self {
        let leases_endpoint = services::variable("aws", "TEST_AWS_ENDPOINT");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stream = runtime.block_on(Stream::new(name, shards));
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
            .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
            .credentials_provider(aws_sdk_dynamodb::config::Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(&leases_endpoint)
            .build();
        let leases = aws_sdk_dynamodb::Client::from_conf(config);
        Self { runtime, stream, leases, leases_endpoint, folder: TempDir::new().unwrap(), lease: LEASE }
    }

    /// A database with the tables of the pipeline, which number rows as they are stored.
    pub(super) fn store(&self, name: &str) -> Store {
        let url = services::database(name);
        let client = self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("the test database");
            tokio::spawn(connection);
            let tables = std::fs::read_to_string(root().join("tests/it/kinesis/workers.sql")).unwrap();
            client.batch_execute(&tables).await.expect("the tables are made");
            client
        });
        Store { url, client, bucket: services::bucket() }
    }

    /// Starts a run of the pipeline: a worker of that name, or with `None` one that has the stream to itself.
    fn start(&self, store: &Store, worker: Option<&str>) -> Process {
        self.start_with(store, worker, &[])
    }

    /// The same, with other endpoints.
    pub(super) fn start_with(&self, store: &Store, worker: Option<&str>, others: &[(&str, &str)]) -> Process {
        let name = worker.unwrap_or("alone");
        let text = std::fs::read_to_string(root().join("tests/it/kinesis/workers.toml")).unwrap();
        let workers = format!(
            "workers = {{ application = {:?}, worker_id = {name:?}, lease = {:?}, hand_over = \"20s\" }}",
            self.stream.name, self.lease
        );
        let text = text.replace("#workers", worker.map_or("", |_| workers.as_str()));
        let file = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        let data = self.folder.path().join(name).display().to_string();
        let lake = format!("s3://{}/lake", store.bucket);
        // The emulators take any credentials.
        let mut variables = services::s3().environment().to_vec();
        for (variable, value) in [
            ("AWS_ENDPOINT_URL_KINESIS", &self.stream.endpoint),
            ("S3_URL", &lake),
            ("AWS_ENDPOINT_URL_DYNAMODB", &self.leases_endpoint),
            ("KINESIS_STREAM", &self.stream.name),
            ("DATABASE_URL", &store.url),
            ("DATA_DIR", &data),
        ] {
            variables.push((variable.to_owned(), value.clone()));
        }
        variables.retain(|(name, _)| !others.iter().any(|(other, _)| other == name));
        let variables = variables.iter().map(|(name, value)| (&**name, &**value));
        let variables: Vec<(&str, &str)> = variables.chain(others.iter().copied()).collect();
        Process::start(&["run", &file.display().to_string()], &variables, self.folder.path(), name)
    }

    /// How many shards each worker has by the table of leases; those that nobody has, or that are being handed over, count for
    /// "".
    fn owners(&self) -> BTreeMap<String, usize> {
        let scanned =
            self.runtime.block_on(self.leases.scan().table_name(&self.stream.name).consistent_read(true).send());
        let mut owners = BTreeMap::new();
        for item in scanned.map(|page| page.items.unwrap_or_default()).unwrap_or_default() {
            let text = |name: &str| item.get(name).and_then(|value: &AttributeValue| value.as_s().ok()).cloned();
            if text("checkpoint").as_deref() == Some("SHARD_END") {
                continue;
            }
            let owner = text("leaseOwner").filter(|_| !item.contains_key("checkpointOwner")).unwrap_or_default();
            *owners.entry(owner).or_default() += 1;
        }
        owners
    }

    /// How many shards the table of leases knows.
    fn leases(&self) -> usize {
        let scan = self.leases.scan().table_name(&self.stream.name).consistent_read(true).send();
        self.runtime.block_on(scan).expect("the table is there").count() as usize
    }

    /// Waits until these workers have all shards of the stream among them, give or take one.
    pub(super) fn wait_until_balanced(&self, workers: &[&str], shards: usize) {
        wait_until(&format!("{workers:?} to share {shards} shards"), || {
            let owners = self.owners();
            let counts: Vec<usize> = workers.iter().map(|worker| owners.get(*worker).copied().unwrap_or(0)).collect();
            let (most, least) = (counts.iter().max()?, counts.iter().min()?);
            (counts.iter().sum::<usize>() == shards && most - least <= 1).then_some(())
        });
        println!("balanced: {:?}", self.owners());
    }

    /// Puts readings of all devices, each in its order, until it is told to finish. Gives how many of each.
    pub(super) fn keep_putting(&self, finish: &Arc<AtomicBool>) -> tokio::task::JoinHandle<usize> {
        let stream =
            Stream { name: self.stream.name.clone(), endpoint: String::new(), client: self.stream.client.clone() };
        let finish = finish.clone();
        self.runtime.spawn(async move {
            let mut seq = 0;
            while !finish.load(Ordering::Relaxed) {
                stream.put((seq..seq + 4).flat_map(readings)).await;
                seq += 4;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            seq
        })
    }

    fn rows(&self, store: &Store, sql: &str) -> Vec<String> {
        let rows = self.runtime.block_on(store.client.query(&format!("select row(t.*)::text from ({sql}) t"), &[]));
        rows.expect(sql).iter().map(|row| row.get(0)).collect()
    }

    pub(super) fn number(&self, store: &Store, sql: &str) -> i64 {
        self.runtime.block_on(store.client.query_one(sql, &[])).expect(sql).get(0)
    }

    /// Waits until a table holds so many rows, for as long as it grows.
    fn wait_for_rows(&self, store: &Store, table: &str, owed: i64) {
        let (mut last, mut since) = (-1, Instant::now());
        loop {
            let now = self.number(store, &format!("select count(*) from {table}"));
            if now >= owed {
                return;
            }
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < Duration::from_secs(90), "only {now} of {owed} rows have come to {table}");
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// The lake holds the rows of the table, each in one object, and nothing is left on its way there. For runs that have ended.
    pub(super) fn assert_lake_is_the_table(&self, store: &Store) {
        let mut lake: Vec<(String, i64, Option<u64>)> = Vec::new();
        for rows in self.runtime.block_on(services::read_parquet(&store.bucket, "lake")) {
            let column = |name: &str| rows.column_by_name(name).expect(name).clone();
            let (device, seq, score) = (column("device"), column("seq"), column("value_score"));
            let (device, seq) = (device.as_string::<i32>(), seq.as_primitive::<Int64Type>());
            let score = score.as_primitive::<Float64Type>();
            for row in 0..rows.num_rows() {
                let score = score.is_valid(row).then(|| score.value(row).to_bits());
                lake.push((device.value(row).to_owned(), seq.value(row), score));
            }
        }
        let sql = "select device, seq, value_score from readings";
        let table = self.runtime.block_on(store.client.query(sql, &[])).expect(sql);
        let score = |score: Option<f64>| score.map(f64::to_bits);
        let mut table: Vec<(String, i64, Option<u64>)> =
            table.iter().map(|row| (row.get(0), row.get(1), score(row.get(2)))).collect();
        lake.sort();
        table.sort();
        assert_eq!((lake.len(), lake == table), (table.len(), true), "each row of the table is in one object");
        let staged: Vec<String> = self.aside(store).into_iter().filter(|key| key.contains("/staged/")).collect();
        assert_eq!(staged, [""; 0], "nothing is left on its way");
    }

    /// Keys of what the sink keeps beside the objects of the lake.
    fn aside(&self, store: &Store) -> Vec<String> {
        let bucket = services::s3().client(&store.bucket);
        let listing = bucket.list(Some(&"lake/_pipeline".into())).try_collect::<Vec<_>>();
        let listed = self.runtime.block_on(listing).expect("a listing");
        listed.into_iter().map(|object| object.location.to_string()).collect()
    }

    /// Everything is there once, each device's in its order; windows and scores are those of a run that has the stream to
    /// itself and that nobody has disturbed.
    pub(super) fn assert_as_alone(&self, store: &Store, seqs: usize) {
        let owed = (seqs * DEVICES) as i64;
        self.wait_for_rows(store, "readings", owed);
        let alone = self.store("alone");
        let process = self.start(&alone, None);
        self.wait_for_rows(&alone, "readings", owed);
        let minutes =
            "select device, window_start, window_end, readings, mean, lowest, last from minutes order by 1, 2";
        wait_until("the windows of both", || {
            let count = |store| self.number(store, "select count(*) from minutes");
            let (here, there) = (count(store), count(&alone));
            std::thread::sleep(Duration::from_secs(1));
            (here == there && there == count(&alone) && here == count(store)).then_some(())
        });
        let (status, log) = process.stop();
        assert!(status.success(), "{log}");
        self.assert_lake_is_the_table(&alone);
        assert_eq!(self.number(store, "select count(*) from readings"), owed, "rows are lost or doubled");
        assert_eq!(self.number(store, "select count(*) from (select distinct device, seq from readings) t"), owed);
        let back = "select count(*) from (select seq - lag(seq) over (partition by device order by id) as step \
                    from readings) t where step <> 1";
        assert_eq!(self.number(store, back), 0, "rows of a device are stored in the order in which it sent them");
        assert_eq!(self.number(store, "select count(*) from dead_letters"), 0);
        assert!(self.number(store, "select count(*) from minutes") > 0, "windows have closed");
        assert_eq!(self.rows(store, minutes), self.rows(&alone, minutes));
        let scores = "select device, seq, at, value, value_score from readings order by 1, 2";
        assert_eq!(self.rows(store, scores), self.rows(&alone, scores));
    }
}

/// One reading of each device.
fn readings(seq: usize) -> impl Iterator<Item = Put> {
    (0..DEVICES).map(move |device| {
        let at = 1_767_225_600 + 10 * seq;
        // A shape that never repeats, with a jump now and then: every score is its own.
        let value = ((seq * (device + 3)) as f64).sin() + if (seq + device).is_multiple_of(97) { 9.0 } else { 0.0 };
        let data = format!("{{\"device\":\"d{device}\",\"seq\":{seq},\"at\":{at},\"value\":{value}}}");
        (format!("d{device}"), data.into_bytes())
    })
}

pub(super) fn assert_ended_well(process: Process) {
    let (status, log) = process.stop();
    assert!(status.success(), "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("NOT accounted for"), "{log}");
}

#[test]
fn workers_that_are_killed_paused_past_their_lease_and_added_store_what_one_alone_would() {
    let site = Site::new("workers", SHARDS as i32);
    let store = site.store("workers");
    let finish = Arc::new(AtomicBool::new(false));
    let putting = site.keep_putting(&finish);
    let (mut a, b, c) = (site.start(&store, Some("a")), site.start(&store, Some("b")), site.start(&store, Some("c")));
    site.wait_until_balanced(&["a", "b", "c"], SHARDS);
    let rows = || site.number(&store, "select count(*) from readings");
    let moves = |than: i64| wait_until("more rows", || (rows() > than).then_some(()));
    moves(2_000);

    a.kill();
    site.wait_until_balanced(&["b", "c"], SHARDS);
    moves(rows());

    b.signal("STOP");
    site.wait_until_balanced(&["c"], SHARDS);
    moves(rows() + 1_000);
    b.signal("CONT");
    site.wait_until_balanced(&["b", "c"], SHARDS);
    moves(rows() + 1_000);

    let d = site.start(&store, Some("d"));
    site.wait_until_balanced(&["b", "c", "d"], SHARDS);
    moves(rows() + 1_000);

    finish.store(true, Ordering::Relaxed);
    let seqs = site.runtime.block_on(putting).unwrap();
    site.assert_as_alone(&store, seqs);
    assert!(b.log().contains("the lease was lost"), "{}", b.log());
    // Which of the two, is the machine's to say: where it is slow, a lease of one may run out before that.
    assert!([&b, &c].iter().any(|worker| worker.log().contains("handing it over")), "{}{}", b.log(), c.log());
    [b, c, d].into_iter().for_each(assert_ended_well);
    site.assert_lake_is_the_table(&store);
    assert_eq!(site.aside(&store).len(), SHARDS, "a head for each shard: {:?}", site.aside(&store));
    assert_eq!(site.owners(), BTreeMap::from([(String::new(), SHARDS)]), "what ends lets go of its leases");
}

#[test]
fn what_is_remembered_of_a_shard_goes_on_in_its_children() {
    let site = Site::new("reshared", 3);
    let store = site.store("reshared");
    let finish = Arc::new(AtomicBool::new(false));
    let putting = site.keep_putting(&finish);
    let (a, b) = (site.start(&store, Some("a")), site.start(&store, Some("b")));
    site.wait_until_balanced(&["a", "b"], 3);
    let rows = || site.number(&store, "select count(*) from readings");
    let moves = |than: i64| wait_until("more rows", || (rows() > than).then_some(()));
    moves(2_000);
    site.runtime.block_on(site.stream.split(1));
    site.wait_until_balanced(&["a", "b"], 4);
    moves(rows() + 2_000);
    site.runtime.block_on(site.stream.merge());
    site.wait_until_balanced(&["a", "b"], 3);
    moves(rows() + 2_000);
    finish.store(true, Ordering::Relaxed);
    let seqs = site.runtime.block_on(putting).unwrap();
    site.assert_as_alone(&store, seqs);
    [a, b].into_iter().for_each(assert_ended_well);
    site.assert_lake_is_the_table(&store);

    // The stream forgets what is closed, and so do a worker, its sinks and the table of leases.
    let (shards, open) = site.runtime.block_on(async {
        let shards = site.stream.shards().await;
        (shards.len() as i64, site.stream.open_shards().await)
    });
    let known = || site.number(&store, "select count(distinct partition) from _pipeline_claims");
    assert_eq!((shards, known()), (6, 6), "three shards, two of a split, one of a merge");
    let door = site.runtime.block_on(Door::before(&site.stream.endpoint, 7, Faults::default()));
    let is_open = |shard: &Shard| open.iter().any(|one| one.shard_id() == shard.shard_id());
    let all = site.runtime.block_on(site.stream.shards());
    let closed: Vec<&str> = all.iter().filter(|shard| !is_open(shard)).map(Shard::shard_id).collect();
    door.unlist(&closed);
    let c = site.start_with(&store, Some("c"), &[("AWS_ENDPOINT_URL_KINESIS", &door.endpoint)]);
    wait_until("closed shards to be forgotten", || (known() == 3 && site.leases() == 3).then_some(()));
    site.runtime.block_on(site.stream.put(readings(seqs)));
    site.wait_for_rows(&store, "readings", ((seqs + 1) * DEVICES) as i64);
    assert_ended_well(c);
    site.assert_lake_is_the_table(&store);
    assert_eq!(site.aside(&store).len(), 3, "the heads of closed shards are gone: {:?}", site.aside(&store));
    let minutes = "select count(*) from (select device, window_start from minutes group by 1, 2 having count(*) > 1) t";
    assert_eq!(site.number(&store, minutes), 0, "what was remembered is not begun anew");
}
