//! How far behind the tip of the stream what was read is: that of the shard that is furthest behind.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pipeline_engine::Gauge;

/// By shard.
pub(super) struct Lag {
    shards: Mutex<BTreeMap<String, Behind>>,
    gauge: Gauge,
}

#[derive(Debug, Clone, Copy, Default)]
struct Behind {
    /// At the last answer.
    told_ms: u64,
    /// Since when its records wait for room in the pipeline: nothing is asked for meanwhile, and the tip goes on.
    waits_since: Option<Instant>,
}

/// While it lives a shard waits for room.
pub(super) struct Waiting<'a> {
    lag: &'a Lag,
    shard: &'a str,
}

impl Lag {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { shards: Mutex::default(), gauge }
    }

    /// An answer has told how far a shard is behind.
    pub(super) fn note(&self, shard: &str, behind_ms: u64) {
        self.lock().entry(shard.to_owned()).or_default().told_ms = behind_ms;
        self.show();
    }

    /// A shard waits for room until what this returns is dropped.
    pub(super) fn waits<'a>(&'a self, shard: &'a str) -> Waiting<'a> {
        self.lock().entry(shard.to_owned()).or_default().waits_since = Some(Instant::now());
        Waiting { lag: self, shard }
    }

    /// A shard is read no more.
    pub(super) fn forget(&self, shard: &str) {
        self.lock().remove(shard);
        self.show();
    }

    /// Shows how it is now.
    pub(super) fn show(&self) {
        let behind = |shard: &Behind| {
            let waited = shard.waits_since.map_or(0, |since| since.elapsed().as_millis());
            shard.told_ms.saturating_add(u64::try_from(waited).unwrap_or(u64::MAX))
        };
        let furthest = self.lock().values().map(behind).max();
        self.gauge.set(furthest.unwrap_or(0));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Behind>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.lag.lock().get_mut(self.shard) {
            shard.waits_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_that_is_furthest_behind_is_the_lag_and_waiting_adds_to_it() {
        let gauge = Gauge::default();
        let lag = Lag::new(gauge.clone());
        lag.note("a", 500);
        lag.note("b", 9_000);
        assert_eq!(gauge.get(), 9_000);
        lag.forget("b");
        assert_eq!(gauge.get(), 500);
        let waiting = lag.waits("a");
        let before = Instant::now();
        while before.elapsed().as_millis() == 0 {}
        lag.show();
        assert!(gauge.get() > 500);
        drop(waiting);
        lag.note("a", 0);
        assert_eq!(gauge.get(), 0);
    }
}
