//! Taking records in, and the thread that makes them durable in groups.
//!
//! Group commit adapts to the load: a group is what has come together while the one before it was
//! being synced, or within `group_linger` of its first record, or until somebody asked for it. The
//! buffer before the thread is bounded in bytes; when nothing becomes durable, appending waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::error::SpoolError;
use super::frame::{self, RECORD_BYTES_MAX, Record};
use super::log::{Log, Pause, Shared, SpoolStatus};
use super::options::SpoolOptions;

/// The first wait of a pause; each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// The appending end of a spool. There is one.
///
/// Dropping it abandons what isn't durable yet, which was never acknowledged; [`SpoolWriter::close`]
/// doesn't.
pub struct SpoolWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl SpoolWriter {
    pub(crate) fn start(log: Log) -> Result<Self, SpoolError> {
        let shared = log.shared().clone();
        let dir = shared.dir.clone();
        let thread = std::thread::Builder::new().name("spool-writer".to_owned()).spawn(move || commit_groups(log));
        Ok(Self { shared, thread: Some(thread.map_err(SpoolError::io("start the writer thread of", dir))?) })
    }

    /// Appends a record as soon as there is room, and returns its lsn. It is durable once
    /// [`Spool::durable`](super::Spool::durable) has come to that lsn.
    ///
    /// Cancel safe: a record that was not taken is not in the spool.
    ///
    /// # Errors
    /// [`SpoolError::RecordTooLarge`] or [`SpoolError::Closed`], never a full or failing disk.
    pub async fn append(&mut self, record: &Record) -> Result<u64, SpoolError> {
        loop {
            if let Some(lsn) = self.try_append(record)? {
                return Ok(lsn);
            }
            self.room().await;
        }
    }

    /// As [`SpoolWriter::append`], but `None` where that would wait.
    ///
    /// # Errors
    /// As [`SpoolWriter::append`].
    pub fn try_append(&mut self, record: &Record) -> Result<Option<u64>, SpoolError> {
        let bytes = record.topic.len() + record.payload.len();
        if bytes > RECORD_BYTES_MAX {
            return Err(SpoolError::RecordTooLarge { bytes });
        }
        self.shared.intake.push(record, &self.shared.options)
    }

    /// Waits until a record may be appended, or none ever will. Cancel safe.
    pub async fn room(&self) {
        while !self.shared.intake.has_room(&self.shared.options) {
            self.shared.intake.room.notified().await;
        }
    }

    /// Asks for what was appended so far to be made durable without lingering: half of the receive
    /// window is used. Returns at once.
    pub fn flush(&self) {
        self.shared.intake.flush();
    }

    /// Makes what was appended durable and ends the intake; readers end when they have read it all.
    ///
    /// # Errors
    /// [`SpoolError::Undurable`] if the disk does not let it. Dropping the future abandons nothing,
    /// but waits for the current attempt.
    pub async fn close(mut self) -> Result<(), SpoolError> {
        self.shared.intake.end(Ending::Finish);
        if let Some(thread) = self.thread.take() {
            // An error is a panic of the thread, of which the status tells already.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
        let state = self.shared.intake.lock();
        match state.held_records {
            0 => Ok(()),
            records => Err(SpoolError::Undurable { records, reason: state.last_pause.clone() }),
        }
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.shared.intake.end(Ending::Stop);
        if let Some(thread) = self.thread.take() {
            // At most one commit long; the lock on the directory must not outlive the writer.
            drop(thread.join());
        }
    }
}

/// The buffer between the appending end and the writer thread.
pub(crate) struct Intake {
    state: Mutex<IntakeState>,
    wake: Condvar,
    room: Notify,
}

struct IntakeState {
    /// Not yet taken by the thread.
    records: Vec<Record>,
    records_bytes: usize,
    /// Appended and not yet durable.
    held_records: u64,
    held_bytes: usize,
    next_lsn: u64,
    last_received_at_us: i64,
    first_at: Option<Instant>,
    flush: bool,
    retry: bool,
    ending: Option<Ending>,
    /// The thread takes nothing any more.
    ended: bool,
    last_pause: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Commit what is there.
    Finish,
    /// Leave it.
    Stop,
}

/// Records on their way into one frame.
struct Group {
    records: Vec<Record>,
    first_lsn: u64,
    bytes: usize,
}

impl Intake {
    pub fn new(next_lsn: u64, last_received_at_us: i64) -> Self {
        let state = IntakeState {
            records: Vec::new(),
            records_bytes: 0,
            held_records: 0,
            held_bytes: 0,
            next_lsn,
            last_received_at_us,
            first_at: None,
            flush: false,
            retry: false,
            ending: None,
            ended: false,
            last_pause: String::new(),
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), room: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, IntakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn next_lsn(&self) -> u64 {
        self.lock().next_lsn
    }

    fn push(&self, record: &Record, options: &SpoolOptions) -> Result<Option<u64>, SpoolError> {
        let mut state = self.lock();
        if state.ended {
            return Err(SpoolError::Closed);
        }
        if state.held_bytes >= options.buffer_bytes_max {
            return Ok(None);
        }
        let lsn = state.next_lsn;
        state.next_lsn += 1;
        state.last_received_at_us = state.last_received_at_us.max(record.received_at_us);
        let record = Record { received_at_us: state.last_received_at_us, ..record.clone() };
        state.records_bytes += record.cost_bytes();
        state.held_bytes += record.cost_bytes();
        state.held_records += 1;
        state.records.push(record);
        // The thread sleeps until the first record of a group, then until the group is ready.
        if state.first_at.is_none() || state.is_full(options) {
            state.first_at.get_or_insert_with(Instant::now);
            self.wake.notify_one();
        }
        Ok(Some(lsn))
    }

    fn has_room(&self, options: &SpoolOptions) -> bool {
        let state = self.lock();
        state.ended || state.held_bytes < options.buffer_bytes_max
    }

    fn flush(&self) {
        let mut state = self.lock();
        if !state.records.is_empty() {
            state.flush = true;
            self.wake.notify_one();
        }
    }

    /// A pause may be over.
    pub fn retry(&self) {
        self.lock().retry = true;
        self.wake.notify_one();
    }

    fn end(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.wake.notify_one();
    }

    /// The next group as soon as it is ready; `None` at the end.
    fn take_group(&self, options: &SpoolOptions) -> Option<Group> {
        let mut state = self.lock();
        loop {
            let waited = state.first_at.map_or(Duration::ZERO, |first_at| first_at.elapsed());
            match (state.records.is_empty(), state.ending) {
                (_, Some(Ending::Stop)) | (true, Some(Ending::Finish)) => return None,
                (true, None) => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                (false, None) if !state.flush && !state.is_full(options) && waited < options.group_linger => {
                    let left = options.group_linger - waited;
                    state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                (false, _) => return Some(state.cut_group(options)),
            }
        }
    }

    fn settled(&self, records: usize, bytes: usize) {
        let mut state = self.lock();
        state.held_records -= records as u64;
        state.held_bytes -= bytes;
        drop(state);
        self.room.notify_one();
    }

    /// Waits before the next attempt; false if the spool is ending and there is none.
    fn await_retry(&self, pause: &Pause, wait: Duration) -> bool {
        let mut state = self.lock();
        state.last_pause.clone_from(&pause.message);
        let waiting = |state: &mut IntakeState| !state.retry && state.ending.is_none();
        let waited = self.wake.wait_timeout_while(state, wait, waiting);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.retry = false;
        state.ending.is_none()
    }
}

impl IntakeState {
    fn is_full(&self, options: &SpoolOptions) -> bool {
        self.records_bytes >= options.group_bytes_max || self.records.len() >= options.group_records_max
    }

    fn cut_group(&mut self, options: &SpoolOptions) -> Group {
        let first_lsn = self.next_lsn - self.records.len() as u64;
        let (mut count, mut bytes) = (0, 0);
        for record in self.records.iter().take(options.group_records_max) {
            if bytes >= options.group_bytes_max {
                break;
            }
            bytes += record.cost_bytes();
            count += 1;
        }
        let rest = self.records.split_off(count);
        let records = std::mem::replace(&mut self.records, rest);
        self.records_bytes -= bytes;
        if self.records.is_empty() {
            (self.first_at, self.flush) = (None, false);
        }
        Group { records, first_lsn, bytes }
    }
}

/// The writer thread.
fn commit_groups(mut log: Log) {
    let shared = log.shared().clone();
    // Also when this thread panics: whoever waits for room must learn that there will be none.
    let _ending = EndGuard(&shared);
    // What recovery has found undecided comes first.
    if !settle(&mut log, &shared) {
        return;
    }
    while let Some(group) = shared.intake.take_group(&shared.options) {
        log.begin(frame::encode(&group.records, group.first_lsn, shared.identity));
        if !settle(&mut log, &shared) {
            return;
        }
        shared.intake.settled(group.records.len(), group.bytes);
    }
    log.close();
}

/// Tries until the frame in flight is durable; false if the spool ends before.
fn settle(log: &mut Log, shared: &Shared) -> bool {
    let mut wait = RETRY_MIN;
    while let Err(pause) = log.settle() {
        let status = SpoolStatus::Paused(pause.clone());
        if *shared.status.borrow() == SpoolStatus::Running {
            shared.counters.pauses.increment();
            tracing::warn!(reason = pause.message, "the spool pauses: nothing is acknowledged until it can write");
        }
        shared.status.send_if_modified(|before| std::mem::replace(before, status.clone()) != status);
        if !shared.intake.await_retry(&pause, wait.min(shared.options.retry_max)) {
            return false;
        }
        wait = wait.saturating_mul(2);
    }
    shared.status.send_if_modified(|status| {
        let resumes = *status != SpoolStatus::Running;
        if resumes {
            tracing::info!("the spool writes again");
        }
        *status = SpoolStatus::Running;
        resumes
    });
    true
}

struct EndGuard<'a>(&'a Shared);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.intake.lock().ended = true;
        self.0.intake.room.notify_one();
        self.0.status.send_replace(SpoolStatus::Closed);
    }
}
