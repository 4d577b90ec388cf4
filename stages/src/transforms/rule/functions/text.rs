//! Text.

use std::borrow::Cow;

use regex::Regex;

use super::{Arguments, Function, Shape, always_bool, always_int, always_text, texts};
use crate::transforms::rule::expression::{Kind, Prepared};
use crate::transforms::rule::value::Value;

/// The most blanks that `lpad` and `rpad` add, as in AWS IoT.
const PADDING_MAX: i64 = 1_000;

pub(super) const FUNCTIONS: &[Function] = &[
    general("chr", "chr(code)", (1, 1), always_text, |arguments, _| {
        let code = arguments[0].to_int().and_then(|code| u8::try_from(code).ok()).filter(u8::is_ascii);
        Value::of_option(code, |code| Value::Text(char::from(code).to_string()))
    }),
    general("endswith", "endswith(text, end)", (2, 2), always_bool, |arguments, _| {
        Value::of_option(texts(arguments), |[text, end]| Value::Bool(text.ends_with(&*end)))
    }),
    general("indexof", "indexof(text, part)", (2, 2), always_int, |arguments, _| {
        Value::of_option(texts(arguments), |[text, part]| {
            Value::Int(text.find(&*part).map_or(-1, |at| text[..at].chars().count() as i64))
        })
    }),
    Function { name: "length", usage: "length(text)", arity: (1, 1), shape: Shape::Count(|text| text.chars().count()) },
    Function { name: "lower", usage: "lower(text)", arity: (1, 1), shape: Shape::Text(|text| text.to_lowercase()) },
    general("lpad", "lpad(text, blanks)", (2, 2), always_text, |arguments, _| {
        padded(arguments, |text, blanks| blanks + text)
    }),
    Function {
        name: "ltrim",
        usage: "ltrim(text)",
        arity: (1, 1),
        shape: Shape::Text(|text| text.trim_start_matches([' ', '\t']).to_owned()),
    },
    Function { name: "numbytes", usage: "numbytes(text)", arity: (1, 1), shape: Shape::Count(str::len) },
    general("regexp_matches", "regexp_matches(text, pattern)", (2, 2), always_bool, |arguments, prepared| {
        with_pattern(arguments, prepared, |pattern, text| Value::Bool(pattern.is_match(text)))
    }),
    general("regexp_replace", "regexp_replace(text, pattern, new)", (3, 3), always_text, |arguments, prepared| {
        let Some(new) = arguments[2].to_text() else { return Value::Undefined };
        with_pattern(arguments, prepared, |pattern, text| {
            Value::of_option(replacement(&new, pattern.captures_len() - 1), |new| {
                Value::of_text(pattern.replace_all(text, &*new))
            })
        })
    }),
    general("regexp_substr", "regexp_substr(text, pattern)", (2, 2), always_text, |arguments, prepared| {
        with_pattern(arguments, prepared, |pattern, text| {
            Value::of_option(pattern.find(text), |found| Value::of_text(found.as_str()))
        })
    }),
    general("replace", "replace(text, old, new)", (3, 3), always_text, |arguments, _| {
        Value::of_option(texts(arguments), |[text, old, new]| Value::Text(text.replace(&*old, &new)))
    }),
    general("rpad", "rpad(text, blanks)", (2, 2), always_text, |arguments, _| {
        padded(arguments, |text, blanks| text.to_owned() + &blanks)
    }),
    Function {
        name: "rtrim",
        usage: "rtrim(text)",
        arity: (1, 1),
        shape: Shape::Text(|text| text.trim_end_matches([' ', '\t']).to_owned()),
    },
    general("startswith", "startswith(text, start)", (2, 2), always_bool, |arguments, _| {
        Value::of_option(texts(arguments), |[text, start]| Value::Bool(text.starts_with(&*start)))
    }),
    general("substring", "substring(text, start[, end])", (2, 3), always_text, substring),
    Function { name: "trim", usage: "trim(text)", arity: (1, 1), shape: Shape::Text(|text| text.trim().to_owned()) },
    Function { name: "upper", usage: "upper(text)", arity: (1, 1), shape: Shape::Text(|text| text.to_uppercase()) },
];

const fn general(
    name: &'static str,
    usage: &'static str,
    arity: (usize, usize),
    kind: fn(&[Kind]) -> Kind,
    compute: fn(Arguments<'_, '_>, &Prepared) -> Value,
) -> Function {
    Function { name, usage, arity, shape: Shape::General { kind, compute } }
}

fn padded(arguments: Arguments<'_, '_>, join: fn(&str, String) -> String) -> Value {
    let (Some(text), Some(blanks)) = (arguments[0].to_text(), bound(&arguments[1])) else { return Value::Undefined };
    Value::Text(join(&text, " ".repeat(blanks.clamp(0, PADDING_MAX) as usize)))
}

/// A whole number, rounded down; one that is beyond 64 bits is the nearest that is not.
fn bound(value: &Value) -> Option<i64> {
    value.to_int().or_else(|| value.to_decimal().map(|number| number as i64))
}

/// From `start` to before `end`, in characters from 0; places outside are moved to the nearest end.
fn substring(arguments: Arguments<'_, '_>, _: &Prepared) -> Value {
    let (Some(text), Some(start)) = (arguments[0].to_text(), bound(&arguments[1])) else { return Value::Undefined };
    let end = match arguments.get(2).map(|end| bound(end)) {
        Some(None) => return Value::Undefined,
        Some(Some(end)) => end,
        None => i64::MAX,
    };
    let start = usize::try_from(start.max(0)).unwrap_or(usize::MAX);
    let end = usize::try_from(end.max(0)).unwrap_or(usize::MAX);
    Value::Text(text.chars().take(end).skip(start).collect())
}

/// Runs a pattern over the first argument: the prepared one, or what the second argument of this row
/// says, if that is a pattern.
fn with_pattern(arguments: Arguments<'_, '_>, prepared: &Prepared, run: impl FnOnce(&Regex, &str) -> Value) -> Value {
    let Some(text) = arguments[0].to_text() else { return Value::Undefined };
    if let Prepared::Regex(pattern) = prepared {
        return run(pattern, &text);
    }
    let pattern = arguments[1].to_text().and_then(|pattern| Regex::new(&pattern).ok());
    Value::of_option(pattern, |pattern| run(&pattern, &text))
}

/// A replacement as Java writes it in the form that the library reads: `$1` is group 1 also before a
/// letter, `\$` is a dollar sign. `None` for a group that the pattern does not have.
fn replacement(java: &str, groups: usize) -> Option<Cow<'_, str>> {
    if !java.contains(['$', '\\']) {
        return Some(java.into());
    }
    let mut out = String::new();
    let mut rest = java.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next()? {
                '$' => out.push_str("$$"),
                escaped => out.push(escaped),
            },
            '$' => {
                let mut group = rest.next()?.to_digit(10)? as usize;
                if group > groups {
                    return None;
                }
                // Further digits belong to the number as long as there is such a group.
                while let Some(digit) = rest.peek().and_then(|next| next.to_digit(10)) {
                    let longer = group * 10 + digit as usize;
                    if longer > groups {
                        break;
                    }
                    group = longer;
                    rest.next();
                }
                out.push_str(&format!("${{{group}}}"));
            }
            c => out.push(c),
        }
    }
    Some(out.into())
}
