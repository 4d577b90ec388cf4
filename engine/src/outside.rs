//! What a source depends on outside, and whether it answers.

use std::fmt;
use std::sync::Arc;

use crate::error::StageError;
use crate::stats::StageStats;

/// One thing outside that a source depends on: a connection, a shard, a queue. While any of them fails, the source is
/// `retrying`, with the last error beside it, and is named as what holds the pipeline up.
///
/// A clone stands for another thing, which has not failed. Dropped, it is asked no more.
pub struct Outside {
    stats: Arc<StageStats>,
    fails: bool,
}

impl Outside {
    pub(crate) fn of(stats: Arc<StageStats>) -> Self {
        Self { stats, fails: false }
    }

    /// It has not done what it was asked, and is asked again.
    pub fn failed(&mut self, error: &StageError) {
        self.stats.failed_once(error.chain());
        if !self.fails {
            self.fails = true;
            self.stats.outside_fails();
        }
    }

    /// It does what it is asked.
    pub fn is_back(&mut self) {
        if self.fails {
            self.fails = false;
            self.stats.outside_is_back();
        }
    }
}

impl Clone for Outside {
    fn clone(&self) -> Self {
        Self::of(self.stats.clone())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.is_back();
    }
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("stage", &self.stats.name).field("fails", &self.fails).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Port;
    use crate::stats::StageState;

    #[test]
    fn a_source_is_retrying_as_long_as_anything_outside_fails() {
        let stats = Arc::new(StageStats::new("telemetry", "kinesis", "source", &[Port::MAIN]));
        stats.set_state(StageState::Running);
        let mut first = Outside::of(stats.clone());
        let mut second = first.clone();
        first.failed(&StageError::transient("shard 1 was not read"));
        first.failed(&StageError::transient("shard 1 was not read again"));
        second.failed(&StageError::transient("shard 2 was not read"));
        assert_eq!((stats.state(), stats.retries()), (StageState::Retrying, 3));
        assert_eq!(stats.last_error().as_deref(), Some("shard 2 was not read"));
        first.is_back();
        first.is_back();
        assert_eq!(stats.state(), StageState::Retrying);
        drop(second);
        assert_eq!(stats.state(), StageState::Running);

        // What the run itself has said stays: a source that has ended does not run.
        first.failed(&StageError::transient("shard 1 was not read"));
        stats.set_state(StageState::Ended);
        drop(first);
        assert_eq!(stats.state(), StageState::Ended);
    }
}
