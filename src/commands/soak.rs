//! `pipeline soak FILE`: a fleet against a pipeline, held against its objectives.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::verify::duration;
use super::{Failure, load, runtime};
use crate::soak::{self, Options};
use crate::verify::DoorArguments;

/// Run a fleet that numbers what it sends against a pipeline, and hold what arrives against its `[slo]`.
///
/// Against the pipeline that runs, or one that is started for it where nobody answers. Every message that the broker has taken
/// is looked for where the pipeline stores. The devices are ones that nobody has; their rows are removed from tables, and
/// objects of a lake stay: leave out devices whose name begins with "pipeline-verify-".
/// Exits with 0 if every objective is kept and nothing is there twice, 1 if not, 2 if the file is wrong or nothing could be
/// sent, 3 if nothing is missed but an objective of the file was not measured.
#[derive(Debug, Args)]
pub struct SoakArguments {
    /// The pipeline file.
    file: PathBuf,
    /// How long the fleet sends. Ctrl-C ends it earlier, and what was sent is checked.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    duration: Duration,
    /// Messages a second, of all devices together.
    #[arg(long, value_name = "N", default_value_t = 1_000.0, value_parser = rate)]
    rate: f64,
    /// How many devices.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Where to look for rows. Default: every table and lake that keeps every row of the source.
    #[arg(long = "sink", value_name = "NAME")]
    sinks: Vec<String>,
    /// How long to wait for the last row after the last message.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    timeout: Duration,
    /// How often each query of the dashboards is run afterwards, where `[slo]` has query_p95 or dashboard_p95.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    runs: u32,
    /// Leave the rows in the tables.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: DoorArguments,
}

pub fn run(arguments: SoakArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    let options = Options {
        duration: arguments.duration,
        rate: arguments.rate,
        devices: arguments.devices,
        sinks: arguments.sinks,
        timeout: arguments.timeout,
        measurements: arguments.runs,
        keep: arguments.keep,
    };
    let outcome = runtime()?.block_on(soak::soak(&arguments.file, &plan, &arguments.door, &options));
    let outcome = outcome.map_err(|why| Failure::Wrong(format!("error: {why}")))?;
    if arguments.json {
        println!("{}", outcome.json());
    } else {
        print!("{}", outcome.text());
    }
    match outcome.conclusion().exit_code() {
        0 => Ok(()),
        code => Err(Failure::Told(code)),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "a number above 0".to_owned())
}
