//! The topic filter behind `FROM`.

/// `iot/+/telemetry/#`, level by level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter {
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Name(String),
    /// `+`: any one level.
    One,
    /// `#`, the last: one level or more.
    Rest,
}

/// What AWS IoT puts before the topic of a message that is sent to a rule by name.
const BASIC_INGEST: &str = "$aws/rules/";

impl TopicFilter {
    /// # Errors
    /// What is wrong with it, and a way out.
    pub fn read(text: &str) -> Result<Self, (String, &'static str)> {
        if text.is_empty() {
            return Err(("the topic filter is empty".to_owned(), "FROM '#' takes every topic."));
        }
        let mut levels = Vec::new();
        let mut names = text.split('/').peekable();
        while let Some(name) = names.next() {
            levels.push(match name {
                "+" => Level::One,
                "#" if names.peek().is_none() => Level::Rest,
                "#" => {
                    return Err((
                        format!("in \"{text}\" # is not the last level"),
                        "# takes all levels from there on; + takes one.",
                    ));
                }
                name if name.contains(['+', '#']) => {
                    return Err((
                        format!("in \"{text}\" a wildcard is only part of a level"),
                        "+ and # stand for whole levels: 'iot/+/telemetry'.",
                    ));
                }
                name => Level::Name(name.to_owned()),
            });
        }
        Ok(Self { levels })
    }

    /// Whether it takes every topic but those that begin with `$`.
    pub fn takes_all(&self) -> bool {
        self.levels == [Level::Rest]
    }

    /// As AWS IoT matches: `a/#` takes `a/b` and `a/`, and not `a`; a wildcard in the first place takes no
    /// topic that begins with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Name(_))) {
            return false;
        }
        let mut names = topic.split('/');
        for level in &self.levels {
            match (level, names.next()) {
                (Level::Rest, Some(_)) => return true,
                (Level::One, Some(_)) => {}
                (Level::Name(wanted), Some(name)) if wanted == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

/// What `topic()` says: without the name of the rule that a message was sent to.
pub fn visible(topic: &str) -> &str {
    match topic.strip_prefix(BASIC_INGEST).and_then(|rest| rest.split_once('/')) {
        Some((_, topic)) => topic,
        None => topic,
    }
}

/// A segment of the topic, the first being 1.
pub fn segment(topic: &str, number: i64) -> Option<&str> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    visible(topic).split('/').nth(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_take_levels_as_aws_iot_does() {
        for (filter, takes, leaves) in [
            ("a/b", vec!["a/b"], vec!["a", "a/b/c", "a/c", "A/b"]),
            ("a/+", vec!["a/b", "a/"], vec!["a", "a/b/c", "b/x"]),
            ("a/#", vec!["a/b", "a/b/c", "a/"], vec!["a", "b/a"]),
            ("+/b/#", vec!["a/b/c"], vec!["a/b", "$aws/b/c"]),
            ("#", vec!["a", "a/b"], vec!["$aws/things"]),
            ("$aws/things/+/shadow", vec!["$aws/things/t/shadow"], vec!["$aws/things/shadow"]),
        ] {
            let filter = TopicFilter::read(filter).unwrap();
            for topic in takes {
                assert!(filter.matches(topic), "{filter:?} must take {topic}");
            }
            for topic in leaves {
                assert!(!filter.matches(topic), "{filter:?} must leave {topic}");
            }
        }
    }

    #[test]
    fn a_wildcard_within_a_level_is_refused() {
        for filter in ["a+/b", "a/#/b", "a/b#", ""] {
            assert!(TopicFilter::read(filter).is_err(), "{filter}");
        }
    }

    #[test]
    fn a_message_to_a_rule_by_name_shows_the_topic_behind_it() {
        let topic = "$aws/rules/BuildingManager/Buildings/Building5/Floor2";
        assert_eq!(visible(topic), "Buildings/Building5/Floor2");
        assert_eq!(segment(topic, 3), Some("Floor2"));
        assert_eq!(segment(topic, 0), None);
        assert_eq!(segment("a/b", 3), None);
    }
}
