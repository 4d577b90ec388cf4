//! Any value as compact JSON text, whatever format it came in.
//!
//! The text is written anew and not copied: so it is the same from all formats, and nothing that a
//! database refuses in JSON (U+0000, a lone surrogate, NaN) gets through. Whole numbers of 64 bits
//! are exact; other numbers become the nearest 64-bit float. Bytes become base64 text.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::column::Column;
use super::fault::{Fault, Verdict, reason};
use super::msgpack::Doubtful;
use super::read::check_depth;

/// Writes one value to the end of `out`.
pub(super) struct JsonText<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Why the value can't be JSON, if it can't.
    pub(super) fault: &'a mut Option<Box<Fault>>,
    /// Bytes that may be text.
    pub(super) doubtful: &'a mut Doubtful,
    /// The column's name, for the fault.
    pub(super) name: &'a str,
}

impl JsonText<'_> {
    fn again(&mut self) -> JsonText<'_> {
        JsonText { out: self.out, fault: self.fault, doubtful: self.doubtful, name: self.name }
    }

    #[cold]
    fn refuse<E: Error>(self, reason: &'static str, what: impl fmt::Display) -> E {
        *self.fault = Some(Fault::new(reason, format!("column \"{}\" {what}", self.name)));
        E::custom("refused")
    }

    /// Writes the text of a field that has no type of its own.
    pub(super) fn put_field(mut self, text: &str) -> Verdict {
        let written = self.again().put_text::<serde_json::Error>(text);
        match (written, self.fault.take()) {
            (Err(_), Some(fault)) => Err(fault),
            _ => Ok(()),
        }
    }

    fn put(&mut self, text: impl fmt::Display) {
        use std::io::Write;
        write!(self.out, "{text}").expect("memory takes all that is written");
    }

    fn put_text<E: Error>(self, text: &str) -> Result<(), E> {
        if text.as_bytes().contains(&0) {
            return Err(self.refuse(reason::NUL, "has the character U+0000 in its text"));
        }
        serde_json::to_writer(self.out, text).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for JsonText<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonText<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.put("null");
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_i128<E: Error>(mut self, value: i128) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_u128<E: Error>(mut self, value: u128) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if !value.is_finite() {
            return Err(self.refuse(reason::NOT_FINITE, format_args!("must hold finite numbers, found {value}")));
        }
        serde_json::to_writer(self.out, &value).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.put_text(text)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<(), E> {
        self.put_text(&STANDARD.encode(bytes))
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<(), E> {
        self.doubtful.note(bytes);
        self.visit_bytes(bytes)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(self.refuse(reason::WRONG_TYPE, "must be json, found a MessagePack extension"))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.out.push(b'[');
        let start = self.out.len();
        loop {
            let end = self.out.len();
            if end > start {
                self.out.push(b',');
            }
            if items.next_element_seed(self.again())?.is_none() {
                self.out.truncate(end);
                self.out.push(b']');
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        self.out.push(b'{');
        let start = self.out.len();
        loop {
            let end = self.out.len();
            if end > start {
                self.out.push(b',');
            }
            if entries.next_key_seed(Key(self.again()))?.is_none() {
                self.out.truncate(end);
                self.out.push(b'}');
                return Ok(());
            }
            self.out.push(b':');
            entries.next_value_seed(self.again())?;
        }
    }
}

/// A key of an object: text, or a whole number as text. JSON has no other keys.
struct Key<'a>(JsonText<'a>);

impl Key<'_> {
    #[cold]
    fn refuse<E: Error>(self, found: &str) -> Result<(), E> {
        Err(self.0.refuse(reason::WRONG_TYPE, format_args!("must be json, found {found} for a key")))
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text or a whole number")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<(), E> {
        self.0.put_text(key)
    }

    fn visit_u64<E: Error>(self, key: u64) -> Result<(), E> {
        self.0.put_text(&key.to_string())
    }

    fn visit_i64<E: Error>(self, key: i64) -> Result<(), E> {
        self.0.put_text(&key.to_string())
    }

    fn visit_u128<E: Error>(self, key: u128) -> Result<(), E> {
        self.0.put_text(&key.to_string())
    }

    fn visit_i128<E: Error>(self, key: i128) -> Result<(), E> {
        self.0.put_text(&key.to_string())
    }

    fn visit_bool<E: Error>(self, key: bool) -> Result<(), E> {
        self.refuse(if key { "true" } else { "false" })
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.refuse("a fraction")
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<(), E> {
        self.refuse("bytes")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.refuse("null")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.refuse("null")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        self.refuse("a MessagePack extension")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an object")
    }
}

/// Puts JSON that came as text into a JSON column.
pub(super) fn reformat(column: &mut Column, text: &str) -> Verdict {
    check_depth(text)?;
    let mut out = Vec::with_capacity(text.len());
    let mut fault = None;
    let mut parser = serde_json::Deserializer::from_str(text);
    let seed = JsonText { out: &mut out, fault: &mut fault, doubtful: &mut Doubtful::default(), name: &column.name };
    let read = seed.deserialize(&mut parser).and_then(|()| parser.end());
    match (read, fault) {
        (_, Some(fault)) => Err(fault),
        (Err(error), None) => {
            Err(Fault::new(reason::INVALID_JSON, format!("column \"{}\" must be JSON: {error}", column.name)))
        }
        (Ok(()), None) => column.put_json(&out),
    }
}
