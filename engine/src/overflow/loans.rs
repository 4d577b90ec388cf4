//! Promises on loan: the source waits for rows that an optional sink has taken in, but only so long.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::ack::Loan;
use crate::batch::Batch;

/// The promises for rows that an optional sink has in its hands.
pub(crate) struct Loans {
    patience: Duration,
    /// In order of time.
    open: VecDeque<(Instant, Loan)>,
    /// That it takes too long was said.
    told: bool,
}

impl Loans {
    /// Each is waited for so long.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, open: VecDeque::new(), told: false }
    }

    /// The batch with its promise on loan.
    pub(super) fn lend(&mut self, batch: Batch) -> Batch {
        // Mostly the sink stores in time: then nothing is to be looked at.
        while self.open.pop_front_if(|(_, loan)| !loan.is_open()).is_some() {}
        let (ack, loan) = batch.ack.lent();
        self.open.extend(loan.map(|loan| (Instant::now() + self.patience, loan)));
        Batch::new(batch.rows, ack)
    }

    /// Resolves when it is time to look at the oldest loan. Cancel safe.
    pub(super) async fn next_late(loans: Option<&Self>) {
        match loans.and_then(|loans| loans.open.front()) {
            Some((until, _)) => sleep_until(*until).await,
            None => std::future::pending().await,
        }
    }

    /// What the sink of that name has not stored in time is not waited for any more. It may store it yet.
    pub(super) fn stop_waiting(&mut self, sink: &str) {
        let now = Instant::now();
        let mut late = 0;
        while let Some((_, loan)) = self.open.pop_front_if(|(until, _)| *until <= now) {
            late += usize::from(loan.deliver());
        }
        if late > 0 && !self.told {
            tracing::warn!(
                to = sink,
                "an optional sink has stored nothing for {:?}: nobody waits for it any more, and what it has taken in is lost to it in a crash",
                self.patience
            );
        }
        self.told = late > 0;
    }

    /// Waits for all that are open, each as long as it was to be waited for.
    pub(super) async fn wait(self) {
        for (until, mut loan) in self.open {
            if timeout_at(until, loan.ended()).await.is_err() {
                loan.deliver();
            }
        }
    }
}
