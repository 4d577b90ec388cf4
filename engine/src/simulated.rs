//! What a test puts in the place of this machine's clock, chance and threads, so that a whole run
//! happens on one thread, in virtual time, and the same way each time. For tests alone.
//!
//! While a [`Simulated`] lives, on its thread: [`now_us`](crate::now_us) counts virtual time, the jitter
//! of retries comes from the seed, blocking work is done where it is asked for, and the spool's threads
//! are tasks. All of it takes a while of virtual time, so that other tasks, and crashes, come between.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

/// Where virtual time begins, in microseconds since 1970.
const START_US: i64 = 1_700_000_000_000_000;

thread_local! {
    static ENTERED: RefCell<Option<Entered>> = const { RefCell::new(None) };
}

struct Entered {
    started: Instant,
    jitter: StdRng,
    latency: StdRng,
    /// How often a transform takes long.
    slow_work: f64,
    planted: Option<PlantedBug>,
}

/// Mistakes of the engine, made on purpose to see that the simulation finds them. Those of the spool are
/// with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    DroppedIsDelivered,
    CheckpointBeforeSinks,
    SnapshotUnaligned,
}

/// This thread simulates, until this is dropped.
pub(crate) struct Simulated(());

impl Simulated {
    /// Within a runtime whose time is paused.
    pub(crate) fn enter(seed: u64, planted: Option<PlantedBug>) -> Self {
        let mut latency = StdRng::seed_from_u64(!seed);
        let slow_work = if latency.random() { latency.random_range(0.0..0.5) } else { 0.0 };
        let jitter = StdRng::seed_from_u64(seed);
        let entered = Entered { started: Instant::now(), jitter, latency, slow_work, planted };
        let before = ENTERED.replace(Some(entered));
        assert!(before.is_none(), "one simulation a thread");
        Self(())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        ENTERED.set(None);
    }
}

fn entered<T>(give: impl FnOnce(&mut Entered) -> T) -> Option<T> {
    ENTERED.with_borrow_mut(|entered| entered.as_mut().map(give))
}

pub(crate) fn is_on() -> bool {
    entered(|_| ()).is_some()
}

pub(crate) fn has_planted(bug: PlantedBug) -> bool {
    entered(|entered| entered.planted == Some(bug)).unwrap_or(false)
}

pub(crate) fn now_us() -> Option<i64> {
    let since = entered(|entered| entered.started.elapsed())?;
    Some(START_US + i64::try_from(since.as_micros()).expect("a simulation takes hours"))
}

/// From 0 to below 1, for the jitter of retries.
pub(crate) fn jitter() -> Option<f64> {
    entered(|entered| entered.jitter.random_range(0.0..1.0))
}

/// What a disk takes: mostly nothing to speak of, now and then long.
pub(crate) async fn disk_latency() {
    let ms = entered(|entered| match entered.latency.random_range(0..100) {
        0..50 => 0,
        50..90 => entered.latency.random_range(1..4),
        90..99 => entered.latency.random_range(4..30),
        _ => entered.latency.random_range(30..1_500),
    });
    pass(ms).await;
}

/// What a transform takes for a batch: in some runs so long that others wait before it.
pub(crate) async fn work() {
    let ms = entered(|entered| {
        let takes_long = entered.latency.random_bool(entered.slow_work);
        if takes_long { entered.latency.random_range(1..2_000) } else { 0 }
    });
    pass(ms).await;
}

/// Without a simulation, and for nothing, at once.
async fn pass(ms: Option<u64>) {
    if let Some(ms) = ms.filter(|ms| *ms > 0) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}
