//! How often something has happened lately.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// What is older is forgotten.
const WITHIN: Duration = Duration::from_secs(60);

/// When something happened in the last minute.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Instant>);

impl Recent {
    /// It happens now. Answers how often it has, this time included.
    pub(super) fn again(&mut self) -> usize {
        let now = Instant::now();
        self.0.push_back(now);
        self.0.retain(|at| now - *at < WITHIN);
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_last_minute_counts() {
        let mut recent = Recent::default();
        assert_eq!(recent.again(), 1);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(recent.again(), 2);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(recent.again(), 2);
    }
}
