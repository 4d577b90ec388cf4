//! The memory that posts share, and wait for.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::body::Bounds;
use super::refusal::Refusal;

/// How long a post waits for memory before it is told to come again. Those that wait may hold memory themselves that others wait
/// for: none waits for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// What memory is counted in: a semaphore counts to 2^29 on the smallest machines.
const UNIT_BYTES: usize = 4096;

/// The memory of all posts.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    units: Arc<Semaphore>,
}

/// What one post has taken of it; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub(super) fn new(bounds: Bounds) -> Self {
        let units = units(bounds.memory_bytes_max).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)) }
    }

    /// Nothing taken yet.
    pub(super) fn room(&self) -> Room {
        Room { units: self.units.clone(), permit: None }
    }

    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> usize {
        self.units.available_permits() * UNIT_BYTES
    }
}

impl Room {
    fn taken(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Takes what is missing to so many bytes, and waits for it.
    ///
    /// # Errors
    /// Others have it for too long.
    pub(super) async fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        let missing = units(bytes).saturating_sub(self.taken());
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        match timeout(PATIENCE, self.units.clone().acquire_many_owned(missing)).await {
            Ok(Ok(more)) => {
                match &mut self.permit {
                    Some(permit) => permit.merge(more),
                    None => self.permit = Some(more),
                }
                Ok(())
            }
            // It is never closed.
            Ok(Err(_)) | Err(_) => {
                Err(Refusal::later("too many posts at once: memory_max is taken", Duration::from_secs(5)))
            }
        }
    }

    /// Gives back what is beyond so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.taken().saturating_sub(units(bytes));
        drop(self.permit.as_mut().and_then(|permit| permit.split(surplus)));
    }

    /// Parts with so many bytes of it, as far as there are.
    pub(super) fn part(&mut self, bytes: usize) -> Self {
        let part = units(bytes).min(self.taken());
        Self { units: self.units.clone(), permit: self.permit.as_mut().and_then(|permit| permit.split(part)) }
    }

    /// The bytes that lie in it: it is given back once nobody holds a part of them.
    pub(super) fn hold(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Held { bytes, _room: self })
    }
}

struct Held {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}
