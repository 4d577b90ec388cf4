//! AWS IoT Core's rule SQL over the rows of a pipeline, so that existing rules run unchanged.
//!
//! ```toml
//! [transforms.hot]
//! type = "rule"
//! inputs = ["telemetry"]
//! sql = "SELECT *, timestamp() AS ts FROM 'iot/telemetry' WHERE temperature > 30"
//! ```
//!
//! `docs/rule.md` is the reference: what works, what is refused, how AWS's semantics map.
//!
//! # Rows and messages
//! A rule of AWS IoT takes a JSON document and gives one. Here it takes what the pipeline has:
//!
//! - **Rows**, decoded by a schema. An attribute is a column, and every result is one, so its type must be
//!   known when the plan is built. It is inferred: `temperature > 30` is a bool, `floor(x)` an int64, `a +
//!   'C'` text. Where only the row tells (what comes out of a JSON column, a `CASE` of text and numbers),
//!   the result is a column of JSON; `cast` in the rule or `types` beside it makes another of it. A null
//!   is Undefined, since the decoder makes no difference between `null` and a missing key. An attribute
//!   that is no column is refused, as a mistyped name would otherwise be Undefined for ever.
//! - **Messages**, where the source has no schema. The payload is read as JSON, an attribute is a key of
//!   it, and the result is the message with the new payload: AWS IoT's own terms, at the price of reading
//!   each payload here. What is no JSON is a dead letter, unless the rule does not look into it.
//!
//! # Evaluation
//! Names, kinds, constants, patterns and zones are settled when the plan is built (`bind`). Operators and
//! numeric functions over columns of a known kind run as Arrow kernels, everything else row by row
//! (`kernels`). The row-wise evaluator (`evaluate`) knows the whole language and is what the kernels are
//! tested against.
//!
//! # What fails
//! In AWS IoT nothing does: what can't be computed is Undefined, and so it is here (an overflow, a
//! division by zero, text that is no number). Undefined is null in a column and left out of a payload; a
//! condition that is Undefined lets nothing pass. A row is refused for two reasons only: its message is no
//! JSON where the rule looks into it, or a value does not fit the type that `types` declares. Rows that
//! FROM or WHERE leave out are counted as `other_topic_rows` and `unmatched_rows`.
//!
//! # Replay
//! `timestamp()` is the time of receipt, which a source keeps with a message, and `rand()` and `newuuid()`
//! are drawn from the row's position (`dice`): a replay gives the same rows again.

mod alone;
mod bind;
mod column;
mod computation;
mod condition;
mod dice;
mod evaluate;
mod expression;
mod fit;
mod functions;
mod input;
mod json;
mod kernels;
mod output;
mod run;
mod sql;
#[cfg(test)]
mod tests;
mod topic_filter;
mod value;

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::dead_letter;
use pipeline_engine::schema::{ColumnType, timestamp_type};
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use self::computation::Computation;
pub(super) use self::condition::Condition;

use self::bind::{Bound, SQL_VERSION, Surroundings};
use self::input::Places;
use self::run::{Output, RunningRule};
use self::sql::{Refusal, line_and_column};

/// The column of undecoded messages that holds the payload.
const PAYLOAD: &str = "payload";

/// `type = "rule"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The rule, as in AWS IoT Core: `SELECT … FROM 'topic/filter' WHERE …`, with `SET @name = …` before it
    /// where wanted. A text in `'''` can hold both kinds of quotes.
    pub sql: String,
    /// The version of the SQL, `awsIotSqlVersion` of the rule in AWS.
    #[serde(default = "sql_version")]
    pub sql_version: String,
    /// The types of results, by their names: for what comes out of JSON, and for what a sink wants in
    /// another type. Numbers become timestamps as milliseconds since 1970. A row with a value that does not
    /// fit leaves by `rejected`, with the reason `type.NAME`.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// The column with the topic, for FROM and `topic()`.
    #[serde(default = "topic")]
    pub topic_column: String,
    /// Whether FROM is held against each row's topic. With `false` every row counts as published to a
    /// topic that matches: right where the source subscribes to that filter alone.
    #[serde(default = "yes")]
    pub check_topic: bool,
    /// The column that tells which client sent a message, for `clientid()`.
    #[serde(default = "client_id")]
    pub client_id_column: String,
    /// The column with the time of receipt, for `timestamp()`. Where the input has none, the time is that of
    /// the oldest row of a batch.
    #[serde(default = "received_at")]
    pub received_at_column: String,
}

fn sql_version() -> String {
    SQL_VERSION.to_owned()
}

fn topic() -> String {
    "topic".to_owned()
}

fn client_id() -> String {
    "client_id".to_owned()
}

fn received_at() -> String {
    "received_at".to_owned()
}

fn yes() -> bool {
    true
}

/// The topic filter of a rule's `FROM`; `None` for a rule without one.
///
/// # Errors
/// The rule can't be read: why, in lower case.
pub fn topic_filter_of(sql: &str) -> Result<Option<String>, String> {
    let tree = sql::parse::parse(sql).map_err(|refusal| refusal.message)?;
    Ok(tree.topics.map(|(filter, _)| filter))
}

impl TransformConfig for RuleConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "rule",
        summary: "Filters and computes with AWS IoT Core's rule SQL, over rows or over undecoded messages.",
        ports: &[("rejected", "Rows with a value that `types` has no room for, and messages that are no JSON.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What can't be computed is \
                  Undefined, as in AWS IoT: null in a column, left out of a payload. A replay gives the same rows \
                  again, also with timestamp(), rand() and newuuid(): it adds no duplicates of its own. Whether the \
                  keys of rows stay is up to the rule.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        self.check_version()?;
        let messages = is_messages(input);
        let places = self.places(input, messages)?;
        let client_id = named(input, "client_id_column", &self.client_id_column, &client_id(), TEXT)?;
        let around = Surroundings { schema: input, messages, topic: places.topic, client_id };
        let refused = |refusal: Refusal| self.refused(&refusal);
        let tree = sql::parse::parse(&self.sql).map_err(refused)?;
        let bound = bind::bind(&tree, &around).map_err(refused)?;
        self.check_from(&bound, &tree, places.topic.is_some())?;
        let Bound { slots, filter, condition, projection, reads_message, places: at, draws } = bound;
        let (output, schema) = if messages {
            if let Some(name) = self.types.keys().next() {
                return Err(BuildError::invalid(format!("types.{name}"), "a message has a payload, and no columns")
                    .hint("Decode messages with a schema at the source to have columns."));
            }
            (Output::Messages { projection, reads_message, payload: places.payload.unwrap_or(0) }, input.clone())
        } else {
            let mut columns = output::columns(projection, &at, input).map_err(refused)?;
            output::declare(&mut columns, &self.types, input)?;
            let schema = output::schema(&columns);
            (Output::Rows { columns, schema: schema.clone() }, schema)
        };
        let transform = RunningRule {
            stage: cx.stage.clone(),
            full_name: format!("{}/{}", cx.pipeline, cx.stage),
            filter: filter.filter(|_| self.check_topic && places.topic.is_some()),
            places,
            slots,
            condition,
            output,
            draws,
            other_topics: cx.counter("other_topic_rows"),
            unmatched: cx.counter("unmatched_rows"),
        };
        let outputs = vec![(Port::MAIN, schema), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl RuleConfig {
    fn check_version(&self) -> Result<(), BuildError> {
        if self.sql_version == SQL_VERSION {
            return Ok(());
        }
        Err(BuildError::invalid("sql_version", format!("version \"{}\" of the SQL is not known", self.sql_version))
            .hint(format!(
                "\"{SQL_VERSION}\" is. Rules of 2015-10-08 mostly mean the same in it; AWS says what differs."
            )))
    }

    fn places(&self, input: &Schema, messages: bool) -> Result<Places, BuildError> {
        let topic = named(input, "topic_column", &self.topic_column, &topic(), TEXT)?;
        let received_at = named(input, "received_at_column", &self.received_at_column, &received_at(), TIME)?;
        let payload = if messages { input.index_of(PAYLOAD).ok() } else { None };
        Ok(Places { topic, received_at, payload })
    }

    /// FROM must be held against something, or be said not to be.
    fn check_from(&self, bound: &Bound, rule: &sql::tree::Rule, has_topic: bool) -> Result<(), BuildError> {
        let takes_all = bound.filter.as_ref().is_none_or(topic_filter::TopicFilter::takes_all);
        let (true, false, false) = (self.check_topic, has_topic, takes_all) else { return Ok(()) };
        let at = rule.topics.as_ref().map_or(0..0, |(_, at)| at.clone());
        Err(self.refused(&Refusal::new(at, "the input has no column with the topic to hold FROM against").hint(
            "Declare one in the schema, topic = { type = \"text\", message = \"topic\" }, name the one there is as \
             topic_column, or write check_topic = false where the source subscribes to this filter alone.",
        )))
    }

    fn refused(&self, refusal: &Refusal) -> BuildError {
        let (line, column) = line_and_column(&self.sql, refusal.at.start);
        let message = format!("{} (line {line}, column {column} of the rule)", refusal.message);
        let error = BuildError::invalid("sql", message).within(refusal.at.clone());
        match &refusal.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Whether rows are messages as a source without a schema gives them.
fn is_messages(input: &Schema) -> bool {
    let types: Vec<(&str, &DataType)> =
        input.fields().iter().map(|field| (field.name().as_str(), field.data_type())).collect();
    types == [("topic", &DataType::Utf8), (PAYLOAD, &DataType::Binary), ("received_at", &timestamp_type())]
}

/// What a column must be: in words, and as a check.
type Wanted = (&'static str, fn(&DataType) -> bool);

const TEXT: Wanted = ("text", |kind| *kind == DataType::Utf8);
const TIME: Wanted = ("a timestamp", |kind| *kind == timestamp_type());

/// A column by its name. The name that is the default need not be there; one that was chosen must.
fn named(
    input: &Schema,
    key: &str,
    name: &str,
    default: &str,
    (wanted, accepts): Wanted,
) -> Result<Option<usize>, BuildError> {
    if name == default {
        return Ok(input.index_of(name).ok().filter(|index| accepts(input.field(*index).data_type())));
    }
    columns::find_typed(input, key, name, wanted, accepts).map(Some)
}
