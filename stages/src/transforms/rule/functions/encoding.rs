//! Hashes and base64.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md2::Md2;
use md5::{Digest as _, Md5};

use super::{Function, Shape, always_text};
use crate::transforms::rule::expression::Kind;
use crate::transforms::rule::json;
use crate::transforms::rule::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "decode",
        usage: "decode(text, 'base64')",
        arity: (2, 2),
        shape: Shape::General {
            kind: |kinds| if kinds[0] == Kind::Undefined { Kind::Undefined } else { Kind::Dynamic },
            compute: |arguments, _| Value::of_option(arguments[0].to_text(), |text| decode(&text)),
        },
    },
    Function {
        name: "encode",
        usage: "encode(a, 'base64')",
        arity: (2, 2),
        shape: Shape::General {
            kind: always_text,
            compute: |arguments, _| {
                Value::of_option(arguments[0].to_text(), |text| Value::Text(STANDARD.encode(&*text)))
            },
        },
    },
    hash("md2", "md2(text)", |text| hex(&Md2::digest(text))),
    hash("md5", "md5(text)", |text| hex(&Md5::digest(text))),
    hash("sha1", "sha1(text)", |text| sha(&digest::SHA1_FOR_LEGACY_USE_ONLY, text)),
    hash("sha224", "sha224(text)", |text| sha(&digest::SHA224, text)),
    hash("sha256", "sha256(text)", |text| sha(&digest::SHA256, text)),
    hash("sha384", "sha384(text)", |text| sha(&digest::SHA384, text)),
    hash("sha512", "sha512(text)", |text| sha(&digest::SHA512, text)),
];

const fn hash(name: &'static str, usage: &'static str, compute: fn(&str) -> String) -> Function {
    Function { name, usage, arity: (1, 1), shape: Shape::Text(compute) }
}

fn sha(algorithm: &'static digest::Algorithm, text: &str) -> String {
    hex(digest::digest(algorithm, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        // Memory takes all that is written.
        write!(out, "{byte:02x}").unwrap_or_default();
        out
    })
}

/// The value that the bytes are JSON for, else their text; Null where it is neither.
fn decode(text: &str) -> Value {
    let Ok(bytes) = STANDARD.decode(text) else { return Value::Null };
    match json::read(&bytes) {
        Ok(value) => value,
        Err(_) => String::from_utf8(bytes).map_or(Value::Null, Value::Text),
    }
}

/// Bytes as `encode` writes them.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
