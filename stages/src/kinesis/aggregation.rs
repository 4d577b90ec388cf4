//! Records that a producer has packed into one, as the Kinesis Producer Library does.
//!
//! ```text
//! F3 89 9A C2 | protobuf AggregatedRecord | MD5 of the protobuf, 16 bytes
//! ```
//! What has the magic number and not the checksum is an ordinary record that happens to begin like that, as it is for
//! AWS's own libraries. What has both and is no such message all the same is refused as a whole.
//!
//! **Danger.** When a shard splits, the KPL sends again what it had packed for the wrong half, and the KCL leaves such
//! records out by their hash keys. Other producers pack without regard to shards and send nothing again, and leaving
//! theirs out would lose them: so everything is taken, and what the KPL repeats then is a message of its own, as what
//! any publisher repeats.

use bytes::Bytes;
use md5::{Digest as _, Md5};
use prost::Message;

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];
const CHECKSUM_BYTES: usize = 16;

/// The protobuf message, as `messages.proto` of the KPL declares it.
#[derive(Clone, PartialEq, Message)]
struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    partition_key_table: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    explicit_hash_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<PackedRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedRecord {
    #[prost(uint64, required, tag = "1")]
    partition_key_index: u64,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key_index: Option<u64>,
    #[prost(bytes = "bytes", required, tag = "3")]
    data: Bytes,
    #[prost(message, repeated, tag = "4")]
    tags: Vec<Tag>,
}

#[derive(Clone, PartialEq, Message)]
struct Tag {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

/// One of the records that were packed into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) partition_key: String,
    /// Shares memory with the whole.
    pub(crate) data: Bytes,
}

/// What the data of a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Itself.
    Ordinary,
    /// Others, in their order. May be none.
    Packed(Vec<Unpacked>),
    /// It is a packed record by magic number and checksum, and can't be taken apart: why.
    Damaged(String),
}

/// Takes apart what a producer has packed together.
pub(crate) fn unpack(data: &Bytes) -> Contents {
    let Some(body) = body_of(data) else { return Contents::Ordinary };
    let AggregatedRecord { partition_key_table, records, .. } = match AggregatedRecord::decode(body) {
        Ok(message) => message,
        Err(error) => return Contents::Damaged(format!("it is no message of the KPL: {error}")),
    };
    let mut unpacked = Vec::with_capacity(records.len());
    for (number, record) in records.into_iter().enumerate() {
        let index = usize::try_from(record.partition_key_index).unwrap_or(usize::MAX);
        let Some(partition_key) = partition_key_table.get(index).cloned() else {
            let keys = partition_key_table.len();
            return Contents::Damaged(format!("its record {number} has partition key {index} of {keys}"));
        };
        unpacked.push(Unpacked { partition_key, data: record.data });
    }
    Contents::Packed(unpacked)
}

/// The message between magic number and checksum, if both are there and right.
fn body_of(data: &Bytes) -> Option<Bytes> {
    let rest = data.strip_prefix(&MAGIC)?;
    let (body, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>()?;
    (Md5::digest(body).as_slice() == checksum).then(|| data.slice_ref(body))
}

/// Packs records into one, up to a size.
#[derive(Debug)]
pub(crate) struct Packer {
    message: AggregatedRecord,
    /// What [`Packer::finish`] makes of it takes at most so many.
    bytes: usize,
}

/// Tag and length of a field that is at most 16 MiB long.
const FIELD_BYTES_MAX: usize = 5;
/// What a record in the message takes besides its data: its own field, its number in the table of keys, its data's field.
const RECORD_BYTES_MAX: usize = FIELD_BYTES_MAX + 4 + FIELD_BYTES_MAX;

impl Default for Packer {
    fn default() -> Self {
        Self { message: AggregatedRecord::default(), bytes: MAGIC.len() + CHECKSUM_BYTES }
    }
}

impl Packer {
    /// What it would be with one more record.
    pub(crate) fn bytes_with(&self, partition_key: &str, data: &[u8]) -> usize {
        let known = self.message.partition_key_table.iter().any(|key| key == partition_key);
        let key = if known { 0 } else { FIELD_BYTES_MAX + partition_key.len() };
        self.bytes + key + RECORD_BYTES_MAX + data.len()
    }

    /// How many records are in it.
    pub(crate) fn records(&self) -> usize {
        self.message.records.len()
    }

    /// Puts one more record in.
    pub(crate) fn push(&mut self, partition_key: &str, data: Bytes) {
        self.bytes = self.bytes_with(partition_key, &data);
        let table = &mut self.message.partition_key_table;
        let index = table.iter().position(|key| key == partition_key).unwrap_or_else(|| {
            table.push(partition_key.to_owned());
            table.len() - 1
        });
        let record =
            PackedRecord { partition_key_index: index as u64, explicit_hash_key_index: None, data, tags: Vec::new() };
        self.message.records.push(record);
    }

    /// The record that holds them all; the packer starts over.
    pub(crate) fn finish(&mut self) -> Bytes {
        let body = std::mem::take(self).message.encode_to_vec();
        let checksum = Md5::digest(&body);
        [&MAGIC[..], &body, checksum.as_slice()].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(records: &[(&str, &[u8])]) -> Bytes {
        let mut packer = Packer::default();
        records.iter().for_each(|(key, data)| packer.push(key, Bytes::copy_from_slice(data)));
        packer.finish()
    }

    fn unpacked(key: &str, data: &[u8]) -> Unpacked {
        Unpacked { partition_key: key.to_owned(), data: Bytes::copy_from_slice(data) }
    }

    #[test]
    fn what_is_packed_comes_out_in_its_order_and_with_its_keys() {
        let whole = packed(&[("a", b"1"), ("b", b""), ("a", b"3")]);
        let expected = vec![unpacked("a", b"1"), unpacked("b", b""), unpacked("a", b"3")];
        assert_eq!(unpack(&whole), Contents::Packed(expected));
        assert_eq!(unpack(&packed(&[])), Contents::Packed(Vec::new()));
    }

    /// Two records of the keys "key0" and "key1" with the data "data0" and "data1", byte by byte by hand from the
    /// description of the format.
    #[test]
    fn the_format_is_that_of_the_description() {
        let body = b"\x0a\x04key0\x0a\x04key1\x1a\x09\x08\x00\x1a\x05data0\x1a\x09\x08\x01\x1a\x05data1";
        let whole = [&MAGIC[..], body, Md5::digest(body).as_slice()].concat().into();
        assert_eq!(unpack(&whole), Contents::Packed(vec![unpacked("key0", b"data0"), unpacked("key1", b"data1")]));
        assert_eq!(packed(&[("key0", b"data0"), ("key1", b"data1")]), whole);
    }

    #[test]
    fn what_only_begins_like_a_packed_record_is_ordinary() {
        let whole = packed(&[("a", b"1")]);
        for cut in 0..whole.len() {
            assert_eq!(unpack(&whole.slice(..cut)), Contents::Ordinary, "cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[place] ^= 1;
            assert_eq!(unpack(&changed.into()), Contents::Ordinary, "byte {place}");
        }
        assert_eq!(unpack(&Bytes::from_static(b"{\"device_id\":\"d\"}")), Contents::Ordinary);
    }

    #[test]
    fn a_checksum_over_nonsense_is_no_packed_record() {
        let sealed = |body: &[u8]| -> Bytes { [&MAGIC[..], body, Md5::digest(body).as_slice()].concat().into() };
        assert!(matches!(unpack(&sealed(b"\x1a\xff")), Contents::Damaged(_)));
        // A record of a key that is not in the table.
        let Contents::Damaged(why) = unpack(&sealed(b"\x0a\x01a\x1a\x05\x08\x07\x1a\x01x")) else { panic!("taken") };
        assert_eq!(why, "its record 0 has partition key 7 of 1");
    }

    proptest! {
        #[test]
        fn any_records_come_back_and_are_no_larger_than_was_said(
            records in prop::collection::vec(("[a-c]{1,3}", prop::collection::vec(any::<u8>(), 0..300)), 0..40),
        ) {
            let mut packer = Packer::default();
            for (key, data) in &records {
                let said = packer.bytes_with(key, data);
                packer.push(key, data.clone().into());
                prop_assert_eq!(packer.bytes, said);
            }
            let said = packer.bytes;
            let whole = packer.finish();
            prop_assert!(whole.len() <= said, "{} > {said}", whole.len());
            prop_assert_eq!(packer.records(), 0);
            let expected = records.iter().map(|(key, data)| unpacked(key, data)).collect();
            prop_assert_eq!(unpack(&whole), Contents::Packed(expected));
        }

        #[test]
        fn any_bytes_are_taken_for_something(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let sealed: Bytes = [&MAGIC[..], &body, Md5::digest(&body).as_slice()].concat().into();
            prop_assert_ne!(unpack(&sealed), Contents::Ordinary);
        }
    }
}
