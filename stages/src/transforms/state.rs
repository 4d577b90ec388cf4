//! The bytes of a transform's state: written field by field, and read back without trust.
//!
//! Integers and floats are little-endian; text has its length before it. The first byte is the layout's
//! version, which a transform raises when it changes what it writes.

use pipeline_engine::stage::StageError;

/// Writes a state.
pub(crate) struct StateWriter {
    bytes: Vec<u8>,
}

impl StateWriter {
    pub(crate) fn new(version: u8) -> Self {
        Self { bytes: vec![version] }
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(crate) fn f64(&mut self, value: f64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// How many of something follow.
    pub(crate) fn count(&mut self, count: usize) {
        self.u64(count as u64);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes.extend(text.as_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads a state; every call fails once the bytes have run out or say what can't be.
pub(crate) struct StateReader<'a> {
    rest: &'a [u8],
}

impl<'a> StateReader<'a> {
    /// # Errors
    /// The bytes are of another version.
    pub(crate) fn new(bytes: &'a [u8], version: u8) -> Result<Self, StageError> {
        match bytes.split_first() {
            Some((found, rest)) if *found == version => Ok(Self { rest }),
            Some((found, _)) => Err(StageError::permanent(format!(
                "the state has the layout {found}, and this program reads {version}"
            ))),
            None => Err(Self::damaged()),
        }
    }

    /// What a state that can't be is called.
    pub(crate) fn damaged() -> StageError {
        StageError::permanent("the state is damaged")
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StageError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(Self::damaged)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, StageError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StageError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, StageError> {
        self.take().map(i64::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, StageError> {
        self.take().map(f64::from_le_bytes)
    }

    /// How many follow of what takes at least so many bytes each: never more than the bytes could hold.
    pub(crate) fn count(&mut self, bytes_each: usize) -> Result<usize, StageError> {
        let count = usize::try_from(self.u64()?).map_err(|_| Self::damaged())?;
        if count.saturating_mul(bytes_each.max(1)) > self.rest.len() {
            return Err(Self::damaged());
        }
        Ok(count)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, StageError> {
        let len = self.count(1)?;
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        std::str::from_utf8(text).map_err(|_| Self::damaged())
    }

    /// # Errors
    /// Something follows that nobody has read.
    pub(crate) fn finish(self) -> Result<(), StageError> {
        if self.rest.is_empty() { Ok(()) } else { Err(Self::damaged()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written_and_nothing_else_is() {
        let mut writer = StateWriter::new(3);
        writer.u32(7);
        writer.u64(u64::MAX);
        writer.i64(-5);
        writer.f64(0.1);
        writer.text("dev-1");
        let bytes = writer.finish();
        let read = |bytes: &[u8]| -> Result<_, StageError> {
            let mut reader = StateReader::new(bytes, 3)?;
            let fields = (reader.u32()?, reader.u64()?, reader.i64()?, reader.f64()?, reader.text()?.to_owned());
            reader.finish()?;
            Ok(fields)
        };
        assert_eq!(read(&bytes).unwrap(), (7, u64::MAX, -5, 0.1, "dev-1".to_owned()));
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).is_err(), "one byte too many");
        assert!(StateReader::new(&bytes, 4).err().unwrap().chain().contains("layout 3"));
        assert!(StateReader::new(&[&[3], &[255; 8][..]].concat(), 3).unwrap().count(1).is_err(), "no such count");
    }
}
