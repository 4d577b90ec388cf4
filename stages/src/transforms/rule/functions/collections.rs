//! Arrays and objects.

use std::borrow::Cow;

use super::{Arguments, Function, Shape, dynamic};
use crate::transforms::rule::expression::{Kind, Prepared};
use crate::transforms::rule::json::put_member;
use crate::transforms::rule::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    Function {
        name: "concat",
        usage: "concat(a, b, ...)",
        arity: (0, usize::MAX),
        shape: Shape::General { kind: kind_of_concat, compute: concat },
    },
    Function {
        name: "get",
        usage: "get(collection, index or key)",
        arity: (2, 2),
        shape: Shape::General {
            kind: |kinds| match kinds[0] {
                Kind::Text => Kind::Text,
                Kind::Dynamic => Kind::Dynamic,
                _ => Kind::Undefined,
            },
            compute: |arguments, _| get(&arguments[0], &arguments[1]),
        },
    },
    Function {
        name: "get_or_default",
        usage: "get_or_default(a[, b])",
        arity: (1, 2),
        shape: Shape::General {
            kind: |kinds| kinds.get(1).map_or(kinds[0], |default| kinds[0].or(*default)),
            compute: |arguments, _| match arguments[0].as_ref() {
                Value::Undefined | Value::Null => arguments.get(1).map_or(Value::Undefined, |it| it.as_ref().clone()),
                value => value.clone(),
            },
        },
    },
    Function {
        name: "transform",
        usage: "transform('enrichArray', object, array)",
        arity: (3, 3),
        shape: Shape::General { kind: dynamic, compute: |arguments, _| enrich_array(&arguments[1], &arguments[2]) },
    },
];

fn kind_of_concat(kinds: &[Kind]) -> Kind {
    match kinds {
        [] => Kind::Undefined,
        [Kind::Undefined] => Kind::Undefined,
        kinds if kinds.contains(&Kind::Dynamic) => Kind::Dynamic,
        kinds if kinds.contains(&Kind::Undefined) => Kind::Undefined,
        _ => Kind::Text,
    }
}

/// One array of everything where an argument is an array, else one text of everything.
fn concat(arguments: Arguments<'_, '_>, _: &Prepared) -> Value {
    if arguments.iter().any(|argument| matches!(argument.as_ref(), Value::Array(_))) {
        let mut elements = Vec::new();
        for argument in arguments {
            match argument.as_ref() {
                Value::Array(of) => elements.extend(of.iter().cloned()),
                Value::Undefined => return Value::Undefined,
                value => elements.push(value.clone()),
            }
        }
        return Value::Array(elements);
    }
    let texts: Option<Vec<Cow<'_, str>>> = arguments.iter().map(|argument| argument.to_text()).collect();
    match texts {
        Some(texts) if !texts.is_empty() => Value::Text(texts.concat()),
        _ => Value::Undefined,
    }
}

/// The element of an array, the character of a text, the value of a key; indices from 0.
pub fn get(collection: &Value, place: &Value) -> Value {
    let index = || place.to_int().and_then(|index| usize::try_from(index).ok());
    match (collection, place) {
        (Value::Array(elements), _) => index().and_then(|index| elements.get(index)).cloned().unwrap_or_default(),
        (Value::Text(text), _) => {
            Value::of_option(index().and_then(|index| text.chars().nth(index)), |c| Value::Text(c.to_string()))
        }
        (Value::Object(_), Value::Text(key)) => collection.member(key).cloned().unwrap_or_default(),
        _ => Value::Undefined,
    }
}

/// Each object of the array with the members of `object` added; Undefined where it is no array of objects.
fn enrich_array(object: &Value, array: &Value) -> Value {
    let (Value::Object(added), Value::Array(elements)) = (object, array) else { return Value::Undefined };
    let enriched = elements.iter().map(|element| {
        let Value::Object(members) = element else { return None };
        let mut members = members.clone();
        for (key, value) in added {
            put_member(&mut members, key.clone(), value.clone());
        }
        Some(Value::Object(members))
    });
    Value::of_option(enriched.collect(), Value::Array)
}
