//! A rule over one row at a time: all of its semantics, and what every other way of running it is held to.

use std::borrow::Cow;

use super::expression::{Arithmetic, Comparison, Expression, Item, Kind, Op, Projection, Query, Target};
use super::functions::math::calculate;
use super::functions::{base64, get};
use super::input::Input;
use super::json::put_member;
use super::value::{Number, Value};

/// One row, and what a nested query looks at in it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub input: &'a Input,
    pub number: usize,
    pub element: Option<&'a Value>,
    /// Which element that is, for what must differ between elements.
    pub lane: u64,
}

impl<'a> Row<'a> {
    pub fn new(input: &'a Input, number: usize) -> Self {
        Self { input, number, element: None, lane: 0 }
    }
}

/// The value of an expression in a row.
pub fn evaluate<'a>(expression: &'a Expression, row: &Row<'a>) -> Cow<'a, Value> {
    match &expression.op {
        Op::Constant(value) => Cow::Borrowed(value),
        Op::Column(column) => row.input.value(*column, row.number),
        Op::Document => row.input.document(row.number),
        Op::Element => row.element.map_or(Cow::Owned(Value::Undefined), Cow::Borrowed),
        Op::Slot(slot) => row.input.slot(*slot, row.number),
        Op::Member(of, key) => match evaluate(of, row) {
            Cow::Borrowed(value) => value.member(key).map_or(Cow::Owned(Value::Undefined), Cow::Borrowed),
            Cow::Owned(value) => Cow::Owned(value.member(key).cloned().unwrap_or_default()),
        },
        _ => Cow::Owned(of_kind(expression.kind, compute(expression, row))),
    }
}

/// A whole number where the other results are decimals is one too: `CASE a WHEN 1 THEN 1 ELSE 2.5 END / 2`
/// must not depend on the row.
fn of_kind(kind: Kind, value: Value) -> Value {
    match value {
        Value::Int(whole) if kind == Kind::Decimal => Value::Decimal(whole as f64),
        value => value,
    }
}

/// The value of an expression that is the same in every row and reads none.
pub fn constant(expression: &Expression) -> Value {
    evaluate(expression, &Row::new(&Input::nothing(), 0)).into_owned()
}

fn compute(expression: &Expression, row: &Row<'_>) -> Value {
    match &expression.op {
        Op::Constant(_) | Op::Column(_) | Op::Document | Op::Element | Op::Slot(_) | Op::Member(..) => {
            evaluate(expression, row).into_owned()
        }
        Op::Payload => Value::of_option(row.input.payload(row.number), |bytes| Value::Text(base64(bytes))),
        Op::Topic(segment) => match segment {
            None => Value::of_option(row.input.topic(row.number), Value::of_text),
            Some(number) => {
                let number = evaluate(number, row).to_int();
                Value::of_option(number.and_then(|number| row.input.segment(row.number, number)), Value::of_text)
            }
        },
        Op::ClientId(column) => match row.input.value(*column, row.number).into_owned() {
            // What AWS IoT says of a message that came another way.
            Value::Undefined => Value::of_text("n/a"),
            id => id,
        },
        Op::ReceivedAt => Value::Int(row.input.received_at_ms(row.number)),
        Op::Random(site) => Value::Decimal(row.input.dice().fraction(row.number, row.lane, *site)),
        Op::Uuid(site) => Value::Text(row.input.dice().uuid(row.number, row.lane, *site)),
        Op::IsNull(of) => Value::Bool(*evaluate(of, row) == Value::Null),
        Op::IsUndefined(of) => Value::Bool(evaluate(of, row).is_undefined()),
        Op::Index(of, place) => get(&evaluate(of, row), &evaluate(place, row)),
        Op::Not(of) => Value::of_option(evaluate(of, row).to_bool(), |truth| Value::Bool(!truth)),
        Op::And(left, right) => logical(&evaluate(left, row), &evaluate(right, row), |left, right| left && right),
        Op::Or(left, right) => logical(&evaluate(left, row), &evaluate(right, row), |left, right| left || right),
        Op::Equal { left, right, negated } => {
            let equal = evaluate(left, row).equals(&evaluate(right, row));
            Value::of_option(equal, |equal| Value::Bool(equal != *negated))
        }
        Op::Compare(comparison, left, right) => compare(*comparison, &evaluate(left, row), &evaluate(right, row)),
        Op::Calculate(Arithmetic::Add, left, right) => add(&evaluate(left, row), &evaluate(right, row)),
        Op::Calculate(arithmetic, left, right) => calculate(*arithmetic, &evaluate(left, row), &evaluate(right, row)),
        Op::In(left, right) => contains(&evaluate(right, row), &evaluate(left, row)),
        Op::Case { operand, arms, otherwise } => case(operand.as_deref(), arms, otherwise.as_deref(), row),
        Op::Call { function, arguments, prepared } => {
            let arguments: Vec<_> = arguments.iter().map(|argument| evaluate(argument, row)).collect();
            function.call(&arguments, prepared)
        }
        Op::Cast(target, of) => cast(*target, &evaluate(of, row)),
        Op::Array(elements) => {
            let values = elements.iter().map(|element| evaluate(element, row).into_owned());
            Value::Array(values.filter(|value| !value.is_undefined()).collect())
        }
        Op::Object(members) => {
            let values = members.iter().map(|(key, value)| (key.clone(), evaluate(value, row).into_owned()));
            Value::Object(values.filter(|(_, value)| !value.is_undefined()).collect())
        }
        Op::Query(query) => run_query(query, row),
    }
}

/// Whether a condition lets a row pass.
pub fn holds(condition: &Expression, row: &Row<'_>) -> bool {
    evaluate(condition, row).to_bool() == Some(true)
}

/// What a SELECT makes of `whole`: the message or the element.
pub fn project(projection: &Projection, whole: &Value, row: &Row<'_>) -> Value {
    let items = match projection {
        Projection::Value(value) => return evaluate(value, row).into_owned(),
        Projection::Items(items) => items,
    };
    let mut members = Vec::new();
    for item in items {
        match item {
            Item::All => {
                let Value::Object(all) = whole else { continue };
                for (key, value) in all {
                    put_member(&mut members, key.clone(), value.clone());
                }
            }
            Item::Named(path, value) => {
                let value = evaluate(value, row).into_owned();
                if !value.is_undefined() {
                    put_path(&mut members, path, value);
                }
            }
        }
    }
    Value::Object(members)
}

/// Puts a value where the keys lead, making the objects on the way.
fn put_path(members: &mut Vec<(String, Value)>, path: &[String], value: Value) {
    let [key, rest @ ..] = path else { return };
    if rest.is_empty() {
        return put_member(members, key.clone(), value);
    }
    let place = match members.iter().position(|(known, _)| known == key) {
        Some(place) => place,
        None => {
            members.push((key.clone(), Value::Object(Vec::new())));
            members.len() - 1
        }
    };
    let inner = &mut members[place].1;
    if !matches!(inner, Value::Object(_)) {
        *inner = Value::Object(Vec::new());
    }
    if let Value::Object(inner) = inner {
        put_path(inner, rest, value);
    }
}

/// Of an array an array, of an object one value; nothing of anything else.
fn run_query(query: &Query, row: &Row<'_>) -> Value {
    let from = evaluate(&query.from, row);
    let select = |index: usize, element: &Value| {
        // Lanes of queries within queries must not meet: an odd factor keeps them apart.
        let lane = row.lane.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64 + 1);
        let row = Row { element: Some(element), lane, ..*row };
        let passes = query.condition.as_ref().is_none_or(|condition| holds(condition, &row));
        passes.then(|| project(&query.projection, element, &row))
    };
    match from.as_ref() {
        Value::Array(elements) => {
            let selected = elements.iter().enumerate().filter_map(|(index, element)| select(index, element));
            Value::Array(selected.filter(|value| !value.is_undefined()).collect())
        }
        Value::Object(_) => select(0, &from).unwrap_or_default(),
        _ => Value::Undefined,
    }
}

fn logical(left: &Value, right: &Value, combine: fn(bool, bool) -> bool) -> Value {
    match (left.to_bool(), right.to_bool()) {
        (Some(left), Some(right)) => Value::Bool(combine(left, right)),
        _ => Value::Undefined,
    }
}

fn compare(comparison: Comparison, left: &Value, right: &Value) -> Value {
    match (left.to_number(), right.to_number()) {
        (Some(Number::Int(left)), Some(Number::Int(right))) => Value::Bool(comparison.holds_whole(left, right)),
        (Some(left), Some(right)) => Value::Bool(comparison.holds(left.as_decimal(), right.as_decimal())),
        _ => Value::Undefined,
    }
}

/// Puts text together where one of them is text, else adds.
fn add(left: &Value, right: &Value) -> Value {
    if matches!(left, Value::Text(_)) || matches!(right, Value::Text(_)) {
        return match (left.to_text(), right.to_text()) {
            (Some(left), Some(right)) => Value::Text(format!("{left}{right}")),
            _ => Value::Undefined,
        };
    }
    calculate(Arithmetic::Add, left, right)
}

fn contains(list: &Value, value: &Value) -> Value {
    let Value::Array(elements) = list else { return Value::Undefined };
    if value.is_undefined() {
        return Value::Undefined;
    }
    Value::Bool(elements.iter().any(|element| element.equals(value) == Some(true)))
}

fn case(
    operand: Option<&Expression>,
    arms: &[(Expression, Expression)],
    otherwise: Option<&Expression>,
    row: &Row<'_>,
) -> Value {
    let operand = operand.map(|operand| evaluate(operand, row));
    if operand.as_ref().is_some_and(|operand| operand.is_undefined()) {
        return Value::Undefined;
    }
    let chosen = arms.iter().find(|(when, _)| match &operand {
        Some(operand) => operand.equals(&evaluate(when, row)) == Some(true),
        None => holds(when, row),
    });
    let result = chosen.map(|(_, then)| then).or(otherwise);
    result.map_or(Value::Undefined, |result| evaluate(result, row).into_owned())
}

/// `cast`: the usual conversions, and truth values to and from numbers.
fn cast(target: Target, value: &Value) -> Value {
    match target {
        Target::Text => Value::of_option(value.to_text(), Value::of_text),
        Target::Int => match value {
            Value::Bool(truth) => Value::Int((*truth).into()),
            value => Value::of_option(value.to_int(), Value::Int),
        },
        Target::Decimal => match value {
            Value::Bool(truth) => Value::Decimal(f64::from(u8::from(*truth))),
            value => Value::of_option(value.to_decimal(), Value::of_decimal),
        },
        Target::Bool => match value {
            Value::Int(whole) => Value::Bool(*whole != 0),
            Value::Decimal(number) => Value::Bool(*number != 0.0),
            value => Value::of_option(value.to_bool(), Value::Bool),
        },
    }
}
