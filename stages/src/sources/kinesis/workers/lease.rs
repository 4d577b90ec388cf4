//! A lease of a shard, as the Kinesis Client Library lays it out in its table: what an operator's tools know of it, they
//! know of ours.
//!
//! | attribute | type | what |
//! |---|---|---|
//! | `leaseKey` | S | the shard; the table's key |
//! | `leaseOwner` | S | the worker that has it; missing where nobody does |
//! | `leaseCounter` | N | one more with each renewal and each change of hands: a lease whose counter stands still is free |
//! | `checkpoint` | S | the sequence number that was read up to, `TRIM_HORIZON`, `LATEST`, `AT_TIMESTAMP` or `SHARD_END` |
//! | `checkpointSubSequenceNumber` | N | the place in a packed record |
//! | `checkpointOwner` | S | while a lease is handed over: the worker that stores what it has read, and then lets go |
//! | `ownerSwitchesSinceCheckpoint` | N | how often it changed hands since the checkpoint moved |
//! | `parentShardId`, `childShardIds` | SS | where the shard has come from, and what has come of it |
//! | `startingHashKey`, `endingHashKey` | S | its hash keys |
//! | `pipelineStartMillis` | N | ours: the time that `AT_TIMESTAMP` means |

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use pipeline_engine::Position;

use super::super::roster::Origin;
use crate::kinesis::{Sequence, Shard};

pub(super) const KEY: &str = "leaseKey";
pub(super) const OWNER: &str = "leaseOwner";
pub(super) const COUNTER: &str = "leaseCounter";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const SUB_SEQUENCE: &str = "checkpointSubSequenceNumber";
pub(super) const CHECKPOINT_OWNER: &str = "checkpointOwner";
pub(super) const SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
pub(super) const CHILDREN: &str = "childShardIds";
const PARENTS: &str = "parentShardId";
const FIRST_HASH_KEY: &str = "startingHashKey";
const LAST_HASH_KEY: &str = "endingHashKey";
const START_MS: &str = "pipelineStartMillis";

const HORIZON: &str = "TRIM_HORIZON";
const LATEST: &str = "LATEST";
const AT_TIME: &str = "AT_TIMESTAMP";
const END: &str = "SHARD_END";

/// An item of the table, as DynamoDB has it.
pub(super) type Item = HashMap<String, AttributeValue>;

/// How far a shard has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// Nothing of it was stored yet: where it begins.
    Begin(Origin),
    /// Everything up to here is stored.
    After(Position),
    /// It is read to its end.
    End,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) shard: String,
    pub(super) owner: Option<String>,
    pub(super) counter: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) checkpoint_owner: Option<String>,
    pub(super) parents: Vec<String>,
    pub(super) hash_keys: Option<(String, String)>,
}

impl Checkpoint {
    pub(super) fn position(self) -> Option<Position> {
        match self {
            Self::After(position) => Some(position),
            Self::Begin(_) | Self::End => None,
        }
    }

    /// The two attributes that say so.
    pub(super) fn attributes(self) -> (AttributeValue, AttributeValue) {
        let (text, sub_sequence) = match self {
            Self::Begin(Origin::Horizon) => (HORIZON.to_owned(), 0),
            Self::Begin(Origin::Latest(_) | Origin::Time(_)) => (AT_TIME.to_owned(), 0),
            Self::Begin(Origin::Skipped) | Self::End => (END.to_owned(), 0),
            Self::After(position) => {
                let (sequence, sub_sequence) = Sequence::of(position);
                (sequence.to_string(), sub_sequence)
            }
        };
        (AttributeValue::S(text), AttributeValue::N(sub_sequence.to_string()))
    }
}

impl Lease {
    /// Of a shard that nobody has read yet.
    pub(super) fn of(shard: &Shard, origin: Origin) -> Self {
        let checkpoint = if origin == Origin::Skipped { Checkpoint::End } else { Checkpoint::Begin(origin) };
        Self {
            shard: shard.id.clone(),
            owner: None,
            counter: 0,
            checkpoint,
            checkpoint_owner: None,
            parents: shard.parents.clone(),
            hash_keys: shard.hash_keys.clone(),
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.checkpoint == Checkpoint::End
    }

    pub(super) fn is_of(&self, worker: &str) -> bool {
        self.owner.as_deref() == Some(worker)
    }

    pub(super) fn encode(&self) -> Item {
        let (checkpoint, sub_sequence) = self.checkpoint.attributes();
        let mut item = Item::from([
            (KEY.to_owned(), AttributeValue::S(self.shard.clone())),
            (COUNTER.to_owned(), AttributeValue::N(self.counter.to_string())),
            (CHECKPOINT.to_owned(), checkpoint),
            (SUB_SEQUENCE.to_owned(), sub_sequence),
            (SWITCHES.to_owned(), AttributeValue::N("0".to_owned())),
        ]);
        let texts = [(OWNER, self.owner.clone()), (CHECKPOINT_OWNER, self.checkpoint_owner.clone())];
        let (first, last) = self.hash_keys.clone().unzip();
        for (name, text) in texts.into_iter().chain([(FIRST_HASH_KEY, first), (LAST_HASH_KEY, last)]) {
            if let Some(text) = text {
                item.insert(name.to_owned(), AttributeValue::S(text));
            }
        }
        // A set of DynamoDB has members.
        if !self.parents.is_empty() {
            item.insert(PARENTS.to_owned(), AttributeValue::Ss(self.parents.clone()));
        }
        if let Checkpoint::Begin(Origin::Latest(at_us) | Origin::Time(at_us)) = self.checkpoint {
            let at_ms = at_us.div_euclid(1000).to_string();
            item.insert(START_MS.to_owned(), AttributeValue::N(at_ms));
        }
        item
    }

    /// An item as we or the KCL have written it. `start`: what `LATEST` and `AT_TIMESTAMP` of the KCL mean.
    ///
    /// # Errors
    /// The attribute that is missing or makes no sense.
    pub(super) fn decode(item: &Item, start: Origin) -> Result<Self, String> {
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
        let number = |name: &str| item.get(name).and_then(|value| value.as_n().ok()?.parse::<u64>().ok());
        let shard = text(KEY).ok_or_else(|| format!("an item has no {KEY}"))?;
        let wrong = |name: &str| format!("the {name} of \"{shard}\" is missing or makes no sense");
        let start = item
            .get(START_MS)
            .and_then(|value| value.as_n().ok()?.parse::<i64>().ok())
            .map_or(start, |at_ms| Origin::Time(at_ms.saturating_mul(1000)));
        let checkpoint = match text(CHECKPOINT).ok_or_else(|| wrong(CHECKPOINT))?.as_str() {
            HORIZON => Checkpoint::Begin(Origin::Horizon),
            LATEST | AT_TIME => Checkpoint::Begin(start),
            END => Checkpoint::End,
            sequence => {
                let sequence: Sequence = sequence.parse().map_err(|_| wrong(CHECKPOINT))?;
                Checkpoint::After(sequence.position(number(SUB_SEQUENCE).unwrap_or(0)))
            }
        };
        let parents = item.get(PARENTS).and_then(|value| value.as_ss().ok()).cloned().unwrap_or_default();
        Ok(Self {
            owner: text(OWNER),
            counter: number(COUNTER).ok_or_else(|| wrong(COUNTER))?,
            checkpoint,
            checkpoint_owner: text(CHECKPOINT_OWNER),
            parents,
            hash_keys: text(FIRST_HASH_KEY).zip(text(LAST_HASH_KEY)),
            shard,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(checkpoint: Checkpoint) -> Lease {
        Lease {
            shard: "shardId-000000000001".to_owned(),
            owner: Some("a".to_owned()),
            counter: 7,
            checkpoint,
            checkpoint_owner: Some("b".to_owned()),
            parents: vec!["shardId-000000000000".to_owned()],
            hash_keys: Some(("0".to_owned(), "170141183460469231731687303715884105727".to_owned())),
        }
    }

    #[test]
    fn a_lease_is_read_back_as_it_was_written() {
        let sequence: Sequence = "49590338271490256608559692538361571095921575989136588898".parse().unwrap();
        let begin = Checkpoint::Begin(Origin::Horizon);
        for checkpoint in [begin, Checkpoint::After(sequence.position(3)), Checkpoint::End] {
            let lease = lease(checkpoint);
            assert_eq!(Lease::decode(&lease.encode(), Origin::Horizon), Ok(lease));
        }
        let latest = lease(Checkpoint::Begin(Origin::Latest(1_700_000_000_123_456))).encode();
        assert_eq!(latest[CHECKPOINT], AttributeValue::S("AT_TIMESTAMP".to_owned()));
        let read = Lease::decode(&latest, Origin::Horizon).unwrap();
        assert_eq!(read.checkpoint, Checkpoint::Begin(Origin::Time(1_700_000_000_123_000)), "to the millisecond");
    }

    /// An item as KCL 2 writes it, by hand from its serializer: numbers are text, the parents a set, nobody owns it.
    #[test]
    fn a_lease_of_the_kcl_is_understood() {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let mut item = Item::from([
            ("leaseKey".to_owned(), text("shardId-000000000002")),
            ("leaseCounter".to_owned(), AttributeValue::N("12".to_owned())),
            ("ownerSwitchesSinceCheckpoint".to_owned(), AttributeValue::N("1".to_owned())),
            ("checkpoint".to_owned(), text("LATEST")),
            ("checkpointSubSequenceNumber".to_owned(), AttributeValue::N("0".to_owned())),
            ("throughputKBps".to_owned(), AttributeValue::N("0.5".to_owned())),
        ]);
        let read = Lease::decode(&item, Origin::Latest(5)).unwrap();
        assert_eq!((read.owner.as_deref(), read.counter), (None, 12));
        assert_eq!(read.checkpoint, Checkpoint::Begin(Origin::Latest(5)));
        item.insert("checkpoint".to_owned(), text("later"));
        assert!(Lease::decode(&item, Origin::Horizon).unwrap_err().contains("checkpoint"));
    }
}
