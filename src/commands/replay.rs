//! `pipeline replay s3://BUCKET/PREFIX FILE`: sends objects through the stages of a pipeline, in the place of its source.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pipeline_engine::{Kind, Plan, Replacement, Variables};

use super::run::run_plan;
use super::{Failure, load, run_to_the_end};
use crate::reload::warn_of;

/// Send objects of a bucket through a pipeline once more: a day that was lost, or that a mended rule reads otherwise.
///
/// The objects take the place of the pipeline's source, with its schema; all else is as in the file. Runs beside the
/// pipeline, under the name NAME-replay, and ends when all objects are stored. An object is replayed once: a second run
/// finds nothing to do. What is in a table already is known by the table's key, and changes nothing.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// Which objects: s3://bucket/prefix. All keys that begin with the prefix.
    url: String,
    /// The pipeline file.
    file: PathBuf,
    /// How the objects are written.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// The source whose place they take, where the file has several. The others are left out.
    #[arg(long)]
    source: Option<String>,
    /// A stage to leave out, such as a sink without keys. May be given several times.
    #[arg(long, value_name = "STAGE")]
    without: Vec<String>,
    /// The S3 API to use, if not that of AWS.
    #[arg(long)]
    endpoint: Option<String>,
    /// Replay objects that were replayed before, too.
    #[arg(long)]
    again: bool,
}

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
    Parquet,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// What a source has that means the same for any other.
const KEPT_KEYS: &[&str] = &["schema", "unknown_fields"];

pub fn run(arguments: ReplayArguments) -> Result<(), Failure> {
    // The file as it is, so that its mistakes show as such.
    let plan = load(&arguments.file)?;
    let replacement = replacement(&arguments, &plan)?;
    drop(plan);
    let plan = replaced(&arguments.file, &replacement)?;
    warn_of(&plan);
    run_to_the_end(run_plan(plan))
}

fn replaced(file: &Path, replacement: &Replacement) -> Result<Plan, Failure> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Wrong(format!("error: can't read the pipeline file \"{name}\": {error}")))?;
    let variables = Variables::of_process();
    Plan::parse_replaced(&text, &name, &pipeline_stages::registry(), &variables, replacement)
        .map_err(|mistakes| Failure::Wrong(mistakes.render(io::stderr().is_terminal())))
}

fn replacement(arguments: &ReplayArguments, plan: &Plan) -> Result<Replacement, Failure> {
    let wrong = |text: String| Failure::Wrong(format!("error: {text}"));
    let without: BTreeSet<String> = arguments.without.iter().cloned().collect();
    let unknown = |name: &&String| !plan.stages().any(|(stage, kind, _)| stage == *name && kind != Kind::Source);
    if let Some(name) = without.iter().find(unknown) {
        return Err(wrong(format!("--without: no transform and no sink is named \"{name}\"")));
    }
    let sources: Vec<&str> =
        plan.stages().filter(|(_, kind, _)| *kind == Kind::Source).map(|(name, ..)| name).collect();
    let source = match (&arguments.source, &sources[..]) {
        (Some(name), sources) if sources.contains(&name.as_str()) => name.clone(),
        (None, [only]) => (*only).to_owned(),
        (Some(name), sources) => {
            return Err(wrong(format!("--source: no source is named \"{name}\"; there are {}", sources.join(", "))));
        }
        (None, sources) => {
            return Err(wrong(format!(
                "whose place do the objects take? --source names one of {}",
                sources.join(", ")
            )));
        }
    };
    let mut keys = vec![
        ("type".to_owned(), "s3".to_owned()),
        ("url".to_owned(), arguments.url.clone()),
        ("format".to_owned(), arguments.format.word().to_owned()),
    ];
    keys.extend(arguments.endpoint.iter().map(|endpoint| ("endpoint".to_owned(), endpoint.clone())));
    Ok(Replacement { pipeline: name(plan.name(), arguments.again), source, keys, kept_keys: KEPT_KEYS, without })
}

/// The name that the replay runs under. Another name has other data, and has replayed nothing.
fn name(pipeline: &str, again: bool) -> String {
    let suffix = if again {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        format!("-replay-{:x}", since.as_secs())
    } else {
        "-replay".to_owned()
    };
    // Names have at most 63 letters, all of them of one byte.
    let kept = pipeline.len().min(63 - suffix.len());
    format!("{}{suffix}", &pipeline[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_has_a_name_of_its_own() {
        assert_eq!(name("iot", false), "iot-replay");
        let again = name("iot", true);
        assert!(again.starts_with("iot-replay-"), "{again}");
        assert_eq!(name(&"x".repeat(63), true).len(), 63);
    }
}
