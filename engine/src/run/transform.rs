//! Runs a transform: one batch in, what it emits out, in order; its state out at each barrier.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::compute::concat_batches;
use tokio_util::sync::CancellationToken;

use super::patience::Patience;
use crate::ack::Partition;
use crate::balance::TAKEN_OVER;
use crate::batch::Batch;
use crate::blocking::off_the_runtime_at_start;
use crate::checkpoint::{Reports, StateReport};
use crate::error::StageError;
use crate::queue::{Arrival, Closed, Inbox, Outbox};
use crate::registry::Anew;
use crate::stage::{Emitter, Port, Transform};
use crate::stats::{StageState, StageStats};
use crate::tenure::Tenures;

/// Opens a transform, waiting for what it reads from outside as long as it takes.
pub(super) async fn open(transform: &mut Box<dyn Transform>, stats: &StageStats) -> Result<(), StageError> {
    let mut patience = Patience::new(false);
    loop {
        match open_once(transform).await {
            Ok(()) => {
                stats.set_state_if(StageState::Retrying, StageState::Starting);
                return Ok(());
            }
            Err(error) => patience.wait(error, stats, "open").await?,
        }
    }
}

/// Opens a transform where it holds up nobody: an outside that does not answer must not keep a stop from being heard. Not
/// cancel safe: when the future is dropped the attempt goes on, and takes the transform with it.
pub(super) async fn open_once(transform: &mut Box<dyn Transform>) -> Result<(), StageError> {
    let mut opening = std::mem::replace(transform, Box::new(Away));
    let attempt = off_the_runtime_at_start(move || {
        let outcome = opening.open();
        (opening, outcome)
    });
    let (opened, outcome) =
        attempt.await.map_err(|panic| StageError::bug("opening the transform panicked").because(panic))?;
    *transform = opened;
    outcome
}

/// In the place of a transform that is being opened.
struct Away;

impl Transform for Away {
    fn apply(&mut self, _: Batch, _: &mut Emitter) -> Result<(), StageError> {
        Err(StageError::bug("a transform was run whose opening had been given up"))
    }
}

pub(super) struct TransformTask {
    pub transform: Box<dyn Transform>,
    pub outbox: Outbox,
    pub stats: Arc<StageStats>,
    /// `None` where no checkpoints are taken.
    pub reports: Option<Reports>,
    /// The run was asked to stop.
    pub stopping: CancellationToken,
    /// Where several workers share the source: one instance for each partition that this one has.
    pub shares: Option<Shares>,
}

/// Instances of a transform that remembers something, by partition: what one remembers moves with its partition.
pub(super) struct Shares {
    anew: Anew,
    tenures: Tenures,
    instances: BTreeMap<String, Share>,
}

struct Share {
    partition: Partition,
    transform: Box<dyn Transform>,
}

impl Shares {
    /// `None` for a transform that remembers nothing: one instance is enough for all partitions.
    pub(super) fn of(transform: &dyn Transform, anew: Option<Anew>, tenures: &Tenures) -> Option<Self> {
        transform.snapshot()?;
        Some(Self { anew: anew?, tenures: tenures.clone(), instances: BTreeMap::new() })
    }

    /// The instance of a tenure; a new one goes on from what was remembered where the tenure begins. `None` where a later
    /// tenure of the partition has begun.
    async fn instance(
        &mut self,
        partition: &Partition,
        stats: &StageStats,
    ) -> Result<Option<&mut Box<dyn Transform>>, StageError> {
        let known = self.instances.get(partition.name()).map(|share| share.partition.tenure());
        if known > Some(partition.tenure()) {
            return Ok(None);
        }
        if known != Some(partition.tenure()) {
            let built = (self.anew)();
            let mut transform =
                built.map_err(|error| StageError::bug("a transform can't be built twice").because(error))?.transform;
            open(&mut transform, stats).await?;
            for (number, state) in partition.states_of(&stats.name).iter().enumerate() {
                let taken = if number == 0 { transform.restore(state) } else { transform.absorb(state) };
                if let Err(error) = taken {
                    let (stage, partition) = (&stats.name, partition.name());
                    tracing::warn!(stage, partition, "goes on without what was remembered: {}", error.chain());
                }
            }
            self.instances.insert(partition.name().to_owned(), Share { partition: partition.clone(), transform });
        }
        Ok(self.instances.get_mut(partition.name()).map(|share| &mut share.transform))
    }

    /// What is remembered of each partition that this worker has, those included of which no row has come yet.
    async fn snapshots(&mut self, stats: &StageStats) -> Result<Vec<(String, Vec<u8>)>, StageError> {
        let active = self.tenures.active();
        let is_active = |share: &Share| {
            active.iter().any(|partition| {
                partition.name() == share.partition.name() && partition.tenure() == share.partition.tenure()
            })
        };
        self.instances.retain(|_, share| is_active(share));
        let mut snapshots = Vec::new();
        for partition in &active {
            if let Some(transform) = self.instance(partition, stats).await?
                && let Some(state) = transform.snapshot()
            {
                snapshots.push((partition.name().to_owned(), state));
            }
        }
        Ok(snapshots)
    }
}

impl TransformTask {
    pub(super) async fn run(mut self, mut inbox: Inbox) -> Result<(), StageError> {
        let mut emitter = Emitter::default();
        while let Some(arrival) = inbox.next().await {
            match arrival {
                Arrival::Batch(_, batch) => {
                    let given = batch.rows.num_rows();
                    self.stats.entered(given);
                    self.stats.taken_in_hand(given);
                    let stats = self.stats.clone();
                    let busy = stats.busy.start();
                    let is_taken_over = !self.apply(batch, &mut emitter).await?;
                    drop(busy);
                    if is_taken_over {
                        self.stats.counter(TAKEN_OVER).add(given as u64);
                        self.stats.out_of_hand(given);
                        continue;
                    }
                    #[cfg(test)]
                    crate::simulated::work().await;
                    self.send_all(given, &mut emitter).await?;
                    self.stats.out_of_hand(given);
                }
                Arrival::Barrier(id) => {
                    self.report(Some(id)).await?;
                    self.outbox.barrier(id);
                }
            }
        }
        self.report(None).await?;
        // The next run goes on from the state: what is half done then is not done yet.
        if self.reports.is_some() && self.stopping.is_cancelled() {
            return Ok(());
        }
        self.transform.finish(&mut emitter)?;
        for share in self.shares.iter_mut().flat_map(|shares| shares.instances.values_mut()) {
            share.transform.finish(&mut emitter)?;
        }
        self.send_all(0, &mut emitter).await
    }

    /// False where somebody else has the batch's partition now: the batch is given up.
    async fn apply(&mut self, batch: Batch, emitter: &mut Emitter) -> Result<bool, StageError> {
        let partition = batch.ack.partition().filter(|partition| partition.tenure().is_some()).cloned();
        let (Some(shares), Some(partition)) = (&mut self.shares, partition) else {
            self.transform.apply(batch, emitter)?;
            return Ok(true);
        };
        if partition.is_revoked() {
            return Ok(false);
        }
        let Some(transform) = shares.instance(&partition, &self.stats).await? else { return Ok(false) };
        transform.apply(batch, emitter)?;
        Ok(true)
    }

    async fn report(&mut self, barrier: Option<u64>) -> Result<(), StageError> {
        let shares = match &mut self.shares {
            Some(shares) if barrier.is_some() => shares.snapshots(&self.stats).await?,
            _ => Vec::new(),
        };
        if let Some(reports) = &self.reports {
            let state = self.transform.snapshot();
            // Without a reader the run is ending, and this checkpoint with it.
            reports.send(StateReport { transform: self.stats.name.clone(), barrier, state, shares }).ok();
        }
        Ok(())
    }

    async fn send_all(&mut self, given: usize, emitter: &mut Emitter) -> Result<(), StageError> {
        let emitted = joined(emitter.take())?;
        let passed_on = emitted.iter().filter(|(port, _)| self.stats.passes_on(*port));
        self.stats.transformed(given, passed_on.map(|(_, batch)| batch.rows.num_rows()).sum());
        for (port, batch) in emitted {
            let rows = batch.rows.num_rows();
            self.stats.shows(port, &batch);
            let _waits_for_room = self.stats.blocked.start();
            self.outbox.send(port, batch).await.map_err(|Closed| StageError::reader_gone())?;
            self.stats.left(port, rows);
        }
        Ok(())
    }
}

/// One batch a port for each promise: a sink that has come to a position has then had all rows of it.
fn joined(emitted: Vec<(Port, Batch)>) -> Result<Vec<(Port, Batch)>, StageError> {
    let mut joined: Vec<(Port, Batch)> = Vec::with_capacity(emitted.len());
    for (port, batch) in emitted {
        let same = |(other, before): &&mut (Port, Batch)| *other == port && before.ack.is_of_same_promise(&batch.ack);
        match joined.iter_mut().find(same) {
            Some((_, before)) if batch.rows.num_rows() > 0 => {
                before.rows = concat_batches(&before.rows.schema(), [&before.rows, &batch.rows])?;
                // The rows are owed by the share that they have joined.
                batch.ack.deliver();
            }
            Some(_) => batch.ack.deliver(),
            None => joined.push((port, batch)),
        }
    }
    Ok(joined)
}
