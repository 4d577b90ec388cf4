//! `pipeline check FILE`: every mistake in a pipeline file, and with `--connect` whether its outside
//! can be reached.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pipeline_engine::{Plan, Run};

use super::{Failure, load, runtime};

/// How long all endpoints together may take: longer than any client's own time-out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Check a pipeline file without any I/O but reading it.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The pipeline file.
    file: PathBuf,
    /// Also reach brokers, databases and stores, changing nothing there.
    #[arg(long)]
    connect: bool,
}

pub fn run(arguments: CheckArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    for warning in plan.warnings() {
        eprintln!("warning: {warning}");
    }
    println!("{}: ok, {} stages", arguments.file.display(), plan.stages().count());
    if arguments.connect { runtime()?.block_on(connect(plan)) } else { Ok(()) }
}

async fn connect(plan: Plan) -> Result<(), Failure> {
    let mut run = Run::new(plan);
    let probes = tokio::time::timeout(CONNECT_TIMEOUT, run.probe()).await;
    let probes = probes.map_err(|_| Failure::failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?;
    let mut unreachable = 0;
    for (stage, outcome) in probes {
        match outcome {
            Ok(found) => println!("{stage}: ok, {found}"),
            Err(error) => {
                unreachable += 1;
                println!("{stage}: FAILED, {}", error.chain());
            }
        }
    }
    match unreachable {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} of the endpoints can't be used now"))),
    }
}
