//! The functions of the reference that need AWS's cloud, or what a row does not hold.

/// Name, why it can't run here, and the nearest thing that works.
pub const REFUSED: [(&str, &str, &str); 12] = [
    ("accountid", "there is no AWS account here", "Write the account as text: '123456789012' AS account."),
    (
        "aws_lambda",
        "a rule calls nothing outside",
        "A stage of your own (examples/embed.rs) can stand behind this one.",
    ),
    ("get_dynamodb", "a rule reads no table", "The transform `enrich` adds columns of a CSV or Parquet file by key."),
    (
        "get_mqtt_property",
        "the properties of MQTT 5 are not kept with a message",
        "Put what the rule needs into the payload or the topic.",
    ),
    (
        "get_registry_data",
        "there is no registry of things here",
        "The transform `enrich` adds what a table knows about a device.",
    ),
    (
        "get_secret",
        "a rule reads no secrets",
        "A sink's credentials come from ${file:/run/secrets/NAME} in its own table.",
    ),
    (
        "get_thing_shadow",
        "there are no device shadows here",
        "Subscribe to the shadow's topic, or let `enrich` add what a table knows.",
    ),
    (
        "get_user_properties",
        "the properties of MQTT 5 are not kept with a message",
        "Put what the rule needs into the payload or the topic.",
    ),
    ("machinelearning_predict", "a rule calls nothing outside", "The transform `anomaly` scores readings."),
    (
        "principal",
        "who published a message is not kept with it",
        "topic(n) or a key of the payload can tell the device.",
    ),
    (
        "sourceip",
        "where a message came from is not kept with it",
        "topic(n) or a key of the payload can tell the device.",
    ),
    (
        "traceid",
        "messages have no trace id here",
        "newuuid() gives each message an id that is the same after a replay.",
    ),
];

/// Why a function of that name can't run, and the nearest thing that works.
pub fn why_refused(name: &str) -> Option<(&'static str, &'static str)> {
    let found = REFUSED.iter().find(|(refused, ..)| refused.eq_ignore_ascii_case(name));
    found.map(|(_, why, way_out)| (*why, *way_out))
}
