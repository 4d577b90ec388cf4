//! Durations and sizes as a pipeline file writes them: text with a unit, never a bare number.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// A duration with its unit: `"250ms"`, `"5s"`, `"1h 30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(pub Duration);

/// A size in bytes with its unit: `"512KiB"`, `"64MiB"`, `"1GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeText(pub u64);

impl DurationText {
    /// So many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl SizeText {
    /// The size as a count that fits in memory, at most `usize::MAX`.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).fmt(f)
    }
}

impl serde::Serialize for DurationText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl serde::Serialize for SizeText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnitVisitor {
            wanted: "a duration with its unit, such as \"5s\" or \"250ms\"",
            parse: |text| humantime::parse_duration(text).ok().map(DurationText),
        })
    }
}

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnitVisitor {
            wanted: "a size with its unit, such as \"64MiB\"",
            // A bare number would parse as bytes: almost never what was meant.
            parse: |text| {
                let has_unit = text.trim_end().ends_with(|last: char| last.is_ascii_alphabetic());
                text.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit).map(|size| SizeText(size.0))
            },
        })
    }
}

struct UnitVisitor<T> {
    wanted: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for UnitVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration" })
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "size" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Settings {
        wait: Option<DurationText>,
        room: Option<SizeText>,
    }

    fn mistake(text: &str) -> String {
        toml::from_str::<Settings>(text).expect_err("must be refused").message().to_owned()
    }

    #[test]
    fn durations_and_sizes_have_units() {
        let settings: Settings = toml::from_str("wait = \"1m 30s\"\nroom = \"64MiB\"").expect("both are valid");
        assert_eq!(settings.wait, Some(DurationText::secs(90)));
        assert_eq!(settings.room, Some(SizeText(64 << 20)));
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_an_example() {
        let duration = "expected a duration with its unit, such as \"5s\" or \"250ms\"";
        let size = "expected a size with its unit, such as \"64MiB\"";
        for text in ["wait = 5", "wait = \"5\"", "wait = \"5 parsecs\""] {
            assert!(mistake(text).ends_with(duration), "{text}: {}", mistake(text));
        }
        for text in ["room = 5", "room = \"5\"", "room = \"5 bags\""] {
            assert!(mistake(text).ends_with(size), "{text}: {}", mistake(text));
        }
    }
}
