//! AWS IoT's values and the conversions between them.
//!
//! A whole number has 64 bits and a decimal is a double, where AWS IoT keeps 34 digits: telemetry comes
//! and goes as 64 bits, and columns of those are what the rest of a pipeline computes with. A result
//! that does not fit is Undefined; no value is ever NaN or infinite.

use std::borrow::Cow;

use super::json;

/// One value. `Undefined` is a value inside a rule and left out of every result.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Not there.
    #[default]
    Undefined,
    /// `null`.
    Null,
    Bool(bool),
    Int(i64),
    /// Finite.
    Decimal(f64),
    Text(String),
    Array(Vec<Value>),
    /// In the order of the message; each key once.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// A number of a rule or of JSON, as written: whole if it is written so and fits.
    pub fn of_number(text: &str) -> Self {
        match text.parse() {
            Ok(whole) => Self::Int(whole),
            Err(_) => text.parse().map_or(Self::Undefined, Self::of_decimal),
        }
    }

    /// A decimal, unless it is none.
    pub fn of_decimal(number: f64) -> Self {
        if number.is_finite() { Self::Decimal(number) } else { Self::Undefined }
    }

    /// A decimal without fraction as a whole number, if it fits.
    pub fn of_whole(number: f64) -> Self {
        // 2^63 is a double, the highest whole number is none.
        let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number);
        if fits { Self::Int(number as i64) } else { Self::Undefined }
    }

    pub fn of_text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// `Undefined` for `None`.
    pub fn of_option<T>(value: Option<T>, wrap: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Undefined, wrap)
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined)
    }

    /// As a number, whole numbers staying whole. Text is a number if it is written as one.
    pub fn to_number(&self) -> Option<Number> {
        match self {
            Self::Int(whole) => Some(Number::Int(*whole)),
            Self::Decimal(number) => Some(Number::Decimal(*number)),
            Self::Text(text) => decimal_in(text).map(Number::Decimal),
            _ => None,
        }
    }

    /// As a decimal.
    pub fn to_decimal(&self) -> Option<f64> {
        self.to_number().map(Number::as_decimal)
    }

    /// As a whole number, rounded down: what functions that count, cut and pad do with a decimal.
    pub fn to_int(&self) -> Option<i64> {
        match self.to_number()? {
            Number::Int(whole) => Some(whole),
            Number::Decimal(number) => match Self::of_whole(number.floor()) {
                Self::Int(whole) => Some(whole),
                _ => None,
            },
        }
    }

    /// As a truth value: text may say it.
    pub fn to_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            Self::Text(text) => truth_in(text),
            _ => None,
        }
    }

    /// As text: arrays and objects as JSON, Null and Undefined not at all.
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Undefined | Self::Null => return None,
            Self::Bool(true) => "true".into(),
            Self::Bool(false) => "false".into(),
            Self::Int(whole) => whole.to_string().into(),
            Self::Decimal(number) => decimal_text(*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Array(_) | Self::Object(_) => json::write(self).into(),
        })
    }

    /// The value of a key of an object.
    pub fn member(&self, key: &str) -> Option<&Value> {
        let Self::Object(members) = self else { return None };
        members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// `=`: `None` where one of them is Undefined. Values of different types are not equal; a whole
    /// number and a decimal have one type.
    pub fn equals(&self, other: &Self) -> Option<bool> {
        if self.is_undefined() || other.is_undefined() {
            return None;
        }
        Some(same(self, other))
    }
}

/// A number that is whole or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Int(i64),
    Decimal(f64),
}

impl Number {
    pub fn as_decimal(self) -> f64 {
        match self {
            Self::Int(whole) => whole as f64,
            Self::Decimal(number) => number,
        }
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Int(whole), Value::Decimal(number)) | (Value::Decimal(number), Value::Int(whole)) => {
            *whole as f64 == *number
        }
        (Value::Decimal(left), Value::Decimal(right)) => left == right,
        (Value::Text(left), Value::Text(right)) => left == right,
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(_)) => {
            let Value::Object(members) = right else { return false };
            left.len() == members.len()
                && left.iter().all(|(key, value)| right.member(key).is_some_and(|other| same(value, other)))
        }
        _ => false,
    }
}

/// The decimal that a text is written as: `-?\d+(\.\d+)?([eE]-?\d+)?`, without blanks around it.
pub fn decimal_in(text: &str) -> Option<f64> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let whole = digits(rest);
    rest = &rest[whole..];
    let mut is_written_as_one = whole > 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = digits(fraction);
        is_written_as_one &= length > 0;
        rest = &fraction[length..];
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix('-').unwrap_or(exponent);
        let length = digits(exponent);
        is_written_as_one &= length > 0;
        rest = &exponent[length..];
    }
    if !is_written_as_one || !rest.is_empty() {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// `true` or `false`, in capitals or not.
pub fn truth_in(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    text.eq_ignore_ascii_case("false").then_some(false)
}

/// The shortest digits that are this number again; without a point where it is whole, as version
/// 2016-03-23 takes such decimals for whole numbers. Very large and very small ones with an exponent.
pub fn decimal_text(number: f64) -> String {
    if number == number.trunc() && number.abs() < 1e15 {
        return format!("{}", number as i64);
    }
    format!("{number:?}").replace('e', "E")
}
