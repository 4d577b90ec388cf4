//! Records of files, one by one: what the sources that read files have in common, whether these lie on a disk or in a
//! bucket.
//!
//! Where a chunk of records ends depends on the content of the file alone, so that reading it again makes the same chunks.
//! Memory is bounded: a record by the source's limit, a chunk by [`CHUNK_RECORDS_MAX`] and [`CHUNK_BYTES_MAX`].

mod compression;
mod csv;
mod lines;
#[cfg(feature = "s3")]
mod pages;
#[cfg(feature = "s3")]
mod parquet;

use std::io::{self, BufRead};

use schemars::JsonSchema;
use serde::Deserialize;

use self::csv::CsvRecords;
use self::lines::Lines;
use crate::decode::Decoder;
pub(crate) use compression::{Compression, is_cut_off, unpack};
#[cfg(feature = "s3")]
pub(crate) use compression::{Unpacked, unpack_within};
pub(crate) use lines::LineChunk;
#[cfg(feature = "s3")]
pub(crate) use parquet::ParquetRecords;

/// A chunk ends after so many records, or once they have [`CHUNK_BYTES_MAX`]: by the content alone.
pub(crate) const CHUNK_RECORDS_MAX: usize = 8192;
/// See [`CHUNK_RECORDS_MAX`]; small records never come near it.
pub(crate) const CHUNK_BYTES_MAX: usize = 8 << 20;

/// A file, plain or unpacked.
pub(crate) type Input = Box<dyn BufRead + Send>;

/// How the records of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// A JSON object, or an array of them, on each line.
    Jsonl,
    /// Fields with commas between them; the first record names the fields.
    Csv,
}

/// The records of a file, one by one.
pub(crate) enum RecordReader {
    /// JSON lines.
    Lines(Lines),
    /// CSV.
    Csv(Box<CsvRecords>),
    /// Rows of Parquet.
    #[cfg(feature = "s3")]
    Parquet(Box<ParquetRecords>),
}

/// What is wrong with a header, as the rest of a sentence that begins with it; and the names that it has.
pub(crate) type HeaderMistake = (String, Option<Vec<String>>);

impl RecordReader {
    /// Reads the header, if there is one.
    pub(crate) fn new(
        input: Input,
        format: FileFormat,
        bytes_max: usize,
        decoder: &mut Decoder,
    ) -> io::Result<Result<Self, HeaderMistake>> {
        if format == FileFormat::Jsonl {
            return Ok(Ok(Self::Lines(Lines::new(input, bytes_max))));
        }
        let mut csv = CsvRecords::new(input, bytes_max);
        let names = match csv.read_header()? {
            Ok(names) => names,
            Err(mistake) => return Ok(Err((mistake, None))),
        };
        Ok(match decoder.bind_header(names.iter().map(String::as_str)) {
            Ok(header) => {
                csv.header = header;
                Ok(Self::Csv(Box::new(csv)))
            }
            Err(mistake) => Err((mistake, Some(names))),
        })
    }

    /// Decodes the next record, and answers with the number of its line; `None` at the end.
    pub(crate) fn read_into(
        &mut self,
        decoder: &mut Decoder,
        topic: Option<&str>,
        received_at_us: i64,
    ) -> io::Result<Option<u64>> {
        match self {
            Self::Lines(lines) => lines.read_into(decoder, topic, received_at_us),
            Self::Csv(csv) => csv.read_into(decoder, topic, received_at_us),
            #[cfg(feature = "s3")]
            Self::Parquet(rows) => rows.read_into(decoder, topic, received_at_us),
        }
    }
}
