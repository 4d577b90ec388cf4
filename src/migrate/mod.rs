//! `pipeline migrate`: an IoT rule, a Firehose and a Lambda become one pipeline file, and a list of what does not map.
//!
//! Each of the three has a file that reads AWS's own JSON: [`rule`], [`delivery`], [`function`]. They say what they found in
//! terms of a pipeline, and [`text`] writes that down; [`lake_keys`] alone knows how a Firehose's settings are spelled as keys
//! of the lake sink. What is written is checked as `pipeline check` does before anybody sees it.
//!
//! **What must never be:** a value of a Lambda's environment is written or printed only where it was recognised as a place
//! or a number and has the form of one. All others are named, and passwords become `${NAME}`. No text of AWS's
//! JSON can become a key, a table or a line of its own in the file.

mod delivery;
pub mod from_aws;
mod function;
mod lake_keys;
mod rule;
mod text;

use pipeline_engine::stage::Port;
use pipeline_engine::terminal::printable;
use pipeline_engine::{Plan, Variables};
use serde_json::Value;

pub use delivery::Delivery;
pub use function::Function;
pub use rule::Rule;

/// A setting of AWS that the file has no counterpart of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// What it is: `ProcessingConfiguration`.
    pub what: String,
    /// The document that has it: `firehose`.
    pub place: &'static str,
    /// Why it does not map. A sentence.
    pub why: String,
    /// What to do about it. A sentence.
    pub instead: String,
}

/// What is found on the way that does not map.
#[derive(Debug, Default)]
pub struct Remarks(pub Vec<Unmapped>);

impl Remarks {
    fn add(&mut self, place: &'static str, what: &str, why: impl Into<String>, instead: impl Into<String>) {
        self.0.push(Unmapped { what: what.to_owned(), place, why: why.into(), instead: instead.into() });
    }
}

/// What there is to migrate.
#[derive(Debug)]
pub struct Existing {
    pub rule: Option<Rule>,
    pub delivery: Option<Delivery>,
    pub function: Option<Function>,
    /// `[schema.telemetry]` as text, from samples of the messages.
    pub schema: Option<String>,
    /// The pipeline's name.
    pub name: String,
}

/// The file, and what it does not do.
#[derive(Debug)]
pub struct Migration {
    pub text: String,
    pub unmapped: Vec<Unmapped>,
}

/// Columns that tell devices apart, by how usual they are.
const DEVICE_COLUMNS: [&str; 8] =
    ["device_id", "deviceId", "device", "thing_name", "thingName", "sensor_id", "client_id", "id"];
/// Columns with the time of a reading.
const TIME_COLUMNS: [&str; 6] = ["timestamp", "time", "ts", "event_time", "eventTime", "received_at"];

/// Columns of what is stored, as far as sinks have to name them.
#[derive(Debug, Default, Clone)]
pub(crate) struct StoredColumns {
    time: Option<String>,
    device: Option<String>,
}

/// Makes the file.
///
/// # Errors
/// Nothing says where rows go, or no file can be made of it that holds: the mistakes, as `pipeline check` shows them.
pub fn migrate(mut existing: Existing, mut remarks: Remarks) -> Result<Migration, String> {
    if existing.delivery.is_none() && existing.function.is_none() {
        return Err("error: nothing says where rows go: give --firehose or --lambda".to_owned());
    }
    if existing.function.is_none()
        && let Some(delivery) = existing.delivery.as_ref().filter(|delivery| delivery.bucket.is_none())
    {
        return Err(format!(
            "error: the Firehose {:?} delivers to no bucket of S3, so nothing says where rows go\n  = hint: Give --lambda, if a \
             function stores what it delivers. Any other destination needs a sink written by hand: `pipeline stages`.",
            printable(&delivery.name)
        ));
    }
    if existing.schema.is_none() {
        remarks.add(
            "rule",
            "the columns of messages",
            "Neither a rule nor a Firehose says what is in them: [schema.telemetry] has those of the usual reading.",
            "Give --sample with a file of messages, one a line, or correct the schema: `pipeline schema infer` proposes one.",
        );
    }
    if let Some(rule) = &mut existing.rule {
        rule.settle(existing.delivery.as_ref(), &mut remarks);
    }
    if let (Some(rule), Some(delivery)) = (&existing.rule, &existing.delivery)
        && rule.stream.as_ref() != Some(&delivery.name)
        && !rule.stays
    {
        remarks.add(
            "rule",
            "the Firehose",
            format!("The rule does not write to the delivery stream {:?}, which was given with it.", delivery.name),
            "See that both belong together.",
        );
    }
    let sketch = text::sketch(&existing);
    let plan = match parsed(&sketch) {
        Ok(plan) => plan,
        Err(why) => {
            let Some(rule) = existing.rule.as_mut().filter(|rule| rule.is_kept) else { return Err(why.rendered) };
            rule.is_kept = false;
            remarks.add(
                "rule",
                "the rule's SQL",
                format!("It can't run here: {}. ALL MESSAGES ARE STORED, also those that WHERE leaves out.", why.first),
                "Correct the SQL, which stands in the file as a comment, or the schema: docs/rule.md.",
            );
            parsed(&text::sketch(&existing)).map_err(|why| why.rendered)?
        }
    };
    let stored = stored_columns(&plan, existing.last_stage(), &mut remarks, existing.function.is_some());
    let text = text::whole(&existing, &stored, &remarks.0);
    parsed(&text).map_err(|why| why.rendered)?;
    Ok(Migration { text, unmapped: remarks.0 })
}

impl Existing {
    /// The stage that sinks read.
    fn last_stage(&self) -> &'static str {
        if self.rule.as_ref().is_some_and(|rule| rule.is_kept) { "ruled" } else { "telemetry" }
    }
}

struct Refused {
    first: String,
    rendered: String,
}

/// The plan of a text, with no variable set: every reference has a default.
fn parsed(text: &str) -> Result<Plan, Refused> {
    let none = Variables { get: &|_| None, read: &|_| Err(std::io::ErrorKind::NotFound.into()) };
    Plan::parse(text, "the migrated pipeline", &pipeline_stages::registry(), &none).map_err(|mistakes| {
        let first = mistakes.all.first().map(|mistake| match &mistake.hint {
            Some(hint) => format!("{} ({})", mistake.message, hint.trim_end_matches('.')),
            None => mistake.message.clone(),
        });
        Refused { first: first.unwrap_or_default(), rendered: mistakes.render(false) }
    })
}

fn stored_columns(plan: &Plan, stage: &str, remarks: &mut Remarks, has_table: bool) -> StoredColumns {
    let Some(schema) = plan.schema(stage, Port::MAIN) else { return StoredColumns::default() };
    let required = |name: &&&str| schema.field_with_name(name).is_ok_and(|field| !field.is_nullable());
    let is_time = |name: &&&str| {
        let field = schema.field_with_name(name);
        field.is_ok_and(|field| *field.data_type() == pipeline_engine::schema::timestamp_type())
    };
    let time = TIME_COLUMNS.iter().filter(required).find(is_time).map(|name| (*name).to_owned());
    let device = DEVICE_COLUMNS.iter().find(required).map(|name| (*name).to_owned());
    if has_table && (time.is_none() || device.is_none()) {
        remarks.add(
            "rule",
            "the key of the table",
            "No column of what the rule gives is known to be there in every row and to hold the device, or the time.",
            "Mark both as `required` in the schema and let the rule pass them on; then set `key` and `time_column` of the sink. \
             Until then a message that is sent twice is stored twice, and without a time the table has to be made by hand.",
        );
    }
    StoredColumns { time, device }
}

/// A text at a path of keys.
fn text_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_str()
}

/// Whether a text is made of letters, digits and `more` alone, and not too long for a name.
fn is_plain(text: &str, more: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
}

/// The region in an ARN: `arn:aws:iot:us-east-1:123456789012:rule/name`.
fn region_of(arn: &str) -> Option<String> {
    let region = arn.strip_prefix("arn:")?.split(':').nth(2)?;
    is_plain(region, "-").then(|| region.to_owned())
}
