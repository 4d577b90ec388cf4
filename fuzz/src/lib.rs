//! What the fuzz targets share. What they check is in `pipeline_stages::fuzzing`.

use std::env;
use std::io;
use std::path::Path;

use pipeline_stages::fuzzing::TARGETS;

/// Writes what a target begins with, made of the committed corpus, where `SEEDS` says; before libFuzzer looks there.
///
/// # Panics
/// The corpus can't be read, or the folder not written.
pub fn write_seeds(target: &str) {
    if let Some(folder) = env::var_os("SEEDS") {
        write_to(target, Path::new(&folder)).expect("the corpus is committed, the folder our own");
    }
}

fn write_to(target: &str, folder: &Path) -> io::Result<()> {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus"));
    std::fs::create_dir_all(folder)?;
    for target in TARGETS.iter().filter(|known| known.name == target) {
        for (number, seed) in (target.seeds)(corpus)?.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:04}")), seed)?;
        }
    }
    Ok(())
}
