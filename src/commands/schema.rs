//! `pipeline schema`: a schema proposed from samples, and a pipeline's rows against what is stored.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use pipeline_engine::Run;
use pipeline_engine::stage::{ColumnDifference, SchemaComparison};
use pipeline_engine::terminal::printable;
use pipeline_stages::decode::infer::{SampleFormat, Samples};
use serde_json::{Value, json};

use super::{Failure, load, runtime};

/// Propose a schema from samples, or hold a pipeline's rows against its tables and objects.
#[derive(Debug, Args)]
pub struct SchemaArguments {
    #[command(subcommand)]
    command: SchemaCommand,
}

#[derive(Debug, Subcommand)]
enum SchemaCommand {
    /// Print a [schema.NAME] table that takes all the samples.
    ///
    /// For instance: mosquitto_sub -t 'iot/#' -C 1000 | pipeline schema infer -
    Infer(InferArguments),
    /// Compare the rows of each sink with the live table, or with the newest object.
    ///
    /// Changes nothing, and works while the pipeline runs. Exits with 1 if anything differs.
    Diff(DiffArguments),
}

#[derive(Debug, Args)]
struct InferArguments {
    /// Files with samples, plain or gzip; "-" is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The schema's name.
    #[arg(long, default_value = "telemetry")]
    name: String,
    /// How samples are written; by default as the file's name says, and JSON where it says nothing.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Look at so many messages at most.
    #[arg(long, default_value_t = 100_000)]
    limit: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Objects, or arrays of them, on a line each or as one array.
    Json,
    /// A header with the names of the fields, which may have dots, and records.
    Csv,
}

#[derive(Debug, Args)]
struct DiffArguments {
    /// The pipeline file.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: SchemaArguments) -> Result<(), Failure> {
    match arguments.command {
        SchemaCommand::Infer(arguments) => infer(&arguments),
        SchemaCommand::Diff(arguments) => diff(&arguments),
    }
}

fn infer(arguments: &InferArguments) -> Result<(), Failure> {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if arguments.name.is_empty() || !arguments.name.chars().all(is_bare) {
        let text =
            format!("error: \"{}\" can't be a schema's name: use letters, digits, \"_\" and \"-\"", arguments.name);
        return Err(Failure::Wrong(text));
    }
    let mut samples = Samples::default();
    for file in &arguments.files {
        let unreadable = |error: io::Error| Failure::failed(format!("can't read \"{}\": {error}", file.display()));
        let input: Box<dyn Read> =
            if is_stdin(file) { Box::new(io::stdin().lock()) } else { Box::new(File::open(file).map_err(unreadable)?) };
        samples.read(input, format_of(arguments.format, file), arguments.limit).map_err(unreadable)?;
    }
    if let Some((line, reason)) = &samples.first_refused {
        let reason = printable(reason);
        match samples.refused {
            1 => eprintln!("warning: line {line} holds no message: {reason}"),
            lines => eprintln!("warning: {lines} lines hold no message, the first of them line {line}: {reason}"),
        }
    }
    let proposal = samples.observations.propose();
    if proposal.columns.is_empty() {
        return Err(Failure::failed("there is no message with a value in the samples"));
    }
    println!("# Proposed from {} messages. Samples show what is, and not what may be: review it.", proposal.messages);
    print!("{}", proposal.toml(&arguments.name));
    Ok(())
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn format_of(chosen: Option<Format>, file: &Path) -> SampleFormat {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match chosen {
        Some(Format::Json) => SampleFormat::Json,
        Some(Format::Csv) => SampleFormat::Csv,
        None if name.trim_end_matches(".gz").ends_with(".csv") => SampleFormat::Csv,
        None => SampleFormat::Json,
    }
}

fn diff(arguments: &DiffArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    let found = runtime()?.block_on(async { Run::new(plan).compare_schemas().await });
    let mut sinks = Vec::new();
    let (mut differing, mut failed) = (0, 0);
    for (sink, outcome) in found {
        match outcome {
            Ok(None) => {}
            Ok(Some(comparison)) => {
                differing += usize::from(!comparison.differences.is_empty());
                if !arguments.json {
                    print(&sink, &comparison);
                }
                sinks.push(json(&sink, &comparison));
            }
            Err(error) => {
                failed += 1;
                if !arguments.json {
                    println!("{sink}: FAILED, {}", printable(&error.chain().to_string()));
                }
                sinks.push(json!({ "sink": sink, "error": error.chain().to_string() }));
            }
        }
    }
    if arguments.json {
        println!("{:#}", json!({ "sinks": sinks, "differing": differing, "failed": failed }));
    }
    match (failed, differing) {
        (0, 0) => Ok(()),
        (0, count) => Err(Failure::failed(format!("{count} of the sinks differ from what is stored"))),
        (count, _) => Err(Failure::failed(format!("{count} of the sinks can't be compared now"))),
    }
}

fn print(sink: &str, comparison: &SchemaComparison) {
    let same = if comparison.differences.is_empty() { ": nothing differs" } else { "" };
    println!("{sink}: against {}{same}", printable(&comparison.against));
    for ColumnDifference { column, ours, theirs, consequence, mend } in &comparison.differences {
        let (sign, kind) = match (ours, theirs) {
            (Some(ours), Some(theirs)) => ('~', format!("{ours}, stored {theirs}")),
            (Some(kind), None) => ('+', kind.clone()),
            (None, kind) => ('-', kind.clone().unwrap_or_default()),
        };
        println!("  {sign} {} ({}) {}", printable(column), printable(&kind), printable(consequence));
        if let Some(mend) = mend {
            println!("      {}", printable(mend));
        }
    }
}

fn json(sink: &str, comparison: &SchemaComparison) -> Value {
    let differences: Vec<Value> = comparison
        .differences
        .iter()
        .map(|difference| {
            json!({
                "column": difference.column,
                "rows": difference.ours,
                "stored": difference.theirs,
                "consequence": difference.consequence,
                "mend": difference.mend,
            })
        })
        .collect();
    json!({ "sink": sink, "against": comparison.against, "differences": differences })
}
