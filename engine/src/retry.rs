//! The one place that waits before trying again.

use std::time::Duration;

use rand::RngExt;

/// Exponential backoff with full jitter: each wait is random between zero and a bound that doubles.
///
/// Full jitter, so that many workers that lost one database do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Default for Backoff {
    /// From 0.1 s to 30 s: short enough that a restart of a database is not felt, long enough that an
    /// hour of outage is a few hundred attempts.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

impl Backoff {
    /// Waits of at most `first`, then twice that, up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempt: 0 }
    }

    /// How long to wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.attempt.min(20)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(jitter())
    }

    /// The attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// It worked: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// From 0 to below 1.
fn jitter() -> f64 {
    #[cfg(test)]
    if let Some(jitter) = crate::simulated::jitter() {
        return jitter;
    }
    rand::rng().random_range(0.0..1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_bound_that_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound_ms in [100, 200, 400, 800, 1000, 1000] {
            assert!(backoff.next_wait() <= Duration::from_millis(bound_ms));
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
