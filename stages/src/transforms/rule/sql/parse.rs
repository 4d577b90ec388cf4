//! Words to a tree: the clauses of a rule. Expressions are read in [`super::expression`].

use std::ops::Range;

use super::Refusal;
use super::refuse::unexpected;
use super::token::{Placed, Token, split};
use super::tree::{Item, Kind, Rule, Selection, Tree, Variable};

/// The longest name of a variable, as in AWS IoT.
const VARIABLE_CHARS_MAX: usize = 64;

/// The rule that the text holds, all of it.
pub fn parse(text: &str) -> Result<Rule, Refusal> {
    let mut parser = Parser { tokens: split(text)?, next: 0, depth: 0 };
    let rule = parser.rule()?;
    parser.end()?;
    Ok(rule)
}

/// The expression that the text holds, all of it: one that stands by itself, outside of a rule.
pub fn parse_expression(text: &str) -> Result<Tree, Refusal> {
    let mut parser = Parser { tokens: split(text)?, next: 0, depth: 0 };
    let tree = parser.expression()?;
    if parser.here().token == Token::End {
        return Ok(tree);
    }
    Err(parser.unexpected("an operator, or the end of it", &["AND", "OR", "IN"]))
}

pub(super) struct Parser {
    /// Ends with [`Token::End`], which is never passed.
    pub(super) tokens: Vec<Placed>,
    pub(super) next: usize,
    /// How many expressions are open around the next word.
    pub(super) depth: usize,
}

impl Parser {
    fn rule(&mut self) -> Result<Rule, Refusal> {
        let variables = if self.take_keyword("SET") { self.variables()? } else { Vec::new() };
        if !self.take_keyword("SELECT") {
            let expected = if variables.is_empty() { "SELECT, or SET @name = ... before it" } else { "SELECT" };
            return Err(self.unexpected(expected, &["SELECT", "SET"]));
        }
        let selection = self.selection()?;
        let topics = if self.take_keyword("FROM") { Some(self.topics()?) } else { None };
        let condition = if self.take_keyword("WHERE") { Some(self.expression()?) } else { None };
        Ok(Rule { variables, selection, topics, condition })
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.here().token == Token::End {
            return Ok(());
        }
        let expected = "AND, OR or another operator, a further clause (FROM, WHERE), or the end of the rule";
        Err(self.unexpected(expected, &["FROM", "WHERE", "AND", "OR", "AS", "IN"]))
    }

    fn variables(&mut self) -> Result<Vec<Variable>, Refusal> {
        let mut variables: Vec<Variable> = Vec::new();
        loop {
            let at = self.here().at.clone();
            let Token::Variable(name) = self.here().token.clone() else {
                return Err(self.unexpected("a variable, such as SET @celsius = (temperature - 32) * 5 / 9", &[]));
            };
            self.next += 1;
            if name.chars().count() > VARIABLE_CHARS_MAX {
                let message = format!("a variable's name has at most {VARIABLE_CHARS_MAX} characters");
                return Err(Refusal::new(at, message));
            }
            if variables.iter().any(|known| known.name == name) {
                return Err(Refusal::new(at, format!("@{name} is set twice"))
                    .hint("A variable is set once: give the second one a name of its own."));
            }
            self.expect("=")?;
            variables.push(Variable { name, at, value: self.expression()? });
            if !self.take_symbol(",") {
                break;
            }
        }
        if self.is_keyword("SET") {
            return Err(Refusal::new(self.here().at.clone(), "SET stands once in a rule")
                .hint("Put a comma between variables: SET @a = 1, @b = 2 SELECT ..."));
        }
        Ok(variables)
    }

    pub(super) fn selection(&mut self) -> Result<Selection, Refusal> {
        if self.is_keyword("VALUE") && self.value_takes_expression() {
            self.next += 1;
            return Ok(Selection::Value(Box::new(self.expression()?)));
        }
        let mut items = vec![self.item()?];
        while self.take_symbol(",") {
            items.push(self.item()?);
        }
        Ok(Selection::Items(items))
    }

    /// Whether `VALUE`, which is here, is the keyword: `SELECT VALUE a`. `value` is an attribute in
    /// `SELECT value FROM`, `SELECT value * 2 AS a`, `SELECT value[0] AS a`.
    fn value_takes_expression(&self) -> bool {
        let after = &self.tokens[self.next + 1];
        match &after.token {
            Token::Word(word) => {
                !["FROM", "AS", "WHERE", "AND", "OR", "IN"].iter().any(|other| other.eq_ignore_ascii_case(word))
            }
            Token::Symbol("*") => match &self.tokens[self.next + 2].token {
                Token::Word(word) => ["FROM", "WHERE"].iter().any(|other| other.eq_ignore_ascii_case(word)),
                Token::Symbol(symbol) => *symbol == ")",
                token => *token == Token::End,
            },
            Token::Symbol("[") => self.here().at.end < after.at.start,
            Token::Symbol(symbol) => matches!(*symbol, "(" | "{"),
            Token::End => false,
            Token::Variable(_) | Token::Number(_) | Token::Text(_) => true,
        }
    }

    fn item(&mut self) -> Result<Item, Refusal> {
        let at = self.here().at.clone();
        if self.take_symbol("*") {
            if self.is_keyword("AS") {
                return Err(Refusal::new(self.here().at.clone(), "a star has no name")
                    .hint("SELECT * takes every attribute by its own name; list attributes to rename them."));
            }
            return Ok(Item::All(at));
        }
        let value = self.expression()?;
        let path = if self.take_keyword("AS") { self.alias()? } else { default_name(&value)? };
        Ok(Item::Named { at: value.at.clone(), value, path })
    }

    /// `AS name`, `AS a.b`, `AS 'name'`.
    fn alias(&mut self) -> Result<Vec<String>, Refusal> {
        let mut path = Vec::new();
        loop {
            match self.here().token.clone() {
                Token::Word(name) | Token::Text(name) if !name.is_empty() => path.push(name),
                _ => return Err(self.unexpected("the name of a result", &[])),
            }
            self.next += 1;
            if !self.take_symbol(".") {
                return Ok(path);
            }
        }
    }

    fn topics(&mut self) -> Result<(String, Range<usize>), Refusal> {
        let at = self.here().at.clone();
        match self.here().token.clone() {
            Token::Text(filter) => {
                self.next += 1;
                if self.here().token == Token::Symbol(",") {
                    return Err(Refusal::new(self.here().at.clone(), "a rule reads one topic filter")
                        .hint("The wildcards + and # take in several topics: FROM 'iot/+/telemetry'."));
                }
                Ok((filter, at))
            }
            Token::Word(word) => {
                Err(Refusal::new(at, "a topic filter stands in quotes").hint(format!("Did you mean FROM '{word}'?")))
            }
            _ => Err(self.unexpected("a topic filter in quotes, such as 'iot/+/telemetry'", &[])),
        }
    }

    pub(super) fn here(&self) -> &Placed {
        &self.tokens[self.next]
    }

    pub(super) fn is_keyword(&self, keyword: &str) -> bool {
        matches!(&self.here().token, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    pub(super) fn take_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        self.next += usize::from(found);
        found
    }

    pub(super) fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self.here().token, Token::Symbol(found) if found == symbol)
    }

    pub(super) fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = self.is_symbol(symbol);
        self.next += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, symbol: &'static str) -> Result<Range<usize>, Refusal> {
        let at = self.here().at.clone();
        if self.take_symbol(symbol) { Ok(at) } else { Err(self.unexpected(&format!("\"{symbol}\""), &[])) }
    }

    pub(super) fn unexpected(&self, expected: &str, keywords: &[&str]) -> Refusal {
        let Placed { token, at } = self.here().clone();
        match token {
            Token::Word(word) => unexpected(&word, at, expected, keywords),
            Token::End => Refusal::new(at, "the text ends too early").hint(format!("Expected {expected}.")),
            Token::Variable(name) => {
                Refusal::new(at, format!("unexpected \"@{name}\"")).hint(format!("Expected {expected}."))
            }
            Token::Number(text) | Token::Text(text) => {
                Refusal::new(at, format!("unexpected \"{text}\"")).hint(format!("Expected {expected}."))
            }
            Token::Symbol(symbol) => {
                Refusal::new(at, format!("unexpected \"{symbol}\"")).hint(format!("Expected {expected}."))
            }
        }
    }
}

/// The key of a result without AS: the last one of a path.
fn default_name(value: &Tree) -> Result<Vec<String>, Refusal> {
    match &value.kind {
        Kind::Attribute(name) | Kind::Member(_, name) => Ok(vec![name.clone()]),
        _ => Err(Refusal::new(value.at.clone(), "the result has no name").hint("Write AS and a name behind it.")),
    }
}
