//! From a device's timestamp to a row that somebody else's query sees, at 1,000 messages a second; memory meanwhile; the
//! time from start to the first row; and a long hold at 10,000 a second.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::machine::{self, Pipeline};
use crate::table::{Line, Target};
use crate::{Options, fleet};

const RATE: u64 = 1_000;
const SECONDS: u64 = 20;

pub fn measure(options: &Options) -> Vec<Line> {
    let (mut p50, mut p99, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let seen = at_rate(RATE, fleet::DEVICES, Duration::from_secs(SECONDS), |_, _| {});
        eprintln!("   p50 {:.1} ms, p99 {:.1} ms, {:.0} MiB", seen.p50_ms, seen.p99_ms, seen.peak_mib);
        p50.push(seen.p50_ms);
        p99.push(seen.p99_ms);
        memory.push(seen.peak_mib);
    }
    let line = |path: &str, unit, ours, target, more: &str| Line {
        path: path.to_owned(),
        unit,
        ours,
        limit: Vec::new(),
        target,
        more: more.to_owned(),
    };
    let visible = "device's timestamp to row visible to another connection, fsync on";
    vec![
        line("latency at 1,000 messages/s, p50", "ms", p50, Target::AtMost(20.0), visible),
        line("latency at 1,000 messages/s, p99", "ms", p99, Target::AtMost(80.0), visible),
        line(
            "memory at 1,000 messages/s",
            "MiB",
            memory,
            Target::AtMost(64.0),
            "most that the process ever had (VmHWM)",
        ),
        line(
            "start to first row",
            "ms",
            (0..options.rounds.max(5)).map(|_| start_to_first_row()).collect(),
            Target::AtMost(300.0),
            "process started to the first line of a console sink",
        ),
    ]
}

/// What a run at a steady rate has shown.
struct Seen {
    p50_ms: f64,
    p99_ms: f64,
    peak_mib: f64,
}

/// Publishes at a rate and watches the table from another connection. `every_minute` is told memory and p99 of each minute.
fn at_rate(rate: u64, devices: u64, time: Duration, mut every_minute: impl FnMut(f64, f64)) -> Seen {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    runtime.block_on(database.batch_execute(&fleet::create_table("load_ours"))).expect("a table");
    // The watcher asks for what is new since its last look, which needs an index to be cheap.
    runtime.block_on(database.batch_execute("CREATE INDEX load_ours_seq ON load_ours (seq)")).expect("an index");
    let run = tempfile::tempdir().expect("a folder");
    let text = format!(
        "{}\n[sources.readings]\ntype = \"mqtt\"\nurl = \"mqtt://{}\"\ntopics = [\"load/latency\"]\nclient_id = \"load-ours\"\n\
         clean_session = true\nschema = \"telemetry\"\n[transforms.valid]\ntype = \"validate\"\ninputs = [\"readings\"]\n\
         range = {{ humidity = [0, 100] }}\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\", \"valid.rejected\"]\n\
         [sinks.stored]\ntype = \"timescaledb\"\ninputs = [\"valid\"]\nurl = \"{}\"\ntable = \"load_ours\"\n\
         key = [\"device_id\", \"timestamp\", \"seq\"]\n",
        fleet::SCHEMA,
        machine::broker(),
        machine::service("TEST_DATABASE_URL")
    );
    let process = Pipeline::start(run.path(), &text);
    process.wait_for_subscription();

    let messages = rate * time.as_secs();
    let broker = machine::broker();
    let publishing = std::thread::spawn(move || {
        let started = Instant::now();
        // Paced one by one, as devices that do not know of each other send.
        let paced = (0..messages).map(move |number| {
            let due = Duration::from_nanos(number * 1_000_000_000 / rate);
            if let Some(wait) = due.checked_sub(started.elapsed()) {
                std::thread::sleep(wait);
            }
            fleet::message_of(number, devices, now_ms())
        });
        crate::mqtt::publish_each(&broker, "load-fleet", "load/latency", messages, paced);
    });
    let mut all = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).expect("bounds");
    let mut minute = all.clone();
    let (mut newest, mut stored, mut minutes) = (-1_i64, 0_u64, 1);
    let started = Instant::now();
    let wanted = fleet::good(messages);
    let select = "SELECT seq, (extract(epoch FROM timestamp) * 1000000)::int8 FROM load_ours WHERE seq > $1";
    while stored < wanted {
        let rows = runtime.block_on(database.query(select, &[&newest])).expect("a query");
        let seen_us = now_us();
        for row in &rows {
            newest = newest.max(row.get(0));
            let age = seen_us.saturating_sub(row.get::<_, i64>(1) as u64).max(1);
            all.saturating_record(age);
            minute.saturating_record(age);
        }
        stored += rows.len() as u64;
        if started.elapsed() > Duration::from_secs(60 * minutes) {
            every_minute(process.resident_mib(), minute.value_at_quantile(0.99) as f64 / 1_000.0);
            minute.reset();
            minutes += 1;
        }
        assert!(
            started.elapsed() < time + Duration::from_secs(60),
            "only {stored} of {wanted} rows came:\n{}",
            process.log()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    publishing.join().expect("no panic");
    let of = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1_000.0;
    Seen { p50_ms: of(0.5), p99_ms: of(0.99), peak_mib: process.peak_mib() }
}

/// 10,000 devices at 10,000 messages a second: whether memory and latency stay flat.
pub fn hold(time: Duration) -> Vec<Line> {
    let (mut memory, mut p99) = (Vec::new(), Vec::new());
    let seen = at_rate(10_000, 10_000, time, |mib, ms| {
        eprintln!("   {mib:.0} MiB, p99 {ms:.1} ms");
        memory.push(mib);
        p99.push(ms);
    });
    let grown = |figures: &[f64]| match figures {
        [] => f64::NAN,
        _ => {
            let (first, last) = figures.split_at(figures.len() / 2);
            crate::median(last.to_vec()) / crate::median(first.to_vec())
        }
    };
    let name = format!("10,000 devices at 10,000 messages/s for {}", humantime::format_duration(time));
    let line = |what: &str, unit, ours, more| Line {
        path: format!("{name}: {what}"),
        unit,
        ours,
        limit: Vec::new(),
        target: Target::None,
        more,
    };
    vec![
        line(
            "memory, each minute",
            "MiB",
            memory.clone(),
            format!("second half to first: {:.2}; most ever {:.0}", grown(&memory), seen.peak_mib),
        ),
        line("p99, each minute", "ms", p99.clone(), format!("second half to first: {:.2}", grown(&p99))),
    ]
}

fn start_to_first_row() -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = folder.path().join("one.jsonl");
    std::fs::write(&lines, fleet::message(0) + "\n").expect("a folder of ours");
    let file = folder.path().join("pipeline.toml");
    let text = format!(
        "[pipeline]\ndata_dir = \"{}\"\n[http]\nlisten = \"off\"\n{}\n[sources.readings]\ntype = \"file\"\npath = \"{}\"\nformat = \"jsonl\"\n\
         schema = \"telemetry\"\n[sinks.shown]\ntype = \"console\"\ninputs = [\"readings\"]\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\"]\n",
        folder.path().join("data").display(),
        fleet::SCHEMA,
        lines.display()
    );
    std::fs::write(&file, text).expect("a folder of ours");
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["--log", "warn", "run"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    while !first.contains("device-") {
        first.clear();
        assert!(out.read_line(&mut first).expect("text") > 0, "it ended without a row");
    }
    let took = started.elapsed().as_secs_f64() * 1_000.0;
    child.wait().expect("a child of ours");
    took
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock of this century").as_micros() as u64
}

fn now_ms() -> u64 {
    now_us() / 1_000
}
