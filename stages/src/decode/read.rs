//! The three formats: which parser reads a payload, and what its mistakes are called.

use cbor4ii::core::dec::Error as CborError;
use cbor4ii::serde::DecodeError as CborOrSerde;
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny};

use super::cbor::{Plain, Reader};
use super::fault::{Fault, Verdict, reason};
use super::table::Table;
use super::visit::PayloadSeed;
use super::{DEPTH_MAX, Format, Message};

/// Reads all rows of a message into the table, or some and a fault: then the caller takes them back.
#[inline]
pub(super) fn read(format: Format, table: &mut Table, plain: &mut Plain, message: &Message<'_>) -> Verdict {
    if message.payload.is_empty() {
        return Err(Fault::new(reason::EMPTY, "the payload has no bytes"));
    }
    match format {
        Format::Json => read_json(table, message),
        Format::Cbor => read_cbor(table, plain, message),
        Format::MessagePack => read_msgpack(table, message),
    }
}

fn read_json(table: &mut Table, message: &Message<'_>) -> Verdict {
    // Once for the whole payload: the parser then need not check its strings one by one, and
    // strings that nobody reads are checked as well.
    let text = std::str::from_utf8(message.payload).map_err(|error| {
        Fault::new(reason::INVALID_UTF8, format!("the payload is no UTF-8 from byte {} on", error.valid_up_to()))
    })?;
    check_depth(text)?;
    let mut parser = serde_json::Deserializer::from_str(text);
    table.base64 = true;
    if let Err(error) = (PayloadSeed { table, message }).deserialize(&mut parser) {
        return Err(table.fault.take().unwrap_or_else(|| json_mistake(&error)));
    }
    parser.end().map_err(|_| trailing("JSON value"))
}

#[cold]
fn json_mistake(error: &serde_json::Error) -> Box<Fault> {
    let text = error.to_string();
    // The parser has no kind of its own for this one.
    if text.starts_with("number out of range") {
        return Fault::new(reason::NOT_FINITE, format!("a 64-bit float can't hold it: {text}"));
    }
    Fault::new(reason::INVALID_JSON, text)
}

/// Refuses JSON that nests too deep, before anything of it is read.
pub(super) fn check_depth(json: &str) -> Verdict {
    if nests_beyond(json.as_bytes(), DEPTH_MAX) { Err(too_deep()) } else { Ok(()) }
}

/// Whether arrays and objects nest deeper than `depth_max`. Almost no payload has so many brackets
/// at all, and counting them is quicker than following them.
fn nests_beyond(json: &[u8], depth_max: usize) -> bool {
    // The bit that tells `{` from `[` is set for both, and counts of a byte fit a vector register: a
    // fifth of the decoding time became a fifteenth.
    let opening = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    if json.chunks(128).map(|chunk| usize::from(opening(chunk))).sum::<usize>() <= depth_max {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > depth_max {
            return true;
        }
    }
    false
}

fn read_cbor(table: &mut Table, plain: &mut Plain, message: &Message<'_>) -> Verdict {
    if plain.expected
        && let Some(rewritten) = plain.rewrite(message.payload)
    {
        return read_plain_cbor(table, message, rewritten).map_err(CborMistake::into_fault);
    }
    let rows = table.rows();
    match read_plain_cbor(table, message, message.payload) {
        Err(mistake) if mistake.may_be_of_tags() => {
            table.take_back(rows);
            match plain.rewrite(message.payload) {
                Some(rewritten) => read_plain_cbor(table, message, rewritten).map_err(CborMistake::into_fault),
                None => Err(mistake.into_fault()),
            }
        }
        other => other.map_err(CborMistake::into_fault),
    }
}

enum CborMistake {
    Fault(Box<Fault>),
    /// A value that begins with this byte.
    Unsupported(u8),
}

impl CborMistake {
    /// Whether the same payload may be fine without its tags and small floats: tags nest too.
    fn may_be_of_tags(&self) -> bool {
        match self {
            Self::Fault(fault) => fault.reason == reason::TOO_DEEP,
            Self::Unsupported(head) => Plain::takes(*head),
        }
    }

    fn into_fault(self) -> Box<Fault> {
        match self {
            Self::Fault(fault) => fault,
            Self::Unsupported(head) if Plain::takes(head) => {
                Fault::new(reason::INVALID_CBOR, "the payload breaks off, or a tag in it marks no value")
            }
            Self::Unsupported(head) => {
                Fault::new(reason::INVALID_CBOR, format!("no value begins with the byte {head:#04x}"))
            }
        }
    }
}

fn read_plain_cbor(table: &mut Table, message: &Message<'_>, payload: &[u8]) -> Result<(), CborMistake> {
    let mut parser = cbor4ii::serde::Deserializer::new(Reader::new(payload, DEPTH_MAX));
    table.base64 = false;
    table.doubtful.is_watching = false;
    let read = (PayloadSeed { table, message }).deserialize(&mut parser);
    let fault = match (read, table.fault.take()) {
        (Ok(()), _) if parser.into_inner().rest().is_empty() => return Ok(()),
        (Ok(()), _) => trailing("CBOR value"),
        (Err(_), Some(fault)) => fault,
        (Err(CborOrSerde::Core(CborError::Unsupported { found, .. })), None) => {
            return Err(CborMistake::Unsupported(found));
        }
        (Err(CborOrSerde::Core(CborError::DepthOverflow { .. })), None) => too_deep(),
        (Err(CborOrSerde::Core(CborError::RequireUtf8 { .. })), None) => broken_text(),
        (
            Err(CborOrSerde::Core(
                CborError::LengthOverflow { .. }
                | CborError::CastOverflow { .. }
                | CborError::ArithmeticOverflow { .. },
            )),
            None,
        ) => Fault::new(reason::OUT_OF_RANGE, "a whole number in the payload is beyond 128 bits"),
        (Err(CborOrSerde::Core(CborError::Eof { .. })), None) => {
            Fault::new(reason::INVALID_CBOR, "the payload breaks off inside a value")
        }
        (Err(error), None) => Fault::new(reason::INVALID_CBOR, error.to_string()),
    };
    Err(CborMistake::Fault(fault))
}

fn read_msgpack(table: &mut Table, message: &Message<'_>) -> Verdict {
    use rmp_serde::decode::Error;

    let mut parser = rmp_serde::Deserializer::from_read_ref(message.payload);
    // It refuses at zero and not below it.
    parser.set_max_depth(DEPTH_MAX + 1);
    table.base64 = false;
    table.doubtful.is_watching = true;
    let read = (PayloadSeed { table, message }).deserialize(&mut parser);
    let has_broken_text = table.doubtful.any_text_in(message.payload);
    match (read, table.fault.take()) {
        (Ok(()), _) if has_broken_text => Err(broken_text()),
        (Ok(()), _) => match IgnoredAny::deserialize(&mut parser) {
            // The parser doesn't say how far it has come, but it does say when there is no more.
            Err(Error::InvalidMarkerRead(_)) => Ok(()),
            _ => Err(trailing("MessagePack value")),
        },
        // Text that is no UTF-8 is offered as bytes first, so there may be a fault of that.
        (Err(Error::Utf8Error(_)), _) => Err(broken_text()),
        (Err(Error::DepthLimitExceeded), _) => Err(too_deep()),
        (Err(_), Some(fault)) => Err(fault),
        (Err(Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_)), None) => {
            Err(Fault::new(reason::INVALID_MSGPACK, "the payload breaks off inside a value"))
        }
        (Err(error), None) => Err(Fault::new(reason::INVALID_MSGPACK, error.to_string())),
    }
}

#[cold]
fn too_deep() -> Box<Fault> {
    Fault::new(reason::TOO_DEEP, format!("arrays and objects may nest {DEPTH_MAX} deep"))
}

#[cold]
fn broken_text() -> Box<Fault> {
    Fault::new(reason::INVALID_UTF8, "a text in the payload is no UTF-8")
}

#[cold]
fn trailing(what: &str) -> Box<Fault> {
    Fault::new(reason::TRAILING_DATA, format!("something follows the end of the {what}"))
}
