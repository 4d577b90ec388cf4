//! One object, decoded chunk by chunk on a thread of its own.

use std::fs::{self, File};
use std::io::{self, BufRead};

use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use tokio::sync::mpsc;

use super::Reading;
use super::config::ObjectFormat;
use super::fetch::Incoming;
use super::ledger::Entry;
use crate::decode::{Decoded, Decoder};
use crate::sources::records::{
    CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX, Compression, FileFormat, ParquetRecords, RecordReader, Unpacked, unpack_within,
};

/// What no telemetry is packed to.
const UNPACKED_RATIO_MAX: u64 = 500;
/// Below it nothing is a bomb.
const UNPACKED_HARMLESS_BYTES: u64 = 256 << 20;
/// The place behind all records of an object.
pub(super) const END: u64 = u64::MAX;

/// Rows and dead letters of consecutive records.
pub(super) struct Chunk {
    /// The first record, from 1.
    pub(super) first: u64,
    /// The last record; [`END`] for the last chunk of the object.
    pub(super) last: u64,
    pub(super) decoded: Decoded,
}

/// Why an object is not read to its end, though it has come.
#[derive(Debug)]
pub(super) struct Broken {
    /// A word to group by: the reason of its dead letter.
    pub(super) reason: &'static str,
    /// For a person.
    pub(super) detail: String,
    /// A part of it did not come, and whoever fetches knows why.
    pub(super) is_missing: bool,
}

impl Broken {
    /// It can't be had.
    pub(super) fn missing(reason: &'static str, detail: &str) -> Self {
        Self { reason, detail: detail.to_owned(), is_missing: true }
    }
}

/// What became of the reading of an object.
pub(super) struct Read {
    pub(super) decoder: Decoder,
    /// The last record whose chunk was handed over.
    pub(super) records: u64,
    /// The line of the last record.
    pub(super) line: u64,
    pub(super) broken: Option<Broken>,
}

/// Reads an object and hands over its chunks, but for those that end at `after` or before it. Blocks.
pub(super) fn read(
    entry: &Entry,
    incoming: Incoming,
    reading: &Reading,
    decoder: Decoder,
    after: u64,
    chunks: &mpsc::Sender<Chunk>,
) -> Read {
    let mut run = Run { entry, after, chunks, held: None, read: Read { decoder, records: 0, line: 0, broken: None } };
    let outcome = run.read(incoming, reading);
    if let Err(error) = outcome {
        run.read.broken.get_or_insert_with(|| broken(&error));
    }
    let is_whole = run.read.broken.is_none();
    if let Some(mut chunk) = run.held.take() {
        if is_whole {
            chunk.last = END;
        }
        run.hand_over(chunk);
    }
    // Nothing of this object may come into the next.
    drop(run.read.decoder.take());
    run.read
}

struct Run<'a> {
    entry: &'a Entry,
    after: u64,
    chunks: &'a mpsc::Sender<Chunk>,
    /// Whether it is the last one is known when another follows.
    held: Option<Chunk>,
    read: Read,
}

impl Run<'_> {
    fn read(&mut self, incoming: Incoming, reading: &Reading) -> io::Result<()> {
        let decoder = &mut self.read.decoder;
        let mut records = match open(self.entry, incoming, reading, decoder)? {
            Ok(records) => records,
            Err(detail) => {
                self.read.broken = Some(Broken { reason: "invalid_header", detail, is_missing: false });
                return Ok(());
            }
        };
        let object = &self.entry.object;
        let (topic, received_at_us) = (Some(object.key.as_str()), object.modified_us);
        let mut record = 0;
        loop {
            let (before, mut outcome) = (record, Ok(()));
            while record - before < CHUNK_RECORDS_MAX as u64 && self.read.decoder.bytes() < CHUNK_BYTES_MAX {
                match records.read_into(&mut self.read.decoder, topic, received_at_us) {
                    Ok(Some(line)) => self.read.line = line,
                    Ok(None) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                record += 1;
            }
            // What was begun when it broke off is not lost with the rest. Where a part did not come, it may come another
            // time, and then the chunk has other bounds.
            if record == before || outcome.as_ref().is_err_and(is_missing) {
                return outcome;
            }
            let chunk = Chunk { first: before + 1, last: record, decoded: self.read.decoder.take() };
            if let Some(earlier) = self.held.replace(chunk)
                && !self.hand_over(earlier)
            {
                self.held = None;
                return Ok(());
            }
            outcome?;
        }
    }

    /// Whether more is wanted.
    fn hand_over(&mut self, chunk: Chunk) -> bool {
        self.read.records = chunk.last;
        chunk.last <= self.after || self.chunks.blocking_send(chunk).is_ok()
    }
}

/// The records of an object. Inside: what is wrong with its header.
fn open(
    entry: &Entry,
    mut incoming: Incoming,
    reading: &Reading,
    decoder: &mut Decoder,
) -> io::Result<Result<RecordReader, String>> {
    let packed_bytes = entry.object.bytes;
    let grown_max = packed_bytes.saturating_mul(UNPACKED_RATIO_MAX).max(UNPACKED_HARMLESS_BYTES);
    let bounds = Unpacked { bytes_max: reading.unpacked_bytes_max.min(grown_max) };
    let format = match reading.format {
        ObjectFormat::Jsonl => FileFormat::Jsonl,
        ObjectFormat::Csv => FileFormat::Csv,
        ObjectFormat::Parquet => {
            let file = scratch(incoming, reading, entry.number).map_err(|error| match is_missing(&error) {
                true => error,
                false => io::Error::other(OwnDisk(error)),
            })?;
            let records = ParquetRecords::open(file, reading.schema.as_deref(), bounds)?;
            return Ok(Ok(RecordReader::Parquet(Box::new(records))));
        }
    };
    let told = Compression::of_beginning(incoming.fill_buf()?);
    let compression = reading.compression.or(told).unwrap_or(Compression::None);
    let input = unpack_within(incoming, compression, bounds)?;
    let records = RecordReader::new(input, format, reading.line_bytes_max, decoder)?;
    Ok(records.map_err(|(mistake, names)| match names {
        Some(names) if !names.is_empty() => format!("its header {mistake}; it has {}", names.join(", ")),
        _ => format!("its header {mistake}"),
    }))
}

/// The reason where nothing is wrong with the object: it is read again, and is no dead letter.
pub(super) const OWN_DISK: &str = "own_disk";

/// The object in a file without a name: Parquet is read from its end. Whatever becomes of us, the disk has it back.
fn scratch(mut incoming: Incoming, reading: &Reading, number: u64) -> io::Result<File> {
    fs::create_dir_all(&reading.scratch_dir)?;
    let path = reading.scratch_dir.join(format!("object-{number}.tmp"));
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    io::copy(&mut incoming, &mut file)?;
    Ok(file)
}

/// Whether an error says that a part did not come; see [`Incoming`]. Packed files are wrapped around it.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted
}

/// Our own disk has failed, which says nothing about the object.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OwnDisk(io::Error);

fn broken(error: &io::Error) -> Broken {
    let is_ours = error.get_ref().is_some_and(|inner| inner.is::<OwnDisk>());
    let reason = match error.kind() {
        _ if is_ours => OWN_DISK,
        io::ErrorKind::QuotaExceeded => "object_too_large",
        _ => "object_damaged",
    };
    Broken { reason, detail: error.to_string(), is_missing: is_missing(error) }
}

/// The dead letter of an object that was not read to its end.
pub(super) fn letter(stage: &str, url: &str, entry: &Entry, read: &Read, broken: &Broken) -> DeadLetters {
    let object = &entry.object;
    let line = read.line;
    let how_far = match line {
        0 => "nothing of it was read".to_owned(),
        line => format!("what is behind line {line} was not read"),
    };
    let mut letters = DeadLetters::default();
    letters.push(DeadLetter {
        received_at_us: object.modified_us,
        stage,
        reason: broken.reason,
        detail: Some(&format!(
            "the object {url} of {} bytes (ETag {}): {}; {how_far}",
            object.bytes, object.etag, broken.detail
        )),
        topic: Some(&object.key),
        position: Some(&line.to_string()),
        payload: &[],
    });
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_of_ours_is_no_fault_of_the_object() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(broken(&io::Error::other(OwnDisk(full()))).reason, OWN_DISK);
        assert_eq!(broken(&full()).reason, "object_damaged");
        assert!(is_missing(&io::ErrorKind::ConnectionAborted.into()));
    }
}
