//! Workers whose table of leases throttles, loses answers, or is away for longer than a lease lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::door::{Door, Faults};
use super::workers::{Site, Store, assert_ended_well};
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

#[test]
fn a_table_of_leases_that_throttles_and_loses_answers_costs_no_row_and_no_lease() {
    let site = Site::new("throttled", 4);
    let store = site.store("throttled");
    let door = site.runtime.block_on(Door::before(&site.leases_endpoint, 7, Faults::default()));
    let finish = Arc::new(AtomicBool::new(false));
    let putting = site.keep_putting(&finish);
    let workers = ["a", "b"].map(|name| Worker::start(&site, &store, name, &door));
    site.wait_until_balanced(&["a", "b"], 4);
    let rows = || site.number(&store, "select count(*) from readings");
    let moves = |than: i64| wait_until("more rows", || (rows() > than).then_some(()));
    moves(1_000);
    door.play(Faults { throttled: 0.3, answer_lost: 0.02, ..Faults::default() });
    wait_until("many faults", || (door.injected() > 60).then_some(()));
    moves(rows() + 1_000);
    door.play(Faults::default());
    site.wait_until_balanced(&["a", "b"], 4);
    for worker in &workers {
        let source = worker.source();
        assert!(source["counters"]["throttled"].as_u64() > Some(0), "{source:#}");
        assert_eq!(source["counters"]["leases_lost"], 0, "{source:#}");
    }
    finish.store(true, Ordering::Relaxed);
    let seqs = site.runtime.block_on(putting).unwrap();
    site.assert_as_alone(&store, seqs);
    workers.into_iter().for_each(|worker| assert_ended_well(worker.process));
}

#[test]
fn a_table_of_leases_that_is_away_for_longer_than_a_lease_is_told_of_and_costs_no_row() {
    let site = Site::new("away", 4);
    let store = site.store("away");
    let door = site.runtime.block_on(Door::before(&site.leases_endpoint, 7, Faults::default()));
    let finish = Arc::new(AtomicBool::new(false));
    let putting = site.keep_putting(&finish);
    let workers = ["a", "b"].map(|name| Worker::start(&site, &store, name, &door));
    site.wait_until_balanced(&["a", "b"], 4);
    let rows = || site.number(&store, "select count(*) from readings");
    let moves = |than: i64| wait_until("more rows", || (rows() > than).then_some(()));
    moves(1_000);
    let failing = Faults { internal: 1.0, ..Faults::default() };
    for outage in [failing, Faults { silent: true, ..Faults::default() }] {
        let lost = workers.each_ref().map(Worker::leases_lost);
        door.play(outage);
        for (worker, lost) in workers.iter().zip(lost) {
            wait_until("leases to run out", || (worker.leases_lost() >= lost + 2).then_some(()));
            let health = worker.health();
            let source = &health["stages"][0];
            assert_eq!((&health["status"], &source["state"]), (&"degraded".into(), &"retrying".into()), "{health:#}");
            assert!(source["last_error"].as_str().is_some_and(|error| error.contains("lease")), "{health:#}");
            let bottleneck = health["bottleneck"].to_string();
            assert!(bottleneck.contains("telemetry") && bottleneck.contains("lease"), "{bottleneck}");
        }
        door.play(Faults::default());
        site.wait_until_balanced(&["a", "b"], 4);
        moves(rows() + 1_000);
        for worker in &workers {
            wait_until("all to be well", || (worker.source()["state"] == "running").then_some(()));
        }
    }
    finish.store(true, Ordering::Relaxed);
    let seqs = site.runtime.block_on(putting).unwrap();
    site.assert_as_alone(&store, seqs);
    workers.into_iter().for_each(|worker| assert_ended_well(worker.process));
}
