//! What the spool does beside its callers: work that goes in turns, each as far as it can now, with a
//! thread that waits between them.
//!
//! The turns know nothing of the thread, so that a simulation can take them in virtual time.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait to be woken.
    Wait,
    /// Wait to be woken, at most so long.
    WaitAtMost(Duration),
    /// There will be nothing more to do.
    End,
}

/// Work that is done in turns until it ends.
pub(crate) trait Work: Send + 'static {
    /// Does what can be done now. May be called before the time, and then does nothing.
    fn turn(&mut self) -> Next;

    /// What wakes it.
    fn wake(&self) -> &Wake;
}

/// Wakes a worker. A call while it is at work is not lost: its next wait ends at once.
#[derive(Default)]
pub(crate) struct Wake {
    called: Mutex<bool>,
    calls: Condvar,
    #[cfg(test)]
    simulated_calls: tokio::sync::Notify,
}

impl Wake {
    pub fn call(&self) {
        *self.called.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.calls.notify_one();
        #[cfg(test)]
        self.simulated_calls.notify_one();
    }

    fn wait(&self, at_most: Option<Duration>) {
        let called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        let mut called = match at_most {
            None => self.calls.wait_while(called, |called| !*called).unwrap_or_else(PoisonError::into_inner),
            Some(at_most) => {
                let waited = self.calls.wait_timeout_while(called, at_most, |called| !*called);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        *called = false;
    }
}

/// Somebody at work.
pub(crate) struct Worker {
    /// `None` once it was waited for, and in a simulation.
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &str, mut work: impl Work) -> io::Result<Self> {
        #[cfg(test)]
        if crate::simulated::is_on() {
            tokio::spawn(simulated::take_turns(work));
            return Ok(Self { thread: None });
        }
        let turns = move || loop {
            match work.turn() {
                Next::Wait => work.wake().wait(None),
                Next::WaitAtMost(at_most) => work.wake().wait(Some(at_most)),
                Next::End => return,
            }
        };
        Builder::new().name(name.to_owned()).spawn(turns).map(|thread| Self { thread: Some(thread) })
    }

    /// Waits until it has ended. Blocks, so it must have been told to end.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // An error is a panic of its own, of which the status tells already.
            drop(thread.join());
        }
    }
}

/// The time that workers go by.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if crate::simulated::is_on() {
        return tokio::time::Instant::now().into_std();
    }
    Instant::now()
}

/// Waits on the caller's thread.
pub(crate) fn pause(wait: Duration) {
    #[cfg(test)]
    if crate::simulated::is_on() {
        return;
    }
    std::thread::sleep(wait);
}

#[cfg(test)]
mod simulated {
    use tokio::time::timeout;

    use super::{Next, Work};
    use crate::simulated::disk_latency;

    /// What the thread does otherwise; each turn takes a while.
    pub(super) async fn take_turns(mut work: impl Work) {
        loop {
            disk_latency().await;
            match work.turn() {
                Next::Wait => work.wake().simulated_calls.notified().await,
                Next::WaitAtMost(at_most) => {
                    // Either is a reason to look again.
                    timeout(at_most, work.wake().simulated_calls.notified()).await.ok();
                }
                Next::End => return,
            }
        }
    }
}
