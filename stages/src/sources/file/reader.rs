//! Reads one file record by record, and hands on chunks of what it has read: decoded, or as lines for others to decode.
//!
//! Memory is bounded: see [`super::super::records`].

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use pipeline_engine::stage::{Batch, Port, SourceContext, StageError};
use pipeline_engine::{Partition, Span, now_us};
use tokio::sync::mpsc;

use crate::decode::{Decoded, Decoder};
use crate::sources::records::{
    CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX, Compression, FileFormat, LineChunk, RecordReader, is_cut_off, unpack,
};

/// What is read from the disk at once.
const READ_BYTES: usize = 64 << 10;

/// What the messages of a file have besides their payload, and what a replay needs to know.
pub(super) struct Plan<'a> {
    pub(super) topic: Option<&'a str>,
    pub(super) pace_column: Option<usize>,
    /// Whether lines are decoded elsewhere. A replay needs the time of each, and whether a record of CSV fits says where the
    /// next one begins.
    pub(super) decodes_apart: bool,
}

/// What the reading thread hands over.
pub(super) enum Piece {
    /// Decoded already.
    Chunk(Chunk),
    /// Consecutive lines, to be decoded.
    Lines { file: usize, span: Span, received_at_us: i64, lines: LineChunk },
}

/// Where the reading thread hands over.
pub(super) struct Handing {
    pub(super) pieces: mpsc::Sender<Piece>,
    /// Chunks of lines that have been decoded, to be filled again: a fresh one costs the first touch of each of its pages.
    pub(super) emptied: mpsc::Receiver<LineChunk>,
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

impl FileReader {
    /// Opens a file, and reads the header if it has one.
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        format: FileFormat,
        bytes_max: usize,
        decoder: &mut Decoder,
    ) -> Result<Self, StageError> {
        let refused = |error: io::Error| {
            let error = StageError::permanent(format!("can't open \"{}\"", path.display())).because(error);
            if path.is_relative() { error.hint("The path is relative to the working directory.") } else { error }
        };
        let file = File::open(path).map_err(refused)?;
        if file.metadata().map_err(refused)?.is_dir() {
            let message = format!("\"{}\" is a folder", path.display());
            return Err(StageError::permanent(message).hint("List the files in it: path = [\"...\", \"...\"]."));
        }
        let file = BufReader::with_capacity(READ_BYTES, file);
        let input = unpack(file, compression).map_err(refused)?;
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
        handing: &mut Handing,
    ) -> Result<bool, StageError> {
        let mut line = 0;
        loop {
            let received_at_us = now_us();
            let read = if plan.decodes_apart && matches!(self.records, RecordReader::Lines(_)) {
                let lines = handing.emptied.try_recv().unwrap_or_default();
                self.read_lines(lines, &mut line)?.map(|(span, lines)| Piece::Lines {
                    file,
                    span,
                    received_at_us,
                    lines,
                })
            } else {
                self.decode(plan, received_at_us, decoder, &mut line)?.map(|(span, marks)| {
                    Piece::Chunk(Chunk { file, span, received_at_us, decoded: decoder.take(), marks })
                })
            };
            let Some(piece) = read else { return Ok(true) };
            if handing.pieces.blocking_send(piece).is_err() {
                return Ok(false);
            }
        }
    }

    /// Decodes the records of a chunk; `None` at the end. `line` becomes that of the last record.
    ///
    /// # Errors
    /// The rows of a chunk that was only begun don't leave: once the file is whole, a chunk with other bounds will hold them.
    fn decode(
        &mut self,
        plan: &Plan<'_>,
        received_at_us: i64,
        decoder: &mut Decoder,
        line: &mut u64,
    ) -> Result<Option<(Span, Vec<Mark>)>, StageError> {
        let (mut first, mut records, mut marks) = (None, 0, Vec::new());
        while records < CHUNK_RECORDS_MAX && decoder.bytes() < CHUNK_BYTES_MAX {
            let read = self.records.read_into(decoder, plan.topic, received_at_us);
            let Some(at) = read.map_err(|error| broken(&self.path, *line, error))? else { break };
            *line = at;
            first.get_or_insert(at);
            records += 1;
            if let Some(column) = plan.pace_column {
                let (rows_end, letters_end) = decoder.waiting();
                let rows_before = marks.last().map_or(0, |mark: &Mark| mark.rows_end);
                let recorded_at_us = decoder.last_micros(column).filter(|_| rows_end > rows_before);
                marks.push(Mark { line: at, rows_end, letters_end, recorded_at_us });
            }
        }
        Ok(first.map(|first| (Span::new(first, *line), marks)))
    }

    /// Reads the lines of a chunk, with the bounds that it has where it is decoded at once.
    ///
    /// # Errors
    /// As for [`FileReader::decode`].
    fn read_lines(&mut self, mut chunk: LineChunk, line: &mut u64) -> Result<Option<(Span, LineChunk)>, StageError> {
        let RecordReader::Lines(lines) = &mut self.records else { return Ok(None) };
        let mut first = None;
        chunk.clear();
        while chunk.len() < CHUNK_RECORDS_MAX && chunk.bytes() < CHUNK_BYTES_MAX {
            let read = lines.read_next(&mut chunk);
            let Some(at) = read.map_err(|error| broken(&self.path, *line, error))? else { break };
            *line = at;
            first.get_or_insert(at);
        }
        Ok(first.map(|first| (Span::new(first, *line), chunk)))
    }
}

fn broken(path: &Path, line: u64, error: io::Error) -> StageError {
    let cut_off = is_cut_off(&error);
    let message = format!("\"{}\" can't be read beyond line {line}", path.display());
    let stage_error = StageError::permanent(message).because(error);
    if cut_off { stage_error.hint("The packed file is cut off: fetch it again.") } else { stage_error }
}
