//! Figures of an edge: what has passed, what waits, and for how long.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::stage::Port;

/// Counters of one edge.
#[derive(Debug)]
pub struct EdgeStats {
    /// The stage that writes.
    pub from: String,
    /// The port it writes by.
    pub port: Port,
    /// The stage that reads.
    pub to: String,
    rows_max: AtomicU32,
    /// When the rows that were taken last were received; before any are, the first that were sent.
    /// Microseconds since 1970, 0 for unknown.
    taken_received_at_us: AtomicI64,
    rows_sent: AtomicU64,
    rows_waiting: AtomicI64,
    /// The queue before the disk, on an edge that has one.
    before_overflow: OnceLock<Arc<EdgeStats>>,
    rows_passed: AtomicU64,
    overflow_rows: AtomicU64,
    overflow_bytes: AtomicU64,
    shed_rows: AtomicU64,
}

impl EdgeStats {
    pub(crate) fn new(from: &str, port: Port, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            port,
            to: to.to_owned(),
            rows_max: AtomicU32::new(0),
            taken_received_at_us: AtomicI64::new(0),
            rows_sent: AtomicU64::new(0),
            rows_waiting: AtomicI64::new(0),
            before_overflow: OnceLock::new(),
            rows_passed: AtomicU64::new(0),
            overflow_rows: AtomicU64::new(0),
            overflow_bytes: AtomicU64::new(0),
            shed_rows: AtomicU64::new(0),
        }
    }

    /// Rows that wait on disk for a sink that is slow or away.
    pub fn overflow_rows(&self) -> u64 {
        self.overflow_rows.load(Relaxed)
    }

    /// What they take on disk.
    pub fn overflow_bytes(&self) -> u64 {
        self.overflow_bytes.load(Relaxed)
    }

    /// Rows that an optional sink went without.
    pub fn shed_rows(&self) -> u64 {
        self.shed_rows.load(Relaxed)
    }

    /// Rows that the writing stage has given to this edge.
    pub fn rows_sent(&self) -> u64 {
        self.rows_sent.load(Relaxed)
    }

    /// Rows that the reading stage has not taken yet, in memory and on disk.
    pub fn rows_in_flight(&self) -> u64 {
        let before = self.before_overflow.get().map_or(0, |queue| queue.rows_waiting());
        before + self.overflow_rows() + self.rows_waiting()
    }

    /// How old the rows are that wait here: the age of those that were taken last, which the next ones follow.
    /// Zero while none wait; `None` where nothing is known of when they were received.
    pub fn lag(&self, now_us: i64) -> Option<Duration> {
        if self.rows_in_flight() == 0 {
            return Some(Duration::ZERO);
        }
        let received = Some(self.taken_received_at_us.load(Relaxed)).filter(|at| *at > 0)?;
        Some(Duration::from_micros(u64::try_from(now_us - received).unwrap_or(0)))
    }

    pub(crate) fn sent(&self, rows: usize, received_at_us: Option<i64>) {
        if self.rows_sent.fetch_add(rows as u64, Relaxed) == 0
            && let Some(at) = received_at_us
        {
            // Unless some have been taken already, which says more.
            self.taken_received_at_us.compare_exchange(0, at, Relaxed, Relaxed).ok();
        }
    }

    pub(crate) fn set_before_overflow(&self, queue: Arc<EdgeStats>) {
        // Set once, when the edge is made.
        self.before_overflow.set(queue).ok();
    }

    pub(crate) fn set_overflow(&self, rows: u64, bytes: u64) {
        self.overflow_rows.store(rows, Relaxed);
        self.overflow_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn shed(&self, rows: usize) {
        self.shed_rows.fetch_add(rows as u64, Relaxed);
    }

    /// The bound of the queue.
    pub fn rows_max(&self) -> u32 {
        self.rows_max.load(Relaxed)
    }

    /// Rows in the queue now.
    pub fn rows_waiting(&self) -> u64 {
        u64::try_from(self.rows_waiting.load(Relaxed)).unwrap_or(0)
    }

    /// Rows that were taken out of the queue.
    pub fn rows_passed(&self) -> u64 {
        self.rows_passed.load(Relaxed)
    }

    pub(crate) fn set_rows_max(&self, rows_max: u32) {
        self.rows_max.store(rows_max, Relaxed);
    }

    pub(crate) fn entered(&self, rows: usize) {
        self.rows_waiting.fetch_add(rows as i64, Relaxed);
    }

    pub(crate) fn left(&self, rows: usize, received_at_us: Option<i64>) {
        self.rows_waiting.fetch_sub(rows as i64, Relaxed);
        self.rows_passed.fetch_add(rows as u64, Relaxed);
        if let Some(at) = received_at_us {
            self.taken_received_at_us.store(at, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_as_old_as_what_was_taken_last() {
        let edge = EdgeStats::new("a", Port::MAIN, "b");
        assert_eq!(edge.lag(9_000_000), Some(Duration::ZERO));
        edge.sent(5, Some(1_000_000));
        edge.entered(5);
        assert_eq!(edge.lag(4_000_000), Some(Duration::from_secs(3)), "nothing was taken yet");
        edge.sent(5, Some(2_000_000));
        edge.entered(5);
        edge.left(5, Some(1_000_000));
        edge.left(2, Some(2_000_000));
        assert_eq!(edge.lag(4_000_000), Some(Duration::from_secs(2)));
        edge.left(3, None);
        assert_eq!(edge.lag(4_000_000), Some(Duration::ZERO));
    }
}
