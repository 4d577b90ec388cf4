//! Partitions that several workers share: each is one worker's for a while, its *tenure*.
//!
//! A source that shares its partitions ([`Source::is_shared`](crate::stage::Source::is_shared)) claims one at a time, with
//! the number of its lease. The sinks then put that number on record beside their rows, and from there on refuse whatever
//! comes under a lower one ([`Sink::adopt`](crate::stage::Sink::adopt)): so a worker that was paused past its lease and
//! wakes stores nothing more, whatever it still has in its hands. What transforms remember is kept apart by partition, and
//! moves with it.
//!
//! ```text
//! claim ──▶ sinks adopt: number on record, positions and state read ──▶ rows ──▶ checkpoint ──▶ … ──▶ retire ──▶ forget
//!                                                                        └── revoked: somebody else has it now
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::ack::Partition;
use crate::error::StageError;
use crate::position::Position;
use crate::stage::Adopted;

/// One worker's time with a partition.
#[derive(Debug)]
pub(crate) struct Tenure {
    /// Of the lease: greater than that of every tenure before it.
    pub number: u64,
    /// Somebody else has the partition now, or may have.
    pub revoked: CancellationToken,
    /// Where it begins: everything up to here is stored.
    pub after: Position,
    /// What each transform remembered where it was last kept; of the partitions that this one has come from, one each.
    pub states: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A partition that this run has claimed.
pub struct Claimed {
    /// Batches of the tenure are opened on it.
    pub partition: Partition,
    /// Read on behind this: everything up to it is stored. `None`: from the beginning.
    pub after: Option<Position>,
    /// Positions behind that which sinks have come to, in order. No batch may straddle one.
    pub cuts: Vec<Position>,
}

/// What is asked of a sink beside its rows.
pub(crate) enum SinkOrder {
    /// To put a tenure on record, and say how far it has come.
    Adopt { claim: Claim, answer: oneshot::Sender<Result<Adopted, StageError>> },
    /// To keep a checkpoint of a partition.
    Keep { partition: Partition, checkpoint: Vec<u8>, answer: oneshot::Sender<Result<(), StageError>> },
    /// To forget a partition that is over, by its full name, unless it is needed by one of those that have come of it.
    Forget { partition: String, heirs: Vec<String>, answer: oneshot::Sender<Result<bool, StageError>> },
}

/// What a sink hears from those who share partitions.
pub(crate) struct Orders {
    pub received: mpsc::UnboundedReceiver<SinkOrder>,
    /// Changes while somebody waits for all that was sent to be stored: it collects no longer then.
    pub wanted: watch::Receiver<()>,
}

/// What a sink is told of a tenure that begins.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The partition's full name.
    pub partition: String,
    pub number: u64,
    /// Full names of the partitions that it has come from.
    pub parents: Vec<String>,
    pub revoked: CancellationToken,
}

/// The partitions that this run has now, for all of its stages. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Tenures(Arc<Shared>);

#[derive(Default)]
struct Shared {
    active: Mutex<BTreeMap<String, Partition>>,
    /// Those that are waited for, and those that are optional.
    sinks: Mutex<Vec<(mpsc::UnboundedSender<SinkOrder>, bool)>>,
    /// A checkpoint is wanted now.
    wanted: Notify,
    /// See [`Orders::wanted`].
    stored: watch::Sender<()>,
}

impl Tenures {
    /// The way to ask another sink.
    pub(crate) fn add_sink(&self, required: bool) -> (mpsc::UnboundedSender<SinkOrder>, Orders) {
        let (orders, received) = mpsc::unbounded_channel();
        lock(&self.0.sinks).push((orders.clone(), required));
        (orders, Orders { received, wanted: self.0.stored.subscribe() })
    }

    /// Puts a tenure on record in every sink, and gathers what they say.
    ///
    /// # Errors
    /// Somebody has a later one, or it was revoked meanwhile ([`StageError::superseded_partitions`]); or a sink can't.
    pub(crate) async fn adopt(&self, claim: &Claim) -> Result<Vec<Adopted>, StageError> {
        self.ask(|answer| SinkOrder::Adopt { claim: claim.clone(), answer }).await
    }

    /// Has every sink forget a partition that is over. Whether all that are required have.
    ///
    /// # Errors
    /// A sink can't.
    pub(crate) async fn forget(&self, partition: &str, heirs: &[String]) -> Result<bool, StageError> {
        let order = |answer| SinkOrder::Forget { partition: partition.to_owned(), heirs: heirs.to_owned(), answer };
        Ok(self.ask(order).await?.into_iter().all(|forgotten| forgotten))
    }

    /// Orders something of every sink. An optional one is told, and not waited for.
    async fn ask<T>(
        &self,
        order: impl Fn(oneshot::Sender<Result<T, StageError>>) -> SinkOrder,
    ) -> Result<Vec<T>, StageError> {
        let sinks = lock(&self.0.sinks).clone();
        let mut answers = Vec::new();
        for (sink, required) in sinks {
            let (answer, answered) = oneshot::channel();
            sink.send(order(answer)).map_err(|_| StageError::reader_gone())?;
            if required {
                answers.push(answered);
            }
        }
        let mut all = Vec::new();
        for answered in answers {
            all.push(answered.await.map_err(|_| StageError::reader_gone())??);
        }
        Ok(all)
    }

    pub(crate) fn begin(&self, partition: &Partition) {
        lock(&self.0.active).insert(partition.name().to_owned(), partition.clone());
    }

    pub(crate) fn end(&self, partition: &Partition) {
        let mut active = lock(&self.0.active);
        if active.get(partition.name()).is_some_and(|found| found.tenure() == partition.tenure()) {
            active.remove(partition.name());
        }
    }

    pub(crate) fn active(&self) -> Vec<Partition> {
        lock(&self.0.active).values().cloned().collect()
    }

    /// Has every sink store what it has collected, without waiting for that.
    pub(crate) fn want_stored(&self) {
        self.0.stored.send_replace(());
    }

    pub(crate) fn want_checkpoint(&self) {
        self.0.wanted.notify_one();
    }

    /// Resolves once a checkpoint is wanted at once. Cancel safe.
    pub(crate) async fn checkpoint_wanted(&self) {
        self.0.wanted.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
