//! The pipeline file as text.
//!
//! **Whatever comes from AWS's JSON stands in the text by [`quoted`] or [`comment`]**, or was checked to be a plain name.

use pipeline_engine::terminal::printable;

use super::function::Function;
use super::{Existing, StoredColumns, Unmapped, lake_keys};

const WIDTH: usize = 116;
/// What messages of the platform that is usually there hold.
const USUAL_SCHEMA: &str = "[schema.telemetry]
device_id   = { type = \"text\", required = true }
timestamp   = { type = \"timestamp\", required = true }
temperature = \"float64\"
humidity    = \"float64\"
";

/// Source and rule alone, to see what columns come out.
pub(super) fn sketch(existing: &Existing) -> String {
    format!("{}[sinks.none]\ntype = \"discard\"\ninputs = [\"{}\"]\n", intake(existing), existing.last_stage())
}

/// The whole file.
pub(super) fn whole(existing: &Existing, stored: &StoredColumns, unmapped: &[Unmapped]) -> String {
    let mut text = head(existing, unmapped);
    text += &intake(existing);
    let mut refused = vec!["telemetry.rejected"];
    if existing.last_stage() == "ruled" {
        refused.push("ruled.rejected");
    }
    if let Some(function) = &existing.function {
        text += &table(existing, function, stored);
        refused.push("table.rejected");
    }
    if let Some(bucket) = existing.delivery.as_ref().and_then(|delivery| delivery.bucket.as_ref()) {
        text += &format!(
            "# What the Firehose has delivered, beside its objects: what its prefix triggers does not see these.\n\
             [sinks.lake]\ntype = \"parquet\"\ninputs = [\"{}\"]\n",
            existing.last_stage()
        );
        if let Some(time) = &stored.time {
            text += &format!("time_column = {}\n", quoted(time));
        }
        for line in lake_keys::of_stored(bucket) {
            text += &format!("{line}\n");
        }
        text += &format!(
            "\n# ErrorOutputPrefix and errorAction: what does not fit the schema or is refused by the table, with its reason.\n\
             [sinks.refused]\ntype = \"parquet\"\ninputs = [{}]\ntime_column = \"received_at\"\n",
            listed(&refused)
        );
        for line in lake_keys::of_refused(bucket) {
            text += &format!("{line}\n");
        }
    } else if existing.function.is_some() {
        text += &format!(
            "# What does not fit the schema or is refused by the table, with its reason.\n\
             [sinks.refused]\ntype = \"timescaledb\"\ninputs = [{}]\n{}table = \"dead_letters\"\ncreate = true\n\
             time_column = \"received_at\"\nkey = []\n",
            listed(&refused),
            login(existing.function.as_ref())
        );
    }
    text
}

fn head(existing: &Existing, unmapped: &[Unmapped]) -> String {
    let mut from = Vec::new();
    from.extend(existing.rule.as_ref().map(|rule| format!("the rule {:?}", rule.name)));
    from.extend(existing.delivery.as_ref().map(|delivery| format!("the Firehose {:?}", delivery.name)));
    from.extend(existing.function.as_ref().map(|function| format!("the function {:?}", function.name)));
    let mut text = comment(&format!("Made by `pipeline migrate` of {}.", from.join(", ")));
    text += "#\n";
    text += &comment(&format!("What does not map, {} in all:", unmapped.len()));
    for (number, Unmapped { what, place, why, instead }) in unmapped.iter().enumerate() {
        text += &format!("#\n{}", comment(&format!("{}. {place}: {what}. {why} -> {instead}", number + 1)));
    }
    text + "\n"
}

/// Everything up to what sinks read.
fn intake(existing: &Existing) -> String {
    let mut text = format!(
        "[pipeline]\nname = {}\ndata_dir = \"${{PIPELINE_DATA_DIR:-pipeline-data}}\"\n\n{}{}\n",
        quoted(&existing.name),
        existing.schema.as_deref().unwrap_or(USUAL_SCHEMA),
        of_the_message(existing)
    );
    text += &source(existing);
    let Some(rule) = &existing.rule else { return text };
    if rule.is_kept {
        text += &format!(
            "# The rule as it is in AWS. The source subscribes to the topics of FROM alone.\n\
             [transforms.ruled]\ntype = \"rule\"\ninputs = [\"telemetry\"]\nsql = {}\ncheck_topic = false\n\n",
            quoted(&rule.sql)
        );
    } else {
        let why = if rule.stays { "which fills the stream and stays" } else { "which can't run as it is" };
        text += &format!("# The rule, {why}:\n{}\n", comment(&rule.sql));
    }
    text
}

/// Columns that the functions of the rule read and that no payload has.
fn of_the_message(existing: &Existing) -> String {
    let Some(rule) = existing.rule.as_ref().filter(|rule| rule.is_kept) else { return String::new() };
    let (sql, schema) = (rule.sql.to_ascii_lowercase(), existing.schema.as_deref().unwrap_or(USUAL_SCHEMA));
    let declares = |name: &str| schema.lines().any(|line| line.split('=').next().is_some_and(|key| key.trim() == name));
    let calls =
        |name: &str| sql.match_indices(name).any(|(at, _)| sql[at + name.len()..].trim_start().starts_with('('));
    let mut text = String::new();
    if calls("timestamp") && !declares("received_at") {
        text += "received_at = { type = \"timestamp\", message = \"received_at\" }   # what timestamp() gives\n";
    }
    if calls("topic") && !declares("topic") {
        text += "topic       = { type = \"text\", message = \"topic\" }              # what topic() reads\n";
    }
    text
}

fn source(existing: &Existing) -> String {
    if let Some(stream) = existing.delivery.as_ref().and_then(|delivery| delivery.stream.as_ref()) {
        let region = stream.region.as_ref().map(|region| format!("region = {}\n", quoted(region))).unwrap_or_default();
        return format!(
            "[sources.telemetry]\ntype = \"kinesis\"\nstream = {}\n{region}schema = \"telemetry\"\n\n",
            quoted(&stream.name)
        );
    }
    let rule = existing.rule.as_ref();
    let region = rule.and_then(|rule| rule.region.as_deref()).unwrap_or("us-east-1");
    let topics = rule.and_then(|rule| rule.topics.as_deref()).unwrap_or("#");
    format!(
        "# MQTT_URL: mqtts:// and what `aws iot describe-endpoint --endpoint-type iot:Data-ATS` prints, with the certificates below;\n\
         # or another broker. AWS IoT Core gives a connection 100 messages a second: docs/mqtt.md has how to use several.\n\
         [sources.telemetry]\ntype = \"mqtt\"\nurl = \"${{MQTT_URL:-mqtts://iot.{region}.amazonaws.com:8883}}\"\n\
         topics = [{}]\nclient_id = \"${{MQTT_CLIENT_ID:-{}}}\"\nschema = \"telemetry\"\n\
         # [sources.telemetry.tls]\n# ca = \"certs/AmazonRootCA1.pem\"\n# cert = \"certs/device-cert.pem\"\n\
         # key = \"certs/device-private.key\"\n\n",
        quoted(topics),
        existing.name
    )
}

fn table(existing: &Existing, function: &Function, stored: &StoredColumns) -> String {
    let old = function.table.as_deref().unwrap_or("telemetry");
    let mut text = format!(
        "# Beside the table that the function stores in, until both hold the same. The unique key makes one row of a message\n\
         # that comes twice.\n\
         [sinks.table]\ntype = \"timescaledb\"\ninputs = [\"{}\"]\n{}table = \"{old}_pipeline\"\n",
        existing.last_stage(),
        login(Some(function))
    );
    match &stored.time {
        Some(time) => text += &format!("create = true\ntime_column = {}\n", quoted(time)),
        // A hypertable is cut by one.
        None => text += "create = false\n",
    }
    match (&stored.device, &stored.time) {
        (Some(device), Some(time)) => text += &format!("key = [{}, {}]\n", quoted(device), quoted(time)),
        _ => text += "key = []\n",
    }
    if let Some(rows) = function.batch_rows {
        text += &format!("batch_rows = {rows}\n");
    }
    if let Some(ms) = function.write_timeout_ms {
        let span = if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") };
        text += &format!("write_timeout = \"{span}\"\n");
    }
    text + "\n"
}

/// Where the database is, and the password as a reference.
fn login(function: Option<&Function>) -> String {
    let Some(function) = function else { return String::new() };
    let or = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
    let (host, user) = (or(&function.host, "127.0.0.1"), or(&function.user, "postgres"));
    let ssl = function.sslmode.as_ref().map(|mode| format!("?sslmode={mode}")).unwrap_or_default();
    let url = format!(
        "postgres://{user}@{host}:{}/{}{ssl}",
        function.port.unwrap_or(5432),
        or(&function.database, "iot_analytics")
    );
    let password = function.password_variable.as_ref();
    let password = password.map(|name| format!("password = \"${{{name}:-}}\"   # not in DATABASE_URL too\n"));
    format!("url = \"${{DATABASE_URL:-{url}}}\"\n{}", password.unwrap_or_default())
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// A basic string of TOML that means this text: no reference is expanded in it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.replace("${", "$${")).to_string()
}

/// A text as comment lines. Line breaks, and whatever else would not show, are written out.
fn comment(text: &str) -> String {
    let (text, mut lines) = (printable(text).into_owned(), vec![String::from("#")]);
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("#   {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}
