//! The pipeline file: any text.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use pipeline_engine::fuzzing::{Target, files_below};
use pipeline_engine::{GraphFormat, Plan, Registry, Variables};

/// The fuzz target.
pub const TARGET: Target = Target { name: "pipeline_file", check, seeds };

/// What a variable and a file hold in which a pipeline file may put a secret.
const SECRET: &str = "h1dden-s3cret";

/// Makes a plan of the text and draws it, or shows its mistakes.
///
/// # Panics
/// A mistake points nowhere or twice at the same, or shows what a secret's file holds.
fn check(input: &[u8]) {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    let registry = REGISTRY.get_or_init(crate::registry);
    let Ok(text) = std::str::from_utf8(input) else { return };
    let variables = Variables {
        get: &|name| name.starts_with('S').then(|| "5".to_owned()),
        read: &|path| match path.ends_with("secret") {
            true => Ok(SECRET.to_owned()),
            false => Err(io::ErrorKind::NotFound.into()),
        },
    };
    match Plan::parse(text, "fuzzed.toml", registry, &variables) {
        Ok(plan) => {
            for format in [GraphFormat::Text, GraphFormat::Mermaid, GraphFormat::Dot] {
                assert!(!plan.graph(format).is_empty());
            }
            assert!(plan.stages().count() > 1, "a source and a sink at least");
        }
        Err(mistakes) => {
            assert!(!mistakes.all.is_empty(), "refused without a mistake");
            assert_eq!(mistakes.text.len(), text.len(), "stars take as much room as what they hide");
            for (number, mistake) in mistakes.all.iter().enumerate() {
                assert!(!mistake.message.is_empty());
                assert!(!mistakes.all[..number].contains(mistake), "said twice: {mistake:?}");
                if let Some(place) = &mistake.place {
                    let is_inside = mistakes.text.get(place.clone()).is_some();
                    assert!(is_inside, "{place:?} is no place in {} bytes: {mistake:?}", text.len());
                }
            }
            assert!(mistakes.render(false).starts_with("error: "));
            mistakes.render(true);
        }
    }
}

/// The broken files of the corpus, and those that ship.
fn seeds(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut files = files_below(&corpus.join("pipelines"))?;
    files.extend(files_below(&corpus.join("../../pipelines"))?);
    let is_pipeline = |name: &str| name.ends_with(".toml") && !name.ends_with(".test.toml");
    files.retain(|path| path.to_str().is_some_and(is_pipeline));
    let seeds: Vec<Vec<u8>> = files.into_iter().map(std::fs::read).collect::<io::Result<_>>()?;
    Ok(seeds.into_iter().filter(|text| text.len() < 10_000).collect())
}
