//! A stream forgets: tells a person while there is still time.

use std::time::Duration;

/// The lag at which a person is told, as a part of what the stream keeps.
const WARN: f64 = 0.5;

/// What a stream keeps, and whether anybody was told that reading is too far behind.
pub(super) struct Retention {
    kept: Duration,
    has_warned: bool,
}

impl Retention {
    pub(super) fn of_hours(hours: i64) -> Self {
        Self { kept: Duration::from_secs(u64::try_from(hours).unwrap_or(0) * 3600), has_warned: false }
    }

    /// Reading is so far behind the tip.
    pub(super) fn look(&mut self, stage: &str, behind: Duration) {
        let is_late = !self.kept.is_zero() && behind > self.kept.mul_f64(WARN);
        if is_late && !self.has_warned {
            let (behind, kept) = (behind.as_secs() / 3600, self.kept.as_secs() / 3600);
            tracing::error!(
                stage,
                "{behind} hours behind the tip of a stream that keeps {kept}: what is older is lost. Raise its retention \
                 (`aws kinesis increase-stream-retention-period`), or see what holds the pipeline up"
            );
        }
        self.has_warned = is_late;
    }
}
