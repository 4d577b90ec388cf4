//! Files that are packed: how that is told, and what an unpacked one may grow to.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Input;

/// What is unpacked at once.
const READ_BYTES: usize = 64 << 10;
/// A frame may ask for so much memory to be unpacked, as a power of two; what zstd itself takes without being asked for
/// more.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all, whatever its name.
    None,
    /// gzip, of one member or several.
    Gzip,
    /// Zstandard, of one frame or several.
    Zstd,
}

impl Compression {
    /// By the end of a file's name.
    pub(crate) fn of_name(name: &str) -> Self {
        match name.rsplit_once('.') {
            Some((_, extension)) if extension.eq_ignore_ascii_case("gz") => Self::Gzip,
            Some((_, extension)) if extension.eq_ignore_ascii_case("zst") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// By how a file begins; `None` where that says nothing. No JSON and no header of a CSV file begins so.
    #[cfg(feature = "s3")]
    pub(crate) fn of_beginning(beginning: &[u8]) -> Option<Self> {
        if beginning.starts_with(&[0x1f, 0x8b]) {
            Some(Self::Gzip)
        } else if beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// The file as it was before it was packed.
///
/// # Errors
/// There is no memory to unpack it.
pub(crate) fn unpack(packed: impl BufRead + Send + 'static, compression: Compression) -> io::Result<Input> {
    Ok(match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(packed))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(BufReader::with_capacity(READ_BYTES, decoder))
        }
    })
}

/// Whether an error of reading says that the packed file ends too early.
pub(crate) fn is_cut_off(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// How far a file may grow.
#[cfg(feature = "s3")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// To so many bytes.
    pub(crate) bytes_max: u64,
}

/// The same, for a file of strangers: reading fails once it has grown too far.
///
/// # Errors
/// As for [`unpack`].
#[cfg(feature = "s3")]
pub(crate) fn unpack_within(
    packed: impl BufRead + Send + 'static,
    compression: Compression,
    bounds: Unpacked,
) -> io::Result<Input> {
    let unpacked = unpack(packed, compression)?;
    Ok(match compression {
        Compression::None => unpacked,
        Compression::Gzip | Compression::Zstd => Box::new(Bounded { unpacked, left: bounds.bytes_max, bounds }),
    })
}

/// A file that must not grow too far.
#[cfg(feature = "s3")]
struct Bounded {
    unpacked: Input,
    left: u64,
    bounds: Unpacked,
}

#[cfg(feature = "s3")]
impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(feature = "s3")]
impl BufRead for Bounded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let read = self.unpacked.fill_buf()?;
        if read.len() as u64 > self.left {
            let max = pipeline_engine::units::SizeText(self.bounds.bytes_max);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, format!("it unpacks to more than {max}")));
        }
        Ok(read)
    }

    fn consume(&mut self, count: usize) {
        self.left -= count as u64;
        self.unpacked.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(compression: Compression, text: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => text.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::stream::encode_all(text, 1).unwrap(),
        }
    }

    fn read(mut input: Input) -> io::Result<String> {
        let mut text = String::new();
        input.read_to_string(&mut text).map(|_| text)
    }

    const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

    #[test]
    fn files_come_as_they_were_also_of_several_parts() {
        for compression in ALL {
            let file = [packed(compression, b"{\"n\":1}\n"), packed(compression, b"{\"n\":2}\n")].concat();
            let text = read(unpack(io::Cursor::new(file), compression).unwrap()).unwrap();
            assert_eq!(text, "{\"n\":1}\n{\"n\":2}\n", "{compression:?}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_is_no_shorter_file() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let file = packed(compression, "0123456789".repeat(1_000).as_bytes());
            let cut = file[..file.len() - 4].to_vec();
            let error = read(unpack(io::Cursor::new(cut), compression).unwrap()).unwrap_err();
            assert!(is_cut_off(&error), "{compression:?}: {error}");
        }
    }

    #[test]
    fn names_tell_how_a_file_is_packed() {
        assert_eq!(Compression::of_name("a/b.jsonl.gz"), Compression::Gzip);
        assert_eq!(Compression::of_name("a/b.JSONL.GZ"), Compression::Gzip);
        assert_eq!(Compression::of_name("a/b.csv.zst"), Compression::Zstd);
        assert_eq!(Compression::of_name("a/gz"), Compression::None);
        assert_eq!(Compression::of_name("a.gz/b"), Compression::None);
    }

    #[cfg(feature = "s3")]
    #[test]
    fn beginnings_tell_it_too() {
        for compression in ALL {
            let expected = (compression != Compression::None).then_some(compression);
            assert_eq!(Compression::of_beginning(&packed(compression, b"{}")), expected);
        }
    }

    #[cfg(feature = "s3")]
    #[test]
    fn a_bomb_is_refused_where_it_grows_too_far() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bomb = packed(compression, &vec![b'\n'; 8 << 20]);
            assert!(bomb.len() < 100_000);
            let bounds = Unpacked { bytes_max: 1 << 20 };
            let error = read(unpack_within(io::Cursor::new(bomb), compression, bounds).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), "it unpacks to more than 1.0 MiB");
            let fits = packed(compression, &vec![b'\n'; 1 << 20]);
            assert!(read(unpack_within(io::Cursor::new(fits), compression, bounds).unwrap()).is_ok());
        }
    }
}
