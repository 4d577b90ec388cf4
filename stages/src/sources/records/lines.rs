//! JSON lines: one message each, empty ones skipped. Read and decoded line by line, or read by one task and decoded by
//! another.

use std::io::{self, BufRead, Read};

use super::Input;
use crate::decode::{Decoder, Fault, Message, reason};

/// How much of a line beyond the limit its dead letter holds.
pub(super) const BEGINNING_BYTES: usize = 4096;

/// The lines of a file.
pub(crate) struct Lines {
    input: Input,
    bytes_max: usize,
    /// The number of the last line read.
    line: u64,
    /// One line, where it is decoded as it is read.
    at_hand: LineChunk,
}

/// Lines that are read and not decoded yet, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct LineChunk {
    text: Vec<u8>,
    lines: Vec<Line>,
    /// The longest line that is decoded.
    bytes_max: usize,
}

#[derive(Debug)]
struct Line {
    number: u64,
    /// Where it ends in the text; it begins where the one before it ends.
    end: usize,
    /// Of a line beyond the limit the text is only its beginning.
    fits: bool,
}

impl Lines {
    pub(super) fn new(input: Input, bytes_max: usize) -> Self {
        Self { input, bytes_max, line: 0, at_hand: LineChunk::default() }
    }

    /// Decodes the next line that is not empty, and answers with its number; `None` at the end.
    pub(super) fn read_into(
        &mut self,
        decoder: &mut Decoder,
        topic: Option<&str>,
        received_at_us: i64,
    ) -> io::Result<Option<u64>> {
        let mut at_hand = std::mem::take(&mut self.at_hand);
        at_hand.clear();
        let read = self.read_next(&mut at_hand);
        if let Ok(Some(_)) = read {
            at_hand.decode(decoder, topic, received_at_us);
        }
        self.at_hand = at_hand;
        read
    }

    /// Adds the next line that is not empty to those of a chunk, and answers with its number; `None` at the end.
    pub(crate) fn read_next(&mut self, chunk: &mut LineChunk) -> io::Result<Option<u64>> {
        chunk.bytes_max = self.bytes_max;
        let start = chunk.text.len();
        loop {
            let Some(fits) = self.next(&mut chunk.text)? else { return Ok(None) };
            if chunk.text[start..].trim_ascii().is_empty() {
                chunk.text.truncate(start);
                continue;
            }
            chunk.lines.push(Line { number: self.line, end: chunk.text.len(), fits });
            return Ok(Some(self.line));
        }
    }

    /// Puts the next line behind `text`, and answers whether it is within the limit; of one that is not, it puts the beginning.
    fn next(&mut self, text: &mut Vec<u8>) -> io::Result<Option<bool>> {
        let start = text.len();
        // Two more for the line's end, so that a line of exactly the limit still fits.
        let window = u64::try_from(self.bytes_max).unwrap_or(u64::MAX).saturating_add(2);
        if self.input.by_ref().take(window).read_until(b'\n', text)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        let ended = text.pop_if(|last| *last == b'\n').is_some();
        if ended && text.len() > start {
            text.pop_if(|last| *last == b'\r');
        }
        if self.line == 1 && text[start..].starts_with(b"\xef\xbb\xbf") {
            text.drain(start..start + 3); // editors on Windows leave a byte order mark
        }
        let fits = text.len() - start <= self.bytes_max;
        if !fits {
            if !ended {
                self.input.skip_until(b'\n')?;
            }
            text.truncate(start + BEGINNING_BYTES);
        }
        Ok(Some(fits))
    }
}

impl LineChunk {
    /// How many lines it has.
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// How many bytes the lines have, without their ends.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Without lines, and with room for as many.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.lines.clear();
    }

    /// Each line becomes rows or a dead letter.
    pub(crate) fn decode(&self, decoder: &mut Decoder, topic: Option<&str>, received_at_us: i64) {
        let mut start = 0;
        for line in &self.lines {
            let payload = &self.text[start..line.end];
            let message = Message { topic, payload, received_at_us, position: line.number.into() };
            if line.fits {
                decoder.push(message);
            } else {
                decoder.reject(&message, &too_long("line", self.bytes_max));
            }
            start = line.end;
        }
    }
}

/// Also says what the payload of the dead letter is.
pub(super) fn too_long(what: &str, bytes_max: usize) -> Box<Fault> {
    let detail = format!("the {what} is longer than {bytes_max} bytes; the payload is its beginning");
    Fault::new(reason::LINE_TOO_LONG, detail)
}
