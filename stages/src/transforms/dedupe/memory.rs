//! The keys that are remembered, in the order in which they came.
//!
//! A queue holds them, oldest first, and a hash table the place of each in it. The place of a key that
//! came again as a new first stays in the queue until it is the oldest, and no longer stands for the key.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

/// A key's hash, as two words: so a place takes 24 bytes and not 32.
type Hash = [u64; 2];

/// How many places are given up at most for a new one: enough to shrink, and little for one row.
const EXPIRIES_MAX: usize = 2;

/// What has been seen.
pub(super) struct Memory {
    within_us: u64,
    keys_max: usize,
    queue: VecDeque<(Hash, i64)>,
    /// Where each key is in the queue, counted from the first place that there ever was. Its order
    /// shows nowhere.
    places: HashMap<Hash, u64, RandomState>,
    /// How many places have been given up.
    gone: u64,
}

/// What a row is by its key and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The first of its key, or far from it.
    First,
    /// The same, and another key had to be forgotten for it too soon.
    FirstInPlaceOfAnother,
    /// Seen before.
    Repeated,
}

impl Memory {
    pub(super) fn new(within_us: u64, keys_max: u32) -> Self {
        Self { within_us, keys_max: keys_max as usize, queue: VecDeque::new(), places: HashMap::default(), gone: 0 }
    }

    /// Judges a row, and remembers it if it is a first.
    pub(super) fn observe(&mut self, hash: u128, time_us: i64) -> Verdict {
        let hash = words(hash);
        if let Some(place) = self.places.get(&hash) {
            let (_, first_us) = self.queue[(place - self.gone) as usize];
            if first_us.abs_diff(time_us) <= self.within_us {
                return Verdict::Repeated;
            }
        }
        self.remember(hash, time_us);
        for _ in 0..EXPIRIES_MAX {
            let Some((oldest, first_us)) = self.queue.front().copied() else { break };
            let is_past = time_us > first_us && time_us.abs_diff(first_us) > self.within_us;
            if !is_past && self.stands_for(oldest) {
                break;
            }
            self.give_up_oldest();
        }
        if self.queue.len() > self.keys_max && self.give_up_oldest() {
            return Verdict::FirstInPlaceOfAnother;
        }
        Verdict::First
    }

    /// Hashes and times, oldest first.
    pub(super) fn places(&self) -> impl ExactSizeIterator<Item = (u128, i64)> + '_ {
        self.queue.iter().map(|([high, low], time_us)| (u128::from(*high) << 64 | u128::from(*low), *time_us))
    }

    /// Puts in the next place, as [`Memory::places`] gave it. False where there is none left.
    pub(super) fn put(&mut self, hash: u128, time_us: i64) -> bool {
        self.remember(words(hash), time_us);
        self.queue.len() <= self.keys_max
    }

    /// Also remembers what another one did, each key once and in the order of their times; of too many, the newest.
    pub(super) fn absorb(&mut self, theirs: Vec<(u128, i64)>) {
        let mut all: Vec<(u128, i64)> = self.places().chain(theirs).collect();
        all.sort_by_key(|(hash, time_us)| (*hash, *time_us));
        // The first of a key is what a repetition is measured by.
        all.dedup_by_key(|(hash, _)| *hash);
        all.sort_by_key(|(hash, time_us)| (*time_us, *hash));
        let surplus = all.len().saturating_sub(self.keys_max);
        let mut memory = self.emptied();
        all.drain(surplus..).for_each(|(hash, time_us)| memory.remember(words(hash), time_us));
        *self = memory;
    }

    /// The same rules, and nothing remembered.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.within_us, self.keys_max as u32)
    }

    fn remember(&mut self, hash: Hash, time_us: i64) {
        self.places.insert(hash, self.gone + self.queue.len() as u64);
        self.queue.push_back((hash, time_us));
    }

    /// Whether the oldest place is still the one of its key.
    fn stands_for(&self, oldest: Hash) -> bool {
        self.places.get(&oldest) == Some(&self.gone)
    }

    /// Whether a key was forgotten with the oldest place.
    fn give_up_oldest(&mut self) -> bool {
        let Some((oldest, _)) = self.queue.front().copied() else { return false };
        let is_forgotten = self.stands_for(oldest);
        if is_forgotten {
            self.places.remove(&oldest);
        }
        self.queue.pop_front();
        self.gone += 1;
        is_forgotten
    }
}

fn words(hash: u128) -> Hash {
    [(hash >> 64) as u64, hash as u64]
}
