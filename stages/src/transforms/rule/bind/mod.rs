//! From the tree to what runs: names become columns and functions, kinds are inferred, constants are
//! computed, and what can't run is refused.
//!
//! In a nested query a name is a key of the element that is looked at. Elsewhere it is a column of the
//! input or, where messages have not been decoded, a key of the payload.

mod call;
mod operators;

use std::ops::Range;

use arrow::datatypes::Schema;
use pipeline_engine::schema::is_json;
use pipeline_engine::suggest::suggest;

use super::evaluate::constant;
use super::expression::{Expression, Item, Kind, Op, Projection, Query, kind_of_column};
use super::sql::Refusal;
use super::sql::tree::{self, Rule, Selection, Tree};
use super::topic_filter::TopicFilter;

pub use call::SQL_VERSION;

/// What a rule can look at besides the message.
pub struct Surroundings<'a> {
    pub schema: &'a Schema,
    /// Rows are messages that have not been decoded.
    pub messages: bool,
    pub topic: Option<usize>,
    pub client_id: Option<usize>,
}

/// A rule that can run.
#[derive(Debug)]
pub struct Bound {
    /// Variables, in the order in which they are set.
    pub slots: Vec<Expression>,
    pub filter: Option<TopicFilter>,
    pub condition: Option<Expression>,
    pub projection: Projection,
    /// Whether it looks into the message, which then must be JSON.
    pub reads_message: bool,
    /// Where each result stands in the rule; for what is found out about it later.
    pub places: Vec<Range<usize>>,
    /// Whether it has a `rand()` or a `newuuid()`.
    pub draws: bool,
}

/// Looks all names up.
pub fn bind(rule: &Rule, around: &Surroundings<'_>) -> Result<Bound, Refusal> {
    let mut binder = Binder::new(around);
    for variable in &rule.variables {
        let value = binder.expression(&variable.value)?;
        let reference = match value.op {
            // Nothing to keep: the same wherever it is asked.
            Op::Constant(_) | Op::Column(_) => value,
            _ => {
                let reference = Expression::new(value.kind, Op::Slot(binder.slots.len()));
                binder.slots.push(value);
                reference
            }
        };
        binder.variables.push((variable.name.clone(), reference));
    }
    let filter = match &rule.topics {
        None => None,
        Some((text, at)) => {
            let refused = |(message, way_out): (String, &str)| Refusal::new(at.clone(), message).hint(way_out);
            Some(TopicFilter::read(text).map_err(refused)?)
        }
    };
    let condition = rule.condition.as_ref().map(|tree| binder.condition(tree)).transpose()?;
    let (projection, places) = binder.selection(&rule.selection)?;
    // A star by itself passes the payload on, whatever it is.
    let only_star = matches!(&projection, Projection::Items(items) if matches!(items[..], [Item::All]));
    let has_star =
        matches!(&projection, Projection::Items(items) if items.iter().any(|item| matches!(item, Item::All)));
    let reads_message = binder.reads_message || has_star && !only_star;
    Ok(Bound { slots: binder.slots, filter, condition, projection, reads_message, places, draws: binder.sites > 0 })
}

/// Looks up the names of an expression that stands by itself; and whether it has a `rand()` or a `newuuid()`.
pub fn bind_expression(tree: &Tree, around: &Surroundings<'_>) -> Result<(Expression, bool), Refusal> {
    let mut binder = Binder::new(around);
    let expression = binder.expression(tree)?;
    Ok((expression, binder.sites > 0))
}

/// The same for a condition, which must be one.
pub fn bind_condition(tree: &Tree, around: &Surroundings<'_>) -> Result<(Expression, bool), Refusal> {
    let mut binder = Binder::new(around);
    let condition = binder.condition(tree)?;
    Ok((condition, binder.sites > 0))
}

struct Binder<'a> {
    around: &'a Surroundings<'a>,
    variables: Vec<(String, Expression)>,
    slots: Vec<Expression>,
    /// How many nested queries are around.
    depth: usize,
    /// How many `rand()` and `newuuid()` there are so far.
    sites: u64,
    reads_message: bool,
}

impl<'a> Binder<'a> {
    fn new(around: &'a Surroundings<'a>) -> Self {
        Self { around, variables: Vec::new(), slots: Vec::new(), depth: 0, sites: 0, reads_message: false }
    }
}

impl Binder<'_> {
    /// A condition, which must be one.
    fn condition(&mut self, tree: &Tree) -> Result<Expression, Refusal> {
        let condition = self.expression(tree)?;
        match condition.kind {
            Kind::Bool | Kind::Text | Kind::Dynamic => Ok(condition),
            Kind::Int | Kind::Decimal => {
                Err(Refusal::new(tree.at.clone(), "the condition is a number, which is neither true nor false")
                    .hint("Compare it: a <> 0."))
            }
            Kind::Undefined => {
                Err(Refusal::new(tree.at.clone(), "the condition is Undefined in every row: nothing would ever pass")
                    .hint(
                        "AWS IoT compares numbers with < and >, and combines truth values with AND, OR and NOT; \
                       other types give Undefined.",
                    ))
            }
        }
    }

    fn selection(&mut self, selection: &Selection) -> Result<(Projection, Vec<Range<usize>>), Refusal> {
        let items = match selection {
            Selection::Value(tree) => {
                return Ok((Projection::Value(self.expression(tree)?), vec![tree.at.clone()]));
            }
            Selection::Items(items) => items,
        };
        let (mut bound, mut places) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                tree::Item::All(at) => {
                    bound.push(Item::All);
                    places.push(at.clone());
                }
                tree::Item::Named { value, path, at } => {
                    let is_taken = |item: &Item| matches!(item, Item::Named(known, _) if known == path);
                    if bound.iter().any(is_taken) {
                        return Err(Refusal::new(at.clone(), format!("two results are named \"{}\"", path.join(".")))
                            .hint("Give one of them another name with AS."));
                    }
                    bound.push(Item::Named(path.clone(), self.expression(value)?));
                    places.push(at.clone());
                }
            }
        }
        Ok((Projection::Items(bound), places))
    }

    fn expression(&mut self, tree: &Tree) -> Result<Expression, Refusal> {
        let expression = match &tree.kind {
            tree::Kind::Literal(value) => Expression::constant(value.clone()),
            tree::Kind::Attribute(name) => self.attribute(name, &tree.at)?,
            tree::Kind::Variable(name) => self.variable(name, &tree.at)?,
            tree::Kind::All => self.whole(),
            tree::Kind::Member(of, key) => {
                let of = self.walkable(of, "keys")?;
                Expression::new(Kind::Dynamic, Op::Member(Box::new(of), key.clone()))
            }
            tree::Kind::Index(of, place) => {
                let of = self.walkable(of, "elements")?;
                let place = self.expression(place)?;
                Expression::new(of.kind, Op::Index(Box::new(of), Box::new(place)))
            }
            tree::Kind::Not(of) => self.not(of)?,
            tree::Kind::Negated(of) => self.negated(of)?,
            tree::Kind::Binary(operator, left, right) => self.binary(*operator, left, right)?,
            tree::Kind::In(value, list) => self.membership(value, list)?,
            tree::Kind::Case { operand, arms, otherwise } => {
                self.case(operand.as_deref(), arms, otherwise.as_deref())?
            }
            tree::Kind::Call(name, arguments) => self.call(name, arguments, &tree.at)?,
            tree::Kind::Cast(of, target, at) => self.cast(of, target, at)?,
            tree::Kind::Array(elements) => {
                let elements = self.expressions(elements)?;
                Expression::new(Kind::Dynamic, Op::Array(elements))
            }
            tree::Kind::Object(members) => {
                let bound = members.iter().map(|(key, tree)| Ok((key.clone(), self.expression(tree)?)));
                Expression::new(Kind::Dynamic, Op::Object(bound.collect::<Result<_, Refusal>>()?))
            }
            tree::Kind::Query { selection, from, condition } => self.query(selection, from, condition.as_deref())?,
        };
        Ok(folded(expression))
    }

    fn expressions(&mut self, trees: &[Tree]) -> Result<Vec<Expression>, Refusal> {
        trees.iter().map(|tree| self.expression(tree)).collect()
    }

    fn attribute(&mut self, name: &str, at: &Range<usize>) -> Result<Expression, Refusal> {
        if self.depth > 0 || self.around.messages {
            let whole = self.whole();
            return Ok(Expression::new(Kind::Dynamic, Op::Member(Box::new(whole), name.to_owned())));
        }
        let fields = self.around.schema.fields();
        let Some((index, field)) = fields.find(name) else {
            let known = fields.iter().map(|field| field.name().as_str());
            let columns = suggest(name, known, "Its columns", "The input has no columns at all.");
            return Err(Refusal::new(at.clone(), format!("the input has no column \"{name}\"")).hint(format!(
                "{columns} Keys of the payload are columns once the schema declares them; one of type json can be \
                 walked into."
            )));
        };
        let Some(kind) = kind_of_column(field.data_type(), is_json(field)) else {
            let message = format!("column \"{name}\" is {}, which a rule can't read", field.data_type());
            return Err(Refusal::new(at.clone(), message).hint("SELECT * passes it on as it is."));
        };
        Ok(Expression::new(kind, Op::Column(index)))
    }

    fn variable(&mut self, name: &str, at: &Range<usize>) -> Result<Expression, Refusal> {
        if let Some((_, reference)) = self.variables.iter().find(|(known, _)| known == name) {
            return Ok(reference.clone());
        }
        let known = self.variables.iter().map(|(name, _)| name.as_str());
        let hint = suggest(name, known, "Variables set so far", "Set it before SELECT: SET @name = expression.");
        Err(Refusal::new(at.clone(), format!("@{name} is not set")).hint(hint))
    }

    /// The message, or the element that a nested query looks at.
    fn whole(&mut self) -> Expression {
        if self.depth > 0 {
            return Expression::new(Kind::Dynamic, Op::Element);
        }
        self.reads_message = true;
        Expression::new(Kind::Dynamic, Op::Document)
    }

    /// What has something inside: whatever comes out of JSON; for an index also text.
    fn walkable(&mut self, tree: &Tree, inside: &str) -> Result<Expression, Refusal> {
        let of = self.expression(tree)?;
        let what = match of.kind {
            Kind::Dynamic => return Ok(of),
            Kind::Text if inside == "elements" => return Ok(of),
            Kind::Text => "text",
            Kind::Int | Kind::Decimal => "a number",
            Kind::Bool => "a truth value",
            Kind::Undefined => "Undefined",
        };
        Err(Refusal::new(tree.at.clone(), format!("this is {what}: it has no {inside}"))
            .hint("A column can be walked into where the schema declares it with type = \"json\"."))
    }

    fn query(&mut self, selection: &Selection, from: &Tree, condition: Option<&Tree>) -> Result<Expression, Refusal> {
        let source = self.expression(from)?;
        if source.kind != Kind::Dynamic {
            return Err(Refusal::new(from.at.clone(), "a nested query looks into an array or an object")
                .hint("A column can be looked into where the schema declares it with type = \"json\"."));
        }
        self.depth += 1;
        let condition = condition.map(|tree| self.condition(tree)).transpose();
        let projection = self.selection(selection);
        self.depth -= 1;
        let query = Query { from: source, condition: condition?, projection: projection?.0 };
        Ok(Expression::new(Kind::Dynamic, Op::Query(Box::new(query))))
    }
}

/// An expression of constants is a constant.
fn folded(expression: Expression) -> Expression {
    let is_constant = |of: &Expression| of.as_constant().is_some();
    let foldable = match &expression.op {
        Op::Member(of, _) | Op::Not(of) | Op::Cast(_, of) | Op::IsNull(of) | Op::IsUndefined(of) => is_constant(of),
        Op::Index(left, right)
        | Op::And(left, right)
        | Op::Or(left, right)
        | Op::Equal { left, right, .. }
        | Op::Compare(_, left, right)
        | Op::Calculate(_, left, right)
        | Op::In(left, right) => is_constant(left) && is_constant(right),
        Op::Call { arguments, .. } | Op::Array(arguments) => arguments.iter().all(is_constant),
        Op::Object(members) => members.iter().all(|(_, value)| is_constant(value)),
        Op::Case { operand, arms, otherwise } => {
            operand.as_deref().is_none_or(is_constant)
                && otherwise.as_deref().is_none_or(is_constant)
                && arms.iter().all(|(when, then)| is_constant(when) && is_constant(then))
        }
        // Their values come with the row.
        Op::Constant(_)
        | Op::Column(_)
        | Op::Document
        | Op::Payload
        | Op::Element
        | Op::Slot(_)
        | Op::Topic(_)
        | Op::ClientId(_)
        | Op::ReceivedAt
        | Op::Random(_)
        | Op::Uuid(_)
        | Op::Query(_) => false,
    };
    if foldable { Expression::constant(constant(&expression)) } else { expression }
}
