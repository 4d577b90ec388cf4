//! `pipeline graph FILE`: the plan drawn as text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pipeline_engine::GraphFormat;

use super::{Failure, load};

/// Draw a pipeline.
#[derive(Debug, Args)]
pub struct GraphArguments {
    /// The pipeline file.
    file: PathBuf,
    /// How it is drawn.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Stages, inputs and columns, for a terminal.
    Text,
    /// For Markdown.
    Mermaid,
    /// For Graphviz.
    Dot,
}

pub fn run(arguments: GraphArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    let format = match arguments.format {
        Format::Text => GraphFormat::Text,
        Format::Mermaid => GraphFormat::Mermaid,
        Format::Dot => GraphFormat::Dot,
    };
    print!("{}", plan.graph(format));
    Ok(())
}
