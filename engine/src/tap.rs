//! The newest rows that leave a stage by a port, kept for whoever looks.
//!
//! A tap is closed until it is wanted, and then costs a stage a few instructions a batch: columns are shared, not
//! copied, and a stage never waits for a reader. What it holds is bounded, whatever devices send.
//!
//! Two kinds of readers: those who come now and then and want what was kept ([`Tap::newer_than`]), and those who want all
//! batches as they pass, as far as they keep up ([`Tap::watch`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use arrow::record_batch::RecordBatch;
use tokio::sync::mpsc;

/// Readers that watch one tap at once.
const WATCHERS_MAX: usize = 4;
/// Batches that wait for a reader; those beyond pass it by.
const WATCHED_MAX: usize = 16;

/// How much a tap keeps.
#[derive(Debug, Clone, Copy)]
pub struct TapLimits {
    /// Of a batch with more rows, these many are copied and the rest left out.
    pub rows_per_batch: usize,
    /// Batches; older ones go.
    pub batches_max: usize,
    /// Memory behind all of them together. A batch that alone has more is not kept.
    pub bytes_max: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tap {
    limits: OnceLock<TapLimits>,
    kept: Mutex<Kept>,
    watchers: Mutex<Vec<mpsc::Sender<RecordBatch>>>,
    /// So that a stage that nobody watches takes no lock.
    watcher_count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<(RecordBatch, usize)>,
    bytes: usize,
    /// How many batches were kept so far, those included that are gone.
    taken: u64,
}

impl Tap {
    /// Keeps rows from now on. Opened once; later calls change nothing.
    pub fn open(&self, limits: TapLimits) {
        self.limits.get_or_init(|| limits);
    }

    /// The batches kept after so many, the oldest first, and how many that makes in all: to be asked for the
    /// next time.
    pub fn newer_than(&self, taken: u64) -> (Vec<RecordBatch>, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(kept.taken.saturating_sub(taken)).unwrap_or(usize::MAX);
        let skipped = kept.batches.len().saturating_sub(new);
        (kept.batches.iter().skip(skipped).map(|(rows, _)| rows.clone()).collect(), kept.taken)
    }

    /// All batches from now on, without those that come faster than they are taken; `None` if too many watch already. Ends
    /// with the run. Dropping the receiver ends it too.
    pub fn watch(&self) -> Option<mpsc::Receiver<RecordBatch>> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !watcher.is_closed());
        if watchers.len() >= WATCHERS_MAX {
            return None;
        }
        let (sender, receiver) = mpsc::channel(WATCHED_MAX);
        watchers.push(sender);
        self.watcher_count.store(watchers.len(), Relaxed);
        Some(receiver)
    }

    fn show(&self, rows: &RecordBatch) {
        // Somebody comes or goes just now: then they see the next one.
        let Ok(mut watchers) = self.watchers.try_lock() else { return };
        watchers.retain(|watcher| {
            // A reader that is too slow goes without.
            !matches!(watcher.try_send(rows.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
        self.watcher_count.store(watchers.len(), Relaxed);
    }

    pub(crate) fn offer(&self, rows: &RecordBatch) {
        if self.watcher_count.load(Relaxed) > 0 && rows.num_rows() > 0 {
            self.show(rows);
        }
        let Some(limits) = self.limits.get() else { return };
        if rows.num_rows() == 0 {
            return;
        }
        // Somebody is looking just now: then they see the next ones.
        let Ok(mut kept) = self.kept.try_lock() else { return };
        let Some(rows) = limits.take_from(rows) else { return };
        let bytes = rows.get_array_memory_size();
        if bytes > limits.bytes_max {
            return;
        }
        kept.bytes += bytes;
        kept.taken += 1;
        kept.batches.push_back((rows, bytes));
        while kept.batches.len() > limits.batches_max || kept.bytes > limits.bytes_max {
            let Some((_, bytes)) = kept.batches.pop_front() else { break };
            kept.bytes -= bytes;
        }
    }
}

impl TapLimits {
    fn take_from(&self, rows: &RecordBatch) -> Option<RecordBatch> {
        if rows.num_rows() <= self.rows_per_batch {
            return Some(rows.clone());
        }
        let first = UInt32Array::from_iter_values(0..u32::try_from(self.rows_per_batch).unwrap_or(u32::MAX));
        take_record_batch(rows, &first).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn rows(from: i64, count: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + count));
        RecordBatch::try_from_iter([("n", column)]).expect("one column of one length")
    }

    fn firsts(batches: &[RecordBatch]) -> Vec<i64> {
        batches.iter().map(|rows| rows.column(0).as_primitive::<Int64Type>().value(0)).collect()
    }

    #[test]
    fn the_newest_batches_are_kept_within_bounds_and_told_once() {
        let tap = Tap::default();
        tap.offer(&rows(0, 1));
        tap.open(TapLimits { rows_per_batch: 2, batches_max: 3, bytes_max: 10_000 });
        assert_eq!(tap.newer_than(0).1, 0, "it was closed");
        for first in 1..=5 {
            tap.offer(&rows(first, 10));
        }
        let (batches, taken) = tap.newer_than(0);
        assert_eq!((firsts(&batches), taken), (vec![3, 4, 5], 5));
        assert!(batches.iter().all(|rows| rows.num_rows() == 2));
        assert_eq!(tap.newer_than(taken), (vec![], 5));
        tap.offer(&rows(6, 1));
        assert_eq!(firsts(&tap.newer_than(taken).0), [6]);
    }

    #[test]
    fn whoever_watches_gets_all_batches_or_those_it_has_room_for() {
        let tap = Tap::default();
        let mut quick = tap.watch().expect("nobody watches yet");
        let mut slow = tap.watch().expect("one does");
        for first in 0..40 {
            tap.offer(&rows(first, 10));
            assert_eq!(firsts(&[quick.try_recv().expect("it is there at once")]), [first]);
        }
        let kept: Vec<_> = std::iter::from_fn(|| slow.try_recv().ok()).collect();
        assert_eq!(firsts(&kept), (0..WATCHED_MAX as i64).collect::<Vec<_>>());
        drop((quick, slow));
        tap.offer(&rows(0, 1));
        assert_eq!(tap.watcher_count.load(Relaxed), 0, "those who are gone cost nothing");
        let watching: Vec<_> = (0..WATCHERS_MAX).map(|_| tap.watch().expect("room")).collect();
        assert!(tap.watch().is_none());
        drop(watching);
        assert!(tap.watch().is_some());
    }

    #[test]
    fn memory_is_bounded_also_by_bytes() {
        let tap = Tap::default();
        tap.open(TapLimits { rows_per_batch: usize::MAX, batches_max: usize::MAX, bytes_max: 10_000 });
        tap.offer(&rows(0, 10_000));
        assert_eq!(tap.newer_than(0).1, 0, "larger than all that may be kept");
        (0..100).for_each(|first| tap.offer(&rows(first, 100)));
        let (batches, _) = tap.newer_than(0);
        assert!(batches.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() <= 10_000);
        assert_eq!(*firsts(&batches).last().expect("some are kept"), 99);
    }
}
