//! What happened, in order and with its time: what two runs of one seed are compared by, and what a
//! person reads to understand a failed one.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::invariants::Violation;

/// Something that happened outside of the process, or to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Started { life: usize },
    Died { how: &'static str },
    Ended { outcome: String },
    Calm,
    Disk { fault: &'static str },
    SpoolOpened { durable: u64, next: u64 },
    Connected { broker: usize, generation: u64, session_present: bool },
    Refused { broker: usize },
    Cut { broker: usize },
    Published { broker: usize, number: i64 },
    SessionLost { broker: usize, messages: usize },
    Delivered { broker: usize, id: u16, number: i64, again: bool },
    Recognised { broker: usize, id: u16, lsn: u64 },
    Spooled { broker: usize, number: i64, lsn: u64 },
    Acknowledged { broker: usize, id: u16, number: i64 },
    Sent { source: usize, first: u64, last: u64 },
    Checkpointed { source: usize, lsn: u64 },
    Committed { table: &'static str, rows: usize, known: bool },
    Faulted { sink: &'static str, fault: &'static str },
    Staged { rows: usize },
    Created { object: String, rows: usize, known: bool },
    Violated { violation: Violation },
}

/// All events so far.
pub(super) struct Trace {
    started: Instant,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub at: Duration,
    pub event: Event,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), entries: Mutex::default() }
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn note(&self, event: Event) {
        let entry = Entry { at: self.now(), event };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>11.3} s  {:?}", self.at.as_secs_f64(), self.event)
    }
}
