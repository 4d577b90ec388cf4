//! The runbook's two first objectives, and how far beyond them it goes: 1,000 messages a second held, in under 5 s from the
//! device to the table; then twice the rate, and twice again, until one of them breaks.
//!
//! ```sh
//! cargo bench --bench slo                    # a minute at 1,000 a second, then ten seconds at each rate
//! cargo bench --bench slo -- --for 10m       # longer
//! cargo bench --bench slo -- --in-memory     # without broker and database: the engine alone, paced
//! ```
//!
//! Against a real Mosquitto and TimescaleDB, which it starts by `tests/services`; where they can't be had, in memory, and it
//! says so. Ends with 1 when an objective is missed.

#[allow(dead_code, reason = "shared with the load harness, which wants more of it")]
#[path = "load/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "shared with the load harness, which wants more of it")]
#[path = "load/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the load harness, which wants more of it")]
#[path = "load/mqtt.rs"]
mod mqtt;
#[path = "load/paced.rs"]
mod paced;
#[path = "load/rate.rs"]
mod rate;

use std::process::ExitCode;
use std::time::Duration;

use rate::{Load, Seen};

/// As in the binary: small messages are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages a second that must be held.
const RATE: u64 = 1_000;
/// The longest that a message may take from the device to the table: 99 of 100, as `[slo] latency_p99` counts.
const LATENCY_MAX: Duration = Duration::from_secs(5);
/// How long each rate beyond the first is tried.
const STEP: Duration = Duration::from_secs(10);
/// Nobody asks for more of one machine here; the generator would be what is measured.
const RATE_MAX: u64 = 1_024_000;
/// A fleet that gets rid of less than this share of its rate is held up: the rate was not held.
const SENT_MIN: f64 = 0.95;

fn main() -> ExitCode {
    // `cargo test --benches` asks whether it starts; loads are not for it.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let (mut in_memory, mut time) = (false, Duration::from_secs(60));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--in-memory" => in_memory = true,
            "--for" => match arguments.next().as_deref().map(humantime::parse_duration) {
                Some(Ok(wanted)) => time = wanted,
                _ => return wrong("--for wants a time, such as 10m"),
            },
            "--bench" => {}
            unknown => return wrong(&format!("no such option: {unknown}")),
        }
    }
    println!("{}", machine::description("slo"));
    if !in_memory && machine::services().is_none() {
        println!("No Mosquitto and TimescaleDB here (see above): in memory instead.");
        in_memory = true;
    }
    let run = |load: Load| if in_memory { paced::at(load) } else { rate::at(load, LATENCY_MAX * 2, |_, _| {}) };
    println!("\n| messages/s | sent/s | stored of | twice | p50 ms | p99 ms | most ms | MiB | our CPU us/message | |");
    println!("|---|---|---|---|---|---|---|---|---|---|");

    let first = run(Load { rate: RATE, devices: fleet::DEVICES, time });
    let missed = broken(&first, RATE);
    show(RATE, &first, missed);
    if let Some(why) = missed {
        println!("\n{RATE} messages/s: MISSED ({why}).");
        return ExitCode::FAILURE;
    }
    let (mut held, mut rate, mut end) = (RATE, RATE * 2, "nothing: the generator goes no further");
    while rate <= RATE_MAX {
        let seen = run(Load { rate, devices: fleet::DEVICES, time: STEP });
        let missed = broken(&seen, rate);
        show(rate, &seen, missed);
        if let Some(why) = missed {
            end = why;
            break;
        }
        (held, rate) = (rate, rate * 2);
    }
    println!(
        "\n{RATE} messages/s for {}: held, p99 {:.1} ms, {:.0} times below {LATENCY_MAX:?}. \
         Held as well: {held} messages/s, {} times the objective. What broke beyond: {end}.",
        humantime::format_duration(time),
        first.p99_ms,
        LATENCY_MAX.as_secs_f64() * 1_000.0 / first.p99_ms,
        held / RATE
    );
    ExitCode::SUCCESS
}

/// What is not as it must be.
fn broken(seen: &Seen, rate: u64) -> Option<&'static str> {
    if seen.stored < seen.wanted {
        Some("rows are missing when none comes any more")
    } else if seen.twice > 0 {
        Some("rows are there twice")
    } else if seen.p99_ms > LATENCY_MAX.as_secs_f64() * 1_000.0 {
        Some("latency")
    } else if seen.sent_rate < rate as f64 * SENT_MIN {
        Some("the fleet can't send so fast: broker or generator")
    } else {
        None
    }
}

fn show(rate: u64, seen: &Seen, missed: Option<&str>) {
    println!(
        "| {rate} | {:.0} | {} of {} | {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.1} | {} |",
        seen.sent_rate,
        seen.stored,
        seen.wanted,
        seen.twice,
        seen.p50_ms,
        seen.p99_ms,
        seen.max_ms,
        seen.peak_mib,
        seen.cpu_us[0],
        missed.map_or("held".to_owned(), |why| format!("**broken**: {why}"))
    );
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("error: {what}");
    ExitCode::from(2)
}
