//! A run as it goes, a second at a time: for the live page and for `pipeline top`.
//!
//! One task looks at the counters each second, whether or not somebody watches: that is cheap, and gives a page
//! that is opened the minutes before it. Rows are looked through only while somebody watches. Each second is put
//! into words once, for all who watch; a slow reader skips seconds and holds up nobody.

mod bottleneck;
mod devices;
mod events;
mod history;
mod sampler;
mod samples;
pub mod snapshot;

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pipeline_engine::{RunStats, now_us};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

pub use bottleneck::grouped;
pub use events::stream;
use history::History;
use sampler::Sampler;
pub use sampler::status;
use samples::Samples;
use snapshot::{Bottleneck, Snapshot};

const INTERVAL: Duration = Duration::from_secs(1);
/// Somebody who has asked within this time is watching.
const WATCHING_US: i64 = 10_000_000;
/// Pages that are open at once; each costs a connection and a copy of a second's text.
const VIEWERS_MAX: usize = 64;

/// One second, and the same as JSON.
struct Second {
    snapshot: Snapshot,
    text: String,
}

/// See the module.
pub struct Live {
    last: watch::Receiver<Arc<Second>>,
    history: Arc<Mutex<History>>,
    watched_at_us: Arc<AtomicI64>,
    viewers: Arc<Semaphore>,
    task: tokio::task::JoinHandle<()>,
}

impl Live {
    /// Starts to look; ends when dropped. Must be called within a tokio runtime.
    pub fn start(pipeline: &str, stats: Arc<RunStats>) -> Self {
        let mut sampler = Sampler::new(pipeline, stats.clone());
        let (first, mut history) = (sampler.look(), History::default());
        history.push(&first);
        let (sender, last) = watch::channel(Second::of(first));
        let (history, watched_at_us) = (Arc::new(Mutex::new(history)), Arc::new(AtomicI64::new(0)));
        let (lines, watched) = (history.clone(), watched_at_us.clone());
        let task = tokio::spawn(async move {
            let mut samples = Samples::open(stats);
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let mut snapshot = sampler.look();
                lock(&lines).push(&snapshot);
                if snapshot.at_us - watched.load(Relaxed) < WATCHING_US {
                    samples.look(snapshot.at_us);
                    snapshot.rejects = samples.rejects();
                    snapshot.anomalies = samples.anomalies();
                    snapshot.devices = samples.devices(snapshot.at_us);
                }
                sender.send_replace(Second::of(snapshot));
            }
        });
        Self { last, history, watched_at_us, viewers: Arc::new(Semaphore::new(VIEWERS_MAX)), task }
    }

    /// The last second, as JSON.
    pub fn last(&self) -> String {
        self.is_watched();
        self.last.borrow().text.clone()
    }

    /// What holds the pipeline up, in words.
    pub fn bottleneck(&self) -> Bottleneck {
        self.last.borrow().snapshot.bottleneck.clone()
    }

    /// Looks no more: whoever watches is told that this is over.
    pub fn end(&self) {
        self.task.abort();
    }

    fn is_watched(&self) {
        self.watched_at_us.store(now_us(), Relaxed);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end();
    }
}

impl Second {
    fn of(snapshot: Snapshot) -> Arc<Self> {
        // A number that JSON does not know, such as infinity, is written as null.
        let text = serde_json::to_string(&snapshot).expect("texts, numbers and lists");
        Arc::new(Self { snapshot, text })
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}
