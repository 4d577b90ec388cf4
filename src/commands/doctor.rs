//! `pipeline doctor FILE`: whether all that a pipeline needs is there and works, check by check.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, runtime};
use crate::doctor::{self, show};

/// Look at all that a pipeline needs: its file, disk, clock, brokers, databases and stores.
///
/// Each check is PASS, WARN or FAIL, with what was found and a fix. What a check writes it takes back, and a pipeline
/// that runs is not disturbed. Exits as monitoring plugins do: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// The pipeline file.
    file: PathBuf,
    /// Print the findings as JSON on one line.
    #[arg(long)]
    json: bool,
    /// How many seconds each stage may take; all are looked at at the same time.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

pub fn run(arguments: DoctorArguments) -> Result<(), Failure> {
    let limit = Duration::from_secs(arguments.timeout);
    let looked = runtime().map(|runtime| {
        let diagnosis = runtime.block_on(doctor::examine(&arguments.file, limit));
        // A disk that hangs holds a thread for good.
        runtime.shutdown_background();
        diagnosis
    });
    let diagnosis = match looked {
        Ok(diagnosis) => diagnosis,
        Err(Failure::Failed(text) | Failure::Wrong(text)) => {
            println!("UNKNOWN: {text}");
            return Err(Failure::Told(doctor::Status::Unknown.exit_code()));
        }
        Err(told) => return Err(told),
    };
    if arguments.json {
        println!("{}", show::json(&diagnosis));
    } else {
        print!("{}", show::text(&diagnosis, io::stdout().is_terminal()));
    }
    match diagnosis.status().exit_code() {
        0 => Ok(()),
        code => Err(Failure::Told(code)),
    }
}
