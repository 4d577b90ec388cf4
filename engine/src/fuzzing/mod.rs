//! Entry points for hostile input: bytes in, a panic where a promise is broken.
//!
//! Each [`Target`] is fed by two: by a fuzzer that follows coverage (the folder `fuzz/`, on request), and by
//! the tests, which replay the committed corpus and mutations of it ([`replay`]) in seconds. Both call the same
//! function, so what the fuzzer finds becomes a file of the corpus, and the tests find it ever after.

pub mod spool;

use std::io;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Beyond it a mutation is cut off: the interesting inputs are small, and many small ones tell more.
const BYTES_MAX: usize = 64 << 10;

/// Something that reads what others have written.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of the fuzz target.
    pub name: &'static str,
    /// Takes any bytes.
    pub check: fn(&[u8]),
    /// Inputs to begin with, made of the files in `tests/corpus`.
    pub seeds: fn(&Path) -> io::Result<Vec<Vec<u8>>>,
}

/// Checks all seeds and so many mutations of them, which are the same each time.
///
/// # Panics
/// A promise is broken. The input is printed before, in hexadecimal.
pub fn replay(target: &Target, corpus: &Path, mutations: u64) {
    let seeds = (target.seeds)(corpus).expect("the corpus can be read");
    assert!(!seeds.is_empty(), "the corpus has nothing for \"{}\"", target.name);
    let inputs = seeds.iter().cloned().chain((0..mutations).map(|number| mutated(&seeds, number)));
    for (number, input) in inputs.enumerate() {
        let shown = ShownOnPanic { target: target.name, number, input: &input };
        (target.check)(&input);
        drop(shown);
    }
}

struct ShownOnPanic<'a> {
    target: &'a str,
    number: usize,
    input: &'a [u8],
}

impl Drop for ShownOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("input {} of \"{}\": {hex}", self.number, self.target);
        }
    }
}

/// The mutation of this number.
fn mutated(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(number);
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        mutate(&mut bytes, seeds, &mut rng);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut StdRng) {
    /// Ends of ranges, and bytes that mean something in many formats.
    const INTERESTING: [u8; 16] = *b"\x00\x01\x7f\x80\xff\xc1\xfe\x9f\"\\{}[],.";
    let at = rng.random_range(0..=bytes.len());
    let end = rng.random_range(at..=bytes.len().min(at + 32));
    match rng.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = INTERESTING[rng.random_range(0..INTERESTING.len())],
        2 => bytes.insert(at, rng.random()),
        3 => drop(bytes.drain(at..end)),
        4 => bytes.truncate(at),
        5 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        6 => bytes[at..end].fill(INTERESTING[rng.random_range(0..INTERESTING.len())]),
        _ => {
            let other = &seeds[rng.random_range(0..seeds.len())];
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len().min(from + 64));
            bytes.splice(at..end, other[from..to].iter().copied());
        }
    }
}

/// All files below a folder, in the order of their paths: seeds are mostly files as they are.
///
/// # Errors
/// The folder can't be read.
pub fn files_below(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_spool_is_read_or_refused_and_its_records_are_there_or_lost() {
        replay(&spool::TARGET, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus")), 2_000);
    }

    #[test]
    fn a_mutation_is_the_same_each_time_and_differs_from_its_seed() {
        let seeds = [b"{\"a\":1}".to_vec(), vec![0; 100]];
        let all: Vec<_> = (0..200).map(|number| mutated(&seeds, number)).collect();
        assert_eq!(all, (0..200).map(|number| mutated(&seeds, number)).collect::<Vec<_>>());
        assert!(all.iter().filter(|input| !seeds.contains(input)).count() > 150);
    }
}
