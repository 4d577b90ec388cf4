//! What a sink does beside storing rows, where several workers share the source: it begins tenures, keeps checkpoints, and
//! gives up what others have taken over.

use tokio::time::{Instant as Deadline, timeout_at};

use super::{Adopted, Batch, Claim, Group, Inbox, Patience, SinkOrder, SinkTask, StageError, TAKEN_OVER};

impl SinkTask {
    /// The next batch; meanwhile, between groups, what is ordered.
    pub(super) async fn next_batch(&mut self, inbox: &mut Inbox) -> Result<Option<(usize, Batch)>, StageError> {
        let next = match self.waiting.take() {
            Some((edge, batch)) => {
                self.stats.out_of_hand(batch.rows.num_rows());
                Some((edge, batch))
            }
            None => self.ordered_or_next(inbox).await?,
        };
        if let Some((_, batch)) = &next {
            self.catch_up_with(batch).await?;
        }
        Ok(next)
    }

    async fn ordered_or_next(&mut self, inbox: &mut Inbox) -> Result<Option<(usize, Batch)>, StageError> {
        loop {
            if let Some(order) = self.ordered.take() {
                self.obey(order).await?;
            }
            let Some(orders) = &mut self.orders else { return Ok(inbox.next_batch().await) };
            tokio::select! {
                biased;
                order = orders.received.recv() => match order {
                    Some(order) => self.obey(order).await?,
                    // Nobody orders anything any more.
                    None => self.orders = None,
                },
                batch = inbox.next_batch() => return Ok(batch),
            }
        }
    }

    /// The next batch of a group that lingers: `None` at its deadline, or once something is ordered, or somebody waits.
    pub(super) async fn next_before(&mut self, deadline: Deadline, inbox: &mut Inbox) -> Option<(usize, Batch)> {
        let batch = timeout_at(deadline, inbox.next_batch());
        let Some(orders) = &mut self.orders else { return batch.await.ok().flatten() };
        tokio::select! {
            biased;
            order = orders.received.recv() => {
                match order {
                    Some(order) => self.ordered = Some(order),
                    None => self.orders = None,
                }
                None
            }
            Ok(()) = orders.wanted.changed() => None,
            batch = batch => batch.ok().flatten(),
        }
    }

    /// Whether a batch is of a tenure that this sink has not begun. A tenure is ordered before its first batch is sent, but a
    /// sink that is optional is not waited for: it may be in the midst of a group then.
    pub(super) fn is_ahead_of_orders(&self, batch: &Batch) -> bool {
        batch.ack.partition().is_some_and(|partition| {
            !partition.is_revoked() && self.tenures.get(partition.name()).copied() < partition.tenure()
        })
    }

    /// Obeys what was ordered before a batch was sent.
    async fn catch_up_with(&mut self, batch: &Batch) -> Result<(), StageError> {
        while self.is_ahead_of_orders(batch) {
            let waiting = self.ordered.take().or_else(|| self.orders.as_mut()?.received.try_recv().ok());
            // None waits any more: the tenure was refused.
            let Some(order) = waiting else { break };
            self.stats.holds_since(batch.ack.received_at_us());
            self.obey(order).await?;
        }
        Ok(())
    }

    async fn obey(&mut self, order: SinkOrder) -> Result<(), StageError> {
        // Whoever has asked may be gone by now.
        match order {
            SinkOrder::Adopt { claim, answer } => {
                let adopted = self.adopt(claim).await?;
                answer.send(adopted).ok();
            }
            SinkOrder::Keep { partition, checkpoint, answer } => {
                let tenure = partition.tenure().unwrap_or_default();
                // Not tried again here: rows go first, and the next checkpoint is soon.
                let kept = if partition.is_revoked() {
                    Err(StageError::superseded(vec![partition.name().to_owned()]))
                } else {
                    self.sink.keep_checkpoint(partition.name(), tenure, &checkpoint).await
                };
                answer.send(kept).ok();
            }
            SinkOrder::Forget { partition, heirs, answer } => {
                answer.send(self.sink.forget(&partition, &heirs).await).ok();
            }
        }
        Ok(())
    }

    /// Puts a tenure on record, as long as it takes. The inner error is the claim's alone.
    async fn adopt(&mut self, claim: Claim) -> Result<Result<Adopted, StageError>, StageError> {
        let Claim { partition, number, parents, revoked } = claim;
        let mut patience = Patience::new(self.pauses());
        let adopted = loop {
            if revoked.is_cancelled() {
                return Ok(Err(StageError::superseded(vec![partition])));
            }
            match self.sink.adopt(&partition, number, &parents).await {
                Ok(adopted) => break adopted,
                Err(error) if !error.superseded_partitions().is_empty() => return Ok(Err(error)),
                Err(error) => {
                    tokio::select! {
                        () = revoked.cancelled() => {}
                        waited = patience.wait(error, &self.stats, "take over a partition") => waited?,
                    }
                }
            }
        };
        patience.is_over(&self.stats);
        self.committed.retain(|(_, known), _| *known != partition);
        for entry in &adopted.positions {
            // An input that is no longer one has nothing to leave out.
            if let Some(edge) = self.inputs.iter().position(|input| input.name == entry.input) {
                self.committed.insert((edge, partition.clone()), entry.position);
            }
        }
        self.tenures.insert(partition, number);
        Ok(Ok(adopted))
    }

    /// Whether another worker has, or may have, the partition that a batch is of. To be asked of what is not ahead of the
    /// orders.
    pub(super) fn is_taken_over(&self, batch: &Batch) -> bool {
        let Some(partition) = batch.ack.partition().filter(|partition| partition.tenure().is_some()) else {
            return false;
        };
        partition.is_revoked() || self.tenures.get(partition.name()).copied() != partition.tenure()
    }

    /// A batch is not stored by this worker: its promise is broken, and whoever has the partition now reads it.
    pub(super) fn give_up(&self, batch: Batch) {
        // Before the promise is broken, so that whoever hears of that knows why.
        if let Some(partition) = batch.ack.partition() {
            partition.revoke();
        }
        self.stats.counter(TAKEN_OVER).add(batch.rows.num_rows() as u64);
        drop(batch);
    }

    /// Writes a group, without what turns out to be another worker's. Gives what was left of it.
    pub(super) async fn write_ours(&mut self, mut group: Group) -> (Group, Result<(), StageError>) {
        loop {
            match self.write(&group).await {
                Err(error) if !error.superseded_partitions().is_empty() => {
                    tracing::warn!(
                        stage = self.stats.name,
                        "{}: what was read of it here is left to it",
                        error.chain()
                    );
                    group = self.without(group, error.superseded_partitions());
                }
                outcome => return (group, outcome),
            }
        }
    }

    pub(super) fn without(&self, group: Group, superseded: &[String]) -> Group {
        let (batches, mut advances) = group.into_parts();
        let is_ours = |partition: &str| !superseded.iter().any(|other| other == partition);
        let mut ours = Vec::new();
        for batch in batches {
            match batch.ack.partition() {
                Some(partition) if !is_ours(partition.name()) => {
                    self.stats.out_of_hand(batch.rows.num_rows());
                    self.give_up(batch);
                }
                _ => ours.push(batch),
            }
        }
        advances.retain(|advance| is_ours(&advance.partition));
        Group::advancing(ours, advances)
    }
}
