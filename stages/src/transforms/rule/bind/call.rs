//! Calls: functions by name, and what can be made ready before any row comes.

use std::ops::Range;

use pipeline_engine::suggest::nearest;
use regex::Regex;

use super::Binder;
use crate::time_pattern::{Dialect, TimePattern, Zone};
use crate::transforms::rule::expression::{Expression, Kind, Op, Prepared};
use crate::transforms::rule::functions::{self, Function, OF_MESSAGE};
use crate::transforms::rule::sql::Refusal;
use crate::transforms::rule::sql::tree::{Kind as TreeKind, Tree};
use crate::transforms::rule::value::Value;

/// The version of AWS IoT's SQL that is spoken here.
pub const SQL_VERSION: &str = "2016-03-23";

impl Binder<'_> {
    pub(super) fn call(&mut self, name: &str, trees: &[Tree], at: &Range<usize>) -> Result<Expression, Refusal> {
        let name_at = at.start..at.start + name.len();
        if let Some((why, way_out)) = functions::why_refused(name) {
            return Err(Refusal::new(name_at, format!("{name}() can't run: {why}")).hint(way_out));
        }
        if let Some((known, usage)) = OF_MESSAGE.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return self.of_message(known, usage, trees, at);
        }
        let Some(function) = functions::find(name) else {
            let known: Vec<&str> = functions::names().collect();
            let hint = match nearest(&name.to_ascii_lowercase(), &known) {
                Some(near) => format!("Did you mean {near}()? docs/rule.md lists all functions."),
                None => "docs/rule.md lists all functions.".to_owned(),
            };
            return Err(Refusal::new(name_at, format!("there is no function \"{name}\"")).hint(hint));
        };
        let (fewest, most) = function.arity;
        if trees.len() < fewest || trees.len() > most {
            return Err(wrong_count(function.name, function.usage, trees.len(), at));
        }
        let encodes_payload = function.name == "encode" && trees[0].kind == TreeKind::All && self.depth == 0;
        if encodes_payload && self.around.messages {
            is_literal(&trees[1], &["base64"], "encodes and decodes")?;
            return Ok(Expression::new(Kind::Text, Op::Payload));
        }
        let arguments = self.expressions(trees)?;
        let prepared = prepare(function, &arguments, trees)?;
        let kinds: Vec<Kind> = arguments.iter().map(|argument| argument.kind).collect();
        Ok(Expression::new(function.kind(&kinds), Op::Call { function, arguments, prepared }))
    }

    /// Functions of what is around a message.
    fn of_message(
        &mut self,
        name: &str,
        usage: &str,
        trees: &[Tree],
        at: &Range<usize>,
    ) -> Result<Expression, Refusal> {
        let wanted = match name {
            "isnull" | "isundefined" => 1..=1,
            "topic" => 0..=1,
            _ => 0..=0,
        };
        if !wanted.contains(&trees.len()) {
            return Err(wrong_count(name, usage, trees.len(), at));
        }
        Ok(match name {
            "topic" => self.topic(trees.first(), at)?,
            "clientid" => match self.around.client_id {
                Some(column) => Expression::new(Kind::Text, Op::ClientId(column)),
                None => {
                    return Err(Refusal::new(at.clone(), "which client sent a message is not kept with it")
                        .hint("Name the column that tells it as client_id_column; topic(n) often does too."));
                }
            },
            "timestamp" => Expression::new(Kind::Int, Op::ReceivedAt),
            "rand" => Expression::new(Kind::Decimal, Op::Random(self.site())),
            "newuuid" => Expression::new(Kind::Text, Op::Uuid(self.site())),
            "sql_version" => Expression::constant(Value::of_text(SQL_VERSION)),
            "isnull" => self.is_null(&trees[0])?,
            _ => Expression::new(Kind::Bool, Op::IsUndefined(Box::new(self.expression(&trees[0])?))),
        })
    }

    fn site(&mut self) -> u64 {
        self.sites += 1;
        self.sites
    }

    fn topic(&mut self, segment: Option<&Tree>, at: &Range<usize>) -> Result<Expression, Refusal> {
        if self.around.topic.is_none() {
            return Err(Refusal::new(at.clone(), "the input has no column with the topic").hint(
                "Declare one in the schema, topic = { type = \"text\", message = \"topic\" }, or name the one there \
                 is as topic_column.",
            ));
        }
        let segment = segment.map(|tree| self.expression(tree)).transpose()?;
        if let Some(Value::Int(number)) = segment.as_ref().and_then(Expression::as_constant)
            && *number < 1
        {
            return Err(
                Refusal::new(at.clone(), format!("a topic has no segment {number}")).hint("The first is topic(1).")
            );
        }
        Ok(Expression::new(Kind::Text, Op::Topic(segment.map(Box::new))))
    }

    /// A decoded row can't tell null from missing: asking would always be answered with no.
    fn is_null(&mut self, tree: &Tree) -> Result<Expression, Refusal> {
        let of = self.expression(tree)?;
        if let Op::Column(column) = of.op
            && of.kind != Kind::Dynamic
        {
            let name = self.around.schema.field(column).name();
            return Err(Refusal::new(
                tree.at.clone(),
                format!("a null in column \"{name}\" is the same as no value, which is Undefined"),
            )
            .hint(format!("isUndefined({name}) is true for both.")));
        }
        Ok(Expression::new(Kind::Bool, Op::IsNull(Box::new(of))))
    }
}

fn wrong_count(name: &str, usage: &str, count: usize, at: &Range<usize>) -> Refusal {
    let arguments = match count {
        0 => "no argument".to_owned(),
        1 => "one argument".to_owned(),
        count => format!("{count} arguments"),
    };
    Refusal::new(at.clone(), format!("{name}() does not take {arguments}")).hint(format!("Write {usage}."))
}

/// What is the same in every row: patterns and zones are read, and refused if they are none.
fn prepare(function: &Function, arguments: &[Expression], trees: &[Tree]) -> Result<Prepared, Refusal> {
    let text = |index: usize| match arguments.get(index).and_then(Expression::as_constant) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let refused = |index: usize, message: String| Refusal::new(trees[index].at.clone(), message);
    match function.name {
        "encode" | "decode" => is_literal(&trees[1], &["base64"], "encodes and decodes").map(|()| Prepared::Nothing),
        "transform" => is_literal(&trees[0], &["enrichArray"], "transforms").map(|()| Prepared::Nothing),
        "regexp_matches" | "regexp_replace" | "regexp_substr" => match text(1) {
            None => Ok(Prepared::Nothing),
            Some(pattern) => Regex::new(pattern).map(Prepared::Regex).map_err(|error| {
                let text = error.to_string();
                let cause = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                refused(1, format!("this is no regular expression: {cause}")).hint(
                    "Look-around and back-references, which Java has, don't exist here: patterns run in linear time.",
                )
            }),
        },
        "parse_time" => {
            let zone = match text(2) {
                None => None,
                Some(name) => Some(Zone::read(name).ok_or_else(|| {
                    refused(2, format!("there is no time zone \"{name}\""))
                        .hint("Zones have names such as 'America/Belize' or offsets such as '+01:00'.")
                })?),
            };
            prepare_time(text(0), Dialect::Joda, zone).map_err(|message| refused(0, message))
        }
        "time_to_epoch" => prepare_time(text(1), Dialect::Jdk, None).map_err(|message| refused(1, message)),
        _ => Ok(Prepared::Nothing),
    }
}

fn prepare_time(pattern: Option<&str>, dialect: Dialect, zone: Option<Zone>) -> Result<Prepared, String> {
    let Some(pattern) = pattern else { return Ok(Prepared::Nothing) };
    Ok(Prepared::Time { pattern: TimePattern::read(pattern, dialect)?, zone })
}

/// An argument that chooses what a function does must stand in the rule.
fn is_literal(tree: &Tree, known: &[&str], does: &str) -> Result<(), Refusal> {
    let list = known.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    match &tree.kind {
        TreeKind::Literal(Value::Text(word)) if known.contains(&word.as_str()) => Ok(()),
        TreeKind::Literal(Value::Text(word)) => {
            Err(Refusal::new(tree.at.clone(), format!("nothing {does} by '{word}'")).hint(format!("Known: {list}.")))
        }
        _ => Err(Refusal::new(tree.at.clone(), "this argument is a literal text").hint(format!("Known: {list}."))),
    }
}
