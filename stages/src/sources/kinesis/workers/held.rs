//! A lease that this worker has, and what becomes of its shard meanwhile.

use std::time::Duration;

use pipeline_engine::stage::SourceContext;
use pipeline_engine::{Partition, Position};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::Checkpoint;

/// How often sinks are asked to store what they collect, and a checkpoint is asked for, while everything that was read of a shard waits for one.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// A lease of ours.
pub(super) struct Held {
    /// The counter at which it was taken to be read: the number of the tenure.
    pub(super) tenure: u64,
    pub(super) counter: u64,
    pub(super) renewed_at: Instant,
    /// What the table says.
    pub(super) checkpoint: Checkpoint,
    pub(super) parents: Vec<String>,
    pub(super) standing: Standing,
}

pub(super) enum Standing {
    /// Its last owner stores what it has read.
    Awaited {
        since: Instant,
    },
    /// Sinks are told.
    Claiming(AbortHandle),
    Reading(Tenant),
    /// It is read no more; what was read is being stored.
    Leaving(Tenant, Why),
    /// All of it is stored, and the table does not know yet.
    Over(Tenant),
}

pub(super) struct Tenant {
    pub(super) partition: Partition,
    pub(super) after: Option<Position>,
    pub(super) checkpointed: watch::Receiver<Option<Position>>,
    pub(super) stop: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Another worker has asked for it.
    AskedFor,
    /// The shard is read to its end.
    End,
    /// The run stops.
    Stop,
}

/// How a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Another worker has it.
    Taken,
    /// It could not be renewed for as long as it lasts, so another one may have it.
    Lapsed,
}

impl Held {
    /// Whether its shard is read here, or was a moment ago.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.standing, Standing::Reading(_) | Standing::Leaving(..))
    }

    /// Where the shard has come to, if that is further than the table says.
    pub(super) fn moved(&self) -> Option<Checkpoint> {
        let (Standing::Reading(tenant) | Standing::Leaving(tenant, _)) = &self.standing else { return None };
        let position = (*tenant.checkpointed.borrow()).filter(|position| *position != Position::default())?;
        let moved = Checkpoint::After(position);
        (moved != self.checkpoint).then_some(moved)
    }
}

/// Waits until everything that was read of a partition is stored in every sink, and kept for its next owner. False where
/// that can't be, or is not within the patience.
pub(super) async fn stored(
    cx: &SourceContext,
    partition: &Partition,
    after: Position,
    patience: Option<Duration>,
) -> bool {
    let all = async {
        let progress = loop {
            cx.want_stored();
            if let Ok(progress) = tokio::time::timeout(ASK_INTERVAL, partition.settled()).await {
                break progress;
            }
        };
        if progress.failed {
            return false;
        }
        let last = progress.delivered.unwrap_or(after);
        let mut checkpointed = partition.checkpointed();
        loop {
            // A checkpoint waits for the rows of all other shards.
            cx.want_stored();
            cx.want_checkpoint();
            let reached = checkpointed.wait_for(|kept| kept.is_some_and(|kept| kept >= last));
            if let Ok(reached) = tokio::time::timeout(ASK_INTERVAL, reached).await {
                return reached.is_ok();
            }
        }
    };
    let in_time = async {
        match patience {
            Some(patience) => tokio::time::timeout(patience, all).await.unwrap_or(false),
            None => all.await,
        }
    };
    tokio::select! {
        biased;
        () = partition.revoked() => false,
        is_stored = in_time => is_stored,
    }
}
