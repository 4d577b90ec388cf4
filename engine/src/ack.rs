//! The promise behind a batch, and the only place that says *delivered*.
//!
//! A source opens a promise for each batch it reads. The promise travels with the rows as one or
//! more shares of an [`Ack`]; a sink lets go of its shares as delivered after its commit. A share
//! that is dropped any other way counts as failed: a panic, an early `?` or a forgotten branch can
//! only cause a replay, never a loss.
//!
//! Per partition, [`Progress`] is the last position up to which *everything* was delivered. It
//! moves in the order of reading, whatever order the sinks finish in.

mod loan;

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot, watch};

use crate::position::{Position, Span};
#[cfg(test)]
use crate::simulated::{self, PlantedBug};
use crate::tenure::Tenure;
use loan::Lent;
pub(crate) use loan::Loan;

/// One share of the promise owed to the source that read some rows.
#[must_use = "an ack dropped without a verdict counts as failed"]
pub struct Ack {
    promise: Option<Arc<Promise>>,
}

/// Shared by all shares of one promise. The verdict falls when the last share is gone.
struct Promise {
    partition: Partition,
    span: Span,
    received_at_us: i64,
    failed: AtomicBool,
    /// Taken when the verdict falls.
    owed: Option<Owed>,
}

/// Who hears the verdict.
enum Owed {
    /// The partition, by the promise's place in its order of reading.
    Partition { ordinal: u64 },
    /// A share of another promise for the same rows, and the stage that waits for them.
    Share { of: Ack, waiting: oneshot::Sender<bool> },
    /// A share that may have been given back already, and the stage that waits for it.
    Loan(Lent),
}

impl Ack {
    /// An ack that nobody waits for: rows made by a test or a benchmark.
    pub fn detached() -> Self {
        Self { promise: None }
    }

    /// Another share of the same promise: all shares must be delivered for it to be kept.
    pub fn share(&self) -> Self {
        Self { promise: self.promise.clone() }
    }

    /// The source's positions behind this ack; `None` for a detached one.
    pub fn span(&self) -> Option<(&str, Span)> {
        self.promise.as_ref().map(|promise| (promise.partition.name(), promise.span))
    }

    /// When the oldest of the rows was received, in microseconds since 1970; `None` when detached.
    pub fn received_at_us(&self) -> Option<i64> {
        self.promise.as_ref().map(|promise| promise.received_at_us)
    }

    /// The tenure under which the rows were read, where several workers share their partition.
    pub fn tenure(&self) -> Option<u64> {
        self.partition().and_then(Partition::tenure)
    }

    /// The ordered stream that the rows came by; `None` for a detached ack.
    pub(crate) fn partition(&self) -> Option<&Partition> {
        self.promise.as_ref().map(|promise| &promise.partition)
    }

    /// Whether both are shares of one promise.
    pub(crate) fn is_of_same_promise(&self, other: &Self) -> bool {
        match (&self.promise, &other.promise) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// A promise of its own for the rows behind this share, which is kept or broken with it; and a
    /// channel that tells whether. For a stage that must know when rows it has sent on are stored.
    ///
    /// `with_position`: what is at its position is in this batch or one before. Otherwise no sink takes it
    /// for stored, or records it as such.
    pub(crate) fn followed(self, with_position: bool) -> (Self, oneshot::Receiver<bool>) {
        let (waiting, verdict) = oneshot::channel();
        let Some(promise) = &self.promise else {
            // Nobody waits for a detached ack, so nobody is asked to.
            waiting.send(true).ok();
            return (self, verdict);
        };
        let partition = &promise.partition;
        let followed = Promise {
            partition: if with_position { partition.clone() } else { partition.without_positions() },
            span: promise.span,
            received_at_us: promise.received_at_us,
            failed: AtomicBool::new(false),
            owed: Some(Owed::Share { of: self, waiting }),
        };
        (Self { promise: Some(Arc::new(followed)) }, verdict)
    }

    /// A promise of its own for the rows behind this share, and the share itself, on loan: whichever comes
    /// first ends it, the verdict of the one or [`Loan::deliver`]. For rows that need not be waited for
    /// whatever happens. `None` if nobody waits for them anyway.
    pub(crate) fn lent(self) -> (Self, Option<Loan>) {
        let Some(promise) = &self.promise else { return (self, None) };
        let (partition, span, received_at_us) = (promise.partition.clone(), promise.span, promise.received_at_us);
        let (lent, loan) = loan::of(self);
        let owed = Some(Owed::Loan(lent));
        let promise = Promise { partition, span, received_at_us, failed: AtomicBool::new(false), owed };
        (Self { promise: Some(Arc::new(promise)) }, Some(loan))
    }

    /// The rows behind this share are where they belong. Called by the engine alone.
    pub(crate) fn deliver(mut self) {
        // Taking the promise out is what tells `drop` that this share has its verdict.
        drop(self.promise.take());
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        #[cfg(test)]
        if simulated::has_planted(PlantedBug::DroppedIsDelivered) {
            return;
        }
        if let Some(promise) = self.promise.take() {
            promise.failed.store(true, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span() {
            Some((partition, span)) => write!(f, "Ack({partition} {span})"),
            None => f.write_str("Ack(detached)"),
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // `Arc` orders all earlier releases before this drop: the flag is final here.
        let kept = !*self.failed.get_mut();
        match self.owed.take() {
            Some(Owed::Partition { ordinal }) => self.partition.settle(ordinal, kept),
            Some(Owed::Share { of, waiting }) => {
                if kept {
                    of.deliver();
                }
                // The stage may have ended: then there is nobody to tell.
                waiting.send(kept).ok();
            }
            Some(Owed::Loan(lent)) => lent.give_back(kept),
            None => {}
        }
    }
}

/// How far one partition has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Everything up to and including this position is delivered; `None` before the first.
    pub delivered: Option<Position>,
    /// How many promises, in order of reading, are kept.
    pub kept: u64,
    /// How many promises were opened.
    pub opened: u64,
    /// A promise was broken: nothing behind it will count as delivered in this run.
    pub failed: bool,
}

impl Progress {
    /// Nothing is on its way any more.
    pub fn is_complete(&self) -> bool {
        self.kept == self.opened
    }
}

/// One ordered stream of a source: a connection, a shard, a file.
#[derive(Clone)]
pub struct Partition {
    shared: Arc<PartitionShared>,
}

struct PartitionShared {
    name: String,
    /// Its positions mean the same after a restart.
    resumable: bool,
    /// Of a partition that several workers share: that of this one.
    tenure: Option<Arc<Tenure>>,
    checkpointed: watch::Sender<Option<Position>>,
    window: Mutex<Window>,
    progress: watch::Sender<Progress>,
    /// For those who wait within the engine, in order: a `watch` wakes its receivers in any.
    moved: Notify,
}

/// Promises between the oldest open one and the newest, in order of reading.
#[derive(Default)]
struct Window {
    promises: VecDeque<(Position, Verdict)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Open,
    Delivered,
    Failed,
}

impl Partition {
    /// A partition of which nothing has been read, and which is gone with this run.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with(name.into(), false, None)
    }

    /// A partition that a later run reads on: name and positions are the same then.
    pub fn resumable(name: impl Into<String>) -> Self {
        Self::with(name.into(), true, None)
    }

    /// A partition that several workers share, and that is this one's for a while.
    pub(crate) fn held(name: impl Into<String>, tenure: Arc<Tenure>) -> Self {
        Self::with(name.into(), true, Some(tenure))
    }

    /// The same for rows whose positions say nothing.
    fn without_positions(&self) -> Self {
        Self::with(self.name().to_owned(), false, self.shared.tenure.clone())
    }

    fn with(name: String, resumable: bool, tenure: Option<Arc<Tenure>>) -> Self {
        let shared = PartitionShared {
            name,
            resumable,
            tenure,
            checkpointed: watch::Sender::new(None),
            window: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
            moved: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The source's own word for it.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether its positions mean the same after a restart.
    pub fn is_resumable(&self) -> bool {
        self.shared.resumable
    }

    /// The number of the lease under which this worker has the partition; `None` where nobody else could have it.
    pub fn tenure(&self) -> Option<u64> {
        self.shared.tenure.as_ref().map(|tenure| tenure.number)
    }

    /// Somebody else has the partition now, or may have: sinks leave out what is still on its way of it, and its promises
    /// are broken. Nothing happens to a partition without a tenure.
    pub fn revoke(&self) {
        if let Some(tenure) = &self.shared.tenure {
            tenure.revoked.cancel();
        }
    }

    /// Whether somebody else may have the partition now.
    pub fn is_revoked(&self) -> bool {
        self.shared.tenure.as_ref().is_some_and(|tenure| tenure.revoked.is_cancelled())
    }

    /// Resolves once somebody else may have the partition. Cancel safe.
    pub async fn revoked(&self) {
        match &self.shared.tenure {
            Some(tenure) => tenure.revoked.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Whether its tenure begins at this position, before any row of its own.
    pub(crate) fn starts_at(&self, position: Position) -> bool {
        self.shared.tenure.as_ref().is_some_and(|tenure| tenure.after == position)
    }

    /// What a transform remembered where this tenure begins.
    pub(crate) fn states_of(&self, transform: &str) -> &[Vec<u8>] {
        let states = self.shared.tenure.as_ref().and_then(|tenure| tenure.states.get(transform));
        states.map_or(&[], Vec::as_slice)
    }

    /// The position that a restart would read on after; what is before it is never asked for again.
    pub fn checkpointed(&self) -> watch::Receiver<Option<Position>> {
        self.shared.checkpointed.subscribe()
    }

    pub(crate) fn set_checkpointed(&self, position: Position) {
        self.shared.checkpointed.send_replace(Some(position));
    }

    /// Opens the promise for the next rows read. Must be called in order of reading.
    ///
    /// `received_at_us`: when the oldest of the rows was received, microseconds since 1970.
    pub fn open(&self, span: Span, received_at_us: i64) -> Ack {
        let mut window = self.lock();
        window.promises.push_back((span.last, Verdict::Open));
        let mut ordinal = 0;
        self.shared.progress.send_if_modified(|progress| {
            ordinal = progress.opened;
            progress.opened += 1;
            false
        });
        drop(window);
        let owed = Some(Owed::Partition { ordinal });
        let promise = Promise { partition: self.clone(), span, received_at_us, failed: false.into(), owed };
        Ack { promise: Some(Arc::new(promise)) }
    }

    /// Changes whenever the partition moves forward or fails.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Waits until everything that was opened is delivered, or a promise is broken. Cancel safe.
    pub async fn settled(&self) -> Progress {
        self.wait_for(|progress| progress.failed || progress.is_complete()).await
    }

    /// Waits until the partition has come so far. Cancel safe.
    pub(crate) async fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Progress {
        loop {
            let mut moved = pin!(self.shared.moved.notified());
            // Before the look, so that no move between the two is missed.
            moved.as_mut().enable();
            let progress = *self.shared.progress.borrow();
            if reached(&progress) {
                return progress;
            }
            moved.await;
        }
    }

    fn settle(&self, ordinal: u64, delivered: bool) {
        let mut window = self.lock();
        let moved = self.shared.progress.send_if_modified(|progress| {
            // Promises before `kept` have left the window, so this is the index of ours.
            let index = usize::try_from(ordinal - progress.kept).expect("the window fits in memory");
            let verdict = if delivered { Verdict::Delivered } else { Verdict::Failed };
            window.promises[index].1 = verdict;
            let mut moved = !delivered && !progress.failed;
            progress.failed |= !delivered;
            while let Some(&(last, Verdict::Delivered)) = window.promises.front() {
                window.promises.pop_front();
                progress.delivered = Some(last);
                progress.kept += 1;
                moved = true;
            }
            moved
        });
        drop(window);
        if moved {
            self.shared.moved.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.shared.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(partition: &Partition, last: u64) -> Ack {
        partition.open(Span::new(last, last), 0)
    }

    #[test]
    fn progress_moves_in_the_order_of_reading() {
        let partition = Partition::new("p");
        let (first, second) = (open(&partition, 1), open(&partition, 2));
        second.deliver();
        assert_eq!(partition.progress().borrow().delivered, None);
        first.deliver();
        let progress = *partition.progress().borrow();
        assert_eq!(progress.delivered, Some(Position::from(2)));
        assert!(progress.is_complete());
    }

    #[test]
    fn all_shares_must_be_delivered() {
        let partition = Partition::new("p");
        let left = open(&partition, 1);
        let right = left.share();
        left.deliver();
        assert!(!partition.progress().borrow().is_complete());
        right.deliver();
        assert!(partition.progress().borrow().is_complete());
    }

    #[test]
    fn a_dropped_share_fails_the_promise_for_good() {
        let partition = Partition::new("p");
        let left = open(&partition, 1);
        drop(left.share());
        left.deliver();
        let later = open(&partition, 2);
        later.deliver();
        let progress = *partition.progress().borrow();
        assert!(progress.failed);
        assert_eq!(progress.delivered, None, "nothing behind a failure counts as delivered");
    }

    #[test]
    fn a_followed_share_is_kept_or_broken_with_its_promise() {
        for kept in [true, false] {
            let partition = Partition::new("p");
            let (followed, mut verdict) = open(&partition, 1).followed(true);
            let other = followed.share();
            followed.deliver();
            assert!(verdict.try_recv().is_err(), "one share is still open");
            if kept {
                other.deliver()
            } else {
                drop(other)
            }
            assert_eq!(verdict.try_recv(), Ok(kept));
            assert_eq!(partition.progress().borrow().failed, !kept);
            assert_eq!(partition.progress().borrow().is_complete(), kept);
        }
    }

    #[test]
    fn a_panic_fails_the_promise() {
        let partition = Partition::new("p");
        let ack = open(&partition, 1);
        let outcome = std::thread::spawn(move || {
            let _held = ack;
            panic!("planned");
        })
        .join();
        assert!(outcome.is_err());
        assert!(partition.progress().borrow().failed);
    }
}
