//! A fleet at a steady rate through broker, pipeline and database, watched from another connection to the table.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::fleet;
use crate::machine::{self, Pipeline};

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Messages a second.
    pub rate: u64,
    pub devices: u64,
    pub time: Duration,
}

/// What a run at a steady rate has shown.
pub struct Seen {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Most memory that the pipeline ever had.
    pub peak_mib: f64,
    /// CPU of the pipeline, of the broker and of the database for a message, in microseconds.
    pub cpu_us: [f64; 3],
    /// Messages a second that the fleet really got rid of.
    pub sent_rate: f64,
    /// Rows that should be in the table, rows that are, and how many of those are there twice.
    pub wanted: u64,
    pub stored: u64,
    pub twice: u64,
}

/// Publishes a load and watches the table, until all rows are there or none has come for `patience`. `every_minute` is told
/// memory in MiB and p99 in ms of each minute.
pub fn at(load: Load, patience: Duration, mut every_minute: impl FnMut(f64, f64)) -> Seen {
    let Load { rate, time, .. } = load;
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    runtime.block_on(database.batch_execute(&fleet::create_table("load_ours"))).expect("a table");
    // The watcher asks for what is new since its last look, which needs an index to be cheap.
    runtime.block_on(database.batch_execute("CREATE INDEX load_ours_seq ON load_ours (seq)")).expect("an index");
    let run = tempfile::tempdir().expect("a folder");
    let process = Pipeline::start(run.path(), &pipeline());
    process.wait_for_subscription();
    let cpu = || [process.cpu_seconds(), machine::cpu_seconds_of("mosquitto"), machine::cpu_seconds_of("postgres")];
    let before = cpu();

    let messages = rate * time.as_secs();
    let publishing = std::thread::spawn(move || publish(load, messages));
    let mut all = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).expect("bounds");
    let mut minute = all.clone();
    let (mut newest, mut stored, mut minutes) = (-1_i64, 0_u64, 1);
    let started = Instant::now();
    let mut last_news = started;
    let wanted = fleet::good(messages);
    let select = "SELECT seq, (extract(epoch FROM timestamp) * 1000000)::int8 FROM load_ours WHERE seq > $1";
    while stored < wanted && last_news.elapsed() < patience {
        let rows = runtime.block_on(database.query(select, &[&newest])).expect("a query");
        let seen_us = now_us();
        for row in &rows {
            newest = newest.max(row.get(0));
            let age = seen_us.saturating_sub(row.get::<_, i64>(1) as u64).max(1);
            all.saturating_record(age);
            minute.saturating_record(age);
        }
        if !rows.is_empty() {
            last_news = Instant::now();
        }
        stored += rows.len() as u64;
        if started.elapsed() > Duration::from_secs(60 * minutes) {
            every_minute(process.resident_mib(), minute.value_at_quantile(0.99) as f64 / 1_000.0);
            minute.reset();
            minutes += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent_in = publishing.join().expect("no panic");
    let after = cpu();
    // What came late in another order than it was sent is not seen by the watcher, and is no loss.
    let count = "SELECT count(*), count(*) - count(DISTINCT seq) FROM load_ours";
    let row = runtime.block_on(database.query_one(count, &[])).expect("a count");
    let of = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1_000.0;
    Seen {
        p50_ms: of(0.5),
        p99_ms: of(0.99),
        max_ms: all.max() as f64 / 1_000.0,
        peak_mib: process.peak_mib(),
        cpu_us: std::array::from_fn(|part| (after[part] - before[part]) / messages as f64 * 1e6),
        sent_rate: messages as f64 / sent_in.as_secs_f64(),
        wanted,
        stored: row.get::<_, i64>(0) as u64,
        twice: row.get::<_, i64>(1) as u64,
    }
}

fn pipeline() -> String {
    format!(
        "{}\n[sources.readings]\ntype = \"mqtt\"\nurl = \"mqtt://{}\"\ntopics = [\"load/latency\"]\nclient_id = \"load-ours\"\n\
         clean_session = true\nschema = \"telemetry\"\n[transforms.valid]\ntype = \"validate\"\ninputs = [\"readings\"]\n\
         range = {{ humidity = [0, 100] }}\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\", \"valid.rejected\"]\n\
         [sinks.stored]\ntype = \"timescaledb\"\ninputs = [\"valid\"]\nurl = \"{}\"\ntable = \"load_ours\"\n\
         key = [\"device_id\", \"timestamp\", \"seq\"]\n",
        fleet::SCHEMA,
        machine::broker(),
        machine::service("TEST_DATABASE_URL")
    )
}

/// Sends the load, paced one by one, as devices that do not know of each other send; how long that took.
fn publish(load: Load, messages: u64) -> Duration {
    let started = Instant::now();
    let paced = (0..messages).map(move |number| {
        let due = Duration::from_nanos(number * 1_000_000_000 / load.rate);
        if let Some(wait) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(wait);
        }
        fleet::message_of(number, load.devices, now_us() / 1_000)
    });
    crate::mqtt::publish_each(&machine::broker(), "load-fleet", "load/latency", messages, paced);
    started.elapsed()
}

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock of this century").as_micros() as u64
}
