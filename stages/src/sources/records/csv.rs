//! CSV: the first record names the fields, quoted fields may hold commas, quotes and line ends.
//!
//! A quote that is never closed makes one record of all that follows. So that it takes no neighbours
//! with it, a record of several lines that does not fit gives up its first line only, and the others
//! are read again.

use std::io::{self, BufRead};

use csv_core::{ReadRecordResult, Reader};

use super::Input;
use super::lines::{BEGINNING_BYTES, too_long};
use crate::decode::{Decoder, Fault, Header, Message, reason};

/// More fields than any real file has.
const FIELDS_MAX: usize = 4096;

/// That of UTF-8, with which spreadsheets begin a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The records of a file.
pub(crate) struct CsvRecords {
    /// Which field belongs to which column.
    pub(super) header: Header,
    input: Input,
    /// Bytes to read again, before those of `input`.
    again: Vec<u8>,
    /// How many of them have been read again.
    again_read: usize,
    parser: Reader,
    bytes_max: usize,
    /// The number of the line at which the next byte lies.
    line: u64,
    /// The bytes of the last record, with the line end behind it.
    raw: Vec<u8>,
    /// Its fields, without quotes, one behind the other.
    fields: Vec<u8>,
    /// Where each field ends.
    ends: Vec<usize>,
    fields_count: usize,
}

/// How the reading of a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Whole,
    TooLong,
    /// More than [`FIELDS_MAX`].
    TooManyFields,
}

const OPEN_QUOTE: &str = "a quote that is not closed where its field ends";

impl CsvRecords {
    pub(super) fn new(input: Input, bytes_max: usize) -> Self {
        Self {
            header: Header::default(),
            input,
            again: Vec::new(),
            again_read: 0,
            parser: Reader::new(),
            bytes_max,
            line: 1,
            raw: Vec::new(),
            fields: vec![0; 1024],
            ends: vec![0; 64],
            fields_count: 0,
        }
    }

    /// The names in the first record; none if the file is empty. Inside: what is wrong with the record, as the
    /// rest of a sentence that begins with the header.
    pub(super) fn read_header(&mut self) -> io::Result<Result<Vec<String>, String>> {
        self.skip_mark()?;
        match self.next()? {
            None => return Ok(Ok(Vec::new())),
            Some(Ended::TooLong) => return Ok(Err(format!("is longer than {} bytes", self.bytes_max))),
            Some(Ended::TooManyFields) => return Ok(Err(format!("has more than {FIELDS_MAX} fields"))),
            Some(Ended::Whole) if !is_well_quoted(&self.raw) => return Ok(Err(format!("has {OPEN_QUOTE}"))),
            Some(Ended::Whole) => {}
        }
        self.line += count_lines(&self.raw);
        Ok(Ok(self.fields().map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned()).collect()))
    }

    /// Leaves out a byte order mark, however few of its bytes a read gives: the parser does so only where it sees
    /// all of it at once.
    fn skip_mark(&mut self) -> io::Result<()> {
        while let Some(byte) = self.input.fill_buf()?.first().copied() {
            self.again.push(byte);
            self.input.consume(1);
            if self.again == BYTE_ORDER_MARK {
                self.again.clear();
            } else if !BYTE_ORDER_MARK.starts_with(&self.again) {
                break;
            }
        }
        Ok(())
    }

    /// Decodes the next record, and answers with the number of its first line; `None` at the end.
    pub(super) fn read_into(
        &mut self,
        decoder: &mut Decoder,
        topic: Option<&str>,
        received_at_us: i64,
    ) -> io::Result<Option<u64>> {
        let Some(ended) = self.next()? else { return Ok(None) };
        let line = self.line;
        let record = self.raw.as_slice();
        let first_line_end = record.iter().position(|byte| *byte == b'\n').filter(|end| {
            // The end of the record itself makes no second line, unless it is inside a quote.
            ended != Ended::Whole || end + 1 < record.len()
        });
        let message = Message { topic, payload: trim_line_ends(record), received_at_us, position: line.into() };
        let verdict = match ended {
            Ended::TooLong => Err(too_long("record", self.bytes_max)),
            Ended::TooManyFields => {
                let detail = format!("the record has more than {FIELDS_MAX} fields; the payload is its beginning");
                Err(Fault::new(reason::LINE_TOO_LONG, detail))
            }
            // The parser takes them, and drops a quote that was meant.
            Ended::Whole if record.contains(&b'"') && !is_well_quoted(record) => {
                Err(Fault::new(reason::INVALID_CSV, format!("the record has {OPEN_QUOTE}")))
            }
            Ended::Whole => decoder.push_record(&message, &self.header, self.fields()),
        };
        let Err(mut fault) = verdict else {
            self.line += count_lines(&self.raw);
            return Ok(Some(line));
        };
        if let Some(end) = first_line_end {
            fault.detail.push_str("; the record goes on over the next lines, which are read again on their own");
            decoder.reject(&Message { payload: trim_line_ends(&record[..end]), ..message }, &fault);
            self.read_again_from(end + 1);
        } else if ended != Ended::Whole {
            decoder.reject(&Message { payload: &record[..record.len().min(BEGINNING_BYTES)], ..message }, &fault);
            self.skip_line()?;
        } else {
            decoder.reject(&message, &fault);
            self.line += count_lines(&self.raw);
        }
        Ok(Some(line))
    }

    /// Reads the next record into `raw` and `fields`; `None` at the end of the file.
    fn next(&mut self) -> io::Result<Option<Ended>> {
        self.skip_line_ends()?;
        self.raw.clear();
        let (mut filled, mut ended) = (0, 0);
        loop {
            let again = &self.again[self.again_read..];
            let input = if again.is_empty() { self.input.fill_buf()? } else { again };
            // One byte beyond the limit is enough to know.
            let window = self.bytes_max.saturating_add(1).saturating_sub(self.raw.len()).min(input.len());
            if window == 0 && !input.is_empty() {
                return Ok(Some(Ended::TooLong));
            }
            let (result, taken, put, fields) =
                self.parser.read_record(&input[..window], &mut self.fields[filled..], &mut self.ends[ended..]);
            self.raw.extend_from_slice(&input[..taken]);
            self.advance(taken);
            filled += put;
            ended += fields;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if ended >= FIELDS_MAX => return Ok(Some(Ended::TooManyFields)),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => {
                    self.fields_count = ended;
                    return Ok(Some(Ended::Whole));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn fields(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.fields_count).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            &self.fields[start..self.ends[index]]
        })
    }

    /// Empty lines, and the second half of `\r\n`, belong to no record.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            let again = &self.again[self.again_read..];
            let input = if again.is_empty() { self.input.fill_buf()? } else { again };
            let count = input.iter().position(|byte| !is_line_end(*byte)).unwrap_or(input.len());
            if count == 0 {
                return Ok(());
            }
            self.line += count_lines(&input[..count]);
            self.advance(count);
        }
    }

    /// Goes on behind the next `count` bytes, all of one origin.
    fn advance(&mut self, count: usize) {
        if self.again_read == self.again.len() {
            self.input.consume(count);
            return;
        }
        self.again_read += count;
        if self.again_read == self.again.len() {
            self.again.clear();
            self.again_read = 0;
        }
    }

    /// Goes back to the byte `start` of the last record, which begins a line.
    fn read_again_from(&mut self, start: usize) {
        self.line += count_lines(&self.raw[..start]);
        let count = self.raw.len() - start;
        if count <= self.again_read {
            // They are still there; a file full of stray quotes must not copy them each time.
            self.again_read -= count;
        } else {
            self.again.splice(..self.again_read, self.raw.drain(start..));
            self.again_read = 0;
        }
        self.parser.reset();
    }

    /// Goes on behind the end of the line that has just gone beyond the limit.
    fn skip_line(&mut self) -> io::Result<()> {
        self.line += count_lines(&self.raw) + 1;
        match self.again[self.again_read..].iter().position(|byte| *byte == b'\n') {
            Some(end) => self.advance(end + 1),
            None => {
                self.again.clear();
                self.again_read = 0;
                self.input.skip_until(b'\n')?;
            }
        }
        self.parser.reset();
        Ok(())
    }
}

/// Whether each field that begins with a quote ends with one, which the parser doesn't insist on.
fn is_well_quoted(record: &[u8]) -> bool {
    let mut rest = record;
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'"' {
            // Quotes in the middle of a field are ordinary: 5" pipe.
            let end = rest.iter().position(|byte| *byte == b',' || is_line_end(*byte));
            rest = end.map_or(&[], |end| &rest[end + 1..]);
            continue;
        }
        rest = behind;
        loop {
            let Some(quote) = rest.iter().position(|byte| *byte == b'"') else { return false };
            rest = &rest[quote + 1..];
            match rest.first() {
                Some(b'"') => rest = &rest[1..],
                Some(byte) if *byte != b',' && !is_line_end(*byte) => return false,
                Some(_) => break rest = &rest[1..],
                None => return true,
            }
        }
    }
    true
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn trim_line_ends(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_line_end(*byte)).map_or(0, |last| last + 1);
    &bytes[..end]
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}
