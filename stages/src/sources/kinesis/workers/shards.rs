//! The shards of the leases that this worker has: claimed, read, left, and lost.

use pipeline_engine::stage::StageError;
use pipeline_engine::{Claimed, Partition};
use tokio::time::Instant;

use super::super::batches::Assembly;
use super::super::feed::Start;
use super::super::polling::{Place, Polling};
use super::super::roster::Origin;
use super::super::shard::{Ended, ShardReader};
use super::held::{Held, Lost, Standing, Tenant, Why, stored};
use super::lease::{Checkpoint, Lease};
use super::sharing::{Outcome, SharedReading};

impl SharedReading {
    /// A lease is ours; its shard is not read yet.
    pub(super) fn hold(&mut self, lease: &Lease, counter: u64) {
        self.counters.taken.increment();
        let held = Held {
            tenure: counter,
            counter,
            renewed_at: Instant::now(),
            checkpoint: lease.checkpoint,
            parents: lease.parents.clone(),
            standing: Standing::Awaited { since: Instant::now() },
        };
        self.held.insert(lease.shard.clone(), held);
    }

    /// What a shard is called where its rows are stored.
    pub(super) fn partition_of(&self, shard: &str) -> String {
        format!("{}@{}/{shard}", self.shared.stream.name(), self.application)
    }

    /// Tells the sinks that a shard is ours.
    pub(super) fn claim(&mut self, shard: &str) {
        let name = self.partition_of(shard);
        let Some(Held { parents, .. }) = self.held.get(shard) else { return };
        let parents: Vec<String> = parents.iter().map(|parent| self.partition_of(parent)).collect();
        let Some(held) = self.held.get_mut(shard) else { return };
        let (shared, tenure, otherwise) = (self.shared.clone(), held.tenure, held.checkpoint.position());
        let shard = shard.to_owned();
        let task = self.tasks.spawn(async move {
            let claimed = shared.sending.cx.claim(&name, tenure, &parents, otherwise).await;
            (shard, tenure, Outcome::Claimed(claimed))
        });
        held.standing = Standing::Claiming(task);
    }

    pub(super) async fn go_on(&mut self, shard: &str, tenure: u64, outcome: Outcome) -> Result<(), StageError> {
        let is_ours = self.held.get(shard).is_some_and(|held| held.tenure == tenure);
        match outcome {
            Outcome::Claimed(Ok(claimed)) if is_ours => self.read(shard, claimed),
            Outcome::Claimed(Ok(claimed)) => {
                claimed.partition.revoke();
                self.shared.sending.cx.retire(&claimed.partition).await;
            }
            Outcome::Claimed(Err(error)) if !error.superseded_partitions().is_empty() => {
                tracing::warn!(
                    stage = self.shared.stage,
                    shard,
                    "a sink has a later owner of the shard on record than the table of leases. Where that table was made \
                     anew, name another \"workers.application\", or delete the rows of _pipeline_claims"
                );
                if is_ours {
                    self.lose(shard, Lost::Taken);
                }
            }
            Outcome::Claimed(Err(error)) => return Err(error),
            Outcome::Read(Ok(ended)) if is_ours => self.leave(shard, ended),
            Outcome::Read(Ok(_)) => {}
            Outcome::Read(Err(error)) => return Err(error),
            Outcome::Stored(is_stored) if is_ours => {
                if let Err(error) = self.let_go(shard, is_stored).await {
                    self.patient(error)?;
                }
            }
            Outcome::Stored(_) => {}
            Outcome::Forgotten(forgotten) => self.forgotten(shard, tenure, forgotten).await?,
        }
        Ok(())
    }

    /// The sinks were asked to forget a shard.
    async fn forgotten(
        &mut self,
        shard: &str,
        counter: u64,
        outcome: Result<bool, StageError>,
    ) -> Result<(), StageError> {
        self.forgetting.remove(shard);
        match outcome {
            Ok(true) => {
                tracing::info!(stage = self.shared.stage, shard, "the stream has forgotten the shard, and so have we");
                self.forgetting_failed = false;
                if let Err(error) = self.table.forget(shard, counter).await {
                    self.patient(error)?;
                }
            }
            // What has come of it still begins with it. It is asked for again when the shards are listed next.
            Ok(false) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.forgetting_failed, true) {
                    tracing::warn!(
                        stage = self.shared.stage,
                        shard,
                        "a shard that is over stays on record: {}",
                        error.chain()
                    );
                }
            }
        }
        Ok(())
    }

    /// Begins to read a shard.
    fn read(&mut self, shard: &str, claimed: Claimed) {
        let shared = self.shared.clone();
        let Some(held) = self.held.get_mut(shard) else { return };
        let Claimed { partition, after, cuts } = claimed;
        tracing::info!(stage = shared.stage, shard, tenure = held.tenure, "reading the shard");
        let stop = shared.sending.cx.stop_token().child_token();
        let origin = match held.checkpoint {
            Checkpoint::Begin(origin) => origin,
            Checkpoint::After(_) | Checkpoint::End => Origin::Horizon,
        };
        let reader = ShardReader {
            shared: shared.clone(),
            id: shard.to_owned(),
            partition: partition.clone(),
            assembly: Assembly::between(after, cuts, self.batch_rows_max),
            origin,
            latest_was_asked: false,
            earliest_us: None,
            polling: Polling {
                stream: shared.stream.clone(),
                shard: shard.to_owned(),
                records_max: self.poll_records,
                idle: self.poll_interval,
                answers: self.answers.clone(),
                place: Place::At(Start::Horizon),
                next_at: Instant::now(),
            },
            stop: stop.clone(),
        };
        let (shard, tenure) = (shard.to_owned(), held.tenure);
        let watched = partition.clone();
        let checkpointed = partition.checkpointed();
        held.standing = Standing::Reading(Tenant { partition, after, checkpointed, stop: stop.clone() });
        self.tasks.spawn(async move {
            // A sink that finds the shard taken over revokes it: nothing more of it is to be read then.
            let guard = tokio::spawn(async move {
                watched.revoked().await;
                stop.cancel();
            });
            let ended = reader.run().await.map(|(_, ended)| ended);
            guard.abort();
            (shard, tenure, Outcome::Read(ended))
        });
    }

    /// A shard is read no more: waits until all that was read of it is stored and kept.
    fn leave(&mut self, shard: &str, ended: Ended) {
        let shared = self.shared.clone();
        let Some(mut held) = self.held.remove(shard) else { return };
        let (tenant, why) = match held.standing {
            Standing::Reading(tenant) if ended == Ended::Shard => (tenant, Why::End),
            Standing::Reading(tenant) => (tenant, Why::Stop),
            // All was read before it could be handed over: the next owner finds the end by itself.
            Standing::Leaving(tenant, why) => (tenant, why),
            Standing::Awaited { .. } | Standing::Claiming(_) | Standing::Over(_) => return,
        };
        let (partition, after) = (tenant.partition.clone(), tenant.after.unwrap_or_default());
        // At the end of a shard nobody waits.
        let patience = (why != Why::End).then_some(self.hand_over);
        let (id, tenure) = (shard.to_owned(), held.tenure);
        held.standing = Standing::Leaving(tenant, why);
        self.held.insert(shard.to_owned(), held);
        self.tasks.spawn(async move {
            let is_stored = stored(&shared.sending.cx, &partition, after, patience).await;
            (id, tenure, Outcome::Stored(is_stored))
        });
    }

    /// All that was read is stored, or can't be in time.
    async fn let_go(&mut self, shard: &str, is_stored: bool) -> Result<(), StageError> {
        let Some(mut held) = self.held.remove(shard) else { return Ok(()) };
        let (moved, counter) = (held.moved(), held.counter);
        let Standing::Leaving(tenant, why) = held.standing else { return Ok(()) };
        if tenant.partition.is_revoked() {
            held.standing = Standing::Reading(tenant);
            self.held.insert(shard.to_owned(), held);
            self.lose(shard, Lost::Taken);
            return Ok(());
        }
        if why == Why::End {
            held.standing = Standing::Over(tenant);
            self.held.insert(shard.to_owned(), held);
            return self.end(shard).await;
        }
        if !is_stored {
            let patience = self.hand_over;
            tracing::warn!(
                stage = self.shared.stage,
                shard,
                "not all of it was stored within {patience:?}: the next owner reads it again"
            );
        }
        self.retire(shard, &tenant.partition).await;
        if why == Why::AskedFor {
            tenant.partition.revoke();
            self.counters.handed_over.increment();
            self.table.hand_over(shard, &self.worker, moved).await?;
        } else {
            self.table.release(shard, &self.worker, counter, moved, &[]).await?;
        }
        Ok(())
    }

    /// Tells the table that a shard is read to its end, so that its children are.
    pub(super) async fn end(&mut self, shard: &str) -> Result<(), StageError> {
        let Some(held) = self.held.get(shard) else { return Ok(()) };
        let Standing::Over(tenant) = &held.standing else { return Ok(()) };
        let partition = tenant.partition.clone();
        let children = self.listed.iter().filter(|child| child.parents.iter().any(|parent| parent == shard));
        let children: Vec<String> = children.map(|child| child.id.clone()).collect();
        let end = Some(Checkpoint::End);
        if self.table.release(shard, &self.worker, held.counter, end, &children).await? {
            tracing::info!(stage = self.shared.stage, shard, "the shard is closed and read to its end");
            self.held.remove(shard);
            self.retire(shard, &partition).await;
            self.list_at = Instant::now();
        }
        Ok(())
    }

    async fn retire(&self, shard: &str, partition: &Partition) {
        self.shared.lag.forget(shard);
        self.shared.sending.cx.retire(partition).await;
    }

    /// A lease is another worker's, or may be: what is on its way of the shard is left to it.
    pub(super) fn lose(&mut self, shard: &str, how: Lost) {
        let Some(held) = self.held.remove(shard) else { return };
        self.counters.lost.increment();
        self.shared.lag.forget(shard);
        match held.standing {
            Standing::Claiming(task) => task.abort(),
            Standing::Awaited { .. } => {}
            Standing::Reading(tenant) | Standing::Leaving(tenant, _) | Standing::Over(tenant) => {
                let why = match how {
                    Lost::Taken => "another worker reads the shard",
                    Lost::Lapsed => "it could not be renewed, and another worker may read the shard by now",
                };
                tracing::warn!(stage = self.shared.stage, shard, "the lease was lost: {why}");
                tenant.stop.cancel();
                tenant.partition.revoke();
                let shared = self.shared.clone();
                let (shard, tenure) = (shard.to_owned(), held.tenure);
                self.tasks.spawn(async move {
                    shared.sending.cx.retire(&tenant.partition).await;
                    (shard, tenure, Outcome::Stored(false))
                });
            }
        }
    }
}
