//! Values read from JSON and written as JSON.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use ahash::RandomState;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::value::{Value, decimal_text};

/// Up to so many keys, looking through them is quicker than hashing.
const SEARCHED_MAX: usize = 32;

/// The value that the text holds, all of it.
///
/// # Errors
/// It is no JSON, or nests deeper than 127.
pub fn read(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text)
}

/// Compact JSON. What is Undefined is left out of objects and arrays, and is nothing by itself.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    write_to(value, &mut out);
    out
}

fn write_to(value: &Value, out: &mut String) {
    match value {
        Value::Undefined => {}
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(whole) => put(out, format_args!("{whole}")),
        Value::Decimal(number) => out.push_str(&decimal_text(*number)),
        Value::Text(text) => write_text(text, out),
        Value::Array(elements) => {
            out.push('[');
            let defined = elements.iter().filter(|element| !element.is_undefined());
            for (index, element) in defined.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_to(element, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            let defined = members.iter().filter(|(_, value)| !value.is_undefined());
            for (index, (key, value)) in defined.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_to(value, out);
            }
            out.push('}');
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => put(out, format_args!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // Memory takes all that is written.
    out.write_fmt(text).unwrap_or_default();
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Bool(truth))
    }

    fn visit_i64<E>(self, whole: i64) -> Result<Value, E> {
        Ok(Value::Int(whole))
    }

    fn visit_u64<E>(self, whole: u64) -> Result<Value, E> {
        Ok(i64::try_from(whole).map_or(Value::Decimal(whole as f64), Value::Int))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::of_decimal(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::of_text(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = access.next_element()? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members: Vec<(String, Value)> = Vec::new();
        // An object of thousands of keys must not take the square of that.
        let mut places: HashMap<String, usize, RandomState> = HashMap::default();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            if members.len() < SEARCHED_MAX {
                put_member(&mut members, key, value);
                continue;
            }
            if places.is_empty() {
                places.extend(members.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)));
            }
            match places.get(&key) {
                Some(place) => members[*place].1 = value,
                None => {
                    places.insert(key.clone(), members.len());
                    members.push((key, value));
                }
            }
        }
        Ok(Value::Object(members))
    }
}

/// Adds a member; a later one of the same key takes the earlier one's place.
pub fn put_member(members: &mut Vec<(String, Value)>, key: String, value: Value) {
    match members.iter_mut().find(|(known, _)| *known == key) {
        Some((_, old)) => *old = value,
        None => members.push((key, value)),
    }
}
