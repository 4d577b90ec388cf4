//! The truth file: what was planted, so that a test can say how much of it was found.
//!
//! JSON lines, one for each planted message, written when it is sent. It is complete once the source
//! has ended; a killed process loses at most the lines of the last moment.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use pipeline_engine::stage::StageError;

use super::payload::{Flaw, push_fixed, push_number};

/// What was planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A spike in this metric, by its place in the payload.
    Anomaly { metric: usize },
    /// A payload that is no reading.
    Bad,
    /// A reading sent after its time.
    Late,
    /// A payload sent before.
    Duplicate,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Anomaly { .. } => "anomaly",
            Self::Bad => "bad",
            Self::Late => "late",
            Self::Duplicate => "duplicate",
        }
    }
}

/// One planted message.
#[derive(Debug)]
pub(super) struct Planted<'a> {
    pub(super) kind: Kind,
    /// How a bad payload is bad.
    pub(super) flaw: Option<Flaw>,
    pub(super) device_id_quoted: &'a str,
    pub(super) timestamp: &'a str,
    pub(super) seq: u64,
    /// Metric, value and its decimals.
    pub(super) spike: Option<(&'static str, i64, u32)>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Truth {
    path: PathBuf,
    file: BufWriter<File>,
    line: Vec<u8>,
    written: bool,
}

impl Truth {
    /// Starts the file anew.
    ///
    /// # Errors
    /// Permanent: it can't be written.
    pub(super) fn create(path: &Path) -> Result<Self, StageError> {
        let file = File::create(path).map_err(|error| unwritable(path, error))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), line: Vec::new(), written: false })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Permanent: it can't be written.
    pub(super) fn write(&mut self, planted: &Planted<'_>) -> Result<(), StageError> {
        self.line.clear();
        write_line(&mut self.line, planted);
        self.written = true;
        self.file.write_all(&self.line).map_err(|error| unwritable(&self.path, error))
    }

    /// Hands all lines to the operating system.
    ///
    /// # Errors
    /// Permanent: they can't be written.
    pub(super) fn flush(&mut self) -> Result<(), StageError> {
        if !std::mem::take(&mut self.written) {
            return Ok(());
        }
        self.file.flush().map_err(|error| unwritable(&self.path, error))
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> StageError {
    StageError::permanent(format!("the truth file \"{}\" can't be written", path.display())).because(error)
}

fn write_line(out: &mut Vec<u8>, planted: &Planted<'_>) {
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(planted.kind.word().as_bytes());
    out.extend_from_slice(b"\",\"device_id\":");
    out.extend_from_slice(planted.device_id_quoted.as_bytes());
    out.extend_from_slice(b",\"timestamp\":\"");
    out.extend_from_slice(planted.timestamp.as_bytes());
    out.extend_from_slice(b"\",\"seq\":");
    push_number(out, planted.seq);
    match planted.spike {
        Some((metric, value, decimals)) => {
            out.extend_from_slice(b",\"metric\":\"");
            out.extend_from_slice(metric.as_bytes());
            out.extend_from_slice(b"\",\"value\":");
            push_fixed(out, value, decimals);
        }
        None => out.extend_from_slice(b",\"metric\":null,\"value\":null"),
    }
    if let Some(flaw) = planted.flaw {
        out.extend_from_slice(b",\"flaw\":\"");
        out.extend_from_slice(flaw.word().as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}
