//! Taking records in, and the thread that makes them durable in groups.
//!
//! Group commit adapts to the load: a group is what has come together while the one before it was
//! being synced, or within `group_linger` of its first record (`group_linger_busy` where many have come by then), or until
//! somebody asked for it. The buffer before the thread is bounded in bytes; when nothing becomes durable, appending waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::error::SpoolError;
use super::frame::{self, RECORD_BYTES_MAX, Record};
use super::log::{Log, Pause, Shared, SpoolStatus};
use super::options::SpoolOptions;
use super::worker::{Next, Wake, Work, Worker, now};

/// The first wait of a pause; each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// The appending end of a spool. There is one.
///
/// Dropping it abandons what isn't durable yet, which was never acknowledged; [`SpoolWriter::close`]
/// doesn't.
pub struct SpoolWriter {
    shared: Arc<Shared>,
    worker: Worker,
}

impl SpoolWriter {
    pub(crate) fn start(log: Log) -> Result<Self, SpoolError> {
        let shared = log.shared().clone();
        let worker = Worker::start("spool-writer", Committing { log, committed: None, pause: None });
        let worker = worker.map_err(SpoolError::io("start the writer thread of", &shared.dir))?;
        Ok(Self { shared, worker })
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
    pub async fn close(self) -> Result<(), SpoolError> {
        self.shared.intake.end(Ending::Finish);
        let mut status = self.shared.status.subscribe();
        // The sender lives as long as this writer.
        drop(status.wait_for(|status| *status == SpoolStatus::Closed).await);
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
        // At most one commit long; the lock on the directory must not outlive the writer.
        self.worker.join();
    }
}

/// The buffer between the appending end and the writer thread.
pub(crate) struct Intake {
    state: Mutex<IntakeState>,
    wake: Wake,
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
        Self { state: Mutex::new(state), wake: Wake::default(), room: Notify::new() }
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
            state.first_at.get_or_insert_with(now);
            self.wake.call();
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
            self.wake.call();
        }
    }

    /// A pause may be over.
    pub fn retry(&self) {
        self.lock().retry = true;
        self.wake.call();
    }

    fn end(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.wake.call();
    }

    /// The next group, or how long to wait for it.
    fn take_group(&self, options: &SpoolOptions) -> Result<Group, Next> {
        let mut state = self.lock();
        let waited = state.first_at.map_or(Duration::ZERO, |first_at| now().duration_since(first_at));
        match (state.records.is_empty(), state.ending) {
            (_, Some(Ending::Stop)) | (true, Some(Ending::Finish)) => Err(Next::End),
            (true, None) => Err(Next::Wait),
            (false, None) if !state.flush && !state.is_full(options) && waited < state.linger(options) => {
                Err(Next::WaitAtMost(state.linger(options) - waited))
            }
            (false, _) => Ok(state.cut_group(options)),
        }
    }

    fn settled(&self, records: usize, bytes: usize) {
        let mut state = self.lock();
        state.held_records -= records as u64;
        state.held_bytes -= bytes;
        drop(state);
        self.room.notify_one();
    }

    /// Why a pause should end before its time; the same change is a reason once.
    fn take_reason_to_retry(&self) -> RetryFor {
        let mut state = self.lock();
        match (state.ending, std::mem::take(&mut state.retry)) {
            (Some(_), _) => RetryFor::End,
            (None, true) => RetryFor::Change,
            (None, false) => RetryFor::Nothing,
        }
    }
}

/// Why a pause should end before its time.
enum RetryFor {
    Nothing,
    Change,
    /// There is no other attempt.
    End,
}

impl IntakeState {
    fn is_full(&self, options: &SpoolOptions) -> bool {
        self.records_bytes >= options.group_bytes_max || self.records.len() >= options.group_records_max
    }

    /// How long the first record of the group may wait, as far as can be said now.
    fn linger(&self, options: &SpoolOptions) -> Duration {
        let is_busy = self.records.len() >= SpoolOptions::BUSY_RECORDS;
        if is_busy { options.group_linger.max(options.group_linger_busy) } else { options.group_linger }
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

/// What the writer thread does: one group after the other.
struct Committing {
    log: Log,
    /// Records and bytes of the group in flight; `None` for a frame that recovery has found undecided.
    committed: Option<(usize, usize)>,
    /// Nothing becomes durable for now.
    pause: Option<Paused>,
}

/// When to try again.
struct Paused {
    at: Instant,
    wait: Duration,
}

impl Work for Committing {
    fn turn(&mut self) -> Next {
        if let Some(pause) = &self.pause {
            let left = pause.at.saturating_duration_since(now());
            match self.log.shared().intake.take_reason_to_retry() {
                RetryFor::End => return Next::End,
                RetryFor::Nothing if !left.is_zero() => return Next::WaitAtMost(left),
                RetryFor::Nothing | RetryFor::Change => {}
            }
        }
        loop {
            if let Err(pause) = self.log.settle() {
                return self.pause_for(pause);
            }
            self.goes_on();
            let shared = self.log.shared();
            if let Some((records, bytes)) = self.committed.take() {
                shared.intake.settled(records, bytes);
            }
            match shared.intake.take_group(&shared.options) {
                Ok(group) => {
                    self.committed = Some((group.records.len(), group.bytes));
                    self.log.begin(frame::encode(&group.records, group.first_lsn, self.log.shared().identity));
                }
                Err(Next::End) => {
                    self.log.close();
                    return Next::End;
                }
                Err(wait) => return wait,
            }
        }
    }

    fn wake(&self) -> &Wake {
        &self.log.shared().intake.wake
    }
}

impl Committing {
    fn pause_for(&mut self, pause: Pause) -> Next {
        let shared = self.log.shared();
        if self.pause.is_none() {
            shared.counters.pauses.increment();
            tracing::warn!(reason = pause.message, "the spool pauses: nothing is acknowledged until it can write");
        }
        shared.intake.lock().last_pause.clone_from(&pause.message);
        let status = SpoolStatus::Paused(pause);
        shared.status.send_if_modified(|before| std::mem::replace(before, status.clone()) != status);
        if shared.intake.lock().ending.is_some() {
            return Next::End;
        }
        let wait = self.pause.as_ref().map_or(RETRY_MIN, |before| before.wait.saturating_mul(2));
        let at_most = wait.min(shared.options.retry_max);
        self.pause = Some(Paused { at: now() + at_most, wait });
        Next::WaitAtMost(at_most)
    }

    fn goes_on(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!("the spool writes again");
            self.log.shared().status.send_replace(SpoolStatus::Running);
        }
    }
}

impl Drop for Committing {
    /// Also when a turn panics: whoever waits for room must learn that there will be none.
    fn drop(&mut self) {
        let shared = self.log.shared();
        shared.intake.lock().ended = true;
        shared.intake.room.notify_one();
        shared.status.send_replace(SpoolStatus::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_many_have_come_to_lingers_longer() {
        let (hour, intake) = (Duration::from_secs(3600), Intake::new(1, 0));
        let options =
            SpoolOptions { group_linger: hour, group_linger_busy: 4 * hour, ..SpoolOptions::new("pipeline", "source") };
        let record = Record { received_at_us: 1, flags: 0, mark: 0, topic: "a".into(), payload: Vec::new().into() };
        let wait = || match intake.take_group(&options) {
            Err(Next::WaitAtMost(wait)) => wait,
            _ => panic!("it is not full, and nobody has asked for it"),
        };
        for number in 1..=SpoolOptions::BUSY_RECORDS {
            assert!(number == 1 || wait() <= hour, "{number}");
            assert_eq!(intake.push(&record, &options).expect("it is open"), Some(number as u64));
        }
        assert!(wait() > 3 * hour);
        intake.flush();
        assert!(intake.take_group(&options).is_ok_and(|group| group.records.len() == SpoolOptions::BUSY_RECORDS));
    }
}
