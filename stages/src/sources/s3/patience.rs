//! How a store or a queue is asked again that has failed.

use std::time::Duration;

use pipeline_engine::stage::{SourceContext, StageError};
use pipeline_engine::{Backoff, Outside};

/// Waits before one thing is asked again, as long as that takes, and says why: in the state of the source, and in the log the
/// first time and then now and again.
///
/// A clone is for another thing. Dropped, or with `is_over`, it is answered.
#[derive(Debug)]
pub(super) struct Patience {
    stage: String,
    outside: Outside,
    backoff: Backoff,
}

impl Patience {
    pub(super) fn new(cx: &SourceContext, stage: &str) -> Self {
        Self { stage: stage.to_owned(), outside: cx.outside(), backoff: Backoff::default() }
    }

    /// The same with waits of its own.
    pub(super) fn with(&self, backoff: Backoff) -> Self {
        Self { stage: self.stage.clone(), outside: self.outside.clone(), backoff }
    }

    /// Waits before the next try.
    pub(super) async fn wait_after(&mut self, error: &StageError) {
        let wait = self.backoff.next_wait().max(Duration::from_millis(50));
        if self.backoff.attempts() == 1 || self.backoff.attempts().is_multiple_of(20) {
            tracing::warn!(stage = self.stage, "{}; trying again", error.chain());
        }
        self.outside.failed(error);
        tokio::time::sleep(wait).await;
    }

    /// What was asked has answered.
    pub(super) fn is_over(&mut self) {
        self.backoff.reset();
        self.outside.is_back();
    }
}

impl Clone for Patience {
    fn clone(&self) -> Self {
        self.with(Backoff::default())
    }
}
