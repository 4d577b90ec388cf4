//! Records and the frames that hold them on disk.
//!
//! ```text
//! frame   magic 4 | len u32 | crc32 u32 | first_lsn u64 | count u32 | received_at_us i64
//!         | topics u32 | topics * (len, text) | count * record
//! record  received_at delta | flags u8 | mark | topic index | len | payload
//! ```
//! Integers are little-endian; those without a type are LEB128. `len` counts what follows the
//! checksum, which covers the spool's identity, `len` and all that follows: neither a frame of
//! another spool nor one with a damaged length passes. A frame of no records marks a clean end.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

/// The longest topic and payload of one record together. Far above what brokers let through (AWS
/// IoT 128 KiB, Mosquitto by default any), far below what would make one frame a burden to hold.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// What a record may cost on disk and in memory beside its topic and payload.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 64;

/// A group below its bound, plus the one record that takes it over, plus the topic table.
pub(crate) const FRAME_BYTES_MAX: usize = 40 << 20;

/// No record gets a higher lsn: a million a second come here after 290,000 years. So numbers beyond it in a
/// file are damage, whatever their checksum says, and no sum of lsns and bytes runs over.
pub(crate) const LSN_MAX: u64 = u64::MAX >> 1;

/// Bytes of a frame before the first topic.
pub(crate) const FRAME_HEAD_BYTES: usize = 36;

const MAGIC: [u8; 4] = *b"\xF5frm";
/// Magic, length and checksum.
const PREFIX_BYTES: usize = 12;

/// One message as it came, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was received, in microseconds since 1970. The spool makes it non-decreasing.
    pub received_at_us: i64,
    /// The source's own, such as whether the broker called it a repetition.
    pub flags: u8,
    /// The source's own, such as the number that the broker gave the message.
    pub mark: u16,
    /// Where it was published.
    pub topic: Bytes,
    /// What was published.
    pub payload: Bytes,
}

impl Record {
    /// What the record counts against bounds in bytes.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + RECORD_OVERHEAD_BYTES
    }
}

/// One group commit: the unit of durability and of replay. A reader that starts again at a
/// position gets the same frames again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The lsn of the first record; the others follow without a gap.
    pub first_lsn: u64,
    /// The records, in order of arrival. Topics and payloads are slices of one buffer.
    pub records: Vec<Record>,
}

impl Frame {
    /// The lsn of the last record.
    pub fn last_lsn(&self) -> u64 {
        (self.first_lsn + self.records.len() as u64).saturating_sub(1)
    }
}

/// A frame in the form it has on disk.
#[derive(Debug, Clone)]
pub(crate) struct EncodedFrame {
    pub bytes: Vec<u8>,
    pub head: FrameHead,
}

/// What a valid frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub bytes: usize,
    pub first_lsn: u64,
    pub count: u32,
    /// Of the first record.
    pub received_at_us: i64,
}

impl FrameHead {
    /// The lsn before the next frame's first; one less than `first_lsn` if there are no records.
    pub fn last_lsn(&self) -> u64 {
        (self.first_lsn + u64::from(self.count)).saturating_sub(1)
    }
}

/// Records whose `received_at_us` doesn't decrease, as one frame.
pub(crate) fn encode(records: &[Record], first_lsn: u64, identity: u64) -> EncodedFrame {
    let mut topics: Vec<&Bytes> = Vec::new();
    let mut index_of: HashMap<&Bytes, u64> = HashMap::new();
    let mut before: Option<(&Bytes, u64)> = None;
    let indices: Vec<u64> = records
        .iter()
        .map(|record| {
            // Many have all messages from one topic, which then needs no hash.
            let (_, index) = before.filter(|(topic, _)| **topic == record.topic).unwrap_or_else(|| {
                let index = *index_of.entry(&record.topic).or_insert_with(|| {
                    topics.push(&record.topic);
                    topics.len() as u64 - 1
                });
                (&record.topic, index)
            });
            before = Some((&record.topic, index));
            index
        })
        .collect();

    let count = u32::try_from(records.len()).expect("a group is bounded far below 4 billion records");
    let received_at_us = records.first().map_or(0, |record| record.received_at_us);
    let mut bytes = Vec::with_capacity(records.iter().map(|record| record.payload.len() + 16).sum::<usize>() + 256);
    bytes.extend(MAGIC);
    bytes.extend([0; PREFIX_BYTES - MAGIC.len()]);
    bytes.extend(first_lsn.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(received_at_us.to_le_bytes());
    bytes.extend(u32::try_from(topics.len()).expect("no more topics than records").to_le_bytes());
    for topic in topics {
        put_slice(&mut bytes, topic);
    }
    let mut before_us = received_at_us;
    for (record, topic) in records.iter().zip(indices) {
        put_varint(&mut bytes, record.received_at_us.saturating_sub(before_us).max(0).cast_unsigned());
        before_us = before_us.max(record.received_at_us);
        bytes.push(record.flags);
        put_varint(&mut bytes, u64::from(record.mark));
        put_varint(&mut bytes, topic);
        put_slice(&mut bytes, &record.payload);
    }
    let len = u32::try_from(bytes.len() - PREFIX_BYTES).expect("a group is bounded far below 4 GiB");
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(identity, &bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    let head = FrameHead { bytes: bytes.len(), first_lsn, count, received_at_us };
    EncodedFrame { bytes, head }
}

/// The length of the frame that seems to start here, without a look at its checksum.
pub(crate) fn frame_bytes(start: &[u8]) -> Option<usize> {
    if start.get(..4)? != MAGIC {
        return None;
    }
    let bytes = PREFIX_BYTES + u32::from_le_bytes(array(start, 4)?) as usize;
    (FRAME_HEAD_BYTES..=FRAME_BYTES_MAX).contains(&bytes).then_some(bytes)
}

/// The frame at the start of `bytes`, if a whole and undamaged one is there.
pub(crate) fn check(bytes: &[u8], identity: u64) -> Option<FrameHead> {
    let frame = bytes.get(..frame_bytes(bytes)?)?;
    if u32::from_le_bytes(array(frame, 8)?) != checksum(identity, frame) {
        return None;
    }
    let head = FrameHead {
        bytes: frame.len(),
        first_lsn: u64::from_le_bytes(array(frame, 12)?),
        count: u32::from_le_bytes(array(frame, 20)?),
        received_at_us: i64::from_le_bytes(array(frame, 24)?),
    };
    // lsns start at 1. No length is trusted that the content could not have.
    let has_lsns = (1..=LSN_MAX - u64::from(head.count)).contains(&head.first_lsn);
    (has_lsns && is_whole(frame, head.count)).then_some(head)
}

/// Where the next undamaged frame starts, at `from` or later.
pub(crate) fn find(bytes: &[u8], from: usize, identity: u64) -> Option<(usize, FrameHead)> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        if let Some(head) = check(&bytes[at..], identity) {
            return Some((at, head));
        }
        at += 1;
    }
}

/// Whether the content is what [`decode`] takes, without an allocation. A checksum says only that it is what
/// was written; a program with a mistake in it may have written anything.
fn is_whole(frame: &[u8], count: u32) -> bool {
    let walk = || {
        let mut rest = Fields { frame, at: FRAME_HEAD_BYTES };
        let topics = u32::from_le_bytes(array(frame, 32)?);
        for _ in 0..topics {
            rest.range()?;
        }
        let mut received_at_us = i64::from_le_bytes(array(frame, 24)?);
        for _ in 0..count {
            received_at_us = received_at_us.checked_add_unsigned(rest.varint()?)?;
            rest.byte()?;
            u16::try_from(rest.varint()?).ok()?;
            rest.varint().filter(|topic| *topic < u64::from(topics))?;
            rest.range()?;
        }
        (rest.at == frame.len()).then_some(())
    };
    walk().is_some()
}

/// The records of a frame that has passed [`check`]; `None` for no other.
pub(crate) fn decode(frame: &Bytes, head: FrameHead) -> Option<Frame> {
    let mut rest = Fields { frame, at: FRAME_HEAD_BYTES };
    let topics_len = u32::from_le_bytes(array(frame, 32)?);
    let mut topics = Vec::with_capacity((topics_len as usize).min(frame.len()));
    for _ in 0..topics_len {
        topics.push(frame.slice(rest.range()?));
    }
    let mut records = Vec::with_capacity((head.count as usize).min(frame.len()));
    let mut received_at_us = head.received_at_us;
    for _ in 0..head.count {
        received_at_us = received_at_us.checked_add_unsigned(rest.varint()?)?;
        let flags = rest.byte()?;
        let mark = u16::try_from(rest.varint()?).ok()?;
        let topic = topics.get(usize::try_from(rest.varint()?).ok()?)?.clone();
        records.push(Record { received_at_us, flags, mark, topic, payload: frame.slice(rest.range()?) });
    }
    (rest.at == frame.len()).then_some(Frame { first_lsn: head.first_lsn, records })
}

/// Sets the checksum of a frame right.
pub(crate) fn mend(frame: &mut [u8], identity: u64) {
    let crc = checksum(identity, frame);
    frame[8..PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(identity: u64, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&identity.to_le_bytes());
    hasher.update(&frame[4..8]);
    hasher.update(&frame[PREFIX_BYTES..]);
    hasher.finalize()
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_slice(bytes: &mut Vec<u8>, slice: &[u8]) {
    put_varint(bytes, slice.len() as u64);
    bytes.extend_from_slice(slice);
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The fields of a frame, in order.
struct Fields<'a> {
    frame: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.frame.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A length and as many bytes.
    fn range(&mut self) -> Option<Range<usize>> {
        let len = usize::try_from(self.varint()?).ok()?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.frame.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: u64 = 7;

    prop_compose! {
        fn any_record()(delta in 0..1i64 << 40, flags: u8, mark: u16, topic in 0..4u8, payload in proptest::collection::vec(any::<u8>(), 0..300)) -> Record {
            Record { received_at_us: delta, flags, mark, topic: format!("t/{topic}").into(), payload: payload.into() }
        }
    }

    proptest! {
        #[test]
        fn a_frame_reads_as_it_was_written(mut records in proptest::collection::vec(any_record(), 0..40), first_lsn in 1..u64::MAX / 2) {
            records.sort_by_key(|record| record.received_at_us);
            let encoded = encode(&records, first_lsn, IDENTITY);
            prop_assert_eq!(check(&encoded.bytes, IDENTITY), Some(encoded.head));
            let frame = decode(&encoded.bytes.into(), encoded.head).expect("a whole frame");
            prop_assert_eq!(frame, Frame { first_lsn, records });
        }

        #[test]
        fn decoding_any_bytes_at_worst_refuses_them(bytes in proptest::collection::vec(any::<u8>(), 0..400), count: u32) {
            let head = FrameHead { bytes: bytes.len(), first_lsn: 1, count, received_at_us: 0 };
            let _ = decode(&bytes.into(), head);
        }
    }

    #[test]
    fn a_frame_of_another_spool_is_no_frame_here() {
        let record = Record { received_at_us: 1, flags: 0, mark: 0, topic: "t".into(), payload: "p".into() };
        assert_eq!(check(&encode(&[record], 1, 8).bytes, IDENTITY), None);
    }

    #[test]
    fn a_topic_is_stored_once_a_frame() {
        let record =
            Record { received_at_us: 1, flags: 0, mark: 0, topic: vec![b't'; 1000].into(), payload: "p".into() };
        let encoded = encode(&vec![record; 100], 1, IDENTITY);
        assert!(encoded.bytes.len() < 2_000, "{} bytes", encoded.bytes.len());
    }
}
