//! Which leases a worker should have: as many as any other, give or take one.
//!
//! Every worker decides for itself from the table alone. A lease that is free, or whose counter has stood still for as long
//! as a lease lasts, is there for the taking. Where none is, a worker that has too few asks the one with the most for one,
//! one at a time: two that ask at once then don't leave the third with none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::lease::Lease;

/// When each counter was last seen to move, by the clock of this worker: the table has no times.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    seen: BTreeMap<String, (u64, Instant)>,
    looked_at: Option<Instant>,
}

impl Sightings {
    /// Takes note of the counters. What was not looked at for as long as a lease lasts may have been renewed meanwhile, or was out
    /// of reach of its owner as well: it has as long again.
    pub(super) fn note(&mut self, leases: &[Lease], lasts: Duration, now: Instant) {
        if self.looked_at.replace(now).is_some_and(|at| now.duration_since(at) > lasts) {
            self.seen.clear();
        }
        self.seen.retain(|shard, _| leases.iter().any(|lease| lease.shard == *shard));
        for lease in leases {
            let seen = self.seen.entry(lease.shard.clone()).or_insert((lease.counter, now));
            if seen.0 != lease.counter {
                *seen = (lease.counter, now);
            }
        }
    }

    /// Whether whoever owned a lease has let it run out.
    pub(super) fn has_expired(&self, lease: &Lease, lasts: Duration, now: Instant) -> bool {
        self.seen.get(&lease.shard).is_some_and(|(_, since)| now.duration_since(*since) > lasts)
    }
}

/// What to do next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Shards whose leases are nobody's.
    pub(super) take: Vec<String>,
    /// A shard whose owner is asked to hand it over.
    pub(super) ask_for: Option<String>,
}

/// Decides for a worker. `leases`: all of the table. `is_free`: nobody has it, or nobody renews it.
pub(super) fn wanted(worker: &str, leases: &[Lease], is_free: impl Fn(&Lease) -> bool) -> Wanted {
    let ended: BTreeSet<&str> = leases.iter().filter(|lease| lease.is_ended()).map(|lease| &*lease.shard).collect();
    let listed: BTreeSet<&str> = leases.iter().map(|lease| &*lease.shard).collect();
    let is_startable = |lease: &&Lease| {
        let is_done = |parent: &String| ended.contains(&**parent) || !listed.contains(&**parent);
        !lease.is_ended() && lease.parents.iter().all(is_done)
    };
    let work: Vec<&Lease> = leases.iter().filter(is_startable).collect();
    let mut loads: BTreeMap<&str, Vec<&Lease>> = BTreeMap::from([(worker, Vec::new())]);
    let mut free: Vec<&Lease> = Vec::new();
    for lease in &work {
        match &lease.owner {
            Some(owner) if !is_free(lease) => loads.entry(owner).or_default().push(lease),
            _ => free.push(lease),
        }
    }
    let target = work.len().div_ceil(loads.len());
    let have = loads[worker].len();
    if !free.is_empty() {
        let take = free.into_iter().take(target.saturating_sub(have)).map(|lease| lease.shard.clone()).collect();
        return Wanted { take, ask_for: None };
    }
    let most = loads.values().filter(|theirs| theirs.len() >= have + 2).max_by_key(|theirs| theirs.len());
    // What is being handed over already is not asked for again.
    let one = most.and_then(|theirs| theirs.iter().find(|lease| lease.checkpoint_owner.is_none()));
    Wanted { take: Vec::new(), ask_for: one.filter(|_| have < target).map(|lease| lease.shard.clone()) }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::lease::Checkpoint;
    use super::*;
    use crate::sources::kinesis::roster::Origin;

    fn lease(shard: usize, owner: Option<&str>) -> Lease {
        Lease {
            shard: format!("s{shard}"),
            owner: owner.map(str::to_owned),
            counter: 0,
            checkpoint: Checkpoint::Begin(Origin::Horizon),
            checkpoint_owner: None,
            parents: Vec::new(),
            hash_keys: None,
        }
    }

    #[test]
    fn what_is_free_is_taken_up_to_a_fair_part_and_one_that_has_too_few_asks_the_one_with_the_most() {
        let free: Vec<Lease> = (0..8).map(|shard| lease(shard, None)).collect();
        let all = wanted("a", &free, |lease| lease.owner.is_none());
        assert_eq!((all.take.len(), all.ask_for), (8, None), "alone it takes them all");
        let mut shared = free.clone();
        shared[..4].iter_mut().for_each(|lease| lease.owner = Some("b".to_owned()));
        assert_eq!(wanted("a", &shared, |lease| lease.owner.is_none()).take.len(), 4);
        let owned: Vec<Lease> = (0..8).map(|shard| lease(shard, Some(if shard < 3 { "a" } else { "b" }))).collect();
        assert_eq!(wanted("a", &owned, |_| false).ask_for, Some("s3".to_owned()));
        assert_eq!(wanted("b", &owned, |_| false), Wanted::default());
        // Whoever lets its leases run out counts for nothing.
        assert_eq!(wanted("a", &owned, |lease| lease.owner.as_deref() == Some("b")).take.len(), 5);
    }

    #[test]
    fn a_child_is_taken_once_its_parents_are_read_to_their_end() {
        let mut leases = vec![lease(0, None), lease(1, None)];
        leases[1].parents = vec!["s0".to_owned()];
        assert_eq!(wanted("a", &leases, |_| true).take, ["s0"]);
        leases[0].checkpoint = Checkpoint::End;
        assert_eq!(wanted("a", &leases, |_| true).take, ["s1"]);
        leases.remove(0);
        assert_eq!(wanted("a", &leases, |_| true).take, ["s1"], "a parent that is forgotten has nothing left to read");
    }

    #[test]
    fn however_many_workers_there_are_and_come_all_end_with_as_many_give_or_take_one() {
        for seed in 0..200 {
            let mut chance = StdRng::seed_from_u64(seed);
            let mut leases: Vec<Lease> = (0..chance.random_range(1..20)).map(|shard| lease(shard, None)).collect();
            let mut workers: Vec<String> = (0..chance.random_range(1..5)).map(|worker| format!("w{worker}")).collect();
            for round in 0..100 {
                if round == 30 {
                    workers.push("new".to_owned());
                }
                let worker = workers[chance.random_range(0..workers.len())].clone();
                let Wanted { take, ask_for } = wanted(&worker, &leases, |lease| lease.owner.is_none());
                for shard in take.into_iter().chain(ask_for) {
                    leases.iter_mut().find(|lease| lease.shard == shard).unwrap().owner = Some(worker.clone());
                }
            }
            let count = |worker: &String| leases.iter().filter(|lease| lease.is_of(worker)).count();
            let counts: Vec<usize> = workers.iter().map(count).collect();
            assert_eq!(counts.iter().sum::<usize>(), leases.len(), "seed {seed}: {counts:?}");
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "seed {seed}: {counts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_run_out_when_its_counter_has_stood_still_for_as_long_as_it_lasts() {
        let lasts = Duration::from_secs(10);
        let mut sightings = Sightings::default();
        let mut leases = vec![lease(0, Some("b"))];
        sightings.note(&leases, lasts, Instant::now());
        tokio::time::advance(lasts).await;
        assert!(!sightings.has_expired(&leases[0], lasts, Instant::now()));
        leases[0].counter += 1;
        sightings.note(&leases, lasts, Instant::now());
        tokio::time::advance(lasts).await;
        assert!(!sightings.has_expired(&leases[0], lasts, Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sightings.has_expired(&leases[0], lasts, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_can_see_the_table_no_lease_runs_out() {
        let lasts = Duration::from_secs(10);
        let mut sightings = Sightings::default();
        let leases = [lease(0, Some("b"))];
        sightings.note(&leases, lasts, Instant::now());
        tokio::time::advance(lasts * 3).await;
        sightings.note(&leases, lasts, Instant::now());
        assert!(!sightings.has_expired(&leases[0], lasts, Instant::now()), "its owner had no chance");
        for _ in 0..2 {
            tokio::time::advance(lasts * 2 / 3).await;
            sightings.note(&leases, lasts, Instant::now());
        }
        assert!(sightings.has_expired(&leases[0], lasts, Instant::now()), "and had one since");
    }
}
