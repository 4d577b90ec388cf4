//! How records of one shard come: asked for again and again ([`super::polling`]), or pushed ([`super::fan_out`]).

use aws_sdk_kinesis::primitives::{Blob, DateTime};
use aws_sdk_kinesis::types::{Record, ShardIteratorType, StartingPosition};
use bytes::Bytes;
use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;

use super::batches::{Bound, Raw};
use super::roster::Origin;
use crate::kinesis::{Sequence, micros};

/// Where to begin in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At its oldest record.
    Horizon,
    /// At the first record that arrived then or later, microseconds since 1970.
    Time(i64),
    /// Behind its newest record.
    Latest,
    /// At this record.
    At(Sequence),
}

impl Start {
    /// Where to go on that has read up to a bound, or where to begin. `was_asked`: latest has been asked for once, and
    /// means from then on.
    pub(super) fn of(bound: Option<Bound>, origin: Origin, was_asked: bool) -> Self {
        match (bound, origin) {
            (Some(bound), _) => Self::At(bound.sequence()),
            (None, Origin::Horizon | Origin::Skipped) => Self::Horizon,
            (None, Origin::Latest(_)) if !was_asked => Self::Latest,
            (None, Origin::Latest(at_us)) => Self::Time(whole_second(at_us)),
            (None, Origin::Time(at_us)) => Self::Time(at_us),
        }
    }

    /// Records that arrived before this are none of those asked for, whatever the stream makes of a time.
    pub(super) fn earliest_us(self) -> Option<i64> {
        match self {
            Self::Time(at_us) => Some(whole_second(at_us)),
            _ => None,
        }
    }

    /// The three values by which every request names it.
    pub(super) fn parts(self) -> (ShardIteratorType, Option<String>, Option<DateTime>) {
        match self {
            Self::Horizon => (ShardIteratorType::TrimHorizon, None, None),
            Self::Time(at_us) => (ShardIteratorType::AtTimestamp, None, Some(DateTime::from_millis(at_us / 1000))),
            Self::Latest => (ShardIteratorType::Latest, None, None),
            Self::At(sequence) => (ShardIteratorType::AtSequenceNumber, Some(sequence.to_string()), None),
        }
    }

    /// As a subscription wants it.
    pub(super) fn position(self) -> Result<StartingPosition, StageError> {
        let (kind, sequence, time) = self.parts();
        StartingPosition::builder()
            .r#type(kind)
            .set_sequence_number(sequence)
            .set_timestamp(time)
            .build()
            .map_err(|error| StageError::bug("a starting position is incomplete").because(error))
    }
}

/// Not every stream knows arrival more exactly.
fn whole_second(at_us: i64) -> i64 {
    at_us - at_us.rem_euclid(1_000_000)
}

/// What one answer or event has brought.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// In order. May be none.
    pub(super) records: Vec<Raw>,
    /// How far that is behind the tip, if the stream says so.
    pub(super) behind_ms: Option<u64>,
    /// The shard is closed and read to its end.
    pub(super) is_end: bool,
}

/// Why nothing came.
#[derive(Debug)]
pub(super) enum Unfed {
    /// The place in the shard has to be asked for anew: the iterator or the subscription has ended.
    Stale,
    /// The stream asks for patience.
    Throttled,
    /// The shard is no more: its records have come to the end of their retention.
    Gone,
    /// Anything else.
    Failed(StageError),
}

/// The records of an answer.
///
/// # Errors
/// One has a sequence number that is none.
pub(super) fn raw(records: Vec<Record>) -> Result<Vec<Raw>, StageError> {
    records
        .into_iter()
        .map(|record| {
            let sequence = record.sequence_number().parse();
            let sequence = sequence.map_err(|error| {
                StageError::permanent("the stream has numbered a record in a way that is not Kinesis's").because(error)
            })?;
            let arrived_at_us = record.approximate_arrival_timestamp().map_or_else(now_us, micros);
            let Record { data, partition_key, .. } = record;
            let partition_key = partition_key.unwrap_or_default();
            Ok(Raw { sequence, partition_key, data: bytes(data), arrived_at_us })
        })
        .collect()
}

fn bytes(blob: Blob) -> Bytes {
    blob.into_inner().into()
}

#[cfg(test)]
mod tests {
    use pipeline_engine::Position;

    use super::*;

    #[test]
    fn latest_means_the_same_after_it_was_asked_for_once() {
        assert_eq!(Start::of(None, Origin::Latest(5_700_000), false), Start::Latest);
        assert_eq!(Start::of(None, Origin::Latest(5_700_000), true), Start::Time(5_000_000));
        assert_eq!(Start::of(None, Origin::Time(5_700_000), true), Start::Time(5_700_000));
        assert_eq!(Start::Time(5_700_000).earliest_us(), Some(5_000_000));
        let read = Bound::After(Position([0, 0, 7, 2]));
        assert_eq!(Start::of(Some(read), Origin::Latest(5_700_000), false), Start::At("7".parse().unwrap()));
        let (kind, sequence, time) = Start::Time(1_500_000).parts();
        assert_eq!((kind, sequence), (ShardIteratorType::AtTimestamp, None));
        assert_eq!(time, Some(DateTime::from_millis(1_500)));
    }
}
