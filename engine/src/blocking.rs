//! The one place where work that blocks leaves the runtime's threads.

use tokio::task::JoinError;

/// Does what would hold up other tasks on a thread for such work. When the future is dropped, the work
/// is done all the same.
///
/// # Errors
/// The work has panicked, or the runtime is shutting down.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(test)]
    if crate::simulated::is_on() {
        // One after the other on one thread, or no run would be like another. A process may end before
        // the work, or after it and before anybody knows.
        crate::simulated::disk_latency().await;
        let done = work();
        crate::simulated::disk_latency().await;
        return Ok(done);
    }
    tokio::task::spawn_blocking(work).await
}

/// As [`off_the_runtime`], before a run has begun: where it is simulated, nothing happens meanwhile.
///
/// # Errors
/// As there.
pub(crate) async fn off_the_runtime_at_start<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(test)]
    if crate::simulated::is_on() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
