//! Topic filters and topic names: what a broker would refuse is refused while the plan is built.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// One topic filter or several: `"devices/+/telemetry"` or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topics(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Topics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, since `untagged` would lose the place of a mistake.
        deserializer.deserialize_any(TopicsVisitor)
    }
}

struct TopicsVisitor;

impl<'de> Visitor<'de> for TopicsVisitor {
    type Value = Topics;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a topic filter or a list of them, such as \"devices/+/telemetry\"")
    }

    fn visit_str<E: Error>(self, filter: &str) -> Result<Topics, E> {
        Ok(Topics(vec![filter.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Topics, A::Error> {
        let mut filters = Vec::new();
        while let Some(filter) = list.next_element()? {
            filters.push(filter);
        }
        Ok(Topics(filters))
    }
}

impl JsonSchema for Topics {
    fn schema_name() -> Cow<'static, str> {
        "Topics".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
        ] })
    }
}

/// The longest topic that MQTT can carry.
const TOPIC_BYTES_MAX: usize = 65_535;

/// Says what is wrong with a topic filter; `$share/GROUP/FILTER` is one as well.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    let mut levels = filter;
    if let Some(shared) = filter.strip_prefix("$share/") {
        let (group, rest) = shared.split_once('/').unwrap_or((shared, ""));
        if group.is_empty() || group.contains(['+', '#']) || rest.is_empty() {
            return Err(format!("\"{filter}\" is not $share/GROUP/FILTER"));
        }
        levels = rest;
    }
    check_text(filter, "filter")?;
    let mut rest = levels.split('/').peekable();
    while let Some(level) = rest.next() {
        if level == "#" && rest.peek().is_some() {
            return Err(format!("\"#\" is not the last level of \"{filter}\""));
        }
        if level.len() > 1 && level.contains(['+', '#']) {
            return Err(format!("\"{level}\" in \"{filter}\" is neither a wildcard nor a name"));
        }
    }
    Ok(())
}

/// Group and filter of `$share/GROUP/FILTER`; `None` for a filter that is nobody else's.
pub(crate) fn shared(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

/// Says what is wrong with a topic to publish to.
pub(crate) fn check_topic(topic: &str) -> Result<(), String> {
    check_text(topic, "topic")?;
    if topic.contains(['+', '#']) {
        return Err(format!("\"{topic}\" has a wildcard: it is a filter and not a topic"));
    }
    Ok(())
}

fn check_text(text: &str, what: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("an empty {what} is none"));
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(format!("a {what} of {} bytes is too long for MQTT", text.len()));
    }
    if text.contains('\0') {
        return Err(format!("a {what} holds no null character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_alone_and_the_last_one_last() {
        for filter in ["#", "+", "a/b", "a/+/c", "a/#", "+/+/#", "/", "a//b", "$SYS/#", "$share/g/a/#", "$share/g/#"] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for filter in
            ["", "a/#/b", "a+", "a/b#", "#a", "a\0b", "$share/g", "$share//a", "$share/g/", "$share/+/a", "$share/g/a#"]
        {
            assert!(check_filter(filter).is_err(), "{filter:?}");
        }
        assert!(check_filter(&"a".repeat(65_536)).is_err());
    }

    #[test]
    fn a_topic_has_no_wildcards() {
        assert_eq!(check_topic("devices/1/telemetry"), Ok(()));
        for topic in ["", "a/+", "#", "a\0"] {
            assert!(check_topic(topic).is_err(), "{topic:?}");
        }
    }

    #[test]
    fn one_filter_needs_no_list() {
        #[derive(serde::Deserialize)]
        struct Table {
            topics: Topics,
        }
        let one = serde_json::from_str::<Table>(r#"{"topics": "a/#"}"#).unwrap();
        assert_eq!(one.topics.0, ["a/#"]);
        let two = serde_json::from_str::<Table>(r#"{"topics": ["a", "b"]}"#).unwrap();
        assert_eq!(two.topics.0, ["a", "b"]);
        let mistake = serde_json::from_str::<Table>(r#"{"topics": 5}"#).err().unwrap().to_string();
        assert!(mistake.contains("a topic filter or a list"), "{mistake}");
    }
}
