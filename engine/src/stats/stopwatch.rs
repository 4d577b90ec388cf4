//! How long a stage has spent in one way, told also while it still does.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Times are kept as microseconds since the first one that was taken, plus one: 0 stands for none.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX - 1) + 1
}

/// Adds up time between [`Stopwatch::start`] and the end of what it gives. Two clock reads a start.
#[derive(Debug, Default)]
pub struct Stopwatch {
    total_us: AtomicU64,
    since_us: AtomicU64,
}

impl Stopwatch {
    /// Counts from now until the result is dropped. While it runs already, this adds nothing: overlapping
    /// stretches are one.
    pub fn start(&self) -> Running<'_> {
        let since_us = now();
        let is_first = self.since_us.compare_exchange(0, since_us, Relaxed, Relaxed).is_ok();
        Running { watch: self, since_us: if is_first { since_us } else { 0 } }
    }

    /// All of it so far, with what is still going on.
    pub fn elapsed(&self) -> Duration {
        let since = self.since_us.load(Relaxed);
        let going_on = if since == 0 { 0 } else { now().saturating_sub(since) };
        Duration::from_micros(self.total_us.load(Relaxed) + going_on)
    }
}

/// A stretch of time being counted.
#[must_use = "it counts until it is dropped"]
#[derive(Debug)]
pub struct Running<'a> {
    watch: &'a Stopwatch,
    /// 0 if another stretch was going on already.
    since_us: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.since_us != 0 {
            self.watch.since_us.store(0, Relaxed);
            self.watch.total_us.fetch_add(now().saturating_sub(self.since_us), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(watch: &Stopwatch, until: Duration) {
        while watch.elapsed() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn time_is_told_while_it_passes_and_stays_when_it_has() {
        let watch = Stopwatch::default();
        let running = watch.start();
        spin(&watch, Duration::from_millis(1));
        let inner = watch.start();
        drop(inner);
        spin(&watch, Duration::from_millis(2));
        drop(running);
        let total = watch.elapsed();
        assert!(total >= Duration::from_millis(2));
        assert_eq!(watch.elapsed(), total, "nothing is going on");
        let again = watch.start();
        spin(&watch, total + Duration::from_millis(1));
        drop(again);
    }
}
