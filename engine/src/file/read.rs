//! From spanned tables to typed configurations, with every mistake of a table and not just its first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expand::{Expansion, as_scalar};
use super::mistake::Mistake;
use crate::secret::SECRET;
use crate::suggest::suggest;

/// Reads tables of one file.
pub(super) struct Reader<'i> {
    pub(super) expansions: &'i [Expansion],
    pub(super) mistakes: Vec<Mistake>,
}

impl<'i> Reader<'i> {
    /// Adds a mistake.
    pub(super) fn report(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    /// A table as a configuration. `header` is where the table is named; `what` is its word in texts.
    pub(super) fn config<C: DeserializeOwned + schemars::JsonSchema>(
        &mut self,
        table: Spanned<DeTable<'i>>,
        header: Range<usize>,
        what: &str,
    ) -> Option<C> {
        let schema = schemars::SchemaGenerator::default().into_root_schema_for::<C>();
        self.read(table, header, what, &schema, |table| C::deserialize(toml::de::Deserializer::from(table)))
    }

    /// As [`Reader::config`], for a type that only the registry knows.
    ///
    /// serde stops at the first mistake; so each key that it complains about is reported, taken out,
    /// and the rest is read again. Unknown and missing keys come from the JSON schema.
    pub(super) fn read<T>(
        &mut self,
        mut table: Spanned<DeTable<'i>>,
        header: Range<usize>,
        what: &str,
        schema: &schemars::Schema,
        read: impl Fn(Spanned<DeTable<'i>>) -> Result<T, toml::de::Error>,
    ) -> Option<T> {
        let before = self.mistakes.len();
        let empty = serde_json::Map::new();
        let properties = schema.get("properties").and_then(|value| value.as_object()).unwrap_or(&empty);
        self.take_out_unknown(&mut table, properties, what);
        self.take_out_too_long(&mut table, schema.as_value());
        self.scalars_from_variables(&mut table, properties);
        self.report_missing(&table, header.clone(), schema, what);
        let mut taken_out = BTreeSet::new();
        loop {
            match read(table.clone()) {
                Ok(config) => return (self.mistakes.len() == before).then_some(config),
                Err(error) => {
                    let key = key_at(&table, error.span());
                    let missing = error.message().starts_with("missing field");
                    // A key that was taken out is missed next: it has its report already.
                    if missing && key.is_none() {
                        return None;
                    }
                    let place = error.span().unwrap_or_else(|| header.clone());
                    let message = match key.as_deref() {
                        // The library's text would show it.
                        Some(key) if properties.get(key).is_some_and(is_secret) => format!("\"{key}\" is text"),
                        _ => readable(error.message()),
                    };
                    self.report(Mistake::new(Some(place), message));
                    match key {
                        Some(key) if taken_out.insert(key.clone()) => drop(table.get_mut().remove(key.as_str())),
                        _ => return None,
                    }
                }
            }
        }
    }

    fn take_out_unknown(
        &mut self,
        table: &mut Spanned<DeTable<'i>>,
        properties: &serde_json::Map<String, serde_json::Value>,
        what: &str,
    ) {
        let unknown: Vec<(String, Range<usize>)> = table
            .get_ref()
            .keys()
            .filter(|key| !properties.contains_key(key.get_ref().as_ref()))
            .map(|key| (key.get_ref().to_string(), key.span()))
            .collect();
        for (key, place) in unknown {
            let hint = suggest(&key, properties.keys().map(String::as_str), "Its keys", "It has no keys.");
            self.report(Mistake::new(Some(place), format!("{what} has no key \"{key}\"")).hint(hint));
            table.get_mut().remove(key.as_str());
        }
    }

    /// serde reads a list of a known length up to there, and passes over what follows in silence.
    fn take_out_too_long(&mut self, table: &mut Spanned<DeTable<'i>>, schema: &serde_json::Value) {
        let found: Vec<_> = table
            .get_ref()
            .iter()
            .filter_map(|(key, value)| {
                let extra = extra_entry(schema, &schema["properties"][key.get_ref().as_ref()], value)?;
                Some((key.get_ref().to_string(), extra))
            })
            .collect();
        for (key, (place, count, entries_max)) in found {
            let message = format!("the list has {count} entries, where {entries_max} are meant");
            self.report(Mistake::new(Some(place), message));
            table.get_mut().remove(key.as_str());
        }
    }

    /// A variable's text stands for a number or a boolean where the key wants one.
    fn scalars_from_variables(
        &self,
        table: &mut Spanned<DeTable<'i>>,
        properties: &serde_json::Map<String, serde_json::Value>,
    ) {
        let expansions = self.expansions;
        let all = std::mem::take(table.get_mut());
        *table.get_mut() = all
            .into_iter()
            .map(|(key, value)| {
                let wanted = properties.get(key.get_ref().as_ref()).map(wants_scalar).unwrap_or_default();
                let scalar = if wanted { as_scalar(&value, expansions) } else { None };
                (key, scalar.unwrap_or(value))
            })
            .collect();
    }

    fn report_missing(
        &mut self,
        table: &Spanned<DeTable<'i>>,
        header: Range<usize>,
        schema: &schemars::Schema,
        what: &str,
    ) {
        let required = schema.get("required").and_then(|value| value.as_array());
        for key in required.into_iter().flatten().filter_map(|key| key.as_str()) {
            if !table.get_ref().contains_key(key) {
                self.report(Mistake::new(Some(header.clone()), format!("{what} needs the key \"{key}\"")));
            }
        }
    }
}

fn is_secret(property: &serde_json::Value) -> bool {
    property["format"] == SECRET
}

/// The first entry too many of the first list that has some, with how many it has and how many are meant.
fn extra_entry(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    value: &Spanned<DeValue<'_>>,
) -> Option<(Range<usize>, usize, usize)> {
    let reference = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    let schema = reference.map_or(schema, |name| &root["$defs"][name]);
    match value.get_ref() {
        DeValue::Array(items) => {
            let entries_max = schema["maxItems"].as_u64().and_then(|max| usize::try_from(max).ok());
            let extra = entries_max.and_then(|max| items.get(max).map(|extra| (extra.span(), items.len(), max)));
            extra.or_else(|| items.iter().find_map(|item| extra_entry(root, &schema["items"], item)))
        }
        DeValue::Table(table) => table.iter().find_map(|(key, value)| {
            let named = schema["properties"].get(key.get_ref().as_ref());
            extra_entry(root, named.unwrap_or(&schema["additionalProperties"]), value)
        }),
        _ => None,
    }
}

fn wants_scalar(property: &serde_json::Value) -> bool {
    let is_scalar = |word: &serde_json::Value| matches!(word.as_str(), Some("integer" | "number" | "boolean"));
    match property.get("type") {
        Some(serde_json::Value::Array(words)) => words.iter().any(is_scalar),
        Some(word) => is_scalar(word),
        None => false,
    }
}

/// The top-level key whose value holds the place.
fn key_at(table: &Spanned<DeTable<'_>>, place: Option<Range<usize>>) -> Option<String> {
    let place = place?;
    let holds = |span: Range<usize>| span.start <= place.start && place.end <= span.end;
    let (key, _) = table.get_ref().iter().find(|(key, value)| holds(value.span()) || holds(key.span()))?;
    Some(key.get_ref().to_string())
}

/// serde's wording in ours: quotes instead of backticks, and no names of Rust's types.
pub(super) fn readable(message: &str) -> String {
    let message = message.replace('`', "\"").replace(" as i128", "");
    let message = message.replacen("unknown variant", "unknown value", 1).replacen("unknown field", "unknown key", 1);
    if message == "wanted string or table" {
        return "expected text".to_owned();
    }
    let Some((found, expected)) = message.rsplit_once("expected ") else { return message };
    // A number of the right kind that is too small or too large: then the bounds are what helps.
    if found.contains(": integer ")
        && let Some(bounds) = bounds_of(expected)
    {
        return format!("{}expected a whole number {bounds}", found.replacen("invalid type", "invalid value", 1));
    }
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i16" | "i32" | "i64" => "a whole number",
        "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
            "a whole number above 0"
        }
        "f32" | "f64" => "a number",
        "a string" | "path string" => "text",
        "a sequence" => "a list",
        "a map" => "a table",
        other => other,
    };
    format!("{found}expected {expected}")
}

/// What a whole number of Rust's type can be.
fn bounds_of(kind: &str) -> Option<String> {
    let (kind, first) = match kind.strip_prefix("a nonzero ") {
        Some(kind) => (kind, "1"),
        None => (kind, "0"),
    };
    Some(match kind {
        "u8" => format!("from {first} to {}", u8::MAX),
        "u16" => format!("from {first} to {}", u16::MAX),
        "u32" => format!("from {first} to {}", u32::MAX),
        "u64" | "usize" => format!("from {first} on"),
        "i16" => format!("from {} to {}", i16::MIN, i16::MAX),
        "i32" => format!("from {} to {}", i32::MIN, i32::MAX),
        "i64" => "of 64 bits".to_owned(),
        _ => return None,
    })
}

/// Where each key of a stage's table has its value, by dotted path; elements of an array by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyPlaces {
    header: Option<Range<usize>>,
    keys: BTreeMap<String, Range<usize>>,
}

impl KeyPlaces {
    pub(super) fn new(header: Range<usize>, table: &DeTable<'_>) -> Self {
        let mut places = Self { header: Some(header), keys: BTreeMap::new() };
        places.add_table("", table);
        places
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            // A table's own span is its header or braces; its key says more.
            let place = if value.get_ref().is_table() { key.span() } else { value.span() };
            self.add(path, place, value.get_ref());
        }
    }

    fn add(&mut self, path: String, place: Range<usize>, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.add_table(&format!("{path}."), table),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.add(format!("{path}.{index}"), item.span(), item.get_ref());
                }
            }
            _ => {}
        }
        self.keys.insert(path, place);
    }

    /// Whether the file has this very key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The place of a key, or of the nearest table around it, or of the stage.
    pub(crate) fn of(&self, key: &str) -> Option<Range<usize>> {
        let mut path = key;
        loop {
            if let Some(place) = self.keys.get(path) {
                return Some(place.clone());
            }
            match path.rfind('.') {
                Some(dot) => path = &path[..dot],
                None => return self.header.clone(),
            }
        }
    }
}
