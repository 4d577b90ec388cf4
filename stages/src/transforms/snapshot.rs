//! How a transform writes down what it remembers, so that it is read back as it was or not at all.
//!
//! `format u8 | version u8 | fingerprint of the configuration u128 | the transform's own | crc32 u32`,
//! all little-endian. The checksum is over everything before it.

use pipeline_engine::stage::StageError;
use siphasher::sip128::SipHasher24;

const HEADER_BYTES: usize = 2 + 16;
const CRC_BYTES: usize = 4;

/// The hash of bytes that means the same on every machine and after every restart: its keys are fixed.
pub(super) fn hash(bytes: &[u8]) -> u128 {
    // The words are those of a fraction of pi: numbers that nobody has picked.
    SipHasher24::new_with_keys(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344).hash(bytes).into()
}

/// Which transform's snapshot it is, and in which version of its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// The transform.
    pub name: u8,
    /// The layout of the transform's own part.
    pub version: u8,
}

/// Gathers what a snapshot depends on; equal for equal configurations only.
#[derive(Default)]
pub(super) struct Fingerprint(Vec<u8>);

impl Fingerprint {
    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn finish(self) -> u128 {
        hash(&self.0)
    }
}

/// A snapshot in the making.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(format: Format, fingerprint: u128) -> Self {
        let mut bytes = vec![format.name, format.version];
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
        Self(bytes)
    }

    pub(super) fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes + CRC_BYTES);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn f64(&mut self, value: f64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn optional_i64(&mut self, value: Option<i64>) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            self.i64(value);
        }
    }

    /// Bytes with their length before them.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn seal(mut self) -> Vec<u8> {
        let crc = crc32fast::hash(&self.0);
        self.u32(crc);
        self.0
    }
}

/// A snapshot whose checksum, format and configuration are right.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// # Errors
    /// The snapshot is damaged, or of another transform, version or configuration.
    pub(super) fn open(snapshot: &'a [u8], format: Format, fingerprint: u128) -> Result<Self, StageError> {
        let body = match snapshot.len().checked_sub(CRC_BYTES) {
            Some(end) if end >= HEADER_BYTES => {
                let (body, crc) = snapshot.split_at(end);
                (crc32fast::hash(body).to_le_bytes() == crc).then_some(body)
            }
            _ => None,
        };
        let mut reader = Self(body.ok_or_else(damaged)?);
        let found = Format { name: reader.u8()?, version: reader.u8()? };
        if found != format {
            let text = format!(
                "the snapshot is of format {}.{}, and this transform reads {}.{}",
                found.name, found.version, format.name, format.version
            );
            return Err(StageError::permanent(text));
        }
        if reader.u128()? != fingerprint {
            let text = "the snapshot was taken under another configuration or with other columns";
            return Err(StageError::permanent(text).hint("With the configuration as it was, it can be read."));
        }
        Ok(reader)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StageError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(damaged)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, StageError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, StageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, StageError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, StageError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn f64(&mut self) -> Result<f64, StageError> {
        self.array().map(f64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, StageError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn optional_i64(&mut self) -> Result<Option<i64>, StageError> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.i64().map(Some),
            _ => Err(damaged()),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], StageError> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(head)
    }

    /// # Errors
    /// There is something left.
    pub(super) fn end(self) -> Result<(), StageError> {
        if self.0.is_empty() { Ok(()) } else { Err(damaged()) }
    }
}

/// What a snapshot is that can't be read.
pub(super) fn damaged() -> StageError {
    StageError::permanent("the snapshot is damaged: its checksum or its layout is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { name: 1, version: 2 };

    fn sealed() -> Vec<u8> {
        let mut writer = Writer::new(FORMAT, 7);
        writer.bytes(b"dev-1");
        writer.optional_i64(Some(-3));
        writer.optional_i64(None);
        writer.seal()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = sealed();
        let mut reader = Reader::open(&bytes, FORMAT, 7).unwrap();
        assert_eq!(reader.bytes().unwrap(), b"dev-1");
        assert_eq!((reader.optional_i64().unwrap(), reader.optional_i64().unwrap()), (Some(-3), None));
        reader.end().unwrap();
    }

    #[test]
    fn any_byte_that_is_wrong_or_missing_is_found() {
        let bytes = sealed();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            assert!(Reader::open(&wrong, FORMAT, 7).unwrap_err().to_string().contains("damaged"), "byte {at}");
            assert!(Reader::open(&bytes[..at], FORMAT, 7).unwrap_err().to_string().contains("damaged"), "cut at {at}");
        }
        let mut reader = Reader::open(&bytes, FORMAT, 7).unwrap();
        reader.bytes().unwrap();
        assert!(reader.end().is_err(), "something is left");
    }

    #[test]
    fn another_version_or_configuration_is_refused_by_name() {
        let bytes = sealed();
        let other = Format { version: 3, ..FORMAT };
        let error = Reader::open(&bytes, other, 7).unwrap_err().to_string();
        assert!(error.contains("format 1.2") && error.contains("reads 1.3"), "{error}");
        assert!(Reader::open(&bytes, FORMAT, 8).unwrap_err().to_string().contains("another configuration"));
    }

    /// A snapshot of last year must still be understood. The values are those of another implementation,
    /// which gives the published ones for the published keys.
    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), 0x8a5f_294f_9d65_642e_d647_5fa6_aa69_1eba);
        assert_eq!(hash(b"dev-1"), 0xa3a9_7f48_f15d_795d_33d6_5311_15e4_00de);
    }
}
