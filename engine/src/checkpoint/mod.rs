//! Checkpoints: how far the whole pipeline has come, with the state of its transforms at that place.
//!
//! Every interval a *barrier* is put between two batches of each source. A transform hands out its
//! state when the barrier has come on all of its edges, and passes it on; so the states belong to one
//! place in the sources. The checkpoint is kept once every sink has stored everything before that
//! place: from then on a restart reads on after it, with those states, and the source may forget what
//! lies before.
//!
//! **Guarantee.** Only such complete checkpoints come to disk. What was read after the last one is read
//! again after a crash; transforms, being deterministic, make the same rows of it, and a sink that keeps
//! positions with its rows leaves out what it has.

mod gate;
mod shared;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, watch};

use crate::ack::Progress;
use crate::blocking::off_the_runtime;
use crate::position::Position;
#[cfg(test)]
use crate::simulated::{self, PlantedBug};

pub(crate) use gate::{Gate, Place, Shut};
pub(crate) use shared::{Kept, SharedCheckpointer};
pub(crate) use store::{Checkpoint, CheckpointStore};

/// What a transform says of its state.
#[derive(Debug)]
pub(crate) struct StateReport {
    /// The transform, by name.
    pub transform: String,
    /// The barrier it stands at; `None` once its input has ended.
    pub barrier: Option<u64>,
    /// `None` for a transform without state.
    pub state: Option<Vec<u8>>,
    /// Of partitions that several workers share, what it remembers of each.
    pub shares: Vec<(String, Vec<u8>)>,
}

/// The reporting end that a transform has.
pub(crate) type Reports = mpsc::UnboundedSender<StateReport>;

/// Takes checkpoints while a pipeline runs.
pub(crate) struct Checkpointer {
    pub store: Arc<CheckpointStore>,
    pub interval: Duration,
    pub gates: Vec<Arc<Gate>>,
    /// The names of all transforms.
    pub transforms: Vec<String>,
    pub reports: mpsc::UnboundedReceiver<StateReport>,
    /// The checkpoint that the run started from.
    pub last: Checkpoint,
    /// The last state of each transform that has ended.
    pub ended: BTreeMap<String, Option<Vec<u8>>>,
}

impl Checkpointer {
    /// Takes a checkpoint every interval, until `stop` turns true; then gives up the one that waits for
    /// the sinks and hands itself back for [`Checkpointer::finish`].
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Self {
        loop {
            let (id, places, states) = tokio::select! {
                biased;
                // The other end lives as long as the run.
                _ = stop.wait_for(|stop| *stop) => return self,
                complete = self.take() => complete,
            };
            // Never given up midway: two writes at once would be in each other's way.
            self.keep(id, &places, states).await;
        }
    }

    /// The next checkpoint that differs from the last, once it is complete.
    async fn take(&mut self) -> (u64, Vec<Place>, BTreeMap<String, Vec<u8>>) {
        loop {
            tokio::time::sleep(self.interval).await;
            if self.is_further(&self.sent().await) {
                break;
            }
        }
        let id = self.last.id + 1;
        let places: Vec<Place> = join_all(self.gates.iter().map(|gate| gate.barrier(id))).await.concat();
        let states = self.states_at(id).await;
        #[cfg(test)]
        if simulated::has_planted(PlantedBug::CheckpointBeforeSinks) {
            return (id, places, states);
        }
        delivered(&places, &self.last.positions).await;
        (id, places, states)
    }

    /// After every stage has ended well: what they ended with.
    pub(crate) async fn finish(mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.note(report);
        }
        let places = self.sent().await;
        let states = std::mem::take(&mut self.ended).into_iter().filter_map(|(name, state)| Some((name, state?)));
        let states = states.collect();
        if self.is_further(&places) || states != self.last.states {
            self.keep(self.last.id + 1, &places, states).await;
        }
    }

    async fn sent(&self) -> Vec<Place> {
        join_all(self.gates.iter().map(|gate| gate.sent())).await.concat()
    }

    /// Whether anything was sent since the last checkpoint. Sources that are no longer part of the
    /// pipeline keep their places in it.
    fn is_further(&self, places: &[Place]) -> bool {
        places.iter().any(|(partition, position)| self.last.positions.get(partition.name()) != Some(position))
    }

    /// The state of every transform at a barrier.
    async fn states_at(&mut self, id: u64) -> BTreeMap<String, Vec<u8>> {
        let mut at_barrier = BTreeMap::new();
        while self.transforms.iter().any(|name| !at_barrier.contains_key(name) && !self.ended.contains_key(name)) {
            let Some(report) = self.reports.recv().await else { break };
            if report.barrier == Some(id) {
                at_barrier.insert(report.transform, report.state);
            } else {
                self.note(report);
            }
        }
        let mut states = self.ended.clone();
        states.append(&mut at_barrier);
        states.into_iter().filter_map(|(name, state)| Some((name, state?))).collect()
    }

    fn note(&mut self, report: StateReport) {
        if report.barrier.is_none() {
            self.ended.insert(report.transform, report.state);
        }
    }

    async fn keep(&mut self, id: u64, places: &[Place], states: BTreeMap<String, Vec<u8>>) {
        let mut positions = self.last.positions.clone();
        positions.extend(positions_of(places));
        let checkpoint = Checkpoint { id, positions, states };
        let store = self.store.clone();
        let kept = off_the_runtime(move || store.keep(&checkpoint).map(|()| checkpoint)).await;
        match kept {
            Ok(Ok(checkpoint)) => {
                tracing::debug!(id, "checkpoint kept");
                self.last = checkpoint;
                places.iter().for_each(|(partition, position)| partition.set_checkpointed(*position));
            }
            Ok(Err(error)) => {
                // Nothing is lost by it: a restart reads again from the one before.
                tracing::warn!(%error, "a checkpoint could not be kept; the next one is tried in {:?}", self.interval);
                self.last.id = id;
            }
            Err(panic) => tracing::error!(%panic, "keeping a checkpoint panicked"),
        }
    }
}

fn positions_of(places: &[Place]) -> BTreeMap<String, Position> {
    places.iter().map(|(partition, position)| (partition.name().to_owned(), *position)).collect()
}

/// Resolves once every sink has stored everything up to these places. Never after a failure.
async fn delivered(places: &[Place], already: &BTreeMap<String, Position>) {
    for (partition, position) in places {
        if already.get(partition.name()).is_some_and(|already| already >= position) {
            continue;
        }
        let reached = |progress: &Progress| progress.delivered.is_some_and(|delivered| delivered >= *position);
        partition.wait_for(reached).await;
    }
}
