//! `pipeline stages [TYPE]`: the reference of every stage, generated from its configuration.

use clap::{Args, ValueEnum};
use pipeline_engine::suggest::suggest;

use super::Failure;
use crate::reference::{self, markdown, text};

/// List the types of stages, or everything about one.
#[derive(Debug, Args)]
pub struct StagesArguments {
    /// The type, as in `type = "..."`; `pipeline` for the settings that are no stages.
    #[arg(conflicts_with = "format")]
    type_name: Option<String>,
    /// The whole reference in one piece.
    #[arg(long)]
    format: Option<Format>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Markdown,
}

pub fn run(arguments: StagesArguments) -> Result<(), Failure> {
    let registry = pipeline_stages::registry();
    if let Some(Format::Markdown) = arguments.format {
        print!("{}", markdown::render(&registry));
        return Ok(());
    }
    let Some(word) = arguments.type_name else {
        for found in registry.types() {
            println!("{:<10} {:<12} {}", found.kind.word(), found.doc.type_name, found.doc.summary);
        }
        println!("\n`pipeline stages TYPE` shows its keys, ports and what happens on failure.");
        return Ok(());
    };
    let pages = match word.as_str() {
        "pipeline" => reference::settings(),
        word => reference::of_type(&registry, word),
    };
    if pages.is_empty() {
        let known = registry.types().map(|known| known.doc.type_name);
        let hint = suggest(&word, known, "Types", "");
        return Err(Failure::Wrong(format!("error: no type is named \"{word}\"\n  = hint: {hint}")));
    }
    pages.iter().for_each(|page| print!("{}", text::render(page)));
    Ok(())
}
