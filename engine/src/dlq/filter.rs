//! Which dead letters are meant.

use super::Letter;

/// Lets a letter through that fits each of the given conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// One of these stages; empty: any.
    pub stages: Vec<String>,
    /// One of these reasons; empty: any.
    pub reasons: Vec<String>,
    /// Received at this time or later, microseconds since 1970.
    pub since_us: Option<i64>,
    /// Received before this time.
    pub until_us: Option<i64>,
    /// Came by a topic that this filter matches, with the wildcards `+` and `#` of MQTT.
    pub topic: Option<String>,
    /// The id begins with one of these; empty: any.
    pub ids: Vec<String>,
}

impl LetterFilter {
    /// Whether the letter is meant.
    pub fn admits(&self, letter: &Letter) -> bool {
        let one_of = |wanted: &[String], found: &str| wanted.is_empty() || wanted.iter().any(|word| word == found);
        one_of(&self.stages, &letter.stage)
            && one_of(&self.reasons, &letter.reason)
            && self.since_us.is_none_or(|since| letter.received_at_us >= since)
            && self.until_us.is_none_or(|until| letter.received_at_us < until)
            && self.admits_topic(letter.topic.as_deref())
            && self.admits_id(letter)
    }

    /// Whether the id of the letter is meant, if any is named.
    pub fn admits_id(&self, letter: &Letter) -> bool {
        let id = letter.id.to_string();
        self.ids.is_empty() || self.ids.iter().any(|start| id.starts_with(&start.to_ascii_lowercase()))
    }

    fn admits_topic(&self, topic: Option<&str>) -> bool {
        self.topic.as_ref().is_none_or(|filter| topic.is_some_and(|topic| topic_matches(filter, topic)))
    }

    /// The topic filter as a regular expression of PostgreSQL, for places that have no better.
    pub fn topic_pattern(&self) -> Option<String> {
        let filter = self.topic.as_deref()?;
        let mut pattern = if begins_with_wildcard(filter) { "^(?!\\$)" } else { "^" }.to_owned();
        for (number, level) in filter.split('/').enumerate() {
            match level {
                // "a/#" is "a" as well, and all below it.
                "#" if number == 0 => pattern.push_str(".*"),
                "#" => pattern.push_str("(/.*)?"),
                _ => {
                    pattern.push_str(if number == 0 { "" } else { "/" });
                    if level == "+" { pattern.push_str("[^/]*") } else { pattern.push_str(&escaped(level)) }
                }
            }
        }
        pattern.push('$');
        Some(pattern)
    }
}

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| (c.is_ascii_punctuation() && c != '_').then_some('\\').into_iter().chain([c])).collect()
}

/// A wildcard in the first place leaves out what is the broker's own: `$SYS` and whatever begins like it.
fn begins_with_wildcard(filter: &str) -> bool {
    matches!(filter.split('/').next(), Some("+" | "#"))
}

/// Whether a topic filter of MQTT, with `+` and `#`, matches a topic.
pub fn topic_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && begins_with_wildcard(filter) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in filter.split('/') {
        match (level, topic_levels.next()) {
            ("#", _) | ("+", Some(_)) => {
                if level == "#" {
                    return true;
                }
            }
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_matched_as_a_broker_does() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/+", "a", false),
            ("+/+", "/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/uptime", false),
            ("+/uptime", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("a/+", "a/$b", true),
            ("a+/b", "aa/b", false),
        ] {
            assert_eq!(topic_matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_pattern_says_the_same_as_the_filter() {
        let pattern =
            |filter: &str| LetterFilter { topic: Some(filter.to_owned()), ..LetterFilter::default() }.topic_pattern();
        assert_eq!(pattern("a/+/c_1/#").as_deref(), Some("^a/[^/]*/c_1(/.*)?$"));
        assert_eq!(pattern("#").as_deref(), Some("^(?!\\$).*$"));
        assert_eq!(pattern("+/b").as_deref(), Some("^(?!\\$)[^/]*/b$"));
        assert_eq!(pattern("a.b/é$").as_deref(), Some("^a\\.b/é\\$$"));
        assert_eq!(LetterFilter::default().topic_pattern(), None);
    }
}
