//! `pipeline reload FILE`: a running pipeline takes its file as it is now.

use clap::Args;
use pipeline_engine::terminal::printable;
use serde_json::Value;

use super::watched::{Watched, WatchedArguments};
use super::{Failure, runtime};

/// Put the pipeline file as it is now in the place of the version that runs.
///
/// The running pipeline reads its own file again. One with a mistake changes nothing: it is told here, and the exit code is 1.
/// Otherwise what is on its way is stored, and the new version goes on from there; no row is lost and none is stored twice.
#[derive(Debug, Args)]
pub struct ReloadArguments {
    #[command(flatten)]
    pipeline: WatchedArguments,
}

pub fn run(arguments: ReloadArguments) -> Result<(), Failure> {
    let watched = Watched::find(&arguments.pipeline)?;
    let answer = runtime()?.block_on(watched.order("/reload")).map_err(Failure::failed)?;
    let answer: Value = serde_json::from_str(&answer).map_err(Failure::failed)?;
    if answer["reloaded"] == true {
        for change in answer["changes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("{}", printable(change));
        }
        return Ok(());
    }
    // Mistakes of a file come with their lines.
    let why = answer["error"].as_str().unwrap_or("no reason given");
    let why: Vec<_> = why.lines().map(printable).collect();
    Err(Failure::failed(format!("not reloaded, and nothing has changed: {}", why.join("\n"))))
}
