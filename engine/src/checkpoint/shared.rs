//! Checkpoints of partitions that several workers share: each partition has its own, and a sink keeps them where the next
//! owner finds them.
//!
//! A checkpoint is a position and what every transform remembered there, in one piece: so the two always belong together,
//! whoever reads it. It is kept once every sink has stored everything before that position, and under the tenure, so that
//! a worker that has lost the partition can't put an older one in its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::store::{decode, encode};
use super::{Checkpoint, CheckpointStore, Gate, StateReport};
use crate::ack::{Partition, Progress};
use crate::error::StageError;
use crate::position::Position;
use crate::tenure::{SinkOrder, Tenures};

/// What each transform remembers of one partition.
type States = BTreeMap<String, Vec<u8>>;

/// Takes checkpoints of the partitions that this worker has.
pub(crate) struct SharedCheckpointer {
    /// Holds the data directory: this worker's own.
    pub _store: CheckpointStore,
    pub interval: Duration,
    pub gate: Arc<Gate>,
    pub tenures: Tenures,
    /// The sink that keeps them; `None` where there is none, and so no transform that remembers anything.
    pub keeper: Option<mpsc::UnboundedSender<SinkOrder>>,
    /// The names of all transforms.
    pub transforms: Vec<String>,
    pub reports: mpsc::UnboundedReceiver<StateReport>,
    pub last_id: u64,
    /// The last of each partition, with its tenure.
    pub kept: BTreeMap<String, (Option<u64>, Position)>,
}

/// A checkpoint as the next owner reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub position: Position,
    pub states: States,
}

impl Kept {
    fn encode(self, partition: &str) -> Vec<u8> {
        let positions = [(partition.to_owned(), self.position)].into();
        encode(&Checkpoint { id: 0, positions, states: self.states })
    }

    /// What a sink was given to keep.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StageError> {
        let damaged = || StageError::permanent("the kept checkpoint of a partition is damaged");
        let Checkpoint { positions, states, .. } = decode(bytes).ok_or_else(damaged)?;
        let position = positions.into_values().next().ok_or_else(damaged)?;
        Ok(Self { position, states })
    }
}

impl SharedCheckpointer {
    /// Takes checkpoints, every interval and when one is wanted, until `stop` turns true.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Self {
        loop {
            tokio::select! {
                biased;
                // The other end lives as long as the run.
                _ = stop.wait_for(|stop| *stop) => return self,
                () = self.take_next() => {}
            }
        }
    }

    async fn take_next(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(self.interval) => {}
            () = self.tenures.checkpoint_wanted() => {}
        }
        self.last_id += 1;
        let id = self.last_id;
        let places = self.gate.barrier(id).await;
        // The stages end: what they remembered went into the last one before that.
        let Some(mut states) = self.states_at(id).await else { return std::future::pending().await };
        for (partition, position) in places {
            let states = states.remove(partition.name()).unwrap_or_default();
            self.keep(&partition, Kept { position, states }).await;
        }
    }

    /// What every transform remembers at a barrier, by partition; `None` once one has ended.
    async fn states_at(&mut self, id: u64) -> Option<BTreeMap<String, States>> {
        let mut states: BTreeMap<String, States> = BTreeMap::new();
        let mut missing = self.transforms.len();
        while missing > 0 {
            let StateReport { transform, barrier, shares, .. } = self.reports.recv().await?;
            if barrier? == id {
                missing -= 1;
                for (partition, state) in shares {
                    states.entry(partition).or_default().insert(transform.clone(), state);
                }
            }
        }
        Some(states)
    }

    async fn keep(&mut self, partition: &Partition, checkpoint: Kept) {
        let (name, position) = (partition.name().to_owned(), checkpoint.position);
        let place = (partition.tenure(), position);
        if self.kept.get(&name) == Some(&place) || !is_stored(partition, position).await {
            return;
        }
        match self.hand_over(partition, checkpoint.encode(&name)).await {
            Ok(()) => {
                self.kept.insert(name, place);
                partition.set_checkpointed(position);
            }
            Err(error) if !error.superseded_partitions().is_empty() => partition.revoke(),
            Err(error) => tracing::warn!(
                partition = name,
                "a checkpoint could not be kept; the next one is tried in {:?}: {}",
                self.interval,
                error.chain()
            ),
        }
    }

    async fn hand_over(&self, partition: &Partition, checkpoint: Vec<u8>) -> Result<(), StageError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let (answer, answered) = oneshot::channel();
        let order = SinkOrder::Keep { partition: partition.clone(), checkpoint, answer };
        keeper.send(order).map_err(|_| StageError::reader_gone())?;
        answered.await.map_err(|_| StageError::reader_gone())?
    }
}

/// Waits until every sink has stored everything up to this position. False once somebody else may have the partition.
async fn is_stored(partition: &Partition, position: Position) -> bool {
    let reached = |progress: &Progress| progress.delivered.is_some_and(|delivered| delivered >= position);
    let stored = async {
        if !partition.starts_at(position) {
            partition.wait_for(reached).await;
        }
    };
    tokio::select! {
        biased;
        () = partition.revoked() => false,
        () = stored => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_checkpoint_is_read_back_and_a_damaged_one_is_told() {
        let kept = || Kept { position: Position::from(7), states: [("scored".to_owned(), vec![1, 2])].into() };
        let mut bytes = kept().encode("in/shard");
        assert_eq!(Kept::decode(&bytes).unwrap(), kept());
        bytes[9] ^= 1;
        assert!(Kept::decode(&bytes).is_err());
    }
}
