//! Workers whose table of leases throttles, loses answers, or is away for longer than a lease lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use super::door::{Door, Faults};
use super::workers::{LEASE, Site, Store, assert_ended_well};
use crate::http::{free_port, get};
use crate::process::{Process, wait_until};

/// One of two workers, behind a door before the table of leases.
struct Worker {
    port: u16,
    process: Process,
}

impl Worker {
    fn start(site: &Site, store: &Store, name: &str, door: &Door) -> Self {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let others = [("AWS_ENDPOINT_URL_DYNAMODB", door.endpoint.as_str()), ("HTTP_LISTEN", &listen)];
        let mut process = site.start_with(store, Some(name), &others);
        process.wait_for_log("live page");
        Self { port, process }
    }

    fn health(&self) -> Value {
        serde_json::from_str(&get(self.port, "/healthz", None).1).expect("JSON")
    }

    /// What health says of the source.
    fn source(&self) -> Value {
        self.health()["stages"][0].clone()
    }

    fn leases_lost(&self) -> u64 {
        self.source()["counters"]["leases_lost"].as_u64().expect("a count")
    }
}

/// Two workers on four shards that are written to all the time, with a door before their table of leases.
struct Pair {
    site: Site,
    store: Store,
    door: Door,
    workers: [Worker; 2],
    finish: Arc<AtomicBool>,
    putting: JoinHandle<usize>,
}

impl Pair {
    /// Both have their shards, and rows are stored.
    fn start(name: &str, lease: &'static str) -> Self {
        let mut site = Site::new(name, 4);
        site.lease = lease;
        let store = site.store(name);
        let door = site.runtime.block_on(Door::before(&site.leases_endpoint, 7, Faults::default()));
        let finish = Arc::new(AtomicBool::new(false));
        let putting = site.keep_putting(&finish);
        let workers = ["a", "b"].map(|name| Worker::start(&site, &store, name, &door));
        let pair = Self { site, store, door, workers, finish, putting };
        pair.wait_until_balanced();
        pair.wait_for_rows(1_000);
        pair
    }

    fn wait_until_balanced(&self) {
        self.site.wait_until_balanced(&["a", "b"], 4);
    }

    /// Waits until so many more are stored.
    fn wait_for_rows(&self, more: i64) {
        let rows = || self.site.number(&self.store, "select count(*) from readings");
        let before = rows();
        wait_until("more rows", || (rows() > before + more).then_some(()));
    }

    /// Everything that was put is stored once, and both end well.
    fn assert_nothing_lost(self) {
        self.finish.store(true, Ordering::Relaxed);
        let seqs = self.site.runtime.block_on(self.putting).unwrap();
        self.site.assert_as_alone(&self.store, seqs);
        self.workers.into_iter().for_each(|worker| assert_ended_well(worker.process));
        self.site.assert_lake_is_the_table(&self.store);
    }
}

#[test]
fn a_table_of_leases_that_throttles_and_loses_answers_costs_no_row_and_no_lease() {
    // As long as the default, so that none runs out because the machine is busy.
    let pair = Pair::start("throttled", "10s");
    pair.door.play(Faults { throttled: 0.3, answer_lost: 0.02, ..Faults::default() });
    wait_until("many faults", || (pair.door.injected() > 60).then_some(()));
    pair.wait_for_rows(1_000);
    pair.door.play(Faults::default());
    pair.wait_until_balanced();
    for worker in &pair.workers {
        let source = worker.source();
        assert!(source["counters"]["throttled"].as_u64() > Some(0), "{source:#}");
        assert_eq!(source["counters"]["leases_lost"], 0, "{source:#}\n{}", worker.process.log());
    }
    pair.assert_nothing_lost();
}

/// The first worker is at most of the time between reading the table and renewing one of its leases, so that the second one asks for it
/// just then.
#[test]
fn a_shard_that_is_asked_for_while_its_lease_is_being_renewed_is_handed_over() {
    let mut site = Site::new("asked", 4);
    site.lease = "12s";
    let store = site.store("asked");
    let slow = Faults { update_delay: Duration::from_secs(1), ..Faults::default() };
    let doors =
        [slow, Faults::default()].map(|faults| site.runtime.block_on(Door::before(&site.leases_endpoint, 7, faults)));
    let finish = Arc::new(AtomicBool::new(false));
    let putting = site.keep_putting(&finish);
    let first = Worker::start(&site, &store, "a", &doors[0]);
    wait_until("the first to read them all", || (first.source()["partitions"] == 4).then_some(()));
    let second = Worker::start(&site, &store, "b", &doors[1]);
    site.wait_until_balanced(&["a", "b"], 4);
    let [slow, _] = doors;
    slow.play(Faults::default());
    wait_until("two shards to have been handed over", || {
        let counters = first.source()["counters"].clone();
        assert_eq!(counters["leases_lost"], 0, "{}", first.process.log());
        (counters["leases_handed_over"] == 2).then_some(())
    });
    let pair = Pair { site, store, door: slow, workers: [first, second], finish, putting };
    pair.wait_for_rows(1_000);
    pair.assert_nothing_lost();
}

#[test]
fn a_table_of_leases_that_is_away_for_longer_than_a_lease_is_told_of_and_costs_no_row() {
    let pair = Pair::start("away", LEASE);
    let failing = Faults { internal: 1.0, ..Faults::default() };
    for outage in [failing, Faults { silent: true, ..Faults::default() }] {
        let lost = pair.workers.each_ref().map(Worker::leases_lost);
        pair.door.play(outage);
        for (worker, lost) in pair.workers.iter().zip(lost) {
            wait_until("leases to run out", || (worker.leases_lost() >= lost + 2).then_some(()));
            let health = worker.health();
            let source = &health["stages"][0];
            assert_eq!((&health["status"], &source["state"]), (&"degraded".into(), &"retrying".into()), "{health:#}");
            assert!(source["last_error"].as_str().is_some_and(|error| error.contains("lease")), "{health:#}");
            let bottleneck = health["bottleneck"].to_string();
            assert!(bottleneck.contains("telemetry") && bottleneck.contains("lease"), "{bottleneck}");
        }
        pair.door.play(Faults::default());
        pair.wait_until_balanced();
        pair.wait_for_rows(1_000);
        for worker in &pair.workers {
            wait_until("all to be well", || (worker.source()["state"] == "running").then_some(()));
        }
    }
    pair.assert_nothing_lost();
}
