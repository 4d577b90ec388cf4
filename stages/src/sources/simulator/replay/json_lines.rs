//! JSON lines: each line is a message as it stands.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use pipeline_engine::stage::StageError;
use serde::Deserialize;

use super::super::payload::quoted;
use super::{LINE_BYTES_MAX, Mistake, RowHead, TIMESTAMP, open, read_time};

/// Lines that are JSON objects, sent as they are; only a missing `device_id` is put in front.
pub(super) struct JsonLines {
    reader: BufReader<File>,
    line: String,
    number: u64,
    device_id: String,
}

/// The fields of a line that the replay needs. The rest is not looked at.
#[derive(Deserialize)]
struct LineHead<'a> {
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow, default)]
    device_id: Option<Cow<'a, str>>,
}

impl JsonLines {
    pub(super) fn open(path: &Path, device_id: &str) -> Result<Self, StageError> {
        let reader = open(path)?;
        Ok(Self { reader, line: String::new(), number: 0, device_id: device_id.to_owned() })
    }

    pub(super) fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<RowHead<'_>>, Mistake> {
        loop {
            self.line.clear();
            self.number += 1;
            let place = || format!("line {}", self.number);
            let mut limited = Read::take(&mut self.reader, LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_line(&mut self.line);
            match read.map_err(|error| Mistake { place: place(), text: error.to_string() })? {
                0 => return Ok(None),
                bytes if bytes > LINE_BYTES_MAX => {
                    let text = format!("a line is longer than {LINE_BYTES_MAX} bytes");
                    return Err(Mistake { place: place(), text });
                }
                _ if self.line.trim().is_empty() => {}
                _ => break,
            }
        }
        let place = format!("line {}", self.number);
        let line = self.line.trim();
        let head: LineHead = match serde_json::from_str(line) {
            Ok(head) => head,
            Err(error) => {
                return Err(Mistake { place, text: format!("not a JSON object with a text \"{TIMESTAMP}\": {error}") });
            }
        };
        let Some((time_us, _)) = read_time(&head.timestamp) else {
            return Err(Mistake { place, text: format!("\"{}\" is not a timestamp", head.timestamp) });
        };
        match head.device_id {
            Some(device_id) => {
                payload.extend_from_slice(line.as_bytes());
                Ok(Some(RowHead { time_us, device_id }))
            }
            None => {
                payload.extend_from_slice(b"{\"device_id\":");
                payload.extend_from_slice(quoted(&self.device_id).as_bytes());
                // An object with a timestamp is never empty, so a comma is always right.
                payload.push(b',');
                payload.extend_from_slice(line.trim_start_matches('{').as_bytes());
                Ok(Some(RowHead { time_us, device_id: Cow::Borrowed(&self.device_id) }))
            }
        }
    }
}
