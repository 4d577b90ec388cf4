//! What can keep a spool from opening, reading or taking a record.

use std::io;
use std::path::PathBuf;

use super::frame::RECORD_BYTES_MAX;
use super::segment::FORMAT_VERSION;

/// Why a spool can't do what it was asked. A full or failing disk is none: appending waits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// Another process has the spool open.
    #[error("the spool in \"{}\" is in use by another process", dir.display())]
    Locked {
        /// The spool's directory.
        dir: PathBuf,
    },
    /// The directory holds the spool of another source or pipeline.
    #[error("\"{}\" belongs to another source or pipeline than \"{source_name}\" of \"{pipeline}\"", segment.display())]
    Foreign {
        /// The segment that says so.
        segment: PathBuf,
        /// The pipeline that it was opened for.
        pipeline: String,
        /// The source that it was opened for.
        source_name: String,
    },
    /// A segment was written by a program of another format version.
    #[error("\"{}\" has format version {version}, and this program reads {FORMAT_VERSION}", segment.display())]
    Version {
        /// The segment that says so.
        segment: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The options contradict themselves.
    #[error("{wrong}")]
    Options {
        /// What is wrong.
        wrong: &'static str,
    },
    /// A record that no frame holds.
    #[error("a record of {bytes} bytes is above the limit of {RECORD_BYTES_MAX}")]
    RecordTooLarge {
        /// Its topic and payload.
        bytes: usize,
    },
    /// The spool was closed, or its writer thread has died.
    #[error("the spool takes no more records")]
    Closed,
    /// Closing with records that could not be made durable; they were never acknowledged.
    #[error("{records} records could not be made durable before the end: {reason}")]
    Undurable {
        /// How many.
        records: u64,
        /// What the disk said.
        reason: String,
    },
    /// The filesystem refused.
    #[error("could not {what} \"{}\"", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the filesystem said.
        source: io::Error,
    },
}

impl SpoolError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
