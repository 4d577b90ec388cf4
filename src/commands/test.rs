//! `pipeline test FILE`: a pipeline's cases, without any broker, database or store.

use std::path::{Path, PathBuf};

use clap::Args;
use pipeline_engine::trial::Trial;

use super::{Failure, load};
use crate::cases::Cases;

/// Try a pipeline on rows: what comes in and what must come out, from a file of cases.
#[derive(Debug, Args)]
pub struct TestArguments {
    /// The pipeline file.
    file: PathBuf,
    /// The cases [default: beside the pipeline, iot.test.toml for iot.toml]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Only cases whose name holds this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

pub fn run(arguments: TestArguments) -> Result<(), Failure> {
    let path = arguments.cases.unwrap_or_else(|| beside(&arguments.file));
    let cases = Cases::load(&path).map_err(|text| Failure::Wrong(format!("error: {text}")))?;
    let only = arguments.only.unwrap_or_default();
    let (mut tried, mut failed) = (0, 0);
    for case in cases.case.iter().filter(|case| case.name.contains(&only)) {
        tried += 1;
        let wrong = Trial::open(load(&arguments.file)?)
            .map_err(|error| error.chain())
            .and_then(|trial| case.run(trial))
            .unwrap_or_else(|error| vec![format!("  {error}")]);
        if wrong.is_empty() {
            println!("ok    {}", case.name);
        } else {
            failed += 1;
            println!("FAIL  {}\n{}", case.name, wrong.join("\n"));
        }
    }
    match (tried, failed) {
        (0, _) => Err(Failure::Wrong(format!("error: no case in {} is named so", path.display()))),
        (_, 0) => Ok(()),
        _ => Err(Failure::failed(format!("{failed} of {tried} cases failed"))),
    }
}

/// `pipelines/iot.test.toml` for `pipelines/iot.toml`.
fn beside(file: &Path) -> PathBuf {
    file.with_extension("test.toml")
}
