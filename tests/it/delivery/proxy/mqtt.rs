//! Packets of MQTT: a type, a length of one to four bytes, a body.

use super::{Moment, Seen, Watch};

/// One direction.
#[derive(Default)]
pub(super) struct Packets {
    head: Vec<u8>,
    left: u64,
    position: u64,
}

impl Watch for Packets {
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
            // The length ends with the first byte below 128.
            if self.head.len() < 2 || self.head.last().is_some_and(|last| *last >= 128) {
                continue;
            }
            let digits = self.head[1..].iter().rev();
            self.left = digits.fold(0, |length, digit| (length << 7) | u64::from(digit & 127));
            let moment = match self.head[0] >> 4 {
                2 => Some(Moment::ConnAck),
                3 => Some(Moment::Publish),
                4 => Some(Moment::PubAck),
                _ => None,
            };
            let head = self.head.len() as u64;
            seen.extend(moment.map(|moment| Seen { moment, at: self.position - head, bytes: head + self.left }));
            self.head.clear();
        }
        seen
    }
}

#[test]
fn packets_are_found_however_the_bytes_are_cut() {
    let publish = [&[0x32, 0xC8, 0x01][..], &[9; 200]].concat();
    let stream = [&[0x20, 2, 0, 0][..], &publish, &[0x40, 2, 0, 1]].concat();
    let expected = [
        Seen { moment: Moment::ConnAck, at: 0, bytes: 4 },
        Seen { moment: Moment::Publish, at: 4, bytes: 203 },
        Seen { moment: Moment::PubAck, at: 207, bytes: 4 },
    ];
    for cut in [1, 2, 5, stream.len()] {
        let mut packets = Packets::default();
        let seen: Vec<Seen> = stream.chunks(cut).flat_map(|chunk| packets.read(chunk)).collect();
        assert_eq!(seen, expected, "in pieces of {cut}");
    }
}
