//! Figures that a stage counts itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter that a stage keeps by name. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts some more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A figure that goes up and down. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is so much now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// How much it is.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a source has taken in from outside and passed on, in records of its own: messages, lines. Clones
/// count together.
#[derive(Debug, Clone, Default)]
pub struct IntakeStats {
    /// Taken in by this run, or kept for it by an earlier one.
    pub received: Counter,
    /// Decoded or refused, and sent into the pipeline.
    pub passed_on: Counter,
    /// The number of the last record that was taken in.
    pub taken_to: Gauge,
    /// The number of the last record that was passed on.
    pub passed_to: Gauge,
}

impl IntakeStats {
    /// Records received and not passed on yet: by their numbers, not as the difference of the counts.
    pub fn waiting(&self) -> u64 {
        self.taken_to.get().saturating_sub(self.passed_to.get())
    }
}

/// Until when the certificates of a stage's connections are good, in seconds since 1970; 0 where none was seen. Clones are the
/// same ones.
#[derive(Debug, Clone, Default)]
pub struct CertificateStats {
    /// The first to end of those that we show.
    pub own: Gauge,
    /// The first to end of those that the server has shown last.
    pub server: Gauge,
}

/// How many devices a stage knows that follows them. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct DeviceStats {
    /// Heard at some time, and not forgotten.
    pub known: Gauge,
    /// Of these, heard as recently as is usual for them.
    pub connected: Gauge,
}
