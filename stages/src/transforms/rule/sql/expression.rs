//! Words to a tree: expressions, by recursive descent, one function a level of precedence.

use std::ops::Range;

use super::Refusal;
use super::parse::Parser;
use super::refuse::{foreign, is_keyword};
use super::token::{Placed, Token};
use super::tree::{Kind, Operator, Tree};
use crate::transforms::rule::value::Value;

/// How many brackets may be open at once: far beyond what a person writes, far below what the stack holds.
const DEPTH_MAX: usize = 64;
/// How many expressions may stand in each other; a sum of so many parts is one.
const HEIGHT_MAX: usize = 200;

impl Parser {
    pub(super) fn expression(&mut self) -> Result<Tree, Refusal> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Refusal::new(self.here().at.clone(), format!("the expression nests deeper than {DEPTH_MAX}"))
                .hint("SET @name = expression names a part of it."));
        }
        let parsed = self.disjunction();
        self.depth -= 1;
        parsed
    }

    fn disjunction(&mut self) -> Result<Tree, Refusal> {
        let mut left = self.conjunction()?;
        while self.take_keyword("OR") {
            let right = self.conjunction()?;
            left = binary(Operator::Or, left, right)?;
        }
        Ok(left)
    }

    fn conjunction(&mut self) -> Result<Tree, Refusal> {
        let mut left = self.negation()?;
        while self.take_keyword("AND") {
            let right = self.negation()?;
            left = binary(Operator::And, left, right)?;
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Tree, Refusal> {
        let start = self.here().at.start;
        if !self.take_keyword("NOT") {
            return self.comparison();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Refusal::new(self.here().at.clone(), format!("the expression nests deeper than {DEPTH_MAX}")));
        }
        let operand = self.negation()?;
        self.depth -= 1;
        let at = start..operand.at.end;
        bounded(Kind::Not(Box::new(operand)), at)
    }

    fn comparison(&mut self) -> Result<Tree, Refusal> {
        let left = self.sum()?;
        let operator = match self.here().token {
            Token::Symbol("=") => Operator::Equal,
            Token::Symbol("<>" | "!=") => Operator::Unequal,
            Token::Symbol("<") => Operator::Less,
            Token::Symbol("<=") => Operator::LessOrEqual,
            Token::Symbol(">") => Operator::Greater,
            Token::Symbol(">=") => Operator::GreaterOrEqual,
            _ => return self.membership(left),
        };
        self.next += 1;
        let right = self.sum()?;
        let compared = binary(operator, left, right)?;
        if matches!(self.here().token, Token::Symbol("=" | "<>" | "!=" | "<" | "<=" | ">" | ">=")) {
            return Err(Refusal::new(self.here().at.clone(), "comparisons don't chain")
                .hint("Write a < b AND b < c, or put one of them in parentheses."));
        }
        Ok(compared)
    }

    fn membership(&mut self, left: Tree) -> Result<Tree, Refusal> {
        let at = self.here().at.clone();
        if self.is_keyword("NOT") {
            return Err(Refusal::new(at, "NOT stands before what it negates").hint("Write NOT (a IN [1, 2])."));
        }
        if !self.take_keyword("IN") {
            return Ok(left);
        }
        let list_at = self.here().at.clone();
        let list = self.sum()?;
        let is_list = !matches!(list.kind, Kind::Literal(_)) && self.here().token != Token::Symbol(",");
        if !is_list {
            return Err(Refusal::new(list_at, "a list stands in square brackets").hint("Write a IN ['x', 'y']."));
        }
        let at = left.at.start..list.at.end;
        bounded(Kind::In(Box::new(left), Box::new(list)), at)
    }

    fn sum(&mut self) -> Result<Tree, Refusal> {
        let mut left = self.product()?;
        loop {
            let operator = match self.here().token {
                Token::Symbol("+") => Operator::Add,
                Token::Symbol("-") => Operator::Subtract,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.product()?;
            left = binary(operator, left, right)?;
        }
    }

    fn product(&mut self) -> Result<Tree, Refusal> {
        let mut left = self.signed()?;
        loop {
            let operator = match self.here().token {
                Token::Symbol("*") => Operator::Multiply,
                Token::Symbol("/") => Operator::Divide,
                Token::Symbol("%") => Operator::Remainder,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.signed()?;
            left = binary(operator, left, right)?;
        }
    }

    fn signed(&mut self) -> Result<Tree, Refusal> {
        let start = self.here().at.start;
        if !self.take_symbol("-") {
            return self.path();
        }
        // The lowest whole number has no positive counterpart: sign and digits are read together.
        if let Token::Number(digits) = self.here().token.clone() {
            let at = start..self.here().at.end;
            self.next += 1;
            let literal = Tree::new(Kind::Literal(Value::of_number(&format!("-{digits}"))), at);
            return self.steps(literal);
        }
        let operand = self.path()?;
        let at = start..operand.at.end;
        bounded(Kind::Negated(Box::new(operand)), at)
    }

    fn path(&mut self) -> Result<Tree, Refusal> {
        let start = self.primary()?;
        self.steps(start)
    }

    /// `.key` and `[index]` behind a value.
    fn steps(&mut self, mut value: Tree) -> Result<Tree, Refusal> {
        loop {
            if self.take_symbol(".") {
                let at = self.here().at.clone();
                let Token::Word(key) = self.here().token.clone() else {
                    return Err(self
                        .unexpected("the name of a key", &[])
                        .hint("A key that is no word is read by get(a, 'the key')."));
                };
                self.next += 1;
                let at = value.at.start..at.end;
                value = bounded(Kind::Member(Box::new(value), key), at)?;
            } else if self.take_symbol("[") {
                let index = self.expression()?;
                let end = self.expect("]")?.end;
                let at = value.at.start..end;
                value = bounded(Kind::Index(Box::new(value), Box::new(index)), at)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn primary(&mut self) -> Result<Tree, Refusal> {
        let Placed { token, at } = self.here().clone();
        let kind = match token {
            Token::Number(digits) => Kind::Literal(Value::of_number(&digits)),
            Token::Text(text) => Kind::Literal(Value::Text(text)),
            Token::Variable(name) => Kind::Variable(name),
            Token::Symbol("*") => Kind::All,
            Token::Symbol("(") => return self.parenthesis(),
            Token::Symbol("[") => return self.array(),
            Token::Symbol("{") => return self.object(),
            Token::Word(word) => return self.word(&word, at),
            Token::Symbol(_) | Token::End => return Err(self.unexpected("an expression", &[])),
        };
        self.next += 1;
        Ok(Tree::new(kind, at))
    }

    fn word(&mut self, word: &str, at: Range<usize>) -> Result<Tree, Refusal> {
        let called = self.tokens[self.next + 1].token == Token::Symbol("(");
        let literal = match word.to_ascii_uppercase().as_str() {
            "TRUE" => Some(Value::Bool(true)),
            "FALSE" => Some(Value::Bool(false)),
            "NULL" => Some(Value::Null),
            _ => None,
        };
        if let Some(value) = literal.filter(|_| !called) {
            self.next += 1;
            return Ok(Tree::new(Kind::Literal(value), at));
        }
        if word.eq_ignore_ascii_case("CASE") {
            return self.case();
        }
        if word.eq_ignore_ascii_case("SELECT") {
            return Err(Refusal::new(at, "a nested query stands in parentheses").hint("Write (SELECT ... FROM a)."));
        }
        if called && word.eq_ignore_ascii_case("cast") {
            return self.cast();
        }
        let is_exists = called && word.eq_ignore_ascii_case("EXISTS");
        if called && !is_keyword(word) && !is_exists {
            return self.call(word);
        }
        if is_keyword(word) && !word.eq_ignore_ascii_case("VALUE") || is_exists {
            let way_out = format!("get(*, '{word}') reads an attribute of that name.");
            let refusal = self.unexpected("an expression", &[]);
            return Err(if foreign(word).is_some() {
                refusal
            } else {
                refusal.hint(format!("Expected an expression; {way_out}"))
            });
        }
        // `DISTINCT a`: two words in a row are no path, and the first is what is wrong.
        let qualifies = matches!(&self.tokens[self.next + 1].token, Token::Word(next) if !is_keyword(next));
        if foreign(word).is_some() && qualifies {
            return Err(self.unexpected("an expression", &[]));
        }
        self.next += 1;
        Ok(Tree::new(Kind::Attribute(word.to_owned()), at))
    }

    fn call(&mut self, name: &str) -> Result<Tree, Refusal> {
        let start = self.here().at.start;
        self.next += 1;
        self.expect("(")?;
        let (arguments, end) = self.list(")")?;
        bounded(Kind::Call(name.to_owned(), arguments), start..end)
    }

    fn cast(&mut self) -> Result<Tree, Refusal> {
        let start = self.here().at.start;
        self.next += 1;
        self.expect("(")?;
        let value = self.expression()?;
        if !self.take_keyword("AS") {
            return Err(self.unexpected("AS and a type: cast(a AS Decimal)", &["AS"]));
        }
        let at = self.here().at.clone();
        let Token::Word(target) = self.here().token.clone() else {
            return Err(self.unexpected("a type: cast(a AS Decimal)", &[]));
        };
        self.next += 1;
        let end = self.expect(")")?.end;
        bounded(Kind::Cast(Box::new(value), target, at), start..end)
    }

    fn case(&mut self) -> Result<Tree, Refusal> {
        let start = self.here().at.start;
        self.next += 1;
        let operand = if self.is_keyword("WHEN") { None } else { Some(Box::new(self.expression()?)) };
        let mut arms = Vec::new();
        while self.take_keyword("WHEN") {
            let when = self.expression()?;
            if !self.take_keyword("THEN") {
                return Err(self.unexpected("THEN", &["THEN"]));
            }
            arms.push((when, self.expression()?));
        }
        if arms.is_empty() {
            return Err(self.unexpected("WHEN: a CASE has at least one", &["WHEN"]));
        }
        let otherwise = if self.take_keyword("ELSE") { Some(Box::new(self.expression()?)) } else { None };
        let end = self.here().at.end;
        if !self.take_keyword("END") {
            return Err(self.unexpected("WHEN, ELSE or the END of the CASE", &["WHEN", "ELSE", "END"]));
        }
        bounded(Kind::Case { operand, arms, otherwise }, start..end)
    }

    fn parenthesis(&mut self) -> Result<Tree, Refusal> {
        let start = self.expect("(")?.start;
        if self.take_keyword("SELECT") {
            let selection = self.selection()?;
            if !self.take_keyword("FROM") {
                return Err(self.unexpected("FROM and what the nested query looks into", &["FROM"]));
            }
            let from = Box::new(self.path()?);
            let condition = if self.take_keyword("WHERE") { Some(Box::new(self.expression()?)) } else { None };
            let end = self.expect(")")?.end;
            return bounded(Kind::Query { selection, from, condition }, start..end);
        }
        let mut inner = self.expression()?;
        if self.here().token == Token::Symbol(",") {
            return Err(Refusal::new(self.here().at.clone(), "a list stands in square brackets")
                .hint("Write ['x', 'y'] in place of ('x', 'y')."));
        }
        inner.at = start..self.expect(")")?.end;
        Ok(inner)
    }

    fn array(&mut self) -> Result<Tree, Refusal> {
        let start = self.expect("[")?.start;
        let (elements, end) = self.list("]")?;
        bounded(Kind::Array(elements), start..end)
    }

    fn object(&mut self) -> Result<Tree, Refusal> {
        let start = self.expect("{")?.start;
        let mut members: Vec<(String, Tree)> = Vec::new();
        let mut more = !self.is_symbol("}");
        while more {
            let at = self.here().at.clone();
            let Token::Text(key) = self.here().token.clone() else {
                return Err(self.unexpected("a key in quotes: {'latitude': 47.6}", &[]));
            };
            if members.iter().any(|(known, _)| *known == key) {
                return Err(Refusal::new(at, format!("the key \"{key}\" stands twice in the object")));
            }
            self.next += 1;
            self.expect(":")?;
            members.push((key, self.expression()?));
            more = self.take_symbol(",");
        }
        let end = self.expect("}")?.end;
        bounded(Kind::Object(members), start..end)
    }

    /// Expressions with commas between them, up to and with the closing bracket, whose end it tells.
    fn list(&mut self, close: &'static str) -> Result<(Vec<Tree>, usize), Refusal> {
        let mut elements = Vec::new();
        if !self.is_symbol(close) {
            elements.push(self.expression()?);
            while self.take_symbol(",") {
                elements.push(self.expression()?);
            }
        }
        Ok((elements, self.expect(close)?.end))
    }
}

/// An expression that does not stand on too many others: what binds and runs it goes down as far.
fn bounded(kind: Kind, at: Range<usize>) -> Result<Tree, Refusal> {
    let tree = Tree::new(kind, at);
    if tree.height <= HEIGHT_MAX {
        return Ok(tree);
    }
    Err(Refusal::new(tree.at.clone(), format!("more than {HEIGHT_MAX} expressions stand in each other"))
        .hint("SET @name = expression names a part of it; concat() puts any number of texts together."))
}

fn binary(operator: Operator, left: Tree, right: Tree) -> Result<Tree, Refusal> {
    let at = left.at.start..right.at.end;
    bounded(Kind::Binary(operator, Box::new(left), Box::new(right)), at)
}
