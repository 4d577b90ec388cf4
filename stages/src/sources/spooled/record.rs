//! What a spooled record says beside topic and payload.

use std::borrow::Cow;

use bytes::Bytes;
use pipeline_engine::spool::Record;

/// Flag: the payload was too long, and only its beginning was kept: see [`oversize_payload`].
pub(crate) const OVERSIZE: u8 = 1;
/// Flag: its sender sends it again until it is acknowledged. The record's mark is the sender's number
/// for it.
pub(crate) const OWED: u8 = 2;

/// How much of an oversize payload is kept for its dead letter.
const OVERSIZE_KEPT: usize = 1024;
/// The length of the whole comes first.
const LENGTH_BYTES: usize = 8;

/// What is kept of an oversize payload: its length and its beginning.
pub(crate) fn oversize_payload(payload: &[u8]) -> Bytes {
    let kept = &payload[..payload.len().min(OVERSIZE_KEPT)];
    [&(payload.len() as u64).to_le_bytes(), kept].concat().into()
}

/// The length of a payload that was oversize, and its beginning; `None` for any other record.
pub(super) fn oversize(record: &Record) -> Option<(u64, &[u8])> {
    if record.flags & OVERSIZE == 0 {
        return None;
    }
    let (length, kept) = record.payload.split_first_chunk::<LENGTH_BYTES>()?;
    Some((u64::from_le_bytes(*length), kept))
}

/// The topic as text. A broker only lets UTF-8 through; what else a file holds is shown all the same.
pub(super) fn topic(record: &Record) -> Cow<'_, str> {
    String::from_utf8_lossy(&record.topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversize_payload_keeps_its_length_and_its_beginning() {
        let payload = vec![b'x'; 5_000];
        let mut record = Record {
            received_at_us: 1,
            flags: OVERSIZE,
            mark: 0,
            topic: "t".into(),
            payload: oversize_payload(&payload),
        };
        assert_eq!(oversize(&record), Some((5_000, &payload[..OVERSIZE_KEPT])));
        record.flags = OWED;
        assert_eq!(oversize(&record), None);
    }
}
