//! Lines packed and unpacked, with a note that unpacking passes over.
//!
//! | packed as | the note is |
//! |---|---|
//! | gzip | an extra field `PL` of the header (RFC 1952, 2.3.1.1) |
//! | zstd | a skippable frame behind the rows (RFC 8878, 3.1.2), which ends with its length and a word to know it by |
//! | not at all | left out |
//!
//! The note is packed itself (deflate), since hundreds of partitions have much the same names.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::GzBuilder;
use flate2::bufread::{DeflateDecoder, GzDecoder, MultiGzDecoder};
use flate2::write::DeflateEncoder;

/// The two letters of the field in a header of gzip.
const FIELD: [u8; 2] = *b"PL";
/// A field's letters and length, of the most that all fields have together.
const FIELD_BYTES_MAX: usize = u16::MAX as usize - 4;
/// How a frame begins that readers of zstd skip.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
/// How our frame ends.
const WORD: &[u8; 8] = b"pipeline";
/// Behind the note in its frame: its length, and the word.
const TRAILER_BYTES: usize = 4 + WORD.len();

/// How lines are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Packing {
    None,
    /// At a level from 1 to 9.
    Gzip(u32),
    /// At a level from 1 to 22.
    Zstd(i32),
}

impl Packing {
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::None => ".json",
            Self::Gzip(_) => ".json.gz",
            Self::Zstd(_) => ".json.zst",
        }
    }

    /// By the end of a key.
    pub(super) fn of(key: &str) -> Option<Self> {
        [Self::None, Self::Gzip(0), Self::Zstd(0)].into_iter().find(|packing| key.ends_with(packing.extension()))
    }

    /// What `write` writes, packed with the note. The same gives the same bytes: no time and no host goes in.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn pack<E: From<io::Error>>(
        self,
        note: &[u8],
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        Ok(match self {
            Self::None => {
                let mut lines = Vec::new();
                write(&mut lines)?;
                lines.into()
            }
            Self::Gzip(level) => {
                let note = deflated(note)?;
                let mut header = GzBuilder::new();
                // Of thousands of partitions even the packed names have no room: then it is silent.
                if let Ok(length) = u16::try_from(note.len())
                    && note.len() <= FIELD_BYTES_MAX
                {
                    header = header.extra([&FIELD[..], &length.to_le_bytes(), &note].concat());
                }
                let mut packed = header.write(Vec::new(), flate2::Compression::new(level));
                write(&mut packed)?;
                packed.finish()?.into()
            }
            Self::Zstd(level) => {
                let note = deflated(note)?;
                let mut packed = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                write(&mut packed)?;
                let mut packed = packed.finish()?;
                let length = u32::try_from(note.len()).map_err(io::Error::other)?;
                packed.extend(SKIPPABLE);
                packed.extend((length + TRAILER_BYTES as u32).to_le_bytes());
                packed.extend(note);
                packed.extend(length.to_le_bytes());
                packed.extend(WORD);
                packed.into()
            }
        })
    }

    /// The lines.
    ///
    /// # Errors
    /// None here: reading fails where the content is damaged.
    pub(super) fn unpack<'c>(self, content: &'c [u8]) -> io::Result<Box<dyn Read + 'c>> {
        Ok(match self {
            Self::None => Box::new(content),
            Self::Gzip(_) => Box::new(MultiGzDecoder::new(content)),
            Self::Zstd(_) => Box::new(zstd::stream::read::Decoder::with_buffer(content)?),
        })
    }

    /// The note; `None` where there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub(super) fn note(self, content: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let packed = match self {
            Self::None => None,
            Self::Gzip(_) => {
                let decoder = GzDecoder::new(content);
                decoder.header().and_then(|header| header.extra()).and_then(field).map(<[u8]>::to_vec)
            }
            Self::Zstd(_) => trailing_note(content).map(<[u8]>::to_vec),
        };
        let unpack = |packed: Vec<u8>| {
            let mut note = Vec::new();
            DeflateDecoder::new(&packed[..]).read_to_end(&mut note).map(|_| note)
        };
        packed.map(unpack).transpose()
    }
}

fn deflated(note: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(note)?;
    packed.finish()
}

/// Our field among those of a header.
fn field(mut fields: &[u8]) -> Option<&[u8]> {
    loop {
        let (head, rest) = fields.split_at_checked(4)?;
        let (content, others) = rest.split_at_checked(usize::from(u16::from_le_bytes([head[2], head[3]])))?;
        if head[..2] == FIELD {
            return Some(content);
        }
        fields = others;
    }
}

/// The note in a frame at the end.
fn trailing_note(content: &[u8]) -> Option<&[u8]> {
    let (rest, length) = content.strip_suffix(WORD)?.split_last_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    let (rest, note) = rest.split_at_checked(rest.len().checked_sub(usize::try_from(length).ok()?)?)?;
    let (rest, frame_bytes) = rest.split_last_chunk::<4>()?;
    let is_ours = u32::from_le_bytes(*frame_bytes) == length.checked_add(TRAILER_BYTES as u32)?;
    (is_ours && rest.ends_with(&SKIPPABLE)).then_some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Packing; 3] = [Packing::None, Packing::Gzip(6), Packing::Zstd(1)];

    fn packed(packing: Packing, note: &[u8], lines: &str) -> Bytes {
        packing.pack::<io::Error>(note, |out| out.write_all(lines.as_bytes())).unwrap()
    }

    fn unpacked(packing: Packing, content: &[u8]) -> io::Result<String> {
        let mut lines = String::new();
        packing.unpack(content)?.read_to_string(&mut lines).map(|_| lines)
    }

    #[test]
    fn lines_come_back_and_the_note_beside_them() {
        let lines = "{\"n\":1}\n".repeat(10_000);
        for packing in ALL {
            let content = packed(packing, b"a note", &lines);
            assert_eq!(unpacked(packing, &content).unwrap(), lines, "{packing:?}");
            let note = packing.note(&content).unwrap();
            assert_eq!(note.as_deref(), (packing != Packing::None).then_some(&b"a note"[..]), "{packing:?}");
            assert_eq!(content, packed(packing, b"a note", &lines), "the same gives the same bytes");
        }
    }

    #[test]
    fn a_note_of_hundreds_of_partitions_has_room_and_one_of_noise_is_left_out() {
        let names: String =
            (0..2_000).map(|shard| format!("telemetry/shardId-{shard:012} up to {};", shard * 977)).collect();
        let noise: Vec<u8> =
            (0..80_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(7).to_le_bytes()).collect();
        for packing in [Packing::Gzip(6), Packing::Zstd(1)] {
            let content = packed(packing, names.as_bytes(), "{}\n");
            assert_eq!(packing.note(&content).unwrap(), Some(names.clone().into_bytes()), "{packing:?}");
            let content = packed(packing, &noise, "{}\n");
            assert_eq!(unpacked(packing, &content).unwrap(), "{}\n");
            assert_eq!(packing.note(&content).unwrap().is_some(), matches!(packing, Packing::Zstd(_)));
        }
    }

    #[test]
    fn what_others_have_packed_has_no_note() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"{}\n").unwrap();
        let other = GzBuilder::new().extra(*b"XX\x01\x00y").write(Vec::new(), flate2::Compression::default());
        for content in [gzip.finish().unwrap(), other.finish().unwrap()] {
            assert_eq!(Packing::Gzip(6).note(&content).unwrap(), None);
        }
        let zstd = zstd::stream::encode_all(&b"{}\npipeline"[..], 1).unwrap();
        assert_eq!(Packing::Zstd(1).note(&zstd).unwrap(), None);
    }

    #[test]
    fn damage_is_an_error_or_another_content_and_never_a_panic() {
        for packing in [Packing::Gzip(6), Packing::Zstd(1)] {
            let whole = packed(packing, b"a note", &"{\"n\":1}\n".repeat(100));
            for at in 0..whole.len() {
                let mut other = whole.to_vec();
                other[at] ^= 1 << (at % 8);
                for damaged in [&other[..], &whole[..at]] {
                    drop((packing.note(damaged), unpacked(packing, damaged)));
                }
            }
        }
    }
}
