//! `pipeline tap EDGE`: rows of a running pipeline as they pass.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use pipeline_engine::terminal::{printable, printable_json};
use serde_json::Value;

use super::watched::{Watched, WatchedArguments};
use super::{Failure, runtime};
use crate::http::tap::Request;

/// Show rows of a running pipeline as they leave a stage, one JSON object a line.
///
/// The pipeline does not notice: what comes faster than it is shown passes by, and is counted on standard error. Ctrl-C ends it.
#[derive(Debug, Args)]
pub struct TapArguments {
    /// STAGE, STAGE.PORT such as valid.rejected, or "STAGE->STAGE".
    edge: String,
    #[command(flatten)]
    watched: WatchedArguments,
    /// Only rows for which this is true, as behind WHERE in a rule: "temperature > 30 AND site = 'north'".
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Show at most so many rows a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// End after so many rows.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 30s.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

pub fn run(arguments: TapArguments) -> Result<(), Failure> {
    let watched = Watched::find(&arguments.watched)?;
    runtime()?.block_on(async {
        tokio::select! {
            outcome = show(&watched, &arguments) => outcome,
            () = passed(arguments.duration) => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::failed),
        }
    })
}

async fn passed(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn show(watched: &Watched, arguments: &TapArguments) -> Result<(), Failure> {
    let request = Request {
        edge: arguments.edge.clone(),
        condition: arguments.condition.clone(),
        rows_per_second: arguments.rate,
    };
    let request = serde_json::to_string(&request).map_err(Failure::failed)?;
    let mut answer = watched.follow("/tap", request).await.map_err(Failure::failed)?;
    let (mut left, mut shown) = (Vec::new(), 0);
    while let Some(part) = answer.chunk().await.map_err(|error| Failure::failed(format!("it broke off: {error}")))? {
        left.extend_from_slice(&part);
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = left.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).map_err(Failure::failed)?;
            if let Some(error) = line["error"].as_str() {
                return Err(Failure::failed(printable(error)));
            }
            if let Some(count) = line["left_out"].as_u64() {
                eprintln!("... {count} more rows, not shown");
            }
            if !line["row"].is_null() {
                match writeln!(io::stdout(), "{}", printable_json(line["row"].to_string())) {
                    // `| head` has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    written => written.map_err(Failure::failed)?,
                }
                shown += 1;
            }
            if arguments.count.is_some_and(|count| shown >= count) {
                return Ok(());
            }
        }
    }
    eprintln!("the pipeline has ended, or another version of its file has taken its place");
    Ok(())
}
