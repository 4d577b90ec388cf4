//! An IoT rule, as `aws iot get-topic-rule` prints it.

use serde_json::Value;

use super::{Delivery, Remarks, region_of, text_at};

const PLACE: &str = "rule";
/// What is read, or says nothing about what the rule does.
const KNOWN: [&str; 8] =
    ["sql", "ruleName", "description", "createdAt", "actions", "errorAction", "ruleDisabled", "awsIotSqlVersion"];
/// Actions, and what does the same here.
const INSTEAD: [(&str, &str); 13] = [
    ("s3", "Add a sink `parquet` that reads \"ruled\"."),
    ("kinesis", "Add a sink `kinesis` that reads \"ruled\"."),
    ("republish", "Add a sink `mqtt` that reads \"ruled\"."),
    ("timestream", "Store into TimescaleDB instead: the sink `timescaledb`."),
    ("dynamoDB", "Keep the newest row of each device with `on_conflict = \"keep_newest\"` of the sink `timescaledb`."),
    (
        "dynamoDBv2",
        "Keep the newest row of each device with `on_conflict = \"keep_newest\"` of the sink `timescaledb`.",
    ),
    ("lambda", "Give that function as --lambda if it stores, or make it a transform `exec`."),
    ("cloudwatchMetric", "Use /metrics and ops/prometheus."),
    ("cloudwatchAlarm", "Use /metrics and the alerts of ops/prometheus."),
    ("cloudwatchLogs", "The log of the pipeline goes to stderr; refused rows are dead letters."),
    ("sns", "Let Alertmanager notify: ops/prometheus."),
    ("sqs", "Leave this action in a rule of its own."),
    ("iotAnalytics", "Query the lake instead."),
];

/// What a rule says.
#[derive(Debug, Clone)]
pub struct Rule {
    pub name: String,
    pub sql: String,
    /// The topic filter of FROM.
    pub topics: Option<String>,
    pub region: Option<String>,
    /// The Firehose that it writes to.
    pub stream: Option<String>,
    /// The stream of Kinesis that it writes to.
    pub kinesis: Option<String>,
    /// Whether the SQL runs here.
    pub is_kept: bool,
    /// It fills the stream that the file reads, and so goes on in AWS.
    pub stays: bool,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// It is none.
    pub fn read(document: &Value, remarks: &mut Remarks) -> Result<Self, String> {
        let rule = document.get("rule").unwrap_or(document);
        let Some(sql) = text_at(rule, &["sql"]).filter(|sql| !sql.trim().is_empty()) else {
            return Err("the rule has no \"sql\": print it by `aws iot get-topic-rule --rule-name NAME`".to_owned());
        };
        let name = text_at(rule, &["ruleName"]).unwrap_or("rule").to_owned();
        // What can't be read is told when the plan is made, with its place.
        let topics = pipeline_stages::transforms::rule::topic_filter_of(sql).unwrap_or_default();
        match &topics {
            None => remarks.add(
                PLACE,
                "FROM",
                "The SQL names no topic that could be read, as with Basic Ingest ($aws/rules/NAME), which is AWS's own.",
                "Let devices publish to a topic of theirs, and set `topics` of the source.",
            ),
            Some(topics) if topics.starts_with('$') => remarks.add(
                PLACE,
                "FROM",
                "Topics that begin with $ are AWS's own and may not be open to a subscriber.",
                "Let devices publish to a topic of theirs, and set `topics` of the source.",
            ),
            Some(topics) if topics.ends_with("/#") => remarks.add(
                PLACE,
                "FROM",
                "A subscription to \"a/#\" also brings what is published to \"a\"; a rule of AWS IoT leaves it out.",
                "Nothing, unless devices publish there.",
            ),
            Some(_) => {}
        }
        tell_settings(rule, remarks);
        let (stream, kinesis) = tell_actions(rule, remarks);
        if sql.to_ascii_lowercase().contains("clientid(") {
            remarks.add(
                PLACE,
                "clientid()",
                "Who published a message is not kept with it.",
                "Take it from the topic or the payload.",
            );
        }
        let region = text_at(document, &["ruleArn"]).and_then(region_of);
        Ok(Self { name, sql: sql.to_owned(), topics, region, stream, kinesis, is_kept: true, stays: false })
    }

    /// Whether it fills the stream that the Firehose, if there is one, reads. If so it stays as it is: its SQL would else be
    /// applied to what it has given.
    pub(super) fn settle(&mut self, delivery: Option<&Delivery>, remarks: &mut Remarks) {
        let Some(kinesis) = &self.kinesis else { return };
        let source = delivery.and_then(|delivery| delivery.stream.as_ref()).map(|stream| &stream.name);
        if source != Some(kinesis) {
            return tell_action("kinesis", remarks);
        }
        (self.is_kept, self.stays) = (false, true);
        remarks.add(
            PLACE,
            "the rule's SQL",
            format!("The rule fills the stream {kinesis:?}, which the Firehose reads, and so does the pipeline."),
            "Let the rule go on. To do without it and the stream, read its topics by a source `mqtt`, and make its SQL a \
             transform `rule`.",
        );
    }
}

fn tell_settings(rule: &Value, remarks: &mut Remarks) {
    let version = text_at(rule, &["awsIotSqlVersion"]);
    if let Some(version) = version.filter(|version| *version != "2016-03-23") {
        remarks.add(
            PLACE,
            "awsIotSqlVersion",
            format!("The SQL is read as version 2016-03-23, and this is {version:?}."),
            "Compare what both give, by `pipeline test`: most rules mean the same.",
        );
    }
    if rule.get("ruleDisabled").and_then(Value::as_bool) == Some(true) {
        remarks.add(PLACE, "ruleDisabled", "The rule is off; a pipeline that runs is on.", "Run it when it is wanted.");
    }
    let others = rule.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    for key in others.filter(|key| !KNOWN.contains(key)) {
        remarks.add(PLACE, key, "This setting is not known here.", "See what it does in AWS's reference.");
    }
    for (kind, _) in rule.get("errorAction").and_then(Value::as_object).into_iter().flatten() {
        remarks.add(
            PLACE,
            &format!("errorAction {kind}"),
            "What can't be stored leaves by the ports `rejected` and is kept with its reason.",
            "Look at it by `pipeline dlq list`, and send it again by `pipeline dlq replay`; stop watching the old place.",
        );
    }
}

/// The Firehose and the stream of Kinesis that actions write to; actions that nothing takes the place of are told.
fn tell_actions(rule: &Value, remarks: &mut Remarks) -> (Option<String>, Option<String>) {
    let (mut stream, mut kinesis) = (None, None);
    for action in rule.get("actions").and_then(Value::as_array).into_iter().flatten() {
        for (kind, settings) in action.as_object().into_iter().flatten() {
            if kind == "firehose" && stream.is_none() {
                stream = text_at(settings, &["deliveryStreamName"]).map(str::to_owned);
                continue;
            }
            // Told once it is known whether the Firehose reads it.
            if kind == "kinesis" && kinesis.is_none() {
                kinesis = text_at(settings, &["streamName"]).map(str::to_owned);
                if kinesis.is_some() {
                    continue;
                }
            }
            tell_action(kind, remarks);
        }
    }
    (stream, kinesis)
}

fn tell_action(kind: &str, remarks: &mut Remarks) {
    let instead = INSTEAD.iter().find(|(known, _)| *known == kind).map(|(_, instead)| *instead);
    remarks.add(
        PLACE,
        &format!("action {kind}"),
        "The file stores what the Firehose and the function store, and does nothing else with a message.",
        instead.unwrap_or("Leave this action in a rule of its own, or find a sink that does it: `pipeline stages`."),
    );
}
