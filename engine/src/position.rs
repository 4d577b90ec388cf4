//! Where rows came from: the currency of progress, replay and deduplication.

use std::fmt;
use std::str::FromStr;

/// A place in one partition of a source, ordered as the partition is read.
///
/// 256 bits, most significant word first, so that a Kinesis sequence number (up to 186 bits) with
/// its sub-sequence fits as well as a line number, a log sequence number or a packet count.
///
/// As text it is that number in decimal, and [`FromStr`] takes exactly what `Display` writes: equal texts
/// are equal positions, and where texts are compared as numbers (`position::numeric` in SQL) they sort as
/// positions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub [u64; 4]);

/// The text is no position: not a number in decimal, with a sign or a zero before it, or beyond 256 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a position")]
pub struct NotAPosition(String);

/// The digits that one word holds.
const DIGITS: usize = 19;
const TEN_TO_DIGITS: u64 = 10_u64.pow(19);

impl From<u64> for Position {
    fn from(low: u64) -> Self {
        Self([0, 0, 0, low])
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut groups = Vec::new();
        while groups.is_empty() || rest != [0; 4] {
            groups.push(take_lowest_digits(&mut rest));
        }
        let mut text = String::new();
        for (index, group) in groups.iter().rev().enumerate() {
            let width = if index == 0 { 1 } else { DIGITS };
            text.push_str(&format!("{group:0width$}"));
        }
        f.pad_integral(true, "", &text)
    }
}

/// Divides by `TEN_TO_DIGITS` and returns what is left over.
fn take_lowest_digits(words: &mut [u64; 4]) -> u64 {
    let mut rest = 0;
    for word in words {
        let value = (u128::from(rest) << 64) | u128::from(*word);
        // Both fit: `rest` is below the divisor.
        *word = (value / u128::from(TEN_TO_DIGITS)) as u64;
        rest = (value % u128::from(TEN_TO_DIGITS)) as u64;
    }
    rest
}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let wrong = || NotAPosition(text.to_owned());
        if text.is_empty() || (text.len() > 1 && text.starts_with('0')) {
            return Err(wrong());
        }
        let mut words = [0; 4];
        for digit in text.bytes() {
            let digit = digit.is_ascii_digit().then(|| digit - b'0').ok_or_else(wrong)?;
            let mut carry = u128::from(digit);
            for word in words.iter_mut().rev() {
                carry += u128::from(*word) * 10;
                *word = carry as u64;
                carry >>= 64;
            }
            if carry != 0 {
                return Err(wrong());
            }
        }
        Ok(Self(words))
    }
}

/// The positions behind one batch: a closed interval of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first position that the batch holds.
    pub first: Position,
    /// The last position that the batch holds; not before `first`.
    pub last: Position,
}

impl Span {
    /// From `first` to `last`, both included.
    pub fn new(first: impl Into<Position>, last: impl Into<Position>) -> Self {
        let (first, last) = (first.into(), last.into());
        debug_assert!(first <= last, "a span must not run backwards");
        Self { first, last }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_is_written_as_one_decimal_number() {
        assert_eq!(Position::default().to_string(), "0");
        assert_eq!(Position::from(u64::MAX).to_string(), "18446744073709551615");
        assert_eq!(Position([0, 0, 1, 0]).to_string(), "18446744073709551616");
        let largest = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(Position([u64::MAX; 4]).to_string(), largest);
        assert_eq!(
            format!("{:>5}|{:<3}|{:03}", Position::from(7), Position::from(7), Position::from(7)),
            "    7|7  |007"
        );
    }

    #[test]
    fn a_text_that_no_position_is_written_as_is_none() {
        let too_large = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
        for text in ["", "00", "07", "+7", "-7", " 7", "7 ", "7.0", "0x7", "1-0000000000000002", "７", too_large] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition(text.to_owned())));
        }
    }

    /// Words that are often alike, small or at an end: where carries are.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(TEN_TO_DIGITS), 0..1_000_u64, any::<u64>()]
    }

    proptest! {
        #[test]
        fn a_position_is_read_back_from_its_text_and_texts_sort_as_numbers(
            one in prop::array::uniform4(word()),
            other in prop::array::uniform4(word()),
        ) {
            let (one, other) = (Position(one), Position(other));
            let (text, other_text) = (one.to_string(), other.to_string());
            prop_assert_eq!(text.parse(), Ok(one));
            prop_assert_eq!((text.len(), &text).cmp(&(other_text.len(), &other_text)), one.cmp(&other));
        }
    }
}
