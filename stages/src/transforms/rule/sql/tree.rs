//! A rule as a tree, before any name has been looked up.

use std::ops::Range;

use crate::transforms::rule::value::Value;

/// `SET … SELECT … FROM … WHERE …`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub variables: Vec<Variable>,
    pub selection: Selection,
    /// The topic filter, and where it stands; `None`: every message.
    pub topics: Option<(String, Range<usize>)>,
    pub condition: Option<Tree>,
}

/// `@name = expression`.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    pub name: String,
    pub at: Range<usize>,
    pub value: Tree,
}

/// What stands behind `SELECT`.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// `SELECT VALUE expression`
    Value(Box<Tree>),
    /// `SELECT *, a AS b`
    Items(Vec<Item>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// `*`
    All(Range<usize>),
    /// An expression and the keys that lead to it in the result: `AS a.b` has two.
    Named { value: Tree, path: Vec<String>, at: Range<usize> },
}

/// An expression and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    pub kind: Kind,
    pub at: Range<usize>,
    /// How many expressions stand in each other at most, this one included.
    pub height: usize,
}

impl Tree {
    pub fn new(kind: Kind, at: Range<usize>) -> Self {
        let height = 1 + kind.parts().map(|part| part.height).max().unwrap_or(0);
        Self { kind, at, height }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Literal(Value),
    /// A key of the message, or of the element that a nested query looks at.
    Attribute(String),
    /// `@name`
    Variable(String),
    /// `*`, as an argument or behind `SELECT VALUE`.
    All,
    /// `a.b`
    Member(Box<Tree>, String),
    /// `a[0]`
    Index(Box<Tree>, Box<Tree>),
    Not(Box<Tree>),
    Negated(Box<Tree>),
    Binary(Operator, Box<Tree>, Box<Tree>),
    /// `a IN b`
    In(Box<Tree>, Box<Tree>),
    /// `CASE operand WHEN a THEN b … ELSE c END`; without an operand the first that is true.
    Case {
        operand: Option<Box<Tree>>,
        arms: Vec<(Tree, Tree)>,
        otherwise: Option<Box<Tree>>,
    },
    Call(String, Vec<Tree>),
    /// `cast(a AS type)`, with the type's place.
    Cast(Box<Tree>, String, Range<usize>),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
    /// `(SELECT … FROM expression WHERE …)`
    Query {
        selection: Selection,
        from: Box<Tree>,
        condition: Option<Box<Tree>>,
    },
}

impl Kind {
    /// The expressions right inside.
    fn parts(&self) -> Box<dyn Iterator<Item = &Tree> + '_> {
        match self {
            Self::Literal(_) | Self::Attribute(_) | Self::Variable(_) | Self::All => Box::new(std::iter::empty()),
            Self::Member(of, _) | Self::Not(of) | Self::Negated(of) | Self::Cast(of, ..) => {
                Box::new(std::iter::once(of.as_ref()))
            }
            Self::Index(left, right) | Self::Binary(_, left, right) | Self::In(left, right) => {
                Box::new([left.as_ref(), right.as_ref()].into_iter())
            }
            Self::Case { operand, arms, otherwise } => {
                let ends = operand.iter().chain(otherwise).map(AsRef::as_ref);
                Box::new(ends.chain(arms.iter().flat_map(|(when, then)| [when, then])))
            }
            Self::Call(_, parts) | Self::Array(parts) => Box::new(parts.iter()),
            Self::Object(members) => Box::new(members.iter().map(|(_, value)| value)),
            Self::Query { selection, from, condition } => {
                let selected: Box<dyn Iterator<Item = &Tree>> = match selection {
                    Selection::Value(value) => Box::new(std::iter::once(value.as_ref())),
                    Selection::Items(items) => Box::new(items.iter().filter_map(|item| match item {
                        Item::Named { value, .. } => Some(value),
                        Item::All(_) => None,
                    })),
                };
                Box::new(selected.chain([from.as_ref()]).chain(condition.as_deref()))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}
