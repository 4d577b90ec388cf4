//! Keeps passwords out of what is shown of a pipeline file: a mistake beside one is printed to logs too.

use std::borrow::Cow;
use std::ops::Range;

use crate::suggest::nearest;

/// Who misspells one of these has no less of a secret behind it.
const KEYS: [&str; 3] = ["password", "token", "secret"];

/// The same text, byte for byte as long, with stars for every password and token: the values of keys of
/// these names, and passwords in URLs.
pub(super) fn masked(text: &str) -> Cow<'_, str> {
    let mut hidden: Vec<Range<usize>> = text.match_indices("://").filter_map(|(at, _)| in_url(text, at + 3)).collect();
    // Also where somebody forgot the scheme.
    hidden.extend(text.match_indices(['"', '\'']).filter_map(|(at, _)| in_url(text, at + 1)));
    let named = text.match_indices('=').filter(|(at, _)| is_secret(key_before(text, *at)));
    hidden.extend(named.filter_map(|(at, _)| value_of(text, at)));
    if hidden.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut bytes = text.as_bytes().to_vec();
    // Lines stay lines, so that every place is where it was.
    for range in hidden {
        bytes[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b'*');
    }
    // Whole characters have become stars, so this changes nothing.
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// Between the name and the host: `me:SECRET@host`.
fn in_url(text: &str, start: usize) -> Option<Range<usize>> {
    let url = &text[start..][..length_until(&text[start..], |c| c.is_whitespace() || c == '"' || c == '\'')];
    let host = url.rfind('@')?;
    let name = url[..host].find(':').filter(|name| !url[*name..].starts_with("://"))?;
    Some(start + name + 1..start + host).filter(|range| !is_reference(&text[range.clone()]))
}

fn is_secret(key: &str) -> bool {
    KEYS.iter().any(|secret| key.contains(secret)) || nearest(key, &KEYS).is_some()
}

/// The word before an equals sign, in quotes or without.
fn key_before(text: &str, equals: usize) -> &str {
    let before = text[..equals].trim_end_matches([' ', '\t', '"', '\'']);
    before.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default()
}

/// Behind the equals sign, in quotes, brackets or without.
fn value_of(text: &str, equals: usize) -> Option<Range<usize>> {
    let value = text[equals + 1..].trim_start_matches([' ', '\t']);
    let start = text.len() - value.len();
    let (start, length) = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => (start + 1, length_until(&value[1..], |c| c == quote || c == '\n')),
        // No secret is a list or a table, but whoever writes one means it.
        Some('[') => (start + 1, length_until(&value[1..], |c| c == ']')),
        Some('{') => (start + 1, length_until(&value[1..], |c| c == '}')),
        _ => (start, length_until(value, |c| c.is_whitespace() || matches!(c, '"' | '\'' | '&' | ',' | '}'))),
    };
    Some(start..start + length).filter(|range| !range.is_empty() && !is_reference(&text[range.clone()]))
}

fn length_until(text: &str, ends: impl FnMut(char) -> bool) -> usize {
    text.find(ends).unwrap_or(text.len())
}

/// `${VAR}`: what stands in the file is no secret, and helps.
fn is_reference(value: &str) -> bool {
    value.starts_with("${") && value.find('}') == Some(value.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_become_stars_and_nothing_moves() {
        for (text, shown) in [
            ("url = \"mqtt://me:secret@broker\"", "url = \"mqtt://me:******@broker\""),
            ("url = 'postgres://me:p/a@s:s@h/d'", "url = 'postgres://me:*******@h/d'"),
            ("url = \"postgres://me:gehe\u{ed}m@h\"\nx = 1", "url = \"postgres://me:*******@h\"\nx = 1"),
            ("url = \"me:secret@broker\"", "url = \"me:******@broker\""),
            ("password = \"secret\"", "password = \"******\""),
            ("token = \"secret\"", "token = \"******\""),
            ("pasword = \"secret\"", "pasword = \"******\""),
            ("api_token = \"a\"\ntokn = \"secret\"", "api_token = \"*\"\ntokn = \"******\""),
            ("  password='a\"b' # c", "  password='***' # c"),
            ("\"password\" = \"secret\"", "\"password\" = \"******\""),
            ("tls = { password = \"a b\", x = 1 }", "tls = { password = \"***\", x = 1 }"),
            ("password = 12345\n", "password = *****\n"),
            ("password = [\"a\", \"b\"]", "password = [********]"),
            ("token = [\n  \"a\"\n]\nx = 1", "token = [\n*****\n]\nx = 1"),
            ("password = { text = \"a\" }", "password = {************}"),
            ("password = \"open\nurl = \"x\"", "password = \"****\nurl = \"x\""),
            ("url = \"host=h password=secret user=u\"", "url = \"host=h password=****** user=u\""),
            ("url = \"postgres://h/d?password=s&x=1\"", "url = \"postgres://h/d?password=*&x=1\""),
        ] {
            assert_eq!(masked(text), shown);
            assert_eq!(shown.len(), text.len());
        }
    }

    #[test]
    fn what_is_no_password_stays() {
        for text in [
            "url = \"mqtt://broker:1883\"\ntopics = \"a@b\"",
            "url = \"postgres://me@h:5432/d\"",
            "password = \"${file:/run/secrets/db}\"",
            "url = \"postgres://me:${PASSWORD}@h/d\"",
            "# the password comes from outside",
            "topic = \"a\"\ntable = \"b\"\npath = \"c\"\nport = 1",
            "password",
            "password = ",
            "password = \"\"",
            "://",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
