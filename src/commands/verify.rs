//! `pipeline verify FILE`: messages of its own through the front door, waited for in tables and lakes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pipeline_engine::units::DurationText;
use serde_json::{Map, Value};

use super::{Failure, load, runtime};
use crate::verify::{self, DoorArguments, Options, removed_text};

/// Send messages of a device that nobody has through a running pipeline, and wait for them where it stores.
///
/// Says how many were lost, how many are there twice and how long they took until they could be seen, and removes their rows
/// from tables. Objects of a lake stay: leave out devices whose name begins with "pipeline-verify-".
/// Exits with 0 if each message arrived everywhere exactly once, 1 if not, 2 if the file is wrong or nothing could be sent.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The pipeline file.
    file: PathBuf,
    /// How many messages.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    messages: u32,
    /// How long to wait for the last of them.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    timeout: Duration,
    /// Where to wait for them. Default: every table and lake that keeps every row of the source.
    #[arg(long = "sink", value_name = "NAME")]
    sinks: Vec<String>,
    /// A value for a column, as JSON or text, where the pipeline's rules want another one than is made up.
    #[arg(long = "set", value_name = "COLUMN=VALUE", value_parser = assignment)]
    values: Vec<(String, Value)>,
    /// Leave the rows in the tables.
    #[arg(long)]
    keep: bool,
    /// Send nothing: only remove what earlier runs have left in tables, such as windows that have closed since.
    #[arg(long)]
    clean: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: DoorArguments,
}

pub fn run(arguments: VerifyArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    let runtime = runtime()?;
    if arguments.clean {
        let removed = runtime.block_on(verify::clean(&plan, &arguments.door.device_column));
        print!("{}", removed_text(&removed));
        return Ok(());
    }
    let options = Options {
        messages: arguments.messages,
        timeout: arguments.timeout,
        sinks: arguments.sinks,
        values: arguments.values.into_iter().collect::<Map<_, _>>(),
        keep: arguments.keep,
    };
    let outcome = runtime.block_on(verify::verify(&plan, &arguments.door, &options));
    let outcome = outcome.map_err(|why| Failure::Wrong(format!("error: {why}")))?;
    if arguments.json {
        println!("{}", outcome.json());
    } else {
        print!("{}", outcome.text());
    }
    match outcome.exit_code() {
        0 => Ok(()),
        code => Err(Failure::Told(code)),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = serde_json::from_value::<DurationText>(text.into());
    parsed.map(|DurationText(duration)| duration).map_err(|error| error.to_string())
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    let (column, value) = text.split_once('=').ok_or("write COLUMN=VALUE")?;
    Ok((column.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_json_or_text() {
        assert_eq!(assignment("a=1.5"), Ok(("a".to_owned(), 1.5.into())));
        assert_eq!(assignment("a=on=off"), Ok(("a".to_owned(), "on=off".into())));
        assert!(assignment("a").is_err());
        assert_eq!((duration("90s"), duration("1m 30s")), (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(90))));
        assert!(duration("90").is_err_and(|error| error.contains("a duration with its unit")));
    }
}
