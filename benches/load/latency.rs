//! From a device's timestamp to a row that somebody else's query sees, at 1,000 messages a second; memory meanwhile; the
//! time from start to the first row; and a long hold at 10,000 a second.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rate::{self, Load};
use crate::table::{Line, Target};
use crate::{Options, fleet, machine};

const RATE: u64 = 1_000;
const SECONDS: u64 = 20;
/// So long without a new row, and what is missing is missing.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn measure(options: &Options) -> Vec<Line> {
    let (mut p50, mut p99, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut longest): ([Vec<f64>; 3], f64) = Default::default();
    let load = Load { rate: RATE, devices: fleet::DEVICES, time: Duration::from_secs(SECONDS) };
    for _ in 0..options.rounds {
        let seen = rate::at(load, PATIENCE, |_, _| {});
        assert_eq!((seen.stored, seen.twice), (seen.wanted, 0), "every good row once");
        eprintln!("   p50 {:.1} ms, p99 {:.1} ms, {:.0} MiB", seen.p50_ms, seen.p99_ms, seen.peak_mib);
        longest = longest.max(seen.max_ms);
        cpu.iter_mut().zip(seen.cpu_us).for_each(|(all, one)| all.push(one));
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
    let [ours, broker, database] = cpu.map(crate::median);
    let cpu = format!(
        "longest {longest:.0} ms; CPU a message: ours {ours:.0} us, broker {broker:.0} us, database {database:.0} us"
    );
    let visible = "device's timestamp to row visible to another connection, fsync on";
    vec![
        line("latency at 1,000 messages/s, p50", "ms", p50, Target::AtMost(20.0), visible),
        line("latency at 1,000 messages/s, p99", "ms", p99, Target::AtMost(80.0), &cpu),
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

/// 10,000 devices at 10,000 messages a second: whether memory and latency stay flat.
pub fn hold(time: Duration) -> Vec<Line> {
    let (mut memory, mut p99) = (Vec::new(), Vec::new());
    let load = Load { rate: 10_000, devices: 10_000, time };
    let seen = rate::at(load, PATIENCE, |mib, ms| {
        eprintln!("   {mib:.0} MiB, p99 {ms:.1} ms");
        memory.push(mib);
        p99.push(ms);
    });
    assert_eq!((seen.stored, seen.twice), (seen.wanted, 0), "every good row once");
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
        line(
            "p99, each minute",
            "ms",
            p99.clone(),
            format!("second half to first: {:.2}; {:.0} messages/s were sent", grown(&p99), seen.sent_rate),
        ),
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
    let mut child = Command::new(machine::binary())
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
