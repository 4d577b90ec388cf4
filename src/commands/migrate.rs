//! `pipeline migrate`: the existing platform, an IoT rule, a Firehose and a Lambda, as a pipeline file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use pipeline_engine::terminal::printable;
use pipeline_stages::decode::infer::{SampleFormat, Samples};
use serde_json::Value;

use super::Failure;
use crate::migrate::{Delivery, Existing, Function, Migration, Remarks, Rule, from_aws, migrate};

/// Larger answers of AWS there are none.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// Write the pipeline file that does what an IoT rule, a Firehose and a Lambda do, and list what does not map.
///
/// Takes what `aws iot get-topic-rule`, `aws firehose describe-delivery-stream` and `aws lambda
/// get-function-configuration` print. Passwords become references to variables, and are written nowhere.
#[derive(Debug, Args)]
pub struct MigrateArguments {
    /// The rule, as a file; or its name, with --from-aws.
    #[arg(long, value_name = "FILE|NAME")]
    rule: Option<String>,
    /// The Firehose, in the same way.
    #[arg(long, value_name = "FILE|NAME")]
    firehose: Option<String>,
    /// The function that stores, in the same way.
    #[arg(long, value_name = "FILE|NAME")]
    lambda: Option<String>,
    /// Ask AWS, by the `aws` on the PATH and with its profile and region.
    #[arg(long)]
    from_aws: bool,
    /// Messages of the devices, one JSON object a line: the schema is made of them.
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// The pipeline's name.
    #[arg(long, default_value = "migrated", value_parser = name)]
    name: String,
    /// Where to write the file; it must not be there yet. Left out: to stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn name(text: &str) -> Result<String, String> {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    let fits = (1..=40).contains(&text.len()) && text.chars().all(is_good);
    if fits { Ok(text.to_owned()) } else { Err("use up to 40 letters, digits, \"_\" and \"-\"".to_owned()) }
}

pub fn run(arguments: MigrateArguments) -> Result<(), Failure> {
    let mut remarks = Remarks::default();
    let of = |given: &Option<String>, question| {
        let document = given
            .as_ref()
            .map(|given| if arguments.from_aws { from_aws::ask(question, given) } else { read(Path::new(given)) });
        document.transpose().map_err(Failure::Wrong)
    };
    let wrong = |given: &Option<String>| {
        let given = printable(given.as_deref().unwrap_or_default()).into_owned();
        move |why: String| Failure::Wrong(format!("error: \"{given}\": {why}"))
    };
    let rule = of(&arguments.rule, from_aws::RULE)?;
    let delivery = of(&arguments.firehose, from_aws::FIREHOSE)?;
    let function = of(&arguments.lambda, from_aws::FUNCTION)?;
    let existing = Existing {
        rule: rule.map(|document| Rule::read(&document, &mut remarks)).transpose().map_err(wrong(&arguments.rule))?,
        delivery: delivery
            .map(|document| Delivery::read(&document, &mut remarks))
            .transpose()
            .map_err(wrong(&arguments.firehose))?,
        function: function
            .map(|document| Function::read(&document, &mut remarks))
            .transpose()
            .map_err(wrong(&arguments.lambda))?,
        schema: arguments.sample.as_deref().map(schema_of).transpose()?,
        name: arguments.name.clone(),
    };
    let Migration { text, unmapped } = migrate(existing, remarks).map_err(Failure::Wrong)?;
    match &arguments.out {
        None => print!("{text}"),
        Some(file) => write(file, &text)?,
    }
    // The file has the same at its head; stdout is the file where --out is not given.
    eprintln!("what does not map, {} in all:", unmapped.len());
    for remark in &unmapped {
        eprintln!("- {}: {}", remark.place, printable(&remark.what));
        eprintln!("    {}", printable(&remark.why));
        eprintln!("    {}", printable(&remark.instead));
    }
    if let Some(file) = &arguments.out {
        println!("{} is written and holds: next, `pipeline doctor {0}`", file.display());
    }
    Ok(())
}

fn read(file: &Path) -> Result<Value, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("error: can't read \"{}\": {why}", file.display());
    let opened = File::open(file).map_err(|error| unreadable(&error))?;
    let mut text = Vec::new();
    opened.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
    if text.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(unreadable(&"it is larger than anything that AWS prints"));
    }
    serde_json::from_slice(&text).map_err(|error| unreadable(&format!("it is no JSON: {error}")))
}

fn schema_of(file: &Path) -> Result<String, Failure> {
    let unreadable = |error| Failure::Wrong(format!("error: can't read \"{}\": {error}", file.display()));
    let mut samples = Samples::default();
    samples.read(File::open(file).map_err(unreadable)?, SampleFormat::Json, 100_000).map_err(unreadable)?;
    let proposal = samples.observations.propose();
    if proposal.columns.is_empty() {
        return Err(Failure::Wrong(format!("error: \"{}\" has no message with a value", file.display())));
    }
    Ok(proposal.toml("telemetry"))
}

/// Writes a file that was not there: one that somebody has corrected is not to be lost.
fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("can't write \"{}\": {error}", file.display()));
    let mut created = File::create_new(file).map_err(failed)?;
    created.write_all(text.as_bytes()).and_then(|()| created.sync_all()).map_err(failed)
}
