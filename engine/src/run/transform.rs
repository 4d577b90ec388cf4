//! Runs a transform: one batch in, what it emits out, in order; its state out at each barrier.

use std::sync::Arc;

use arrow::compute::concat_batches;
use tokio_util::sync::CancellationToken;

use super::patience::Patience;
use crate::batch::Batch;
use crate::blocking::off_the_runtime_at_start;
use crate::checkpoint::{Reports, StateReport};
use crate::error::StageError;
use crate::queue::{Arrival, Closed, Inbox, Outbox};
use crate::stage::{Emitter, Port, Transform};
use crate::stats::{StageState, StageStats};

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
                    let busy = self.stats.busy.start();
                    self.transform.apply(batch, &mut emitter)?;
                    drop(busy);
                    #[cfg(test)]
                    crate::simulated::work().await;
                    self.send_all(given, &mut emitter).await?;
                    self.stats.out_of_hand(given);
                }
                Arrival::Barrier(id) => {
                    self.report(Some(id));
                    self.outbox.barrier(id);
                }
            }
        }
        self.report(None);
        // The next run goes on from the state: what is half done then is not done yet.
        if self.reports.is_some() && self.stopping.is_cancelled() {
            return Ok(());
        }
        self.transform.finish(&mut emitter)?;
        self.send_all(0, &mut emitter).await
    }

    fn report(&self, barrier: Option<u64>) {
        if let Some(reports) = &self.reports {
            let state = self.transform.snapshot();
            // Without a reader the run is ending, and this checkpoint with it.
            reports.send(StateReport { transform: self.stats.name.clone(), barrier, state }).ok();
        }
    }

    async fn send_all(&mut self, given: usize, emitter: &mut Emitter) -> Result<(), StageError> {
        let emitted = joined(emitter.take())?;
        let passed_on = emitted.iter().filter(|(port, _)| [Port::MAIN, Port::REJECTED].contains(port));
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
