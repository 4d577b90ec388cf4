//! JSON lines: one message each, empty ones skipped.

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
    text: Vec<u8>,
}

impl Lines {
    pub(super) fn new(input: Input, bytes_max: usize) -> Self {
        Self { input, bytes_max, line: 0, text: Vec::new() }
    }

    /// Decodes the next line that is not empty, and answers with its number; `None` at the end.
    pub(super) fn read_into(
        &mut self,
        decoder: &mut Decoder,
        topic: Option<&str>,
        received_at_us: i64,
    ) -> io::Result<Option<u64>> {
        loop {
            let Some(fits) = self.next()? else { return Ok(None) };
            let payload = self.text.as_slice();
            if payload.trim_ascii().is_empty() {
                continue;
            }
            let message = Message { topic, payload, received_at_us, position: self.line.into() };
            if fits {
                decoder.push(message);
            } else {
                decoder.reject(&message, &too_long("line", self.bytes_max));
            }
            return Ok(Some(self.line));
        }
    }

    /// Whether the next line is within the limit; of one that is not, `text` holds the beginning.
    fn next(&mut self) -> io::Result<Option<bool>> {
        self.text.clear();
        // Two more for the line's end, so that a line of exactly the limit still fits.
        let window = u64::try_from(self.bytes_max).unwrap_or(u64::MAX).saturating_add(2);
        if self.input.by_ref().take(window).read_until(b'\n', &mut self.text)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        let ended = self.text.pop_if(|last| *last == b'\n').is_some();
        if ended {
            self.text.pop_if(|last| *last == b'\r');
        }
        if self.line == 1 && self.text.starts_with(b"\xef\xbb\xbf") {
            self.text.drain(..3); // editors on Windows leave a byte order mark
        }
        let fits = self.text.len() <= self.bytes_max;
        if !fits {
            if !ended {
                self.input.skip_until(b'\n')?;
            }
            self.text.truncate(BEGINNING_BYTES);
        }
        Ok(Some(fits))
    }
}

/// Also says what the payload of the dead letter is.
pub(super) fn too_long(what: &str, bytes_max: usize) -> Box<Fault> {
    let detail = format!("the {what} is longer than {bytes_max} bytes; the payload is its beginning");
    Fault::new(reason::LINE_TOO_LONG, detail)
}
