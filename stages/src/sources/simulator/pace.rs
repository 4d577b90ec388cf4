//! How the simulated clock runs beside the real one.

use std::time::Duration;

use tokio::time::Instant;

/// Messages are sent this often at most, all that have become due since. At 50,000 a second that is
/// 250 at once: few wake-ups, and nobody sees 5 ms.
const TICK: Duration = Duration::from_millis(5);
/// The longest single sleep. A due time may lie beyond what a timer can hold.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// The simulated clock: starts at a message's time and runs `speed` times as fast as the real one,
/// or is always far enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pacer {
    started: Instant,
    origin_us: i64,
    /// `None`: nothing ever waits.
    speed: Option<f64>,
}

impl Pacer {
    /// A clock that shows `origin_us` now.
    pub(super) fn start(origin_us: i64, speed: Option<f64>) -> Self {
        Self { started: Instant::now(), origin_us, speed }
    }

    /// Up to which time messages are due now.
    pub(super) fn due_by_us(&self) -> i64 {
        let Some(speed) = self.speed else { return i64::MAX };
        let simulated_us = self.started.elapsed().as_secs_f64() * speed * 1e6;
        self.origin_us.saturating_add(simulated_us as i64)
    }

    /// How far the real clock is past a due time.
    pub(super) fn behind(&self, due_us: i64) -> Duration {
        let Some(speed) = self.speed else { return Duration::ZERO };
        let late_us = self.due_by_us().saturating_sub(due_us).max(0);
        Duration::try_from_secs_f64(late_us as f64 / 1e6 / speed).unwrap_or(Duration::MAX)
    }

    /// How long to sleep before a message that is due then: not at all in a clock that never waits,
    /// at least a tick in one that does. The sleeper looks again, since one sleep has a bound.
    pub(super) fn sleep(&self, due_us: i64) -> Option<Duration> {
        let speed = self.speed?;
        let ahead_us = due_us.saturating_sub(self.due_by_us()).max(0);
        let ahead = Duration::try_from_secs_f64(ahead_us as f64 / 1e6 / speed).unwrap_or(SLEEP_MAX);
        // Rounded up, so that the message is due after one sleep and not just before.
        Some((ahead + Duration::from_micros(1)).clamp(TICK, SLEEP_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_without_pace_waits_for_nothing() {
        let pacer = Pacer::start(0, None);
        assert_eq!(pacer.due_by_us(), i64::MAX);
        assert_eq!(pacer.sleep(i64::MAX), None);
        assert_eq!(pacer.behind(0), Duration::ZERO);
    }

    #[test]
    fn a_fast_clock_shortens_the_sleep() {
        let hour = Duration::from_secs(3600);
        let sleep = |speed| Pacer::start(0, Some(speed)).sleep(hour.as_micros() as i64).expect("a paced clock");
        assert!(sleep(60.0) <= hour / 60 + TICK, "{:?}", sleep(60.0));
        assert!(sleep(60.0) > hour / 61, "{:?}", sleep(60.0));
        assert_eq!(sleep(1e-9), SLEEP_MAX);
        assert_eq!(sleep(1e9), TICK);
    }

    #[test]
    fn a_stall_makes_due_what_it_delayed_and_no_more() {
        let mut pacer = Pacer::start(1_000_000, Some(2.0));
        pacer.started -= Duration::from_secs(3);
        let due_by_us = pacer.due_by_us();
        let elapsed_us = pacer.started.elapsed().as_micros() as i64;
        assert!((7_000_000..=1_000_000 + 2 * (elapsed_us + 1)).contains(&due_by_us), "{due_by_us}");
        assert!(pacer.behind(1_000_000) >= Duration::from_secs(3));
        assert_eq!(pacer.behind(i64::MAX), Duration::ZERO);
    }
}
