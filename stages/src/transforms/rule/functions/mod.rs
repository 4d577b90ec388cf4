//! The functions of the AWS IoT SQL reference: what each takes, gives and computes.
//!
//! A function never fails: what it can't make sense of gives Undefined, row by row. What can be told
//! when the plan is built (a wrong number of arguments, a broken pattern, a function of AWS's cloud) is
//! refused there.

mod collections;
mod encoding;
pub mod math;
mod refused;
mod text;
mod time;

use std::borrow::Cow;

use super::expression::{Kind, Prepared};
use super::value::Value;
pub use collections::get;
pub use encoding::base64;
#[cfg(test)]
pub use refused::REFUSED;
pub use refused::why_refused;

/// One function of the table.
#[derive(Debug)]
pub struct Function {
    /// In lower case; rules may write it in any.
    pub name: &'static str,
    /// How it is called, for a person: `substring(text, start[, end])`.
    pub usage: &'static str,
    /// The fewest and the most arguments.
    pub arity: (usize, usize),
    pub shape: Shape,
}

/// How a function is computed: the plainer the shape, the more of a batch it takes at once.
#[derive(Debug)]
pub enum Shape {
    /// A number to a decimal; Undefined where the result is not finite.
    Decimal(fn(f64) -> f64),
    /// A number to a whole number: a whole one stays as it is.
    Whole(fn(f64) -> f64),
    /// Text to text.
    Text(fn(&str) -> String),
    /// Text to a whole number.
    Count(fn(&str) -> usize),
    /// Anything else.
    General { kind: fn(&[Kind]) -> Kind, compute: fn(Arguments<'_, '_>, &Prepared) -> Value },
}

/// The arguments of one call in one row.
pub type Arguments<'a, 'v> = &'a [Cow<'v, Value>];

impl Function {
    /// The kind of the result for arguments of these kinds.
    pub fn kind(&self, arguments: &[Kind]) -> Kind {
        let is_number = arguments.first().is_some_and(|kind| kind.may_be_number());
        match self.shape {
            Shape::Decimal(_) if is_number => Kind::Decimal,
            Shape::Whole(_) if is_number => Kind::Int,
            Shape::Decimal(_) | Shape::Whole(_) => Kind::Undefined,
            Shape::Text(_) if arguments.first() != Some(&Kind::Undefined) => Kind::Text,
            Shape::Count(_) if arguments.first() != Some(&Kind::Undefined) => Kind::Int,
            Shape::Text(_) | Shape::Count(_) => Kind::Undefined,
            Shape::General { kind, .. } => kind(arguments),
        }
    }

    /// The result in one row.
    pub fn call(&self, arguments: Arguments<'_, '_>, prepared: &Prepared) -> Value {
        match self.shape {
            Shape::Decimal(compute) => Value::of_option(arguments[0].to_decimal().map(compute), Value::of_decimal),
            Shape::Whole(round) => match arguments[0].to_number() {
                Some(super::value::Number::Int(whole)) => Value::Int(whole),
                Some(super::value::Number::Decimal(number)) => Value::of_whole(round(number)),
                None => Value::Undefined,
            },
            Shape::Text(compute) => Value::of_option(arguments[0].to_text(), |text| Value::Text(compute(&text))),
            Shape::Count(compute) => Value::of_option(arguments[0].to_text(), |text| Value::Int(compute(&text) as i64)),
            Shape::General { compute, .. } => compute(arguments, prepared),
        }
    }
}

/// The function of that name, in capitals or not.
pub fn find(name: &str) -> Option<&'static Function> {
    all().find(|function| function.name.eq_ignore_ascii_case(name))
}

/// Every function that runs through the table.
pub fn all() -> impl Iterator<Item = &'static Function> {
    [math::FUNCTIONS, text::FUNCTIONS, encoding::FUNCTIONS, time::FUNCTIONS, collections::FUNCTIONS]
        .into_iter()
        .flatten()
}

/// Functions of the rule's surroundings, which the binder knows itself: name and usage.
pub const OF_MESSAGE: [(&str, &str); 9] = [
    ("topic", "topic([segment])"),
    ("clientid", "clientid()"),
    ("timestamp", "timestamp()"),
    ("rand", "rand()"),
    ("newuuid", "newuuid()"),
    ("sql_version", "sql_version()"),
    ("isnull", "isNull(a)"),
    ("isundefined", "isUndefined(a)"),
    ("cast", "cast(a AS type)"),
];

/// Every name that a rule can call.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|function| function.name).chain(OF_MESSAGE.iter().map(|(name, _)| *name))
}

fn always_int(arguments: &[Kind]) -> Kind {
    if arguments.contains(&Kind::Undefined) { Kind::Undefined } else { Kind::Int }
}

fn always_text(arguments: &[Kind]) -> Kind {
    if arguments.contains(&Kind::Undefined) { Kind::Undefined } else { Kind::Text }
}

fn always_bool(arguments: &[Kind]) -> Kind {
    if arguments.contains(&Kind::Undefined) { Kind::Undefined } else { Kind::Bool }
}

fn dynamic(_: &[Kind]) -> Kind {
    Kind::Dynamic
}

/// The texts of the first arguments, if all of them are texts.
fn texts<'a, const N: usize>(arguments: &'a [Cow<'_, Value>]) -> Option<[Cow<'a, str>; N]> {
    let found: Vec<_> = arguments.iter().take(N).map_while(|argument| argument.to_text()).collect();
    found.try_into().ok()
}
