//! A pipeline file read otherwise than it stands: another source in the place of its own, stages left out. For
//! `pipeline replay`, which sends what lies in a bucket through the stages of a pipeline that reads something else.
//!
//! What is put in has the place of the source that it replaces, so that a mistake shows there.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::registry::Kind;

/// What is other than in the file. A name that no stage has changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replacement {
    /// The pipeline's name, and so its own data and its own positions in the sinks.
    pub pipeline: String,
    /// The source that is replaced. The file's other sources are left out.
    pub source: String,
    /// The keys of what takes its place, whose values are text.
    pub keys: Vec<(String, String)>,
    /// Keys that stay as they are in the file.
    pub kept_keys: &'static [&'static str],
    /// Stages that are left out, with what others read of them.
    pub without: BTreeSet<String>,
}

impl Replacement {
    /// Changes the tables of a file.
    pub(super) fn apply(&self, document: &mut DeTable<'_>) {
        put(document, "pipeline", "name", &self.pipeline);
        put(document, "http", "listen", "off");
        let mut gone = self.without.clone();
        if let Some(sources) = document.get_mut(Kind::Source.table()).and_then(table_of) {
            gone.extend(sources.keys().map(|name| name.get_ref().to_string()).filter(|name| *name != self.source));
            keep(sources, |name| name == self.source);
            for (name, table) in sources.iter_mut() {
                let place = name.span();
                let Some(table) = table_of(table) else { continue };
                keep(table, |key| self.kept_keys.contains(&key));
                for (key, value) in &self.keys {
                    insert(table, place.clone(), key, text(place.clone(), value));
                }
            }
        }
        for kind in [Kind::Transform, Kind::Sink] {
            let Some(stages) = document.get_mut(kind.table()).and_then(table_of) else { continue };
            keep(stages, |name| !gone.contains(name));
            for (_, stage) in stages.iter_mut() {
                let Some(stage) = table_of(stage) else { continue };
                if let Some(DeValue::Array(inputs)) = stage.get_mut("inputs").map(Spanned::get_mut) {
                    let all = std::mem::replace(inputs, DeArray::new());
                    *inputs = all.into_iter().filter(|input| !is_of(input, &gone)).collect();
                }
            }
        }
    }
}

/// Whether an input is read from one of these stages.
fn is_of(input: &Spanned<DeValue<'_>>, stages: &BTreeSet<String>) -> bool {
    let name = input.get_ref().as_str().unwrap_or_default();
    stages.contains(name.split_once('.').map_or(name, |(stage, _)| stage))
}

fn keep(table: &mut DeTable<'_>, is_kept: impl Fn(&str) -> bool) {
    let all = std::mem::take(table);
    *table = all.into_iter().filter(|(key, _)| is_kept(key.get_ref())).collect();
}

fn put(document: &mut DeTable<'_>, table: &str, key: &str, value: &str) {
    if !document.contains_key(table) {
        insert(document, 0..0, table, Spanned::new(0..0, DeValue::Table(DeTable::new())));
    }
    if let Some(table) = document.get_mut(table).and_then(table_of) {
        let place = table.get(key).map_or(0..0, Spanned::span);
        insert(table, place.clone(), key, text(place, value));
    }
}

fn insert<'i>(table: &mut DeTable<'i>, place: Range<usize>, key: &str, value: Spanned<DeValue<'i>>) {
    table.remove(key);
    table.insert(Spanned::new(place, Cow::Owned(key.to_owned())), value);
}

fn text<'i>(place: Range<usize>, value: &str) -> Spanned<DeValue<'i>> {
    Spanned::new(place, DeValue::String(Cow::Owned(value.to_owned())))
}

fn table_of<'t, 'i>(value: &'t mut Spanned<DeValue<'i>>) -> Option<&'t mut DeTable<'i>> {
    match value.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[sources.live]
type = "mqtt"
schema = "t"
topics = ["a"]
[sources.live.spool]
max = "1GiB"
[sources.other]
type = "mqtt"
[transforms.valid]
type = "validate"
inputs = ["live", "other"]
[sinks.table]
type = "timescaledb"
inputs = ["valid"]
[sinks.lake]
type = "parquet"
inputs = ["valid"]
[sinks.refused]
type = "console"
inputs = ["live.rejected", "other.rejected", "lake.rejected", "table.rejected"]
"#;

    #[test]
    fn a_source_takes_the_place_of_the_others_and_what_is_left_out_is_read_by_nobody() {
        let mut document = DeTable::parse(FILE).unwrap().into_inner();
        let replacement = Replacement {
            pipeline: "iot-replay".to_owned(),
            source: "live".to_owned(),
            keys: vec![("type".to_owned(), "s3".to_owned()), ("url".to_owned(), "s3://b/p".to_owned())],
            kept_keys: &["schema"],
            without: BTreeSet::from(["lake".to_owned()]),
        };
        replacement.apply(&mut document);
        let text = |path: &[&str]| {
            let mut table = &document;
            for key in &path[..path.len() - 1] {
                table = table.get(*key).unwrap().get_ref().as_table().unwrap();
            }
            format!("{:?}", table.get(path[path.len() - 1]).map(|value| strings(value.get_ref())))
        };
        assert_eq!(text(&["pipeline", "name"]), "Some([\"iot-replay\"])");
        assert_eq!(text(&["http", "listen"]), "Some([\"off\"])");
        assert_eq!(text(&["sources"]), "Some([\"schema\", \"t\", \"type\", \"s3\", \"url\", \"s3://b/p\"])");
        assert_eq!(text(&["transforms", "valid", "inputs"]), "Some([\"live\"])");
        assert_eq!(text(&["sinks", "lake"]), "None");
        assert_eq!(text(&["sinks", "refused", "inputs"]), "Some([\"live.rejected\", \"table.rejected\"])");
    }

    /// All text in a value, with the keys of the tables of stages.
    fn strings(value: &DeValue<'_>) -> Vec<String> {
        match value {
            DeValue::String(text) => vec![text.to_string()],
            DeValue::Array(items) => items.iter().flat_map(|item| strings(item.get_ref())).collect(),
            DeValue::Table(table) => table
                .iter()
                .flat_map(|(key, value)| {
                    let key = (!value.get_ref().is_table()).then(|| key.get_ref().to_string());
                    key.into_iter().chain(strings(value.get_ref()))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}
