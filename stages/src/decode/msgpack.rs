//! What the MessagePack parser under us hides: text that is no UTF-8 comes out of it as bytes.
//!
//! Where bytes are welcome such text would be stored as if it had been bytes. So bytes that can't be text
//! are noted, and told apart afterwards by what stands before them in the payload: the head of a `bin`
//! ends in their length, and no head of a `str` looks like one.

/// Bytes that may be text in their payload, by their address and length.
#[derive(Debug, Default)]
pub(super) struct Doubtful {
    /// The parser is one that gives text as bytes.
    pub(super) is_watching: bool,
    places: Vec<(usize, usize)>,
}

impl Doubtful {
    /// Notes bytes that the parser has borrowed from the payload.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        if self.is_watching && std::str::from_utf8(bytes).is_err() {
            self.places.push((bytes.as_ptr().addr(), bytes.len()));
        }
    }

    /// Whether any of them is text in the payload. None are left.
    pub(super) fn any_text_in(&mut self, payload: &[u8]) -> bool {
        let start = payload.as_ptr().addr();
        let is_bin = |(address, len): (usize, usize)| {
            let before = address.checked_sub(start).and_then(|at| payload.get(..at));
            before.is_some_and(|before| ends_in_bin_head(before, len))
        };
        self.places.drain(..).any(|place| !is_bin(place))
    }
}

fn ends_in_bin_head(before: &[u8], len: usize) -> bool {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    match before {
        [.., 0xc4, length] if number(&[*length]) == len => true,
        [.., 0xc5, a, b] if number(&[*a, *b]) == len => true,
        [.., 0xc6, a, b, c, d] => number(&[*a, *b, *c, *d]) == len,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_head_of_a_text_is_taken_for_one_of_bytes() {
        let heads = |len: u32| {
            let [_, _, high, low] = len.to_be_bytes();
            let bytes = [vec![0xc4, low], vec![0xc5, high, low], [&[0xc6], &len.to_be_bytes()[..]].concat()];
            let texts =
                [vec![0xa0 | low], vec![0xd9, low], vec![0xda, high, low], [&[0xdb], &len.to_be_bytes()[..]].concat()];
            (bytes, texts)
        };
        // Lengths whose own bytes look like heads among them.
        for len in [0, 2, 4, 31, 0xc4, 0xff, 0x100, 0xc4_02, 0xc5_00, 0xffff, 0x00c5_0002, 0x00c6_c4c4] {
            let (bytes, texts) = heads(len);
            let fits = [len <= 0xff, len <= 0xffff, true];
            for (head, _) in bytes.iter().zip(fits).filter(|(_, fits)| *fits) {
                assert!(ends_in_bin_head(&[b"\xc4\xc5\xc6".as_slice(), head].concat(), len as usize), "{head:x?}");
            }
            let fits = [len <= 31, len <= 0xff, len <= 0xffff, true];
            for (head, _) in texts.iter().zip(fits).filter(|(_, fits)| *fits) {
                for before in [b"".as_slice(), b"\xc4", b"\xc5", b"\xc5\x00", b"\xc6", b"\xc6\x00\x00\x00"] {
                    let before = [before, head].concat();
                    assert!(!ends_in_bin_head(&before, len as usize), "{before:x?} of {len}");
                }
            }
        }
    }
}
