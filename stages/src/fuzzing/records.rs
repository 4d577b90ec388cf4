//! The records of the file source: CSV and JSON lines of any content.
//!
//! An input is a byte that chooses format, schema and limit, and the file.

use std::io::{self, BufRead, Read};
use std::path::Path;

use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::fuzzing::{Target, files_below};

use crate::decode::{Decoder, Format};
use crate::sources::records::{FileFormat, RecordReader};

/// The fuzz target.
pub const TARGET: Target = Target { name: "records", check, seeds };

/// Reads the file at once, and a few bytes at a time.
///
/// # Panics
/// The two differ; lines are numbered backwards; there are more records than bytes.
fn check(input: &[u8]) {
    let Some((&choice, file)) = input.split_first() else { return };
    let at_once = read(choice, file, usize::MAX);
    for step in [1, 7] {
        assert_eq!(read(choice, file, step), at_once, "cut into pieces of {step} bytes");
    }
}

/// Rows, dead letters and the lines of their records, or why the file can't be read.
fn read(choice: u8, file: &[u8], step: usize) -> Result<(String, String, Vec<u64>), String> {
    let format = if choice & 1 == 0 { FileFormat::Csv } else { FileFormat::Jsonl };
    let bytes_max = if choice & 2 == 0 { 1 << 20 } else { 40 };
    let schema = super::schema(choice >> 2);
    let mut decoder = Decoder::new(Some(&schema), Format::Json, "fuzzed");
    let input = InPieces { rest: file.to_vec(), step };
    let mut reader = RecordReader::new(Box::new(input), format, bytes_max, &mut decoder)
        .map_err(|error| error.to_string())?
        .map_err(|(mistake, names)| format!("{mistake} {names:?}"))?;
    let mut lines = Vec::new();
    while let Some(line) = reader.read_into(&mut decoder, None, 0).map_err(|error| error.to_string())? {
        assert!(lines.last().is_none_or(|last| *last <= line), "line {line} comes after {lines:?}");
        lines.push(line);
        assert!(lines.len() <= file.len(), "more records than bytes");
    }
    let decoded = decoder.take();
    let told = |rows| String::from_utf8(json_lines(rows).expect("every type has a form in JSON")).expect("UTF-8");
    assert!(decoded.rows.num_rows() + decoded.rejected.num_rows() >= lines.len(), "a record is silently absent");
    Ok((told(&decoded.rows), told(&decoded.rejected), lines))
}

/// A file that gives so many bytes at a time.
struct InPieces {
    rest: Vec<u8>,
    step: usize,
}

impl Read for InPieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for InPieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.rest[..self.rest.len().min(self.step)])
    }

    fn consume(&mut self, count: usize) {
        self.rest.drain(..count);
    }
}

/// The files of the corpus that are not compressed, with both limits.
fn seeds(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for (format, folder) in [(0, "csv"), (1, "jsonl")] {
        for path in files_below(&corpus.join("files").join(folder))? {
            let file = std::fs::read(path)?;
            if file.len() < 4_000 {
                // By the schemas `types` and `notes`.
                seeds.extend([0, 16, 18].map(|choice| [&[format | choice], file.as_slice()].concat()));
            }
        }
    }
    Ok(seeds)
}
