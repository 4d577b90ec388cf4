//! Numbers.

use super::{Arguments, Function, Shape, always_int};
use crate::transforms::rule::expression::{Arithmetic, Kind, Prepared};
use crate::transforms::rule::value::{Number, Value};

/// The most places that `trunc` keeps, as in AWS IoT.
const PLACES_MAX: i64 = 34;

pub(super) const FUNCTIONS: &[Function] = &[
    general("abs", "abs(number)", (1, 1), same_number, |arguments, _| match arguments[0].to_number() {
        Some(Number::Int(whole)) => Value::of_option(whole.checked_abs(), Value::Int),
        Some(Number::Decimal(number)) => Value::Decimal(number.abs()),
        None => Value::Undefined,
    }),
    decimal("acos", "acos(number)", f64::acos),
    decimal("asin", "asin(number)", f64::asin),
    decimal("atan", "atan(number)", f64::atan),
    general("atan2", "atan2(y, x)", (2, 2), decimal_of_two, |arguments, _| of_two(arguments, f64::atan2)),
    general("bitand", "bitand(a, b)", (2, 2), always_int, |arguments, _| bits(arguments, |a, b| a & b)),
    general("bitor", "bitor(a, b)", (2, 2), always_int, |arguments, _| bits(arguments, |a, b| a | b)),
    general("bitxor", "bitxor(a, b)", (2, 2), always_int, |arguments, _| bits(arguments, |a, b| a ^ b)),
    general("bitnot", "bitnot(a)", (1, 1), always_int, |arguments, _| {
        Value::of_option(arguments[0].to_int().map(bitnot), Value::Int)
    }),
    whole("ceil", "ceil(number)", f64::ceil),
    decimal("cos", "cos(number)", f64::cos),
    decimal("cosh", "cosh(number)", f64::cosh),
    decimal("exp", "exp(number)", f64::exp),
    whole("floor", "floor(number)", f64::floor),
    decimal("ln", "ln(number)", f64::ln),
    decimal("log", "log(number)", f64::log10),
    general("mod", "mod(a, b)", (2, 2), number_of_two, remainder),
    general(
        "nanvl",
        "nanvl(a, b)",
        (2, 2),
        |kinds| kinds[0].or(kinds[1]),
        |arguments, _| match arguments[0].as_ref() {
            Value::Undefined | Value::Null => arguments[1].clone().into_owned(),
            value => value.clone(),
        },
    ),
    general("power", "power(base, exponent)", (2, 2), decimal_of_two, |arguments, _| of_two(arguments, f64::powf)),
    general("remainder", "remainder(a, b)", (2, 2), number_of_two, remainder),
    // Halves go away from zero.
    whole("round", "round(number)", f64::round),
    general("sign", "sign(number)", (1, 1), always_int, |arguments, _| {
        Value::of_option(arguments[0].to_decimal(), |number| {
            Value::Int(if number > 0.0 { 1 } else { -i64::from(number < 0.0) })
        })
    }),
    decimal("sin", "sin(number)", f64::sin),
    decimal("sinh", "sinh(number)", f64::sinh),
    decimal("sqrt", "sqrt(number)", f64::sqrt),
    decimal("tan", "tan(number)", f64::tan),
    decimal("tanh", "tanh(number)", f64::tanh),
    general(
        "trunc",
        "trunc(number, places)",
        (2, 2),
        |kinds| same_number(&kinds[..1]),
        |arguments, _| {
            let (Some(number), Some(places)) = (arguments[0].to_number(), arguments[1].to_int()) else {
                return Value::Undefined;
            };
            match number {
                Number::Int(whole) => Value::Int(whole),
                Number::Decimal(number) => Value::of_decimal(truncate(number, places.clamp(0, PLACES_MAX) as usize)),
            }
        },
    ),
];

const fn decimal(name: &'static str, usage: &'static str, compute: fn(f64) -> f64) -> Function {
    Function { name, usage, arity: (1, 1), shape: Shape::Decimal(compute) }
}

const fn whole(name: &'static str, usage: &'static str, round: fn(f64) -> f64) -> Function {
    Function { name, usage, arity: (1, 1), shape: Shape::Whole(round) }
}

const fn general(
    name: &'static str,
    usage: &'static str,
    arity: (usize, usize),
    kind: fn(&[Kind]) -> Kind,
    compute: fn(Arguments<'_, '_>, &Prepared) -> Value,
) -> Function {
    Function { name, usage, arity, shape: Shape::General { kind, compute } }
}

/// A whole number of a whole number, a decimal of anything else that can be a number.
fn same_number(kinds: &[Kind]) -> Kind {
    match kinds[0] {
        Kind::Int => Kind::Int,
        Kind::Decimal | Kind::Text => Kind::Decimal,
        Kind::Dynamic => Kind::Dynamic,
        Kind::Bool | Kind::Undefined => Kind::Undefined,
    }
}

fn decimal_of_two(kinds: &[Kind]) -> Kind {
    if kinds.iter().all(|kind| kind.may_be_number()) { Kind::Decimal } else { Kind::Undefined }
}

/// The kind of a calculation with two numbers, other than `+`.
pub fn number_of_two(kinds: &[Kind]) -> Kind {
    match (kinds[0], kinds[1]) {
        (left, right) if !left.may_be_number() || !right.may_be_number() => Kind::Undefined,
        (Kind::Dynamic, Kind::Decimal | Kind::Text) | (Kind::Decimal | Kind::Text, Kind::Dynamic) => Kind::Decimal,
        (Kind::Dynamic, _) | (_, Kind::Dynamic) => Kind::Dynamic,
        (Kind::Int, Kind::Int) => Kind::Int,
        _ => Kind::Decimal,
    }
}

fn of_two(arguments: Arguments<'_, '_>, compute: fn(f64, f64) -> f64) -> Value {
    match (arguments[0].to_decimal(), arguments[1].to_decimal()) {
        (Some(left), Some(right)) => Value::of_decimal(compute(left, right)),
        _ => Value::Undefined,
    }
}

fn bits(arguments: Arguments<'_, '_>, compute: fn(i64, i64) -> i64) -> Value {
    match (arguments[0].to_int(), arguments[1].to_int()) {
        (Some(left), Some(right)) => Value::Int(compute(left, right)),
        _ => Value::Undefined,
    }
}

/// The bits of a number that is not negative turned over, from its highest one down: the reference has
/// 2 for 13, which is 1101. Of a negative number, its complement.
fn bitnot(number: i64) -> i64 {
    if number < 0 {
        return !number;
    }
    let width = i64::BITS - number.leading_zeros();
    number ^ (i64::MAX >> (i64::BITS - 1 - width))
}

fn remainder(arguments: Arguments<'_, '_>, _: &Prepared) -> Value {
    calculate(Arithmetic::Remainder, &arguments[0], &arguments[1])
}

/// Two numbers calculated with: whole if both are.
pub fn calculate(arithmetic: Arithmetic, left: &Value, right: &Value) -> Value {
    match (left.to_number(), right.to_number()) {
        (Some(Number::Int(left)), Some(Number::Int(right))) => {
            Value::of_option(arithmetic.whole(left, right), Value::Int)
        }
        (Some(left), Some(right)) => Value::of_decimal(arithmetic.decimal(left.as_decimal(), right.as_decimal())),
        _ => Value::Undefined,
    }
}

/// Cuts the digits that the number is written with: 1.15 times 100 is not 115 in binary.
fn truncate(number: f64, places: usize) -> f64 {
    let written = format!("{number}");
    let Some(point) = written.find('.') else { return number };
    let end = (point + 1 + places).min(written.len());
    written[..end].parse().unwrap_or(number)
}
