//! Rows that wait on disk: chunks of batches in files, first in first out. What is read back is gone.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Cursor};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;

use crate::ack::Ack;
use crate::batch::Batch;
use crate::blocking;

/// A file is followed by the next once it has come to this size.
const FILE_BYTES: u64 = 64 << 20;

/// Chunks of batches in files, first in first out.
pub(super) struct Disk {
    dir: PathBuf,
    chunks: VecDeque<Chunk>,
    /// The file that is written to.
    file: Option<Arc<OverflowFile>>,
    files: u64,
    /// Rows that wait here, and what they take.
    pub rows: u64,
    pub bytes: u64,
}

struct Chunk {
    file: Arc<OverflowFile>,
    offset: u64,
    bytes: u64,
    acks: Vec<Ack>,
    rows: u64,
}

/// A file that is gone once nothing in it is needed.
struct OverflowFile {
    path: PathBuf,
    file: File,
    written: AtomicU64,
}

impl Drop for OverflowFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "\"{}\" is no longer needed and can't be deleted", self.path.display());
        }
    }
}

impl Disk {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, chunks: VecDeque::new(), file: None, files: 0, rows: 0, bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The rows of the oldest chunk.
    pub(super) fn next_rows(&self) -> usize {
        self.chunks.front().map_or(1, |chunk| usize::try_from(chunk.rows).unwrap_or(usize::MAX))
    }

    /// Writes batches behind those that are there. On an error gives them back.
    pub(super) async fn put(&mut self, batches: Vec<Batch>) -> Result<(), (io::Error, Vec<Batch>)> {
        let file = match self.current_file() {
            Ok(file) => file,
            Err(error) => return Err((error, batches)),
        };
        let rows: Vec<RecordBatch> = batches.iter().map(|batch| batch.rows.clone()).collect();
        let written = off_the_runtime({
            let file = file.clone();
            move || write(&file, &rows)
        });
        match written.await {
            Ok((offset, bytes)) => {
                let rows = batches.iter().map(|batch| batch.rows.num_rows() as u64).sum();
                let acks = batches.into_iter().map(|batch| batch.ack).collect();
                self.chunks.push_back(Chunk { file, offset, bytes, acks, rows });
                (self.rows, self.bytes) = (self.rows + rows, self.bytes + bytes);
                Ok(())
            }
            Err(error) => Err((error, batches)),
        }
    }

    fn current_file(&mut self) -> io::Result<Arc<OverflowFile>> {
        let is_full = |file: &OverflowFile| file.written.load(Relaxed) >= FILE_BYTES;
        if let Some(file) = self.file.as_ref().filter(|file| !is_full(file)) {
            return Ok(file.clone());
        }
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("{:08}.arrows", self.files));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let file = Arc::new(OverflowFile { path, file, written: 0.into() });
        self.files += 1;
        self.file = Some(file.clone());
        Ok(file)
    }

    /// Takes the oldest chunk.
    pub(super) async fn take(&mut self) -> io::Result<Vec<Batch>> {
        let Some(chunk) = self.chunks.pop_front() else { return Ok(Vec::new()) };
        (self.rows, self.bytes) = (self.rows - chunk.rows, self.bytes - chunk.bytes);
        if self.chunks.is_empty() {
            // The next outage starts a new file: this one goes with its last chunk.
            self.file = None;
        }
        let file = chunk.file;
        let rows = off_the_runtime(move || read(&file, chunk.offset, chunk.bytes)).await?;
        if rows.len() != chunk.acks.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "other batches than were written"));
        }
        Ok(rows.into_iter().zip(chunk.acks).map(|(rows, ack)| Batch::new(rows, ack)).collect())
    }
}

/// The folder and what is in it, if there is one, is gone on return.
pub(super) async fn clear(dir: PathBuf) -> io::Result<()> {
    let clear = move || match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    off_the_runtime(clear).await
}

fn write(file: &OverflowFile, rows: &[RecordBatch]) -> io::Result<(u64, u64)> {
    let mut writer = StreamWriter::try_new(Vec::new(), &rows[0].schema()).map_err(io::Error::other)?;
    for batch in rows {
        writer.write(batch).map_err(io::Error::other)?;
    }
    let bytes = writer.into_inner().map_err(io::Error::other)?;
    let offset = file.written.load(Relaxed);
    file.file.write_all_at(&bytes, offset)?;
    file.written.store(offset + bytes.len() as u64, Relaxed);
    Ok((offset, bytes.len() as u64))
}

fn read(file: &OverflowFile, offset: u64, bytes: u64) -> io::Result<Vec<RecordBatch>> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?];
    file.file.read_exact_at(&mut buffer, offset)?;
    let reader = StreamReader::try_new(Cursor::new(buffer), None).map_err(io::Error::other)?;
    reader.collect::<Result<_, _>>().map_err(io::Error::other)
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    blocking::off_the_runtime(work).await.map_err(io::Error::other)?
}
