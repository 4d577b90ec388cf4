//! Times as text and as milliseconds.

use super::{Arguments, Function, Shape, always_int, always_text};
use crate::time_pattern::{Dialect, TimePattern, Zone};
use crate::transforms::rule::expression::Prepared;
use crate::transforms::rule::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "parse_time",
        usage: "parse_time(pattern, milliseconds[, zone])",
        arity: (2, 3),
        shape: Shape::General { kind: always_text, compute: parse_time },
    },
    Function {
        name: "time_to_epoch",
        usage: "time_to_epoch(text, pattern)",
        arity: (2, 2),
        shape: Shape::General { kind: always_int, compute: time_to_epoch },
    },
];

/// Despite its name it writes a time.
fn parse_time(arguments: Arguments<'_, '_>, prepared: &Prepared) -> Value {
    let Some(time_ms) = arguments[1].to_int() else { return Value::Undefined };
    let (prepared_pattern, prepared_zone) = match prepared {
        Prepared::Time { pattern, zone } => (Some(pattern), zone.as_ref()),
        _ => (None, None),
    };
    let zone_here;
    let zone = match (prepared_zone, arguments.get(2)) {
        (Some(zone), _) => zone,
        (None, None) => &Zone::UTC,
        (None, Some(name)) => {
            zone_here = name.to_text().and_then(|name| Zone::read(&name));
            let Some(zone) = &zone_here else { return Value::Undefined };
            zone
        }
    };
    let pattern_here;
    let pattern = match prepared_pattern {
        Some(pattern) => pattern,
        None => {
            pattern_here = arguments[0].to_text().and_then(|text| TimePattern::read(&text, Dialect::Joda).ok());
            let Some(pattern) = &pattern_here else { return Value::Undefined };
            pattern
        }
    };
    Value::of_option(pattern.write(time_ms, zone), Value::Text)
}

fn time_to_epoch(arguments: Arguments<'_, '_>, prepared: &Prepared) -> Value {
    let Some(text) = arguments[0].to_text() else { return Value::Undefined };
    if let Prepared::Time { pattern, .. } = prepared {
        return Value::of_option(pattern.parse(&text), Value::Int);
    }
    let pattern = arguments[1].to_text().and_then(|pattern| TimePattern::read(&pattern, Dialect::Jdk).ok());
    Value::of_option(pattern.and_then(|pattern| pattern.parse(&text)), Value::Int)
}
