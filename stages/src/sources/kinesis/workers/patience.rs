//! Requests to the table of leases that it asks to wait with.

use std::time::Duration;

use pipeline_engine::Backoff;
use pipeline_engine::stage::{Fault, StageError};

use crate::aws::fault::{self, ProvideErrorMetadata, SdkError};

/// So often a request is sent that is throttled, before whoever sent it is told.
const ATTEMPTS_MAX: u32 = 5;
/// All waits together fit several times into the shortest lease.
const WAIT_FIRST: Duration = Duration::from_millis(25);
const WAIT_MAX: Duration = Duration::from_millis(200);

/// Sends a request, and again while it is throttled. Nothing else is tried again at once: of a change whose answer was lost
/// nobody knows whether it was made, and made twice its condition would not hold.
pub(super) async fn unless_throttled<T, E, R, F>(
    mut throttled: impl FnMut(),
    send: impl Fn() -> F,
) -> Result<T, SdkError<E, R>>
where
    F: Future<Output = Result<T, SdkError<E, R>>>,
    E: ProvideErrorMetadata,
{
    let mut backoff = Backoff::new(WAIT_FIRST, WAIT_MAX);
    loop {
        match send().await {
            Err(error) if fault::code_of(&error).is_some_and(fault::is_throttled) => {
                throttled();
                let wait = backoff.next_wait();
                if backoff.attempts() >= ATTEMPTS_MAX {
                    return Err(error);
                }
                tokio::time::sleep(wait).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the table is there and has answered, so that the next request may fare better.
pub(super) fn may_pass(error: &StageError) -> bool {
    error.fault() == Fault::Transient && error.outside_code().is_some()
}
