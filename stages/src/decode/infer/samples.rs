//! Samples read from a file or a pipe: JSON lines, one JSON array, or CSV; plain or gzip.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use super::Observations;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The longest line that is taken for a message.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// How samples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleFormat {
    /// A JSON object, or an array of them, on each line; or one array over all lines.
    Json,
    /// CSV with a header; a dot in a name leads into an object.
    Csv,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Samples {
    /// What the messages hold.
    pub observations: Observations,
    /// Lines that hold no message, and the first of them with the reason.
    pub refused: u64,
    /// The line and the reason of the first.
    pub first_refused: Option<(u64, String)>,
}

impl Samples {
    /// Reads up to `messages_max` messages more; gzip is known by its first bytes.
    ///
    /// # Errors
    /// The input can't be read, or has a header that is none.
    pub fn read(&mut self, input: impl Read, format: SampleFormat, messages_max: u64) -> io::Result<()> {
        let mut input = BufReader::new(input);
        let mut magic = [0; 2];
        let mut filled = 0;
        while filled < magic.len() {
            match input.read(&mut magic[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        let input = Cursor::new(magic).take(filled as u64).chain(input);
        let mut input: Box<dyn BufRead> = if filled == 2 && magic == GZIP_MAGIC {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(input))))
        } else {
            Box::new(BufReader::new(input))
        };
        match format {
            SampleFormat::Json => self.read_json(&mut *input, messages_max),
            SampleFormat::Csv => self.read_csv(&mut *input, messages_max),
        }
    }

    fn read_json(&mut self, input: &mut dyn BufRead, messages_max: u64) -> io::Result<()> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if self.observations.messages() >= messages_max
                || (&mut *input).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0
            {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Value>(&line) {
                Ok(message) if self.observations.observe(&message) => {}
                Ok(_) => self.refuse(number, "it is no object, and no array of objects".to_owned()),
                // An array, or an object, that goes on over the next lines.
                Err(error) if error.is_eof() && number == 1 => {
                    return self.read_whole(&line, input);
                }
                Err(error) => {
                    // The newline is not what is wrong with a line that was cut off.
                    let error = serde_json::from_slice::<Value>(line.trim_ascii_end()).err().unwrap_or(error);
                    self.refuse(number, error.to_string().replace("line 1 column", "column"));
                }
            }
        }
        Ok(())
    }

    fn read_whole(&mut self, begun: &[u8], input: &mut dyn BufRead) -> io::Result<()> {
        let whole = serde_json::Deserializer::from_reader(begun.chain(input)).into_iter::<Value>();
        for value in whole {
            match value {
                Ok(value) if self.observations.observe(&value) => {}
                Ok(_) => self.refuse(1, "it is no object, and no array of objects".to_owned()),
                Err(error) if error.is_io() => return Err(error.into()),
                Err(error) => {
                    self.refuse(error.line() as u64, error.to_string());
                    break;
                }
            }
        }
        Ok(())
    }

    fn read_csv(&mut self, input: &mut dyn BufRead, messages_max: u64) -> io::Result<()> {
        let mut reader = csv::ReaderBuilder::new().from_reader(input);
        let header = reader.headers()?.clone();
        let mut records = reader.records();
        while self.observations.messages() < messages_max
            && let Some(record) = records.next()
        {
            match record {
                Ok(record) => {
                    let mut row = Map::new();
                    for (name, text) in header.iter().zip(&record) {
                        put(&mut row, name, typed(text));
                    }
                    self.observations.observe(&Value::Object(row));
                }
                Err(error) if error.is_io_error() => return Err(error.into()),
                Err(error) => {
                    let line = error.position().map_or(0, csv::Position::line);
                    self.refuse(line, error.to_string());
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, line: u64, reason: String) {
        self.refused += 1;
        self.first_refused.get_or_insert((line, reason));
    }
}

/// A field of a CSV file as what it looks like.
fn typed(text: &str) -> Value {
    let trimmed = text.trim_ascii();
    if trimmed.is_empty() {
        return Value::Null;
    }
    if let Ok(whole) = trimmed.parse::<i64>() {
        return whole.into();
    }
    match trimmed.parse::<f64>() {
        Ok(number) if number.is_finite() => number.into(),
        _ if trimmed.eq_ignore_ascii_case("true") => true.into(),
        _ if trimmed.eq_ignore_ascii_case("false") => false.into(),
        _ => text.into(),
    }
}

fn put(row: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        Some((key, rest)) if !key.is_empty() && !rest.is_empty() => {
            let inner = row.entry(key.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if let Some(inner) = inner.as_object_mut() {
                put(inner, rest, value);
            }
        }
        _ => drop(row.insert(name.to_owned(), value)),
    }
}
