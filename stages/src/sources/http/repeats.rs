//! Which posts may come again, so that one which is in the spool already is not stored twice.
//!
//! A client that has no answer can't know what became of its post, and sends it again: a Firehose with the same request id,
//! others with the same `Idempotency-Key` if they are careful. How much of it was taken only the spool knows: this process
//! may be a new one, and the one before may have ended in the midst of the post. The messages of a post are appended in
//! order, so those that are there are its first ones; the others are appended now.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;

use ahash::RandomState;
use pipeline_engine::spool::Spool;
use pipeline_engine::stage::StageError;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::sources::spooled::{key, visit_newest};

/// How far back a start looks for posts that may come again, in messages: a second of reading.
const MESSAGES_LOOKED_THROUGH: usize = 1_000_000;
/// Some 20 MB. A Firehose sends a few requests a second and tries for two hours at most.
const REQUESTS_MAX: usize = 200_000;

/// The name of a post: what it calls itself, and what it holds. Another content by the same name is another post, so that
/// a client which gives names away twice loses nothing.
pub(super) struct RequestName(SipHasher24);

impl RequestName {
    /// Of a post that calls itself so.
    pub(super) fn new(id: &[u8]) -> Self {
        // Fixed keys: the next process must find the same name.
        let mut name = Self(SipHasher24::new_with_keys(0x6874_7470_2d72_6571, 0x7565_7374_2d6e_616d));
        name.add(id);
        name
    }

    /// Takes in a part of what it holds.
    pub(super) fn add(&mut self, part: &[u8]) {
        // With its length, so that parts can't be told otherwise.
        self.0.write_usize(part.len());
        self.0.write(part);
    }

    pub(super) fn key(&self) -> u128 {
        self.0.finish128().as_u128()
    }
}

/// The newest posts that have a name.
pub(super) struct Requests {
    by_key: HashMap<u128, Taken, RandomState>,
    /// In order of their first message.
    order: VecDeque<u128>,
    max: usize,
}

/// How much of a post is in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// So many of its messages, the first ones.
    pub(super) messages: usize,
    /// The number of the last of them.
    pub(super) last_lsn: u64,
}

impl Requests {
    /// None yet.
    pub(super) fn new(max: usize) -> Self {
        Self { by_key: HashMap::default(), order: VecDeque::new(), max }
    }

    /// Those that earlier runs have left in the spool.
    ///
    /// # Errors
    /// The disk can't be read.
    pub(super) async fn in_spool(spool: &Spool) -> Result<Self, StageError> {
        let mut requests = Self::new(REQUESTS_MAX);
        visit_newest(spool, MESSAGES_LOOKED_THROUGH, |lsn, record| {
            if let Some(key) = key(&record) {
                requests.note(key, lsn);
            }
        })
        .await?;
        Ok(requests)
    }

    /// How much of the post of that name is there; `None` if it is new.
    pub(super) fn find(&self, key: u128) -> Option<Taken> {
        self.by_key.get(&key).copied()
    }

    /// One more of its messages is in the spool.
    pub(super) fn note(&mut self, key: u128, lsn: u64) {
        if let Some(taken) = self.by_key.get_mut(&key) {
            *taken = Taken { messages: taken.messages + 1, last_lsn: lsn };
            return;
        }
        self.by_key.insert(key, Taken { messages: 1, last_lsn: lsn });
        self.order.push_back(key);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str, parts: &[&str]) -> u128 {
        let mut name = RequestName::new(id.as_bytes());
        parts.iter().for_each(|part| name.add(part.as_bytes()));
        name.key()
    }

    #[test]
    fn a_post_is_known_by_its_name_and_its_content() {
        assert_eq!(name("a", &["1", "2"]), name("a", &["1", "2"]));
        let others = [name("a", &["1", "2"]), name("b", &["1", "2"]), name("a", &["12"]), name("a", &["1", "2", ""])];
        for (place, other) in others.iter().enumerate() {
            assert!(!others[..place].contains(other), "{place}");
        }
    }

    #[test]
    fn the_name_of_a_post_is_the_same_in_every_process() {
        let expected = 285_925_592_208_522_704_248_855_639_482_844_876_645;
        assert_eq!(name("id", &["{}"]), expected, "a change of it makes every spooled post a new one");
    }

    #[test]
    fn the_first_messages_of_a_post_are_counted_and_the_oldest_posts_forgotten() {
        let mut requests = Requests::new(2);
        for (key, lsn) in [(1, 10), (2, 11), (1, 12), (3, 13)] {
            requests.note(key, lsn);
        }
        assert_eq!(requests.find(1), None, "the oldest");
        assert_eq!(requests.find(2), Some(Taken { messages: 1, last_lsn: 11 }));
        requests.note(2, 14);
        assert_eq!(requests.find(2), Some(Taken { messages: 2, last_lsn: 14 }));
        assert_eq!((requests.by_key.len(), requests.order.len()), (2, 2));
    }
}
