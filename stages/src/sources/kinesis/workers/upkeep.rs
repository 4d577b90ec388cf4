//! The leases themselves: renewed, handed over, and taken.

use std::time::Duration;

use pipeline_engine::stage::StageError;
use tokio::time::Instant;

use super::super::StartAt;
use super::super::reading::LIST_INTERVAL;
use super::super::roster::Origin;
use super::balance::{Wanted, wanted};
use super::held::{Held, Lost, Standing, Why};
use super::lease::Lease;
use super::patience::may_pass;
use super::sharing::{Outcome, SharedReading};

impl SharedReading {
    /// Renews what is ours, hands over what others ask for, and takes what we should have.
    pub(super) async fn tick(&mut self) -> Result<(), StageError> {
        let shared = self.shared.clone();
        let mut leases = match self.table.leases(self.origin()).await {
            Ok(leases) => leases,
            Err(error) => {
                self.renew_unseen().await;
                return Err(error);
            }
        };
        self.sightings.note(&leases, self.lasts, Instant::now());
        let ours: Vec<String> = self.held.keys().cloned().collect();
        let mut outcome = Ok(());
        let changed = self.renew_all(ours, &leases, &mut outcome).await?;
        if !changed.is_empty() {
            leases = self.table.leases(self.origin()).await?;
            // What was changed once more is looked at with the next tick.
            self.renew_all(changed, &leases, &mut outcome).await?;
        }
        // Behind the renewals: no lease is to be lost for a stream that does not answer.
        if self.list_at <= Instant::now() || self.has_childless_end(&leases) {
            self.enrol(&mut leases).await?;
            self.list_at = Instant::now() + LIST_INTERVAL;
        }
        if !self.is_stopping {
            self.take(&leases).await?;
        }
        shared.lag.show();
        self.retention.look(&shared.stage, Duration::from_millis(shared.sending.cx.behind_ms().get()));
        outcome
    }

    /// Looks after these leases of ours. Gives those that were changed since they were read, by a worker that asks for one or has
    /// taken it: which of the two, the table says.
    async fn renew_all(
        &mut self,
        ours: Vec<String>,
        leases: &[Lease],
        outcome: &mut Result<(), StageError>,
    ) -> Result<Vec<String>, StageError> {
        let mut changed = Vec::new();
        for shard in ours {
            match self.renew(&shard, leases.iter().find(|lease| lease.shard == shard)).await {
                Ok(true) => {}
                Ok(false) => changed.push(shard),
                // Each lease is an item of its own, and none is to be lost for another.
                Err(error) if may_pass(&error) => *outcome = Err(error),
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    /// Renews what is ours while the table can't be read: it may take changes all the same. Where it does not, that shows once it
    /// is read again: somebody may have asked for the shard, or the answer to a renewal was lost.
    async fn renew_unseen(&mut self) {
        let is_ours = |held: &Held| !matches!(held.standing, Standing::Leaving(_, Why::AskedFor));
        for (shard, held) in self.held.iter_mut().filter(|(_, held)| is_ours(held)) {
            let moved = held.moved();
            match self.table.renew(shard, &self.worker, held.counter, moved).await {
                Ok(Some(counter)) => {
                    (held.counter, held.renewed_at) = (counter, Instant::now());
                    held.checkpoint = moved.unwrap_or(held.checkpoint);
                }
                Ok(None) => {}
                Err(error) if may_pass(&error) => {}
                // It is away, and whoever has failed to read it says so.
                Err(_) => return,
            }
        }
    }

    fn origin(&self) -> Origin {
        match self.start {
            StartAt::Horizon => Origin::Horizon,
            StartAt::Latest => Origin::Latest(self.started_at_us),
            StartAt::Time(at_us) => Origin::Time(at_us),
        }
    }

    /// Whether a shard has ended whose children have no lease yet.
    fn has_childless_end(&self, leases: &[Lease]) -> bool {
        let has_child = |shard: &String| leases.iter().any(|lease| lease.parents.contains(shard));
        let is_listed = |shard: &String| self.listed.iter().any(|listed| listed.id == *shard);
        leases.iter().any(|lease| lease.is_ended() && is_listed(&lease.shard) && !has_child(&lease.shard))
    }

    /// Gives every shard of the stream a lease, and forgets what the stream has forgotten.
    async fn enrol(&mut self, leases: &mut Vec<Lease>) -> Result<(), StageError> {
        self.listed = self.shared.stream.shards().await?;
        let is_known = |id: &String| leases.iter().any(|lease| lease.shard == *id);
        let mut new: Vec<Lease> = Vec::new();
        for shard in self.listed.iter().filter(|shard| !is_known(&shard.id)) {
            let origin = match self.start {
                // It has come from what is being read: all of it is new.
                _ if shard.parents.iter().any(is_known) => Origin::Horizon,
                StartAt::Latest if shard.is_closed => Origin::Skipped,
                _ => self.origin(),
            };
            new.push(Lease::of(shard, origin));
        }
        // Those that are closed come last: a worker that starts at the same time must not take a child of theirs for one
        // that has come later.
        new.sort_by_key(|lease| self.listed.iter().any(|shard| shard.id == lease.shard && shard.is_closed));
        for lease in &new {
            self.table.add(lease).await?;
        }
        let is_listed = |lease: &Lease| self.listed.iter().any(|shard| shard.id == lease.shard);
        // Before the list was read they were known, so all that has come of them is listed, or known as well.
        let forgotten = leases.iter().filter(|lease| lease.is_ended() && lease.owner.is_none() && !is_listed(lease));
        let forgotten: Vec<(String, u64)> = forgotten.map(|lease| (lease.shard.clone(), lease.counter)).collect();
        leases.extend(new);
        for (shard, counter) in forgotten {
            self.forget(&shard, counter, leases);
        }
        Ok(())
    }

    /// Has the sinks forget a shard that the stream has forgotten, which was read to its end. Its lease goes once they have:
    /// else nobody would know any more that there is something to forget.
    fn forget(&mut self, shard: &str, counter: u64, leases: &[Lease]) {
        if !self.forgetting.insert(shard.to_owned()) {
            return;
        }
        let heirs = leases.iter().filter(|heir| heir.parents.iter().any(|parent| parent == shard) && !heir.is_ended());
        let heirs: Vec<String> = heirs.map(|heir| self.partition_of(&heir.shard)).collect();
        let (shared, name, shard) = (self.shared.clone(), self.partition_of(shard), shard.to_owned());
        self.tasks.spawn(async move {
            let forgotten = shared.sending.cx.forget(&name, &heirs).await;
            (shard, counter, Outcome::Forgotten(forgotten))
        });
    }

    /// Looks after one lease of ours, as the table had it when it was read. False where it has been changed since.
    async fn renew(&mut self, shard: &str, lease: Option<&Lease>) -> Result<bool, StageError> {
        let Some(held) = self.held.get_mut(shard) else { return Ok(true) };
        let Some(lease) = lease.filter(|lease| lease.is_of(&self.worker)) else {
            let is_asked_for = lease.is_some_and(|lease| lease.checkpoint_owner.as_deref() == Some(&self.worker));
            return self.give_way(shard, is_asked_for).await.map(|()| true);
        };
        // Ours, so whatever moved it was a renewal whose answer was lost.
        held.counter = lease.counter;
        if let Standing::Awaited { since } = held.standing {
            let is_over = since.elapsed() > self.hand_over;
            if lease.checkpoint_owner.is_none() {
                held.checkpoint = lease.checkpoint;
                held.tenure = held.counter;
                self.claim(shard);
            } else if is_over {
                tracing::warn!(stage = self.shared.stage, shard, "its last owner has not handed it over in time");
                if let Some(counter) = self.table.take(lease, &self.worker, None).await? {
                    self.hold(lease, counter);
                    self.claim(shard);
                }
                return Ok(true);
            }
        }
        if matches!(self.held.get(shard), Some(Held { standing: Standing::Over(_), .. })) {
            return self.end(shard).await.map(|()| true);
        }
        let Some(held) = self.held.get_mut(shard) else { return Ok(true) };
        let moved = held.moved();
        let renewed = self.table.renew(shard, &self.worker, held.counter, moved).await?;
        let Some(counter) = renewed else { return Ok(false) };
        (held.counter, held.renewed_at) = (counter, Instant::now());
        held.checkpoint = moved.unwrap_or(held.checkpoint);
        Ok(true)
    }

    /// The lease is another worker's by now: one that waits for us, or one that does not.
    async fn give_way(&mut self, shard: &str, is_asked_for: bool) -> Result<(), StageError> {
        let Some(mut held) = self.held.remove(shard) else { return Ok(()) };
        if !is_asked_for {
            self.held.insert(shard.to_owned(), held);
            self.lose(shard, Lost::Taken);
            return Ok(());
        }
        // It is not ours to renew any more, and lasts as long as the other one is patient.
        held.renewed_at = Instant::now();
        held.standing = match held.standing {
            Standing::Reading(tenant) => {
                tracing::info!(stage = self.shared.stage, shard, "another worker asks for the shard: handing it over");
                tenant.stop.cancel();
                Standing::Leaving(tenant, Why::AskedFor)
            }
            Standing::Leaving(tenant, Why::Stop) => Standing::Leaving(tenant, Why::AskedFor),
            Standing::Claiming(task) => {
                task.abort();
                self.table.hand_over(shard, &self.worker, None).await?;
                return Ok(());
            }
            // Nothing was read here.
            Standing::Awaited { .. } => {
                self.table.hand_over(shard, &self.worker, None).await?;
                return Ok(());
            }
            same => same,
        };
        self.held.insert(shard.to_owned(), held);
        Ok(())
    }

    /// Takes what is free, or asks another worker for one.
    async fn take(&mut self, leases: &[Lease]) -> Result<(), StageError> {
        let now = Instant::now();
        let is_free = |lease: &Lease| match &lease.owner {
            None => true,
            // Of an earlier run of the same name.
            Some(owner) if *owner == self.worker => !self.held.contains_key(&lease.shard),
            Some(_) => self.sightings.has_expired(lease, self.lasts, now),
        };
        let Wanted { take, ask_for } = wanted(&self.worker, leases, is_free);
        let named = |shard: &String| leases.iter().find(|lease| lease.shard == *shard);
        for lease in
            take.iter().filter_map(named).filter(|lease| !self.held.contains_key(&lease.shard)).collect::<Vec<_>>()
        {
            if let Some(counter) = self.table.take(lease, &self.worker, None).await? {
                self.hold(lease, counter);
                self.claim(&lease.shard);
            }
        }
        let asked = ask_for.as_ref().and_then(named).filter(|lease| !self.held.contains_key(&lease.shard));
        if let Some(lease) = asked
            && let Some(counter) = self.table.take(lease, &self.worker, lease.owner.as_deref()).await?
        {
            tracing::info!(stage = self.shared.stage, shard = lease.shard, owner = lease.owner, "asking for the shard");
            self.hold(lease, counter);
        }
        Ok(())
    }
}
