//! Waiting for an outside that is away, as sinks and transforms do.

use std::time::Duration;

use crate::error::{Fault, StageError};
use crate::retry::Backoff;
use crate::stats::{StageState, StageStats};

/// How long to wait between two attempts where a person has to mend something.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Waits between attempts: not long for an outside that will come back, longer for one that a person has
/// to mend.
pub(super) struct Patience {
    backoff: Backoff,
    pauses: bool,
}

impl Patience {
    pub fn new(pauses: bool) -> Self {
        Self { backoff: Backoff::default(), pauses }
    }

    /// # Errors
    /// The error, if trying again is no use.
    pub async fn wait(&mut self, error: StageError, stats: &StageStats, what: &str) -> Result<(), StageError> {
        let wait = match error.fault() {
            Fault::Transient => {
                stats.set_state(StageState::Retrying);
                let wait = self.backoff.next_wait();
                let attempt = self.backoff.attempts();
                let ms = wait.as_millis();
                let cause = error.chain();
                tracing::warn!(stage = stats.name, attempt, "could not {what}: {cause}; trying again in {ms} ms");
                wait
            }
            Fault::Permanent if self.pauses => {
                stats.set_state(StageState::Paused);
                self.backoff.next_wait();
                let wait = Duration::from_secs(1 << self.backoff.attempts().min(5)).min(PAUSE_MAX);
                let (seconds, cause) = (wait.as_secs(), error.chain());
                tracing::error!(stage = stats.name, "paused, could not {what}, trying again in {seconds} s: {cause}");
                wait
            }
            Fault::Permanent | Fault::Data | Fault::Bug => return Err(error),
        };
        stats.failed_once(error.chain());
        let _waits_for_outside = stats.blocked.start();
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// It worked.
    pub fn is_over(&self, stats: &StageStats) {
        if self.backoff.attempts() > 0 {
            tracing::info!(stage = stats.name, "stores again after {} attempts", self.backoff.attempts());
        }
        stats.set_state(StageState::Running);
    }
}
