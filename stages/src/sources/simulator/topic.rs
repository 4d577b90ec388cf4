//! Topics, with the device's id in its place.

const PLACEHOLDER: &str = "{device_id}";

/// A topic to publish to, with or without `{device_id}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Topic(String);

impl Topic {
    /// Checks a topic.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a topic is not empty".to_owned());
        }
        if text.contains(['#', '+', '\0']) {
            return Err(format!("\"{text}\" is a filter, not a topic: it holds \"#\", \"+\" or a zero byte"));
        }
        if text.replace(PLACEHOLDER, "").contains(['{', '}']) {
            return Err(format!("\"{text}\" holds a placeholder other than \"{PLACEHOLDER}\""));
        }
        Ok(Self(text.to_owned()))
    }

    /// The topic of a device, if it is not the same for all of them.
    pub(super) fn of_device(&self, id: &str) -> Option<String> {
        self.0.contains(PLACEHOLDER).then(|| self.0.replace(PLACEHOLDER, id))
    }

    /// The topic as written.
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_id_takes_its_place() {
        assert_eq!(Topic::parse("iot/{device_id}/up").unwrap().of_device("d1").as_deref(), Some("iot/d1/up"));
        assert_eq!(Topic::parse("iot/telemetry").unwrap().of_device("d1"), None);
    }

    #[test]
    fn what_nobody_can_publish_to_is_refused() {
        for text in ["", "iot/#", "iot/+/x", "iot/{device}"] {
            assert!(Topic::parse(text).is_err(), "{text}");
        }
    }
}
