//! Records packed together as the Kinesis Producer Library does, in a way that keeps keys in order through every split and
//! merge.
//!
//! The shard of a packed record is decided by one hash key for all that is in it. Ours are the beginnings of 64 equal parts
//! of all hash keys; what is packed together has keys whose hashes lie in one part, and is always put by that part's
//! beginning. So all records of a key take the same way, whatever becomes of the shards. (The KPL packs by the shards that
//! there are; after a split it sends again what it had packed for the wrong half.)

use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::lanes::Entry;
use super::records::Outgoing;
use crate::kinesis::aggregation::Packer;

/// In how many parts all hash keys are: a stream whose shards are more is not used evenly.
const PARTS: usize = 64;
/// A packed record is closed before it is larger: the KPL's own limit.
const PACKED_BYTES_MAX: usize = 50 << 10;

/// One of the parts, while records are packed for it.
#[derive(Debug, Default)]
struct Part {
    packer: Packer,
    /// A record that is alone is put as it is.
    first: Option<Outgoing>,
}

/// Records that travel alone, each by its own key.
pub(super) fn one_by_one(records: Vec<Outgoing>) -> impl Iterator<Item = Entry> {
    let entry = |Outgoing { key, payload }| Entry { partition_key: key, explicit_hash_key: None, data: payload };
    records.into_iter().map(entry)
}

/// Records packed together, in order within each part of all hash keys.
pub(super) fn packed(records: Vec<Outgoing>) -> Vec<Entry> {
    let mut parts: Vec<Part> = (0..PARTS).map(|_| Part::default()).collect();
    let mut entries = Vec::new();
    for record in records {
        let number = part_of(&record.key);
        let part = &mut parts[number];
        if part.first.is_some() && part.packer.bytes_with(&record.key, &record.payload) > PACKED_BYTES_MAX {
            entries.extend(part.close(number));
        }
        part.packer.push(&record.key, record.payload.clone());
        part.first.get_or_insert(record);
    }
    for (number, part) in parts.iter_mut().enumerate() {
        entries.extend(part.close(number));
    }
    entries
}

impl Part {
    fn close(&mut self, number: usize) -> Option<Entry> {
        let first = self.first.take()?;
        let is_alone = self.packer.records() == 1;
        let packed: Bytes = self.packer.finish();
        let data = if is_alone { first.payload } else { packed };
        Some(Entry { partition_key: first.key, explicit_hash_key: Some(hash_key(number)), data })
    }
}

/// The stream hashes a key by MD5, and its shards are ranges of that.
fn part_of(key: &str) -> usize {
    let digest = Md5::digest(key.as_bytes());
    usize::from(digest[0]) * PARTS / 256
}

fn hash_key(part: usize) -> String {
    (part as u128 * (u128::MAX / PARTS as u128 + 1)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinesis::aggregation::{Contents, unpack};

    fn outgoing(key: &str, payload: &str) -> Outgoing {
        Outgoing { key: key.to_owned(), payload: payload.to_owned().into() }
    }

    #[test]
    fn parts_begin_at_even_distances() {
        assert_eq!(hash_key(0), "0");
        assert_eq!(hash_key(32), (1_u128 << 127).to_string());
        assert_eq!(hash_key(63).parse::<u128>().unwrap(), 63 << 122);
        let parts: std::collections::BTreeSet<usize> = (0..2000).map(|n| part_of(&n.to_string())).collect();
        assert_eq!(parts.len(), PARTS);
    }

    #[test]
    fn all_records_of_a_key_take_the_same_way_in_their_order() {
        let records: Vec<Outgoing> = (0..5000).map(|n| outgoing(&format!("d{}", n % 50), &n.to_string())).collect();
        let entries = packed(records);
        assert!(entries.len() < 200 && entries.iter().all(|entry| entry.data.len() <= PACKED_BYTES_MAX));
        for key in (0..50).map(|n| format!("d{n}")) {
            let mut found = Vec::new();
            for entry in &entries {
                let Contents::Packed(unpacked) = unpack(&entry.data) else { panic!("{entry:?}") };
                for record in unpacked.iter().filter(|record| record.partition_key == key) {
                    assert_eq!(entry.explicit_hash_key.as_deref(), Some(&*hash_key(part_of(&key))));
                    found.push(std::str::from_utf8(&record.data).unwrap().parse::<usize>().unwrap());
                }
            }
            assert!(found.len() == 100 && found.is_sorted(), "{key}: {found:?}");
        }
    }

    #[test]
    fn a_record_that_is_alone_or_large_is_put_as_it_is() {
        let large = "x".repeat(PACKED_BYTES_MAX + 1);
        let entries = packed(vec![outgoing("a", "1"), outgoing("a", &large), outgoing("a", "3")]);
        let data: Vec<&[u8]> = entries.iter().map(|entry| &entry.data[..]).collect();
        assert_eq!(data, [b"1", large.as_bytes(), b"3"]);
        assert!(entries.iter().all(|entry| entry.explicit_hash_key == entries[0].explicit_hash_key));
    }
}
