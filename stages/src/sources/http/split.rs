//! A body of JSON taken apart into messages: each value is one, so that a bad reading takes no neighbours with it.
//!
//! Nothing is decoded here: a message is a part of the body as it came.

use std::ops::Range;

use serde::de::IgnoredAny;

/// More than 64 MiB of the shortest readings hold; keeps the places of a body of `[1,1,1,...` in bounds.
pub(super) const MESSAGES_MAX: usize = 1_000_000;

/// A message in a body, of at most 4 GiB.
pub(super) type Place = Range<u32>;

/// What the places of a body's messages take at most while they are gathered: a message has a byte and something between it and
/// the next, and a list is twice as long as it must be right after it has grown.
pub(super) fn places_bytes_max(body_bytes: usize) -> usize {
    (body_bytes / 2 + 1).min(MESSAGES_MAX) * 2 * size_of::<Place>()
}

/// A part of a body.
pub(super) fn slice(place: &Place) -> Range<usize> {
    place.start as usize..place.end as usize
}

/// No body is larger than 1 GiB.
pub(super) fn place(range: Range<usize>) -> Place {
    let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    narrow(range.start)..narrow(range.end)
}

/// Why a body is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mistake {
    /// It is no JSON: what is wrong and where, as the rest of a sentence.
    NoJson(String),
    /// It holds more than [`MESSAGES_MAX`].
    TooMany,
}

/// The places of the messages in a body: the values that stand in it one behind the other, and the elements of arrays.
///
/// Where the first line is a value of its own and a later line is none, the lines are the messages: one that is broken is
/// told from its neighbours. `lines`: the sender says that there is one a line.
///
/// # Errors
/// There is no JSON in it, or too much.
pub(super) fn split(body: &[u8], lines: bool) -> Result<Vec<Place>, Mistake> {
    let start = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }; // a byte order mark
    if lines {
        return by_line(body, start, |messages| messages.iter().any(|place| is_value(&body[slice(place)])));
    }
    match values(body, start) {
        Err(Mistake::NoJson(why)) => {
            by_line(body, start, |messages| messages.len() > 1 && is_value(&body[slice(&messages[0])]))
                .map_err(|mistake| if mistake == Mistake::TooMany { mistake } else { Mistake::NoJson(why) })
        }
        outcome => outcome,
    }
}

fn values(body: &[u8], start: usize) -> Result<Vec<Place>, Mistake> {
    let mut messages = Vec::new();
    let mut at = skip_blank(body, start);
    if at == body.len() {
        return Err(Mistake::NoJson("it is empty".to_owned()));
    }
    while at < body.len() {
        at = if body[at] == b'[' { elements(body, at, &mut messages)? } else { value(body, at, &mut messages)? };
        at = skip_blank(body, at);
    }
    Ok(messages)
}

/// Takes the elements of an array; gives the place behind it.
fn elements(body: &[u8], start: usize, messages: &mut Vec<Place>) -> Result<usize, Mistake> {
    let mut at = skip_blank(body, start + 1);
    if body.get(at) == Some(&b']') {
        return Ok(at + 1);
    }
    loop {
        at = skip_blank(body, value(body, at, messages)?);
        match body.get(at) {
            Some(b',') => at = skip_blank(body, at + 1),
            Some(b']') => return Ok(at + 1),
            Some(_) => return Err(no_json(body, at, "expected `,` or `]`")),
            None => return Err(no_json(body, at, "the array does not end")),
        }
    }
}

/// Takes one value; gives the place behind it.
fn value(body: &[u8], at: usize, messages: &mut Vec<Place>) -> Result<usize, Mistake> {
    if messages.len() == MESSAGES_MAX {
        return Err(Mistake::TooMany);
    }
    let mut stream = serde_json::Deserializer::from_slice(&body[at..]).into_iter::<IgnoredAny>();
    match stream.next() {
        Some(Ok(IgnoredAny)) => {
            let end = at + stream.byte_offset();
            messages.push(place(at..end));
            Ok(end)
        }
        Some(Err(error)) => {
            // Its own line and column count from where it began.
            let found = error.to_string();
            let what = found.rsplit_once(" at line ").map_or(found.as_str(), |(what, _)| what);
            Err(no_json(body, offset_of(&body[at..], error.line(), error.column()) + at, what))
        }
        None => Err(no_json(body, at, "expected a value")),
    }
}

/// The lines that are not blank, unless there is no sign of JSON in them.
fn by_line(body: &[u8], start: usize, is_json: impl Fn(&[Place]) -> bool) -> Result<Vec<Place>, Mistake> {
    let mut messages = Vec::new();
    let mut at = start;
    for line in body[start..].split(|byte| *byte == b'\n') {
        let text = line.trim_ascii();
        if !text.is_empty() {
            if messages.len() == MESSAGES_MAX {
                return Err(Mistake::TooMany);
            }
            let begin = at + line.len() - line.trim_ascii_start().len();
            messages.push(place(begin..begin + text.len()));
        }
        at += line.len() + 1;
    }
    if messages.is_empty() {
        return Err(Mistake::NoJson("it is empty".to_owned()));
    }
    if is_json(&messages) { Ok(messages) } else { Err(Mistake::NoJson("none of its lines is JSON".to_owned())) }
}

fn is_value(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

fn no_json(body: &[u8], at: usize, what: &str) -> Mistake {
    let before = &body[..at.min(body.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    Mistake::NoJson(format!("{what} at line {line} column {column}"))
}

/// The place of a line and a column, both from 1.
fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize = text.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

fn skip_blank(body: &[u8], at: usize) -> usize {
    at + body[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: &str, lines: bool) -> Result<Vec<&str>, Mistake> {
        Ok(split(body.as_bytes(), lines)?.iter().map(|place| &body[slice(place)]).collect())
    }

    fn why(body: &str) -> String {
        match messages(body, false) {
            Err(Mistake::NoJson(why)) => why,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn each_value_is_a_message_however_they_stand_together() {
        let two = Ok(vec![r#"{"n": 1}"#, r#"{"n": 2}"#]);
        for body in [
            r#"{"n": 1}{"n": 2}"#,
            "{\"n\": 1}\n{\"n\": 2}",
            "{\"n\": 1}\r\n\r\n{\"n\": 2}\r\n",
            r#"[{"n": 1},{"n": 2}]"#,
            "\u{feff} [ {\"n\": 1} ,\n {\"n\": 2} ] \n",
            "[{\"n\": 1}]\n[{\"n\": 2}]\n[]",
        ] {
            assert_eq!(messages(body, false), two, "{body}");
        }
        assert_eq!(messages("[]", false), Ok(vec![]));
        assert_eq!(messages("{\n  \"n\": [1, 2]\n}", false), Ok(vec!["{\n  \"n\": [1, 2]\n}"]));
        assert_eq!(messages("[1, \"a,]\", [2, 3], null]", false), Ok(vec!["1", "\"a,]\"", "[2, 3]", "null"]));
    }

    #[test]
    fn a_broken_line_is_a_message_among_its_neighbours() {
        let body = "{\"n\": 1}\n{\"n\": \n\n {\"n\": 3}\n";
        let lines = vec!["{\"n\": 1}", "{\"n\":", "{\"n\": 3}"];
        assert_eq!(messages(body, false), Ok(lines.clone()));
        assert_eq!(messages(body, true), Ok(lines));
        // Said to be lines, the first may be the broken one, and an array stays one message.
        assert_eq!(messages("{\n[1, 2]", true), Ok(vec!["{", "[1, 2]"]));
    }

    #[test]
    fn what_is_no_json_at_all_is_refused_with_its_place() {
        assert_eq!(why(""), "it is empty");
        assert_eq!(why(" \n"), "it is empty");
        assert_eq!(why("hello"), "expected value at line 1 column 1");
        assert_eq!(why("[{\"n\": 1},\n {\"n\" 2}]"), "expected `:` at line 2 column 7");
        assert_eq!(why("[{\"n\": 1} {\"n\": 2}]"), "expected `,` or `]` at line 1 column 11");
        assert_eq!(why("[{\"n\": 1}"), "the array does not end at line 1 column 10");
        assert!(why("{\"n\": 1").starts_with("EOF while parsing an object"), "{}", why("{\"n\": 1"));
        // One object over several lines, each of which is something by itself.
        assert!(why("[\n{\"n\": 1}\n{\"n\": 2}\n]").starts_with("expected `,` or `]`"));
        assert_eq!(messages("hello\nworld", true), Err(Mistake::NoJson("none of its lines is JSON".to_owned())));
    }

    #[test]
    fn no_more_are_taken_than_fit() {
        let body = "1 ".repeat(MESSAGES_MAX + 1);
        assert_eq!(messages(&body, false), Err(Mistake::TooMany));
        assert_eq!(messages(&body.replace(' ', "\n"), true), Err(Mistake::TooMany));
        let within = format!("[{}1]", "1,".repeat(MESSAGES_MAX - 1));
        assert_eq!(messages(&within, false).map(|messages| messages.len()), Ok(MESSAGES_MAX));
    }

    #[test]
    fn no_body_has_more_places_than_are_counted_for_it() {
        for body in ["1", "1 1", "[1,1,1]", "{}{}{}", "[][]1", "1\n1\n1"] {
            let places = split(body.as_bytes(), false).unwrap();
            let bytes = places.capacity().min(2 * places.len()) * size_of::<Place>();
            assert!(bytes <= places_bytes_max(body.len()), "{body}: {bytes}");
        }
        let body = "1 ".repeat(MESSAGES_MAX);
        let places = split(body.as_bytes(), false).unwrap();
        assert!(places.capacity() * size_of::<Place>() <= places_bytes_max(body.len()), "{}", places.capacity());
    }

    #[test]
    fn arrays_in_arrays_take_no_stack() {
        let depth = 200_000;
        let body = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(messages(&body, false).map(|messages| messages.len()), Ok(1));
    }
}
