//! What a spooled record says beside topic and payload.

use std::borrow::Cow;

use bytes::Bytes;
use pipeline_engine::spool::Record;

/// Flag: the payload was too long, and only its beginning was kept: see [`oversize_payload`].
pub(crate) const OVERSIZE: u8 = 1;
/// Flag: its sender sends it again until it is acknowledged. The record's mark is the sender's number
/// for it.
pub(crate) const OWED: u8 = 2;
/// Flag: its sender may send it again under the same key, which stands behind the topic: see [`keyed_topic`].
pub(crate) const KEYED: u8 = 4;

/// Stands between a topic and a key. Neither the topic of an MQTT message nor the path of a URL holds one.
const KEY_MARK: u8 = b'#';
/// A key as hexadecimal digits.
const KEY_DIGITS: usize = 32;

/// Why such a message is a dead letter.
pub(super) const OVERSIZE_REASON: &str = "oversize";

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

/// The topic of a [`KEYED`] record: a frame holds each topic once, so a key costs its bytes once a request.
pub(crate) fn keyed_topic(topic: &str, key: u128) -> Bytes {
    format!("{topic}{}{key:032x}", char::from(KEY_MARK)).into()
}

/// The key behind the topic; `None` for a record without one.
pub(crate) fn key(record: &Record) -> Option<u128> {
    let (_, key) = split_key(record)?;
    u128::from_str_radix(std::str::from_utf8(key).ok()?, 16).ok()
}

fn split_key(record: &Record) -> Option<(&[u8], &[u8])> {
    if record.flags & KEYED == 0 {
        return None;
    }
    let (topic, key) = record.topic.split_at_checked(record.topic.len().checked_sub(KEY_DIGITS + 1)?)?;
    Some((topic, key.strip_prefix(&[KEY_MARK])?))
}

/// The topic as text; `None` where there is none. A broker only lets UTF-8 through; what else a file holds is shown all
/// the same.
pub(super) fn topic(record: &Record) -> Option<Cow<'_, str>> {
    let topic = split_key(record).map_or(&record.topic[..], |(topic, _)| topic);
    (!topic.is_empty()).then(|| String::from_utf8_lossy(topic))
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

    #[test]
    fn a_key_stands_behind_the_topic_and_is_no_part_of_it() {
        let record = |flags, topic: Bytes| Record { received_at_us: 1, flags, mark: 0, topic, payload: Bytes::new() };
        let keyed = record(KEYED, keyed_topic("iot/d7", 0xabc));
        assert_eq!((topic(&keyed).as_deref(), key(&keyed)), (Some("iot/d7"), Some(0xabc)));
        let without_topic = record(KEYED | OVERSIZE, keyed_topic("", u128::MAX));
        assert_eq!((topic(&without_topic), key(&without_topic)), (None, Some(u128::MAX)));
        let other = record(OWED, "iot/d7".into());
        assert_eq!((topic(&other).as_deref(), key(&other)), (Some("iot/d7"), None));
        let damaged = record(KEYED, "short".into());
        assert_eq!((topic(&damaged).as_deref(), key(&damaged)), (Some("short"), None));
    }
}
