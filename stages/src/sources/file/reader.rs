//! Reads one file record by record, decodes, and hands on chunks of rows.
//!
//! Memory is bounded: a line by the source's limit, a chunk by [`RECORDS_MAX`] and [`BYTES_MAX`].

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use pipeline_engine::stage::{Batch, Port, SourceContext, StageError};
use pipeline_engine::{Partition, Span, now_us};
use tokio::sync::mpsc;

use super::FileFormat;
use super::csv::CsvRecords;
use super::lines::Lines;
use crate::decode::{Decoded, Decoder};

/// A chunk ends after so many records, or once they have so many bytes: by the content alone.
const RECORDS_MAX: usize = 8192;
/// See [`RECORDS_MAX`]; small lines never come near it.
const BYTES_MAX: usize = 8 << 20;
/// What is read from the disk at once.
const READ_BYTES: usize = 64 << 10;

/// A file, plain or unpacked.
pub(crate) type Input = Box<dyn BufRead + Send>;

/// What the messages of a file have besides their payload, and what a replay needs to know.
pub(super) struct Plan<'a> {
    pub(super) topic: Option<&'a str>,
    pub(super) pace_column: Option<usize>,
}

/// Rows and dead letters of consecutive records.
pub(super) struct Chunk {
    /// The place of the file in the source's list.
    pub(super) file: usize,
    pub(super) span: Span,
    pub(super) received_at_us: i64,
    pub(super) decoded: Decoded,
    /// One for each record, for a paced replay; else none.
    pub(super) marks: Vec<Mark>,
}

/// Where a record ends in its chunk, and when it was recorded.
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) rows_end: usize,
    pub(super) letters_end: usize,
    pub(super) recorded_at_us: Option<i64>,
}

impl Chunk {
    /// Sends the rows and the dead letters, which share one promise.
    pub(super) async fn send(self, cx: &SourceContext, partition: &Partition) -> Result<(), StageError> {
        let Decoded { rows, rejected } = self.decoded;
        let batch = Batch::new(rows.clone(), partition.open(self.span, self.received_at_us));
        if rejected.num_rows() == 0 {
            return cx.send(batch).await;
        }
        if rows.num_rows() == 0 {
            return cx.send_to(Port::REJECTED, batch.with_rows(rejected)).await;
        }
        let (rows, rejected) = batch.split(rows, rejected);
        cx.send(rows).await?;
        cx.send_to(Port::REJECTED, rejected).await
    }
}

/// An open file.
pub(super) struct FileReader {
    path: PathBuf,
    records: RecordReader,
}

/// The records of a file, one by one.
pub(crate) enum RecordReader {
    /// JSON lines.
    Lines(Lines),
    /// CSV.
    Csv(Box<CsvRecords>),
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
        }
    }
}

impl FileReader {
    /// Opens a file, and reads the header if it has one.
    pub(super) fn open(
        path: &Path,
        gzip: bool,
        format: FileFormat,
        bytes_max: usize,
        decoder: &mut Decoder,
    ) -> Result<Self, StageError> {
        let refused =
            |error: io::Error| StageError::permanent(format!("can't open \"{}\"", path.display())).because(error);
        let file = File::open(path).map_err(refused)?;
        if file.metadata().map_err(refused)?.is_dir() {
            let message = format!("\"{}\" is a folder", path.display());
            return Err(StageError::permanent(message).hint("List the files in it: path = [\"...\", \"...\"]."));
        }
        let file = BufReader::with_capacity(READ_BYTES, file);
        let input: Input = match gzip {
            true => Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(file))),
            false => Box::new(file),
        };
        let records = RecordReader::new(input, format, bytes_max, decoder).map_err(|error| broken(path, 0, error))?;
        let records = records.map_err(|(mistake, names)| {
            let error = StageError::permanent(format!("the header of \"{}\" {mistake}", path.display()));
            match names {
                None => error,
                Some(names) if names.is_empty() => error.hint("It has none."),
                Some(names) => error.hint(format!("It has {}.", names.join(", "))),
            }
        })?;
        Ok(Self { path: path.to_owned(), records })
    }

    /// Reads to the end of the file. Answers whether the next file is wanted as well.
    pub(super) fn read(
        mut self,
        file: usize,
        plan: &Plan<'_>,
        decoder: &mut Decoder,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<bool, StageError> {
        let mut line = 0;
        loop {
            let received_at_us = now_us();
            let (mut first, mut records, mut marks) = (None, 0, Vec::new());
            while records < RECORDS_MAX && decoder.bytes() < BYTES_MAX {
                let read = self.records.read_into(decoder, plan.topic, received_at_us);
                // The rows of a chunk that was only begun don't leave: once the file is whole, a chunk
                // with other bounds will hold them.
                let Some(at) = read.map_err(|error| broken(&self.path, line, error))? else { break };
                line = at;
                first.get_or_insert(at);
                records += 1;
                if let Some(column) = plan.pace_column {
                    let (rows_end, letters_end) = decoder.waiting();
                    let rows_before = marks.last().map_or(0, |mark: &Mark| mark.rows_end);
                    let recorded_at_us = decoder.last_micros(column).filter(|_| rows_end > rows_before);
                    marks.push(Mark { line, rows_end, letters_end, recorded_at_us });
                }
            }
            let Some(first) = first else { return Ok(true) };
            let span = Span::new(first, line);
            let chunk = Chunk { file, span, received_at_us, decoded: decoder.take(), marks };
            if chunks.blocking_send(chunk).is_err() {
                return Ok(false);
            }
        }
    }
}

fn broken(path: &Path, line: u64, error: io::Error) -> StageError {
    let cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
    let message = format!("\"{}\" can't be read beyond line {line}", path.display());
    let stage_error = StageError::permanent(message).because(error);
    if cut_off { stage_error.hint("The gzip stream is cut off: fetch the file again.") } else { stage_error }
}
