//! Messages of PostgreSQL's protocol: a type, a length, a body. The client's first one has no type.

use super::{Moment, Seen, Watch};

/// How much of a body tells what it is: more than `START TRANSACTION` needs.
const HEAD_BYTES: usize = 5 + 20;

/// One direction.
pub(super) struct Messages {
    /// The next message has no type: only the client's first one.
    untyped: bool,
    /// The beginning of the message that is read.
    head: Vec<u8>,
    /// What is still to come of its body, once its moment is known.
    left: u64,
    position: u64,
}

impl Messages {
    pub(super) fn client() -> Self {
        Self { untyped: true, head: Vec::new(), left: 0, position: 0 }
    }

    pub(super) fn server() -> Self {
        Self { untyped: false, ..Self::client() }
    }

    /// The whole length of the message that is read; `None` before its head is there.
    fn length(&self) -> Option<u64> {
        let head = if self.untyped { 0 } else { 1 };
        let bytes = self.head.get(head..head + 4)?;
        Some(u64::from(u32::from_be_bytes(bytes.try_into().expect("four bytes"))) + head as u64)
    }

    fn moment(&self) -> Option<Moment> {
        if self.untyped {
            return None;
        }
        let body = &self.head[5..];
        match self.head[0] {
            b'Q' if starts(body, b"commit") => Some(Moment::Commit),
            b'Q' if starts(body, b"begin") || starts(body, b"start transaction") => Some(Moment::Begin),
            b'd' => Some(Moment::CopyData),
            b'C' if starts(body, b"commit\0") || starts(body, b"rollback\0") => Some(Moment::Ended),
            _ => None,
        }
    }
}

fn starts(body: &[u8], word: &[u8]) -> bool {
    body.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

impl Watch for Messages {
    fn read(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let skipped = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= skipped as u64;
                self.position += skipped as u64;
                rest = &rest[skipped..];
                continue;
            }
            self.head.push(rest[0]);
            self.position += 1;
            rest = &rest[1..];
            let Some(length) = self.length() else { continue };
            if (self.head.len() as u64) < length.min(HEAD_BYTES as u64) {
                continue;
            }
            if let Some(moment) = self.moment() {
                seen.push(Seen { moment, at: self.position - self.head.len() as u64, bytes: length });
            }
            self.left = length - self.head.len() as u64;
            self.head.clear();
            self.untyped = false;
        }
        seen
    }
}

#[test]
fn moments_are_found_however_the_bytes_are_cut() {
    let message = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&[kind][..], &length, body].concat()
    };
    let startup = [&16u32.to_be_bytes()[..], b"Q\0\0\0COMMIT\0\0"].concat();
    let messages =
        [startup, message(b'Q', b"BEGIN\0"), message(b'd', &[7; 1000]), message(b'c', b""), message(b'Q', b"COMMIT\0")];
    let stream = messages.concat();
    let at = |index: usize| messages[..index].iter().map(|message| message.len() as u64).sum::<u64>();
    let expected = [(Moment::Begin, 1), (Moment::CopyData, 2), (Moment::Commit, 4)].map(|(moment, index)| Seen {
        moment,
        at: at(index),
        bytes: messages[index].len() as u64,
    });
    for cut in [1, 2, 3, 7, 100, stream.len()] {
        let mut client = Messages::client();
        let seen: Vec<Seen> = stream.chunks(cut).flat_map(|chunk| client.read(chunk)).collect();
        assert_eq!(seen, expected, "in pieces of {cut}");
    }
}
