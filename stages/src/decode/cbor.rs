//! What CBOR allows and the parser under us does not: floats of 16 bits, and tags.
//!
//! Encoders that save space write the first, encoders of dates the second. [`Plain`] writes such a
//! payload anew without them; all others are read as they are.

use std::convert::Infallible;

use cbor4ii::core::dec::{Read, Reference};

/// A payload and how deep it may still nest.
pub(super) struct Reader<'de> {
    rest: &'de [u8],
    steps_left: usize,
}

impl<'de> Reader<'de> {
    /// The parser counts a step for each value and another for each array or object.
    pub(super) fn new(payload: &'de [u8], depth_max: usize) -> Self {
        Self { rest: payload, steps_left: 2 * depth_max + 2 }
    }

    pub(super) fn rest(&self) -> &'de [u8] {
        self.rest
    }
}

impl<'de> Read<'de> for Reader<'de> {
    type Error = Infallible;

    #[inline]
    fn fill<'short>(&'short mut self, want: usize) -> Result<Reference<'de, 'short>, Infallible> {
        Ok(Reference::Long(&self.rest[..want.min(self.rest.len())]))
    }

    #[inline]
    fn advance(&mut self, count: usize) {
        self.rest = &self.rest[count.min(self.rest.len())..];
    }

    #[inline]
    fn step_in(&mut self) -> bool {
        let fits = self.steps_left > 0;
        self.steps_left -= usize::from(fits);
        fits
    }

    #[inline]
    fn step_out(&mut self) {
        self.steps_left += 1;
    }
}

/// Room for a payload without tags and 16-bit floats.
#[derive(Debug, Default)]
pub(super) struct Plain {
    bytes: Vec<u8>,
    /// A payload needed it, so the next ones will too: they don't try without it first. What becomes of
    /// them must be the same.
    pub(super) expected: bool,
}

impl Plain {
    /// Whether `head`, the first byte of a value, is what [`Plain::rewrite`] takes out.
    pub(super) fn takes(head: u8) -> bool {
        matches!(head, 0xc0..=0xdb | HALF)
    }

    /// The same values. `None` if the payload breaks off, has a head that CBOR does not know, or a tag that
    /// marks no value: without its tags it would pass for CBOR.
    pub(super) fn rewrite(&mut self, payload: &[u8]) -> Option<&[u8]> {
        self.bytes.clear();
        let mut rest = payload;
        let mut takes_out = false;
        // The value before was a tag, and this one must be what it marks.
        let mut is_marked = false;
        // That tag makes a large integer of bytes, and of nothing else: not even of bytes behind another tag.
        let mut is_large_integer = false;
        // Text or bytes of unknown length have begun: the pieces have this kind, until a break.
        let mut pieces: Option<u8> = None;
        // Values lie one behind the other, so that no nesting has to be followed.
        while let Some(&head) = rest.first() {
            let is_piece = |kind: u8| head >> 5 == kind && head & 0x1f != 31;
            if head == BREAK && is_marked || head != BREAK && pieces.is_some_and(|kind| !is_piece(kind)) {
                return None;
            }
            if is_large_integer && head >> 5 != 2 {
                return None;
            }
            pieces = match head {
                BREAK => None,
                0x5f | 0x7f => Some(head >> 5),
                _ => pieces,
            };
            is_marked = matches!(head, 0xc0..=0xdb);
            is_large_integer = matches!(head, 0xc2 | 0xc3);
            takes_out |= Self::takes(head);
            let argument = match head & 0x1f {
                0..=23 | 31 => 0,
                24 => 1,
                25 => 2,
                26 => 4,
                27 => 8,
                _ => return None,
            };
            let (value, behind) = rest.split_at_checked(1 + argument)?;
            rest = behind;
            match head {
                // Large integers, which the parser knows.
                0xc2 | 0xc3 => self.bytes.push(head),
                0xc0..=0xdb => {}
                HALF => {
                    self.bytes.push(0xfa);
                    let half = u16::from_be_bytes([value[1], value[2]]);
                    self.bytes.extend_from_slice(&float_of_half(half).to_be_bytes());
                }
                // Bytes and text of a known length.
                0x40..=0x5b | 0x60..=0x7b => {
                    let length = match argument {
                        0 => u64::from(head & 0x1f),
                        _ => value[1..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
                    };
                    let (body, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                    rest = behind;
                    self.bytes.extend_from_slice(value);
                    self.bytes.extend_from_slice(body);
                }
                _ => self.bytes.extend_from_slice(value),
            }
        }
        self.expected |= takes_out;
        (!is_marked).then_some(&self.bytes)
    }
}

/// The head of a float of 16 bits.
const HALF: u8 = 0xf9;
/// Ends what has no length.
const BREAK: u8 = 0xff;

fn float_of_half(half: u16) -> f32 {
    let fraction = f32::from(half & 0x3ff);
    let size = match half >> 10 & 0x1f {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        exponent => (1024.0 + fraction) * 2_f32.powi(i32::from(exponent) - 25),
    };
    if half >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_16_bits_have_the_values_of_rfc_8949() {
        // Appendix A.
        for (half, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0x3e00, 1.5),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x0400, 0.000_061_035_156),
            (0xc400, -4.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(float_of_half(half).to_bits(), f32::to_bits(value), "{half:#x}");
        }
        assert!(float_of_half(0x7e00).is_nan());
    }

    #[test]
    fn only_tags_and_small_floats_change() {
        // [1(1.5), "x", h'0102', 2(h'01')]
        let payload = [0x84, 0xc1, 0xf9, 0x3e, 0x00, 0x61, b'x', 0x42, 1, 2, 0xc2, 0x41, 1];
        let plain = [0x84, 0xfa, 0x3f, 0xc0, 0, 0, 0x61, b'x', 0x42, 1, 2, 0xc2, 0x41, 1];
        assert_eq!(Plain::default().rewrite(&payload), Some(plain.as_slice()));
        assert_eq!(Plain::default().rewrite(&payload[..9]), None, "broken off");
    }

    #[test]
    fn what_is_no_cbor_does_not_become_some_without_its_tags() {
        for (payload, what) in [
            ([0xc1].as_slice(), "a tag at the end"),
            (&[0x9f, 0xc1, 0xff], "a tag before a break"),
            (&[0xbf, 0x61, b'x', 0xc1, 0xff], "a tag before the break of a map"),
            (&[0x7f, 0xc1, 0x61, b'x', 0xff], "a tag among the pieces of a text"),
            (&[0x5f, 0x61, b'x', 0xff], "text among the pieces of bytes"),
            (&[0x7f, 0x7f, 0xff, 0xff], "pieces inside pieces"),
            (&[0xc2, 0xc1, 0x41, 1], "a tag between a large integer and its bytes"),
            (&[0xc3, 0x61, b'x'], "a large integer of text"),
        ] {
            assert_eq!(Plain::default().rewrite(payload), None, "{what}");
        }
        let pieces = [0x7f, 0x61, b'x', 0x60, 0xff, 0xc1, 0x5f, 0x41, 1, 0xff];
        assert_eq!(Plain::default().rewrite(&pieces).map(<[u8]>::len), Some(9));
    }
}
