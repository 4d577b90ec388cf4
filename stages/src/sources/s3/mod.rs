//! Reads the objects of a bucket: those below a prefix, each once, also over restarts.
//!
//! ```text
//! listing ─▶ ledger ─▶ a number an object ─▶ up to `parallel` readers ─▶ chunks, in the order of the numbers
//! (or queue)  (disk)                          parts of the object, unpacked, decoded
//! ```
//! An object that is found gets a number in the ledger, durably, before any of its rows leave (see `ledger`). The
//! position of a row is the number of its object and its line, and a chunk ends by the content alone; so a run that goes on
//! after a crash makes the same batches again, and a sink that records positions stores each row once.
//!
//! **Guarantee.** A content of a key is read once. Another content of the same key (another ETag) is another object, and
//! is read as well. What can't be read (it is gone, damaged, or grows too far when unpacked) is one dead letter that says
//! up to which line it was.
//!
//! **Danger.** The ledger lies in the data directory. Without it all objects are new: the sinks' keys are what then makes
//! one row of two.

mod config;
mod examine;
mod fetch;
mod find;
mod ledger;
mod notice;
mod patience;
mod place;
mod queue;
mod read;
mod run;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::{Examination, Source, SourceContext, StageError};

use crate::decode::Decoder;
use crate::sources::records::Compression;
use config::ObjectFormat;
pub use config::S3SourceConfig;
use place::Place;
use queue::QueuePlace;

/// How objects are read.
#[derive(Debug, Clone)]
struct Reading {
    format: ObjectFormat,
    /// `None`: by its beginning.
    compression: Option<Compression>,
    line_bytes_max: usize,
    unpacked_bytes_max: u64,
    /// For formats that have types of their own.
    schema: Option<Arc<DeclaredSchema>>,
    /// Where a format that is not read from its start to its end is kept meanwhile.
    scratch_dir: PathBuf,
}

/// The source, ready to run.
struct S3Source {
    stage: String,
    place: Place,
    reading: Reading,
    /// One for each object that is read at a time.
    decoders: Vec<Decoder>,
    /// How often it is looked for new objects; `None`: once, and then the source ends, unless there is a queue.
    poll: Option<Duration>,
    /// Who tells of new objects.
    queue: Option<QueuePlace>,
    state_dir: PathBuf,
}

#[async_trait]
impl Source for S3Source {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        run::run(*self, &cx).await
    }

    fn is_resumable(&self) -> bool {
        true
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        examine::probe(self).await
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }
}

#[cfg(test)]
mod tests;
