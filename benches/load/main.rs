//! The whole way, end to end, beside what it costs at best: each path of the pipeline and its limit, in turns, in one run.
//!
//! ```sh
//! cargo bench --bench load                         # all paths, three rounds each; some minutes
//! cargo bench --bench load -- --only drain,file    # some of them
//! cargo bench --bench load -- --write              # and puts the table into benches/README.md, the plot beside it
//! cargo bench --bench load -- --hold 30m           # 10,000 devices at 10,000 messages a second for so long
//! cargo bench --bench load -- --only drain --peer 'drain:vector --config vector.toml'   # somebody else on the same path
//! ```
//!
//! Starts Mosquitto and TimescaleDB by `tests/services` (a set of its own), and the real binary of this profile. A limit is
//! the same work without the pipeline: the bare subscriber, raw `COPY` of rows that are encoded already, the bare Parquet
//! writer, the decoder alone. Ours and the limit take turns, so that both see the same machine; what is told is the
//! median of the ratios, not the ratio of two figures of different minutes.

mod engine;
mod files;
mod fleet;
mod guarantees;
mod in_memory;
mod latency;
mod machine;
mod mqtt;
mod peers;
mod queue;
mod rate;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use table::{Line, Table};

/// As in the binary: small messages are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures one path.
type Measure = fn(&Options) -> Vec<Line>;

/// What the command line asks for.
pub struct Options {
    only: Vec<String>,
    /// How often each path is measured.
    pub rounds: usize,
    write: bool,
    hold: Option<Duration>,
    /// A path and the command that does the same, each.
    pub peers: Vec<(String, String)>,
}

impl Options {
    fn of_command_line() -> Result<Self, String> {
        let mut options = Self { only: Vec::new(), rounds: 3, write: false, hold: None, peers: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
            match argument.as_str() {
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--rounds" => options.rounds = value()?.parse().map_err(|error| format!("--rounds: {error}"))?,
                "--write" => options.write = true,
                "--hold" => {
                    options.hold =
                        Some(humantime::parse_duration(&value()?).map_err(|error| format!("--hold: {error}"))?);
                }
                "--peer" => {
                    let text = value()?;
                    let (path, command) = text.split_once(':').ok_or("--peer wants PATH:COMMAND")?;
                    if !peers::PATHS.contains(&path) {
                        return Err(format!("--peer: no peer can be tried on {path}: {} can", peers::PATHS.join(", ")));
                    }
                    options.peers.push((path.to_owned(), command.to_owned()));
                }
                // What cargo itself passes on, and the flag that has nothing to say here.
                "--bench" | "--test" => {}
                unknown => return Err(format!("no such option: {unknown}")),
            }
        }
        Ok(options)
    }

    fn wants(&self, path: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == path)
    }
}

fn main() {
    // `cargo test --benches` asks whether it starts; loads are not for it.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let options = Options::of_command_line().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    let mut table = Table::new();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches");
    // After each path: a run takes half an hour, and may be cut short.
    let write = |table: &Table| {
        if options.write {
            table.write(&folder);
        }
    };
    let paths: [(&str, Measure); 8] = [
        ("engine", engine::measure),
        ("file", files::to_table),
        ("connections", files::by_two_connections),
        ("lake", files::to_lake),
        ("drain", queue::drain),
        ("live", queue::live),
        ("latency", latency::measure),
        ("guarantees", guarantees::measure),
    ];
    for (name, measure) in paths.into_iter().filter(|(name, _)| options.wants(name)) {
        eprintln!("== {name}");
        measure(&options).into_iter().for_each(|line| table.add(line));
        write(&table);
    }
    if let Some(time) = options.hold {
        eprintln!("== hold");
        latency::hold(time).into_iter().for_each(|line| table.add(line));
        write(&table);
    }
    println!("{table}");
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs two things in turns, each first as often as the other: the figures of both.
pub fn in_turns(rounds: usize, mut ours: impl FnMut() -> f64, mut limit: impl FnMut() -> f64) -> (Vec<f64>, Vec<f64>) {
    let (mut of_ours, mut of_limit) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            of_limit.push(limit());
            of_ours.push(ours());
        } else {
            of_ours.push(ours());
            of_limit.push(limit());
        }
        eprintln!("   round {}: ours {:.0}, limit {:.0}", round + 1, of_ours[round], of_limit[round]);
    }
    (of_ours, of_limit)
}
