//! A rule whose names have been looked up: what runs.

use arrow::datatypes::DataType;
use regex::Regex;

use super::functions::Function;
use super::value::Value;
use crate::time_pattern::{TimePattern, Zone};

/// What an expression's values are, where they are not Undefined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No value at all: Undefined in every row.
    Undefined,
    Bool,
    Int,
    Decimal,
    Text,
    /// Only the row tells: whatever comes out of JSON, and `NULL`.
    Dynamic,
}

impl Kind {
    /// The kind of a value.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Undefined => Self::Undefined,
            Value::Bool(_) => Self::Bool,
            Value::Int(_) => Self::Int,
            Value::Decimal(_) => Self::Decimal,
            Value::Text(_) => Self::Text,
            Value::Null | Value::Array(_) | Value::Object(_) => Self::Dynamic,
        }
    }

    /// Of a value that is one or the other; whole numbers become decimals beside decimals.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (left, right) if left == right => left,
            (Self::Undefined, known) | (known, Self::Undefined) => known,
            (Self::Int, Self::Decimal) | (Self::Decimal, Self::Int) => Self::Decimal,
            _ => Self::Dynamic,
        }
    }

    pub fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Decimal)
    }

    /// Whether a value of it can be a number: only truth values can't.
    pub fn may_be_number(self) -> bool {
        !matches!(self, Self::Bool | Self::Undefined)
    }
}

/// An expression with the kind of its values.
#[derive(Debug, Clone)]
pub struct Expression {
    pub kind: Kind,
    pub op: Op,
}

impl Expression {
    pub fn new(kind: Kind, op: Op) -> Self {
        Self { kind, op }
    }

    pub fn constant(value: Value) -> Self {
        Self { kind: Kind::of(&value), op: Op::Constant(value) }
    }

    /// The value, if it is the same in every row.
    pub fn as_constant(&self) -> Option<&Value> {
        match &self.op {
            Op::Constant(value) => Some(value),
            _ => None,
        }
    }
}

/// What an expression does.
#[derive(Debug, Clone)]
pub enum Op {
    Constant(Value),
    /// A column of the input.
    Column(usize),
    /// The whole message: the payload, or the columns of a row as one object.
    Document,
    /// The payload's bytes as base64.
    Payload,
    /// What a nested query looks at.
    Element,
    /// A variable.
    Slot(usize),
    /// The topic, or one segment of it.
    Topic(Option<Box<Expression>>),
    ClientId(usize),
    /// When the message was received, in milliseconds.
    ReceivedAt,
    /// `rand()`, by its number in the rule.
    Random(u64),
    /// `newuuid()`, by its number in the rule.
    Uuid(u64),
    IsNull(Box<Expression>),
    IsUndefined(Box<Expression>),
    Member(Box<Expression>, String),
    Index(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Equal {
        left: Box<Expression>,
        right: Box<Expression>,
        negated: bool,
    },
    Compare(Comparison, Box<Expression>, Box<Expression>),
    Calculate(Arithmetic, Box<Expression>, Box<Expression>),
    In(Box<Expression>, Box<Expression>),
    Case {
        operand: Option<Box<Expression>>,
        arms: Vec<(Expression, Expression)>,
        otherwise: Option<Box<Expression>>,
    },
    Call {
        function: &'static Function,
        arguments: Vec<Expression>,
        prepared: Prepared,
    },
    Cast(Target, Box<Expression>),
    Array(Vec<Expression>),
    Object(Vec<(String, Expression)>),
    Query(Box<Query>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    pub fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }

    pub fn holds_whole(self, left: i64, right: i64) -> bool {
        match self {
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Arithmetic {
    /// `None` where the result does not fit, or for a division by zero.
    pub fn whole(self, left: i64, right: i64) -> Option<i64> {
        match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide => left.checked_div(right),
            Self::Remainder => left.checked_rem(right),
        }
    }

    /// Not finite where the result does not fit, or for a division by zero.
    pub fn decimal(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Remainder => left % right,
        }
    }
}

/// The types of `cast`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Text,
    Int,
    Decimal,
    Bool,
}

/// What a function has ready because an argument is the same in every row.
#[derive(Debug, Clone)]
pub enum Prepared {
    Nothing,
    Regex(Regex),
    Time { pattern: TimePattern, zone: Option<Zone> },
}

/// `(SELECT … FROM … WHERE …)`
#[derive(Debug, Clone)]
pub struct Query {
    pub from: Expression,
    pub condition: Option<Expression>,
    pub projection: Projection,
}

/// What a `SELECT` makes of a message or an element.
#[derive(Debug, Clone)]
pub enum Projection {
    Value(Expression),
    Items(Vec<Item>),
}

#[derive(Debug, Clone)]
pub enum Item {
    /// All members of the message or the element.
    All,
    /// One value, by the keys that lead to it.
    Named(Vec<String>, Expression),
}

/// The kind of a column of this type; `None` if a rule can't read it.
pub fn kind_of_column(data_type: &DataType, is_json: bool) -> Option<Kind> {
    Some(match data_type {
        DataType::Utf8 if is_json => Kind::Dynamic,
        // Bytes are the base64 text that they were in JSON.
        DataType::Utf8 | DataType::Binary => Kind::Text,
        DataType::Boolean => Kind::Bool,
        // A time is the number of milliseconds that timestamp() would have said.
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Timestamp(..) => Kind::Int,
        DataType::Float32 | DataType::Float64 => Kind::Decimal,
        _ => return None,
    })
}
