//! What the Kinesis source and sink share: the stream and its client, sequence numbers as positions, and records that
//! a producer has packed together.

pub(crate) mod aggregation;
mod sequence;
mod stream;

pub(crate) use self::sequence::Sequence;
pub(crate) use self::stream::{Shard, Stream, StreamKeys, Summary, micros};
