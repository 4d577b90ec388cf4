//! The journal's files, byte by byte: a line of JSON, a line with the SHA-256 of the first, and behind
//! them the objects that the first line lists, one after the other.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use pipeline_engine::Position;
use pipeline_engine::stage::Advance;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Positions, Staged};
use crate::sinks::parquet::store::Object;

const FORMAT: u32 = 1;

/// Why the bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::sinks::parquet) enum Unreadable {
    #[error("its checksum is wrong")]
    Damaged,
    #[error("another version of the program wrote it, in format {0}")]
    Format(u32),
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct PositionsLine {
    format: u32,
    positions: Vec<PositionText>,
}

#[derive(Serialize, Deserialize)]
struct PositionText {
    input: String,
    partition: String,
    position: [u64; 4],
}

#[derive(Serialize, Deserialize)]
struct StagedLine {
    format: u32,
    advances: Vec<AdvanceText>,
    objects: Vec<ObjectText>,
}

#[derive(Serialize, Deserialize)]
struct AdvanceText {
    input: String,
    partition: String,
    from: Option<[u64; 4]>,
    to: [u64; 4],
}

#[derive(Serialize, Deserialize)]
struct ObjectText {
    key: String,
    bytes: usize,
    sha256: String,
}

impl Positions {
    pub(super) fn encode(&self) -> Vec<u8> {
        let entry = |((input, partition), position): (&(String, String), &Position)| PositionText {
            input: input.clone(),
            partition: partition.clone(),
            position: position.0,
        };
        seal(&PositionsLine { format: FORMAT, positions: self.0.iter().map(entry).collect() })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (line, rest): (PositionsLine, _) = unseal(bytes)?;
        if !rest.is_empty() {
            return Err(Unreadable::Damaged);
        }
        let entry = |entry: PositionText| ((entry.input, entry.partition), Position(entry.position));
        Ok(Self(line.positions.into_iter().map(entry).collect()))
    }
}

impl Staged {
    /// What comes before the objects' own bytes.
    pub(in crate::sinks::parquet) fn encode_head(&self) -> Vec<u8> {
        let advance = |advance: &Advance| AdvanceText {
            input: advance.input.clone(),
            partition: advance.partition.clone(),
            from: advance.from.map(|from| from.0),
            to: advance.to.0,
        };
        let object = |object: &Object| ObjectText {
            key: object.key.clone(),
            bytes: object.content.len(),
            sha256: sha256(&object.content),
        };
        seal(&StagedLine {
            format: FORMAT,
            advances: self.advances.iter().map(advance).collect(),
            objects: self.objects.iter().map(object).collect(),
        })
    }

    pub(in crate::sinks::parquet) fn decode(bytes: &Bytes) -> Result<Self, Unreadable> {
        let (line, contents): (StagedLine, _) = unseal(bytes)?;
        let mut contents = bytes.slice_ref(contents);
        let mut objects = Vec::with_capacity(line.objects.len());
        for object in line.objects {
            if object.bytes > contents.len() {
                return Err(Unreadable::Damaged);
            }
            let content = contents.split_to(object.bytes);
            if sha256(&content) != object.sha256 {
                return Err(Unreadable::Damaged);
            }
            objects.push(Object { key: object.key, content });
        }
        if !contents.is_empty() {
            return Err(Unreadable::Damaged);
        }
        let advance = |advance: AdvanceText| Advance {
            input: advance.input,
            partition: advance.partition,
            from: advance.from.map(Position),
            to: Position(advance.to),
            tenure: None,
        };
        Ok(Self { advances: line.advances.into_iter().map(advance).collect(), objects })
    }
}

fn seal(line: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(line).expect("numbers and text are JSON");
    format!("{json}\n{}\n", sha256(json.as_bytes())).into_bytes()
}

/// The line, and what is behind it.
fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), Unreadable> {
    let (json, rest) = first_line(bytes)?;
    let (checksum, rest) = first_line(rest)?;
    if checksum != sha256(json).as_bytes() {
        return Err(Unreadable::Damaged);
    }
    // Whole, so it is ours: first of all, which version wrote it?
    let Versioned { format } = serde_json::from_slice(json).map_err(|_| Unreadable::Damaged)?;
    if format != FORMAT {
        return Err(Unreadable::Format(format));
    }
    Ok((serde_json::from_slice(json).map_err(|_| Unreadable::Damaged)?, rest))
}

fn first_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Damaged)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

pub(in crate::sinks::parquet) fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged() -> Staged {
        let advance = |input: &str, from| Advance {
            input: input.to_owned(),
            partition: "telemetry/3f2a\n\"x\"".to_owned(),
            from,
            to: Position([u64::MAX, 0, 1, u64::MAX - 1]),
            tenure: None,
        };
        let object = |key: &str, content: &'static [u8]| Object { key: key.to_owned(), content: content.into() };
        Staged {
            advances: vec![advance("valid", None), advance("valid.rejected", Some(7.into()))],
            objects: vec![object("day=1/a.parquet", b"PAR1\n\n\0PAR1"), object("day=2/b.parquet", b"")],
        }
    }

    fn bytes(staged: &Staged) -> Vec<u8> {
        let mut bytes = staged.encode_head();
        staged.objects.iter().for_each(|object| bytes.extend_from_slice(&object.content));
        bytes
    }

    #[test]
    fn what_was_written_reads_back() {
        assert_eq!(Staged::decode(&bytes(&staged()).into()), Ok(staged()));
        let positions = Positions::default().after(&staged().advances);
        assert_eq!(Positions::decode(&positions.encode()), Ok(positions));
        assert_eq!(Positions::decode(&Positions::default().encode()), Ok(Positions::default()));
    }

    #[test]
    fn any_bit_changed_and_any_length_but_the_right_one_is_damage() {
        let whole = bytes(&staged());
        for bit in 0..whole.len() * 8 {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Staged::decode(&other.into()), Err(Unreadable::Damaged), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert_eq!(Staged::decode(&whole[..length].to_vec().into()), Err(Unreadable::Damaged), "length {length}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert_eq!(Staged::decode(&longer.into()), Err(Unreadable::Damaged));

        let positions = Positions::default().after(&staged().advances).encode();
        assert_eq!(Positions::decode(&positions[1..]), Err(Unreadable::Damaged));
        assert_eq!(Positions::decode(&[positions.as_slice(), b"x"].concat()), Err(Unreadable::Damaged));
    }

    #[test]
    fn a_later_format_is_not_taken_for_damage() {
        let later = seal(&serde_json::json!({ "format": 2, "positions": "elsewhere" }));
        assert_eq!(Positions::decode(&later), Err(Unreadable::Format(2)));
    }
}
