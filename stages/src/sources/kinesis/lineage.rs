//! Which shards may be read: parents before their children, so that what a device sends is read in the order in which it
//! was sent, through every split and merge.

use std::collections::BTreeMap;

use crate::kinesis::Shard;

/// All shards that are known, and how far each has come.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    shards: BTreeMap<String, Node>,
}

#[derive(Debug)]
struct Node {
    parents: Vec<String>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// For its parents.
    Waiting,
    Reading,
    /// To its end, or never to be read.
    Done,
}

impl Lineage {
    /// Takes note of shards as the stream lists them, and answers with those that were not known. A parent that the
    /// stream lists no more has nothing left to read.
    pub(super) fn learn(&mut self, listed: &[Shard]) -> Vec<Shard> {
        let mut new = Vec::new();
        for shard in listed.iter().filter(|shard| !self.shards.contains_key(&shard.id)) {
            new.push(shard.clone());
        }
        for Shard { id, parents, .. } in &new {
            let node = Node { parents: parents.clone(), standing: Standing::Waiting };
            self.shards.insert(id.clone(), node);
        }
        new
    }

    /// Shards whose parents are done; they count as being read from here on.
    pub(super) fn startable(&mut self) -> Vec<String> {
        let is_done = |id: &String| self.shards.get(id).is_none_or(|node| node.standing == Standing::Done);
        let ready = |node: &Node| node.standing == Standing::Waiting && node.parents.iter().all(is_done);
        let ids: Vec<String> = self.shards.iter().filter(|(_, node)| ready(node)).map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.set(id, Standing::Reading);
        }
        ids
    }

    /// A shard was read to its end, or is not to be read.
    pub(super) fn done(&mut self, id: &str) {
        self.set(id, Standing::Done);
    }

    /// Takes back that a shard is known: its children wait for it no more, and a list that names it makes it new.
    pub(super) fn forget(&mut self, id: &str) {
        self.shards.remove(id);
    }

    /// Whether a shard is known that has come from this one.
    pub(super) fn has_child(&self, id: &str) -> bool {
        self.shards.values().any(|node| node.parents.iter().any(|parent| parent == id))
    }

    fn set(&mut self, id: &str, standing: Standing) {
        if let Some(node) = self.shards.get_mut(id) {
            node.standing = standing;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn shard(id: &str, parents: &[&str]) -> Shard {
        let parents = parents.iter().map(|parent| (*parent).to_owned()).collect();
        Shard { id: id.to_owned(), parents, is_closed: false, hash_keys: None }
    }

    #[test]
    fn children_of_a_split_wait_for_their_parent_and_the_child_of_a_merge_for_both() {
        let mut lineage = Lineage::default();
        let listed = [shard("a", &[]), shard("b", &["a"]), shard("c", &["a"]), shard("d", &["b", "c"])];
        assert_eq!(lineage.learn(&listed).len(), 4);
        assert_eq!(lineage.startable(), ["a"]);
        assert_eq!(lineage.startable(), [""; 0], "it is being read already");
        lineage.done("a");
        assert_eq!(lineage.startable(), ["b", "c"]);
        lineage.done("c");
        assert_eq!(lineage.startable(), [""; 0]);
        lineage.done("b");
        assert_eq!(lineage.startable(), ["d"]);
        assert!(lineage.has_child("b") && !lineage.has_child("d"));
    }

    #[test]
    fn a_parent_that_the_stream_has_forgotten_is_not_waited_for() {
        let mut lineage = Lineage::default();
        assert_eq!(lineage.learn(&[shard("b", &["a"])]).len(), 1);
        assert_eq!(lineage.learn(&[shard("b", &["a"])]).len(), 0, "it is known");
        assert_eq!(lineage.startable(), ["b"]);
    }

    #[test]
    fn a_shard_that_is_forgotten_before_its_turn_holds_up_no_child_and_is_read_if_it_is_listed_again() {
        let mut lineage = Lineage::default();
        lineage.learn(&[shard("a", &[]), shard("b", &["a"]), shard("c", &["b"])]);
        assert_eq!(lineage.startable(), ["a"]);
        lineage.done("a");
        assert_eq!(lineage.startable(), ["b"]);
        lineage.forget("b");
        assert_eq!(lineage.startable(), ["c"]);
        assert_eq!(lineage.learn(&[shard("b", &["a"])]).len(), 1);
        assert_eq!(lineage.startable(), ["b"]);
    }

    #[test]
    fn whatever_splits_and_merges_every_shard_is_read_once_and_after_its_parents() {
        for seed in 0..200 {
            let mut chance = StdRng::seed_from_u64(seed);
            let mut all = vec![shard("s0", &[]), shard("s1", &[]), shard("s2", &[])];
            let mut open = vec![0, 1, 2];
            for _ in 0..20 {
                let one = open.swap_remove(chance.random_range(0..open.len()));
                let id = |all: &Vec<Shard>| format!("s{}", all.len());
                if open.is_empty() || chance.random_bool(0.5) {
                    for _ in 0..2 {
                        open.push(all.len());
                        let parent = all[one].id.clone();
                        all.push(shard(&id(&all), &[&parent]));
                    }
                } else {
                    let other = open.swap_remove(chance.random_range(0..open.len()));
                    open.push(all.len());
                    let (parent, adjacent) = (all[one].id.clone(), all[other].id.clone());
                    all.push(shard(&id(&all), &[&parent, &adjacent]));
                }
            }
            let mut lineage = Lineage::default();
            let (mut reading, mut order): (Vec<String>, Vec<String>) = Default::default();
            let mut listed = 1;
            while order.len() < all.len() {
                lineage.learn(&all[..listed]);
                listed = (listed + chance.random_range(0..4)).min(all.len());
                reading.extend(lineage.startable());
                if !reading.is_empty() {
                    let ended = reading.swap_remove(chance.random_range(0..reading.len()));
                    lineage.done(&ended);
                    order.push(ended);
                }
            }
            for shard in &all {
                let at = |id: &String| order.iter().position(|ended| ended == id).unwrap();
                assert!(shard.parents.iter().all(|parent| at(parent) < at(&shard.id)), "seed {seed}: {order:?}");
            }
        }
    }
}
