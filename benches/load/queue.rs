//! Messages from a broker to the table: a queue that waits in a session, drained; and live, as fast as publishers go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::SinkExt;
use pipeline_stages::sinks::timescaledb::copy::Chunks;

use crate::machine::{self, Pipeline};
use crate::mqtt::{self, Connection};
use crate::table::{Line, Target};
use crate::{Options, fleet, in_turns, median, peers};

const DRAINED: u64 = 400_000;
const LIVE: u64 = 300_000;
/// What the reference commits at once at most.
const REFERENCE_ROWS: usize = 10_000;

/// MQTT to the table (and to a lake, where one is wanted), spool and ledger on: nothing that a user would not have.
fn pipeline(topic: &str, client_id: &str, lake: Option<&str>) -> String {
    let url = machine::service("TEST_DATABASE_URL");
    let broker = machine::broker();
    let lake = lake.map(|folder| format!("[sinks.lake]\ntype = \"parquet\"\ninputs = [\"readings\"]\nurl = \"{folder}\"\ntime_column = \"timestamp\"\n"));
    format!(
        "{}\n[sources.readings]\ntype = \"mqtt\"\nurl = \"mqtt://{broker}\"\ntopics = [\"{topic}\"]\nclient_id = \"{client_id}\"\n\
         schema = \"telemetry\"\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\"]\n\
         [sinks.stored]\ntype = \"timescaledb\"\ninputs = [\"readings\"]\nurl = \"{url}\"\ntable = \"load_ours\"\n\
         key = [\"device_id\", \"timestamp\", \"seq\"]\n{}",
        fleet::SCHEMA,
        lake.unwrap_or_default()
    )
}

/// Lets a session be there, with all messages waiting in it.
fn preload(client_id: &str, topic: &str) {
    // A run that was ended midway has left its own behind.
    forget(client_id);
    let broker = machine::broker();
    let mut connection = Connection::open(&broker, client_id, true);
    connection.subscribe(topic);
    connection.close();
    mqtt::publish(&broker, &format!("{client_id}-fleet"), topic, (0..DRAINED).map(fleet::message));
}

/// Takes a session away, with what waits in it.
fn forget(client_id: &str) {
    Connection::open(&machine::broker(), client_id, false).close();
}

pub fn drain(options: &Options) -> Vec<Line> {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    let good = fleet::good(DRAINED);
    let fresh = |name: &str| runtime.block_on(database.batch_execute(&fleet::create_table(name))).expect("a table");
    let count = |name: &str| -> i64 {
        let row = runtime.block_on(database.query_one(&format!("SELECT count(*) FROM {name}"), &[]));
        row.expect("a count").get(0)
    };
    let (mut cpu, mut cpu_of_limit, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let ours = || {
        fresh("load_ours");
        preload("load-ours", "load/drain");
        let run = tempfile::tempdir().expect("a folder");
        let mut process = Pipeline::start(run.path(), &pipeline("load/drain", "load-ours", None));
        let started = process.started;
        let took = process.wait_for_rows("stored", good, started);
        cpu.push(process.cpu_seconds() / DRAINED as f64 * 1e6);
        memory.push(process.peak_mib());
        drop(process);
        forget("load-ours");
        assert_eq!(count("load_ours"), good as i64, "every good row once");
        DRAINED as f64 / took.as_secs_f64()
    };
    let limit = || {
        fresh("load_limit");
        preload("load-limit", "load/drain");
        let before = machine::own_cpu_seconds();
        let took = reference(&runtime, &database, "load-limit");
        cpu_of_limit.push((machine::own_cpu_seconds() - before) / DRAINED as f64 * 1e6);
        forget("load-limit");
        assert_eq!(count("load_limit"), good as i64, "every good row once");
        DRAINED as f64 / took.as_secs_f64()
    };
    let (ours, limit) = in_turns(options.rounds, ours, limit);
    let mut lines = vec![
        Line {
            path: "MQTT, a queue of 400,000, to TimescaleDB".to_owned(),
            unit: "messages/s",
            ours,
            limit,
            target: Target::Ratio(0.8),
            more: format!(
                "{:.0} MiB at most; limit: one loop, bare client, decode, COPY, acknowledge; no spool, no ledger",
                median(memory)
            ),
        },
        Line {
            path: "our CPU for a message of it".to_owned(),
            unit: "us",
            ours: cpu,
            limit: cpu_of_limit,
            target: Target::AtMost(4.5),
            more: "all threads, from start to the last row; the limit is the loop above".to_owned(),
        },
    ];
    lines.extend(peers::lines(options, "drain", DRAINED, &[], || preload("load-peer", "load/peer")));
    forget("load-peer");
    lines
}

/// Drains a session into the table as simply as can be: receive, decode, `COPY`, then acknowledge.
fn reference(runtime: &tokio::runtime::Runtime, database: &tokio_postgres::Client, client_id: &str) -> Duration {
    let statement = "COPY load_limit (device_id, timestamp, temperature, humidity, seq) FROM STDIN BINARY";
    let started = Instant::now();
    let mut connection = Connection::open(&machine::broker(), client_id, true);
    let mut decoder = fleet::decoder();
    let (mut seen, mut stored) = (0_u64, 0_u64);
    while stored < DRAINED {
        let (mut payloads, mut ids) = (Vec::new(), Vec::new());
        // What is there, up to a commit's worth; the first read waits.
        connection.set_patience(Some(Duration::from_secs(30)));
        loop {
            let more = connection.receive(|payload| payloads.push(payload.to_vec()));
            connection.set_patience(Some(Duration::from_millis(1)));
            if more.is_empty() || payloads.len() >= REFERENCE_ROWS {
                ids.extend(more);
                break;
            }
            ids.extend(more);
        }
        assert!(!payloads.is_empty(), "the queue ends after {seen}");
        seen += payloads.len() as u64;
        let rows = fleet::decode(&mut decoder, payloads.iter().map(Vec::as_slice));
        let order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        runtime.block_on(async {
            let sink = database.copy_in::<_, Bytes>(statement).await.expect("COPY");
            let mut sink = std::pin::pin!(sink);
            for chunk in Chunks::new(&rows, &fleet::TYPES, &order) {
                sink.send(chunk).await.expect("COPY");
            }
            sink.finish().await.expect("COPY");
        });
        connection.acknowledge(&ids);
        stored += payloads.len() as u64;
    }
    let took = started.elapsed();
    connection.close();
    took
}

pub fn live(options: &Options) -> Vec<Line> {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    let good = fleet::good(LIVE);
    let publish = || {
        let broker = machine::broker();
        std::thread::spawn(move || mqtt::publish(&broker, "load-fleet", "load/live", (0..LIVE).map(fleet::message)))
    };
    let mut cpu = Vec::new();
    let ours = || {
        runtime.block_on(database.batch_execute(&fleet::create_table("load_ours"))).expect("a table");
        let run = tempfile::tempdir().expect("a folder");
        let lake = run.path().join("lake").display().to_string();
        let mut process = Pipeline::start(run.path(), &pipeline("load/live", "load-ours", Some(&lake)));
        process.wait_for_subscription();
        let started = Instant::now();
        let publishing = publish();
        let took = process.wait_for_rows("stored", good, started);
        publishing.join().expect("no panic");
        cpu.push(process.cpu_seconds() / LIVE as f64 * 1e6);
        drop(process);
        forget("load-ours");
        LIVE as f64 / took.as_secs_f64()
    };
    let limit = || {
        let mut connection = Connection::open(&machine::broker(), "load-limit", false);
        connection.subscribe("load/live");
        let started = Instant::now();
        let publishing = publish();
        let mut seen = 0;
        while seen < LIVE {
            let ids = connection.receive(|_| seen += 1);
            connection.acknowledge(&ids);
        }
        let took = started.elapsed();
        publishing.join().expect("no panic");
        connection.close();
        LIVE as f64 / took.as_secs_f64()
    };
    let (ours, limit) = in_turns(options.rounds, ours, limit);
    vec![Line {
        path: "MQTT live, to TimescaleDB and Parquet".to_owned(),
        unit: "messages/s",
        ours,
        limit,
        target: Target::Ratio(0.95),
        more: format!("{:.2} us of our CPU a message; limit: a bare subscriber, which stores nothing", median(cpu)),
    }]
}
