//! A share of a promise on loan: two hold it, and whoever is first says what becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Ack;

/// The share; nothing once somebody has had his say.
#[derive(Clone)]
struct Share(Arc<Mutex<Option<Ack>>>);

impl Share {
    fn lock(&self) -> MutexGuard<'_, Option<Ack>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Ack> {
        self.lock().take()
    }
}

/// The end of a loan that the lent promise has.
pub(super) struct Lent {
    share: Share,
    waiting: oneshot::Sender<()>,
}

/// The end of a loan that whoever has lent the share keeps: see [`Ack::lent`].
pub(crate) struct Loan {
    share: Share,
    ended: oneshot::Receiver<()>,
}

/// Both ends of a loan of this share.
pub(super) fn of(share: Ack) -> (Lent, Loan) {
    let share = Share(Arc::new(Mutex::new(Some(share))));
    let (waiting, ended) = oneshot::channel();
    (Lent { share: share.clone(), waiting }, Loan { share, ended })
}

impl Lent {
    /// The lent promise has its verdict.
    pub(super) fn give_back(self, kept: bool) {
        match self.share.take() {
            Some(share) if kept => share.deliver(),
            // Dropped, it counts as failed.
            _ => {}
        }
        // The other end may be gone: then there is nobody to tell.
        self.waiting.send(()).ok();
    }
}

impl Loan {
    /// Resolves once the lent promise has its verdict. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        // The other end is dropped with the promise at the latest.
        (&mut self.ended).await.ok();
    }

    /// Whether the lent promise has no verdict yet.
    pub(crate) fn is_open(&self) -> bool {
        self.share.lock().is_some()
    }

    /// Ends the loan as delivered; false if it had ended. Called by the engine alone.
    pub(crate) fn deliver(self) -> bool {
        self.share.take().map(Ack::deliver).is_some()
    }
}

#[cfg(test)]
mod tests {
    use crate::ack::Partition;
    use crate::position::Span;

    #[test]
    fn a_loan_ends_with_its_verdict_or_when_nobody_waits_any_more() {
        for (kept, in_time) in [(true, true), (false, true), (true, false), (false, false)] {
            let partition = Partition::new("p");
            let (lent, loan) = partition.open(Span::new(1, 1), 0).lent();
            let loan = loan.expect("somebody waits");
            assert_eq!(lent.span(), Some(("p", Span::new(1, 1))));
            let verdict = || if kept { lent.deliver() } else { drop(lent) };
            if in_time {
                verdict();
                assert!(!loan.deliver(), "it has ended");
            } else {
                assert!(loan.deliver());
                verdict();
            }
            assert_eq!(partition.progress().borrow().is_complete(), kept || !in_time);
            assert_eq!(partition.progress().borrow().failed, !kept && in_time);
        }
    }
}
