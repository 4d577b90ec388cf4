//! Operators: the kinds of their results, by the tables of the reference.

use std::ops::Range;

use pipeline_engine::suggest::suggest;

use super::Binder;
use crate::transforms::rule::expression::{Arithmetic, Comparison, Expression, Kind, Op, Target};
use crate::transforms::rule::functions::math::number_of_two;
use crate::transforms::rule::sql::Refusal;
use crate::transforms::rule::sql::tree::{Operator, Tree};
use crate::transforms::rule::value::Value;

/// What `cast` takes for a type, in capitals or not.
const TARGETS: [(&str, Target); 11] = [
    ("String", Target::Text),
    ("Nvarchar", Target::Text),
    ("Text", Target::Text),
    ("Ntext", Target::Text),
    ("Varchar", Target::Text),
    ("Int", Target::Int),
    ("Integer", Target::Int),
    ("Double", Target::Decimal),
    ("Decimal", Target::Decimal),
    ("Bool", Target::Bool),
    ("Boolean", Target::Bool),
];

impl Binder<'_> {
    pub(super) fn not(&mut self, of: &Tree) -> Result<Expression, Refusal> {
        let of = self.expression(of)?;
        Ok(Expression::new(truth_of(&[of.kind]), Op::Not(Box::new(of))))
    }

    /// A negative number is 0 less that number: the same kinds, the same conversions of text.
    pub(super) fn negated(&mut self, of: &Tree) -> Result<Expression, Refusal> {
        let of = self.expression(of)?;
        let kind = number_of_two(&[Kind::Int, of.kind]);
        let zero = Expression::constant(Value::Int(0));
        Ok(Expression::new(kind, Op::Calculate(Arithmetic::Subtract, Box::new(zero), Box::new(of))))
    }

    pub(super) fn binary(&mut self, operator: Operator, left: &Tree, right: &Tree) -> Result<Expression, Refusal> {
        let (left, right) = (self.expression(left)?, self.expression(right)?);
        let kinds = [left.kind, right.kind];
        let (left, right) = (Box::new(left), Box::new(right));
        let compare = |comparison, left, right| {
            let kind = if kinds.iter().all(|kind| kind.may_be_number()) { Kind::Bool } else { Kind::Undefined };
            Expression::new(kind, Op::Compare(comparison, left, right))
        };
        let calculate =
            |arithmetic, left, right| Expression::new(number_of_two(&kinds), Op::Calculate(arithmetic, left, right));
        let equal = |left, right, negated| {
            let kind = if kinds.contains(&Kind::Undefined) { Kind::Undefined } else { Kind::Bool };
            Expression::new(kind, Op::Equal { left, right, negated })
        };
        Ok(match operator {
            Operator::Or => Expression::new(truth_of(&kinds), Op::Or(left, right)),
            Operator::And => Expression::new(truth_of(&kinds), Op::And(left, right)),
            Operator::Equal => equal(left, right, false),
            Operator::Unequal => equal(left, right, true),
            Operator::Less => compare(Comparison::Less, left, right),
            Operator::LessOrEqual => compare(Comparison::LessOrEqual, left, right),
            Operator::Greater => compare(Comparison::Greater, left, right),
            Operator::GreaterOrEqual => compare(Comparison::GreaterOrEqual, left, right),
            Operator::Add => Expression::new(kind_of_sum(kinds), Op::Calculate(Arithmetic::Add, left, right)),
            Operator::Subtract => calculate(Arithmetic::Subtract, left, right),
            Operator::Multiply => calculate(Arithmetic::Multiply, left, right),
            Operator::Divide => calculate(Arithmetic::Divide, left, right),
            Operator::Remainder => calculate(Arithmetic::Remainder, left, right),
        })
    }

    pub(super) fn membership(&mut self, value: &Tree, list: &Tree) -> Result<Expression, Refusal> {
        let bound = self.expression(list)?;
        if bound.kind != Kind::Dynamic {
            return Err(Refusal::new(list.at.clone(), "IN looks for a value in an array")
                .hint("Write a IN ['x', 'y'], a IN b where b is an array, or a IN (SELECT VALUE c FROM b)."));
        }
        let value = self.expression(value)?;
        let kind = if value.kind == Kind::Undefined { Kind::Undefined } else { Kind::Bool };
        Ok(Expression::new(kind, Op::In(Box::new(value), Box::new(bound))))
    }

    pub(super) fn case(
        &mut self,
        operand: Option<&Tree>,
        arms: &[(Tree, Tree)],
        otherwise: Option<&Tree>,
    ) -> Result<Expression, Refusal> {
        let operand = operand.map(|tree| self.expression(tree)).transpose()?.map(Box::new);
        let mut kind = Kind::Undefined;
        let mut bound = Vec::new();
        for (when, then) in arms {
            let when = if operand.is_none() { self.condition(when)? } else { self.expression(when)? };
            let then = self.expression(then)?;
            kind = kind.or(then.kind);
            bound.push((when, then));
        }
        let otherwise = otherwise.map(|tree| self.expression(tree)).transpose()?.map(Box::new);
        kind = otherwise.as_ref().map_or(kind, |otherwise| kind.or(otherwise.kind));
        Ok(Expression::new(kind, Op::Case { operand, arms: bound, otherwise }))
    }

    pub(super) fn cast(&mut self, of: &Tree, target: &str, at: &Range<usize>) -> Result<Expression, Refusal> {
        let Some((_, target)) = TARGETS.iter().find(|(name, _)| name.eq_ignore_ascii_case(target)) else {
            let hint = suggest(target, TARGETS.iter().map(|(name, _)| *name), "Types", "");
            return Err(Refusal::new(at.clone(), format!("cast knows no type \"{target}\"")).hint(hint));
        };
        let of = self.expression(of)?;
        let kind = match (of.kind, target) {
            (Kind::Undefined, _) => Kind::Undefined,
            (_, Target::Text) => Kind::Text,
            (_, Target::Int) => Kind::Int,
            (_, Target::Decimal) => Kind::Decimal,
            (_, Target::Bool) => Kind::Bool,
        };
        Ok(Expression::new(kind, Op::Cast(*target, Box::new(of))))
    }
}

/// AND, OR and NOT take truth values, and text that may be one.
fn truth_of(kinds: &[Kind]) -> Kind {
    let are_truths = kinds.iter().all(|kind| matches!(kind, Kind::Bool | Kind::Text | Kind::Dynamic));
    if are_truths { Kind::Bool } else { Kind::Undefined }
}

/// Text with anything is text; what may be text or not is only known in the row.
fn kind_of_sum(kinds: [Kind; 2]) -> Kind {
    match kinds {
        [Kind::Undefined, _] | [_, Kind::Undefined] => Kind::Undefined,
        [Kind::Text, _] | [_, Kind::Text] => Kind::Text,
        [Kind::Dynamic, _] | [_, Kind::Dynamic] => Kind::Dynamic,
        numbers => number_of_two(&numbers),
    }
}
