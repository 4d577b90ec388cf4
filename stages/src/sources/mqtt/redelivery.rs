//! Which messages the broker may send again, so that one which is in the spool already is not stored
//! twice.
//!
//! A broker repeats, on the next connection, what it has no acknowledgement for: with the DUP flag and the
//! same packet id. Whether the message was lost on its way to us or the acknowledgement on its way back
//! only we can know, and only from the spool: this process may be a new one.

use std::collections::VecDeque;

use ahash::RandomState;
use pipeline_engine::spool::Record;

use crate::sources::spooled::OWED;

/// The newest messages that came with a packet id.
pub(super) struct Redeliveries {
    /// By packet id, up to the highest that came, the newest of that number: before it uses a number again, a broker has
    /// the acknowledgement of the one before.
    newest: Vec<Seen>,
    /// In order of arrival.
    order: VecDeque<(u16, u64)>,
    /// How many may be unacknowledged at once; older ones can't come again.
    max: usize,
    hasher: RandomState,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// No record has number 0: there is none.
    lsn: u64,
    digest: u64,
}

impl Redeliveries {
    /// `max`: how many may be unacknowledged at once.
    pub(super) fn new(max: usize) -> Self {
        Self { newest: Vec::new(), order: VecDeque::new(), max, hasher: RandomState::with_seed(0) }
    }

    /// Notes what an earlier run has left in the spool, unless nobody waits for its acknowledgement.
    pub(super) fn note_earlier(&mut self, record: &Record, lsn: u64) {
        if record.flags & OWED != 0 {
            self.note(record, lsn);
        }
    }

    /// Notes a message that is now in the spool.
    pub(super) fn note(&mut self, record: &Record, lsn: u64) {
        let digest = self.digest(record);
        let place = usize::from(record.mark);
        if place >= self.newest.len() {
            self.newest.resize(place + 1, Seen::default());
        }
        self.newest[place] = Seen { lsn, digest };
        self.order.push_back((record.mark, lsn));
        while self.order.len() > self.max
            && let Some((mark, lsn)) = self.order.pop_front()
        {
            // Unless the number has gone to a newer one.
            if let Some(seen) = self.newest.get_mut(usize::from(mark)).filter(|seen| seen.lsn == lsn) {
                *seen = Seen::default();
            }
        }
    }

    /// Where in the spool a message is that the broker says it repeats; `None` if it never reached us.
    pub(super) fn find(&self, record: &Record) -> Option<u64> {
        let seen = self.newest.get(usize::from(record.mark)).filter(|seen| seen.lsn != 0)?;
        (seen.digest == self.digest(record)).then_some(seen.lsn)
    }

    /// The broker has forgotten us: whatever comes now is new.
    pub(super) fn forget(&mut self) {
        self.newest.clear();
        self.order.clear();
    }

    fn digest(&self, record: &Record) -> u64 {
        self.hasher.hash_one((&record.topic, &record.payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mark: u16, payload: &str) -> Record {
        let payload = payload.to_owned().into();
        Record { received_at_us: 1, flags: OWED, mark, topic: "t".into(), payload }
    }

    #[test]
    fn a_repetition_is_known_by_number_and_content() {
        let mut known = Redeliveries::new(10);
        known.note_earlier(&record(1, "a"), 5);
        known.note(&record(2, "b"), 6);
        assert_eq!(known.find(&record(1, "a")), Some(5), "from an earlier run");
        assert_eq!(known.find(&record(2, "b")), Some(6));
        assert_eq!(known.find(&record(2, "a")), None, "another message by that number never reached us");
        assert_eq!(known.find(&record(3, "a")), None);
        known.forget();
        assert_eq!(known.find(&record(1, "a")), None);
    }

    #[test]
    fn a_number_that_is_used_again_is_the_newer_message() {
        let mut known = Redeliveries::new(10);
        known.note(&record(1, "old"), 1);
        known.note(&record(1, "new"), 2);
        assert_eq!(known.find(&record(1, "old")), None);
        assert_eq!(known.find(&record(1, "new")), Some(2));
    }

    #[test]
    fn no_more_are_kept_than_can_come_again() {
        let mut known = Redeliveries::new(3);
        for (lsn, mark) in [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)] {
            known.note(&record(mark, "same"), lsn);
        }
        let kept = known.newest.iter().filter(|seen| seen.lsn != 0).count();
        assert_eq!((kept, known.order.len()), (3, 3));
        assert_eq!(known.find(&record(1, "same")), Some(3), "the newer of its number stays");
        assert_eq!(known.find(&record(2, "same")), None);
    }

    #[test]
    fn what_nobody_repeats_is_not_kept() {
        let at_most_once = Record { flags: 0, ..record(0, "a") };
        let mut known = Redeliveries::new(10);
        known.note_earlier(&at_most_once, 1);
        assert_eq!(known.find(&record(0, "a")), None);
    }
}
