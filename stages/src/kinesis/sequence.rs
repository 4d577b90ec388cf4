//! Sequence numbers of a shard, and the positions that they are in the pipeline.

use std::fmt;
use std::str::FromStr;

use pipeline_engine::Position;

/// The number of a record in its shard: up to 186 bits, and greater for each record than for those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence([u64; 3]);

/// What a stream has called a sequence number is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no sequence number")]
pub(crate) struct NotASequence(String);

impl Sequence {
    /// The place of one of the records that a producer has packed into the record of this number, counted from 0. A
    /// record that holds no others is its own record 0.
    pub(crate) fn position(self, sub_sequence: u64) -> Position {
        let Self([high, middle, low]) = self;
        Position([high, middle, low, sub_sequence])
    }

    /// The number and the sub-sequence number of a position.
    pub(crate) fn of(position: Position) -> (Self, u64) {
        let Position([high, middle, low, sub_sequence]) = position;
        (Self([high, middle, low]), sub_sequence)
    }
}

impl FromStr for Sequence {
    type Err = NotASequence;

    fn from_str(text: &str) -> Result<Self, NotASequence> {
        match text.parse() {
            Ok(Position([0, high, middle, low])) => Ok(Self([high, middle, low])),
            _ => Err(NotASequence(text.to_owned())),
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([high, middle, low]) = *self;
        fmt::Display::fmt(&Position([0, high, middle, low]), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As AWS gives them: 56 digits.
    const REAL: &str = "49590338271490256608559692538361571095921575989136588898";

    #[test]
    fn a_number_of_aws_is_a_position_and_comes_back_as_it_was() {
        let sequence: Sequence = REAL.parse().unwrap();
        assert_eq!(sequence.to_string(), REAL);
        assert_eq!(Sequence::of(sequence.position(7)), (sequence, 7));
        let longest = "6277101735386680763835789423207666416102355444464034512895"; // 2^192 - 1
        assert_eq!(longest.parse::<Sequence>().unwrap().to_string(), longest);
        for text in ["", "x", "6277101735386680763835789423207666416102355444464034512896", "-1", "007"] {
            assert_eq!(text.parse::<Sequence>(), Err(NotASequence(text.to_owned())));
        }
    }

    #[test]
    fn positions_are_in_the_order_of_records_and_of_what_is_packed_in_them() {
        let (one, next): (Sequence, Sequence) = ("9".parse().unwrap(), "10".parse().unwrap());
        assert!(one.position(0) < one.position(1));
        assert!(one.position(u64::MAX) < next.position(0));
    }
}
