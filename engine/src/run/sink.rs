//! Runs a sink: groups batches, commits each group with retries, and only then keeps the promises.
//!
//! Grouping, retry, bisection of bad groups and verdicts are written here, once for all sinks.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::{Instant as Deadline, timeout_at};

use super::is_transient;
use crate::batch::Batch;
use crate::dead_letter;
use crate::error::{Fault, StageError};
use crate::queue::{Closed, Inbox, Outbox};
use crate::retry::Backoff;
use crate::stage::{BuiltSink, Group, Grouping, Port, Sink};
use crate::stats::{StageState, StageStats, now_us};

/// Opens a sink, waiting for its outside as long as it takes.
pub(super) async fn open(sink: &mut dyn Sink, stats: &StageStats) -> Result<(), StageError> {
    let mut backoff = Backoff::default();
    loop {
        match sink.open().await {
            Ok(()) => return Ok(()),
            Err(error) if is_transient(&error) => wait(&error, &mut backoff, stats, "open").await,
            Err(error) => return Err(error),
        }
    }
}

async fn wait(error: &StageError, backoff: &mut Backoff, stats: &StageStats, what: &str) {
    stats.set_state(StageState::Retrying);
    stats.failed_once(error.chain());
    let wait = backoff.next_wait();
    tracing::warn!(
        stage = stats.name,
        attempt = backoff.attempts(),
        "could not {what}: {}; trying again in {} ms",
        error.chain(),
        wait.as_millis()
    );
    tokio::time::sleep(wait).await;
}

pub(super) struct SinkTask {
    sink: Box<dyn Sink>,
    grouping: Grouping,
    /// Somebody reads what the sink refuses.
    has_rejected: bool,
    name: String,
    outbox: Outbox,
    stats: Arc<StageStats>,
}

impl SinkTask {
    pub(super) fn new(built: BuiltSink, name: String, outbox: Outbox, stats: Arc<StageStats>) -> Self {
        let has_rejected = outbox.is_read(Port::REJECTED);
        Self { sink: built.sink, grouping: built.grouping, has_rejected, name, outbox, stats }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox) -> Result<(), StageError> {
        while let Some(first) = inbox.next().await {
            let group = self.collect(first, &mut inbox).await;
            self.store(group).await?;
        }
        self.sink.close().await
    }

    /// A group: what is there now, or what comes while it may linger.
    async fn collect(&mut self, first: Batch, inbox: &mut Inbox) -> Group {
        let deadline = Deadline::now() + self.grouping.linger;
        let (mut rows, mut bytes) = size_of(&first);
        let mut batches = vec![first];
        while rows < self.grouping.rows_max && bytes < self.grouping.bytes_max {
            let next = match inbox.try_next() {
                Some(batch) => Some(batch),
                None if self.grouping.linger.is_zero() => None,
                None => timeout_at(deadline, inbox.next()).await.ok().flatten(),
            };
            let Some(batch) = next else { break };
            let (more_rows, more_bytes) = size_of(&batch);
            rows += more_rows;
            bytes += more_bytes;
            batches.push(batch);
        }
        self.stats.entered(rows);
        Group::new(batches)
    }

    /// Commits a group, in halves where a row in it is refused. Kept in order: the left half first.
    async fn store(&mut self, group: Group) -> Result<(), StageError> {
        let mut pieces = vec![group];
        while let Some(piece) = pieces.pop() {
            let Err(error) = self.write(&piece).await else {
                self.keep_promises(piece);
                continue;
            };
            if error.fault() != Fault::Data {
                return Err(error);
            }
            if !self.has_rejected {
                return Err(self.nobody_reads_rejected(error));
            }
            match halve(piece) {
                Ok((left, right)) => pieces.extend([right, left]),
                Err(row) => self.reject(row, &error).await?,
            }
        }
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let outcome = self.sink.write(group).await;
            self.stats.busy_for(started.elapsed());
            match outcome {
                Err(error) if is_transient(&error) => wait(&error, &mut backoff, &self.stats, "store a group").await,
                outcome => {
                    if backoff.attempts() > 0 && outcome.is_ok() {
                        tracing::info!(stage = self.name, "stores again after {} attempts", backoff.attempts());
                    }
                    self.stats.set_state(StageState::Running);
                    return outcome;
                }
            }
        }
    }

    fn keep_promises(&self, group: Group) {
        let rows = group.rows();
        let received = group.batches().iter().filter_map(|batch| batch.ack().received_at_us()).min();
        self.stats.stored(rows, received);
        group.into_parts().0.into_iter().for_each(|batch| batch.ack.deliver());
    }

    /// Sends a row that the outside refuses on as a dead letter; its promise goes with it.
    async fn reject(&mut self, row: Batch, error: &StageError) -> Result<(), StageError> {
        let reason = error.outside_code().unwrap_or("refused").to_owned();
        let position = row.ack.span().map(|(partition, span)| format!("{partition}:{span}"));
        let received = row.ack.received_at_us().unwrap_or_else(now_us);
        let refused = [(0, reason, Some(error.chain()))];
        let letter = dead_letter::of_rows(&row.rows, &refused, &self.name, received, position.as_deref())?;
        let sent = self.outbox.send(Port::REJECTED, row.with_rows(letter)).await;
        sent.map_err(|Closed| StageError::reader_gone())?;
        self.stats.left(Port::REJECTED, 1);
        Ok(())
    }

    fn nobody_reads_rejected(&self, error: StageError) -> StageError {
        let hint =
            format!("Add \"{}.rejected\" to the inputs of a sink, so that the bad row is kept there.", self.name);
        StageError::permanent("a row was refused, and nothing reads the port \"rejected\"").because(error).hint(hint)
    }
}

fn size_of(batch: &Batch) -> (usize, usize) {
    (batch.rows.num_rows(), batch.rows.get_array_memory_size())
}

/// Two halves of a group, by batches while there are several and then by rows; or its only row.
fn halve(group: Group) -> Result<(Group, Group), Batch> {
    let (mut batches, _) = group.into_parts();
    if batches.len() > 1 {
        let right = batches.split_off(batches.len() / 2);
        return Ok((Group::new(batches), Group::new(right)));
    }
    let batch = batches.pop().expect("a group holds at least one batch");
    let rows = batch.rows.num_rows();
    if rows < 2 {
        return Err(batch);
    }
    let (left, right) = (batch.rows.slice(0, rows / 2), batch.rows.slice(rows / 2, rows - rows / 2));
    let (left, right) = batch.split(left, right);
    Ok((Group::new(vec![left]), Group::new(vec![right])))
}
