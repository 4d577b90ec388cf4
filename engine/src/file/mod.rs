//! The pipeline file: TOML text to a [`Draft`], with all its mistakes at once.
//!
//! What the user typed and what runs are different types: this module ends where a stage's table has
//! become its configuration, and [`crate::plan`] begins.

mod expand;
mod http;
mod mistake;
mod read;
mod replace;
mod secrets;
mod slo;
mod syntax;
mod tables;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use expand::Variables;
pub use http::HttpSettings;
use http::HttpText;
pub use mistake::{Mistake, Mistakes};
pub(crate) use read::KeyPlaces;
use read::{Reader, readable};
pub use replace::Replacement;
use slo::SloText;
use tables::TABLES;
pub use tables::{TableDoc, table_docs};

use crate::objectives::Objectives;
use crate::plan::{Draft, DraftStage, Settings, Source};
use crate::registry::{Kind, Registry};
use crate::schema::{ColumnText, ColumnType, DeclaredSchema, Origin};
use crate::suggest::suggest;
use crate::units::{DurationText, SizeText};

/// `[pipeline]`: settings of the run as a whole.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PipelineText {
    /// The pipeline's name, in logs, metrics and the names of objects. Default: the file's name.
    name: Option<String>,
    /// Rows that may wait on each edge; full means that the stage before it waits.
    #[serde(default = "queue_rows")]
    queue_rows: NonZeroU32,
    /// How long a stop waits for rows on their way. What is not stored by then was not acknowledged,
    /// and comes again.
    #[serde(default = "drain_timeout")]
    drain_timeout: DurationText,
    /// Where the pipeline keeps what must survive a restart, in a folder of its name: spools, the state of
    /// transforms, objects on their way. On a disk that is there again after a reboot.
    #[serde(default = "data_dir")]
    data_dir: PathBuf,
    /// How often the state of transforms is kept, so that a restart need only read again what came since.
    #[serde(default = "checkpoint_interval")]
    checkpoint_interval: DurationText,
    /// How much may lie on disk for a sink that is slower than its input, in `data_dir`, for each of its inputs; beyond it the
    /// whole pipeline waits for that sink, or an optional sink goes without.
    #[serde(default = "overflow_max")]
    overflow_max: SizeText,
}

fn queue_rows() -> NonZeroU32 {
    NonZeroU32::new(Settings::default().queue_rows).unwrap_or(NonZeroU32::MIN)
}

fn drain_timeout() -> DurationText {
    DurationText(Settings::default().drain_timeout)
}

fn data_dir() -> PathBuf {
    Settings::default().data_dir
}

fn checkpoint_interval() -> DurationText {
    DurationText(Settings::default().checkpoint_interval)
}

fn overflow_max() -> SizeText {
    SizeText(Settings::default().overflow_bytes_max)
}

/// Reads a pipeline file and gives the draft on, with the mistakes so far; the draft borrows from what
/// is read here. `replacement` is what is other than in the text. `file` is its name in messages and, without its folder and ending, the pipeline's
/// default name.
pub(crate) fn read<T>(
    text: &str,
    file: &str,
    registry: &Registry,
    variables: &Variables<'_>,
    replacement: Option<&Replacement>,
    check: impl FnOnce(Draft<'_>, Vec<Mistake>) -> Result<T, Vec<Mistake>>,
) -> Result<T, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What follows from broken syntax would only be noise.
        return Err(syntax::mistakes(text, &errors));
    }
    let document = document.into_inner();
    let mut mistakes = Vec::new();
    let expansions = expand::expansions(&document, variables, &mut mistakes);
    let unresolved = mistakes.clone();
    let mut document = expand::apply(document, &expansions);
    if let Some(replacement) = replacement {
        replacement.apply(&mut document);
    }
    let mut reader = Reader { expansions: &expansions, mistakes };

    for key in document.keys().filter(|key| !TABLES.contains(&key.get_ref().as_ref())) {
        let hint = match key.get_ref().as_ref() {
            "case" => {
                "Cases stand in a file of their own: `pipeline test NAME.toml` runs those of NAME.test.toml.".to_owned()
            }
            other => suggest(other, TABLES, "Its tables", ""),
        };
        reader.report(
            Mistake::new(Some(key.span()), format!("a pipeline file has no table \"{}\"", key.get_ref())).hint(hint),
        );
    }
    let mut settings = read_settings(&mut reader, document.remove("pipeline"), file);
    settings.http = read_http(&mut reader, document.remove("http"));
    let (objectives, places) = read_slo(&mut reader, document.remove("slo"));
    let schemas = read_schemas(&mut reader, document.remove("schema"));
    let mut stages = Vec::new();
    for kind in Kind::ALL {
        let Some(tables) = document.remove(kind.table()).and_then(|value| table_of(&mut reader, value, kind.table()))
        else {
            continue;
        };
        for (name, table) in in_order(tables.into_inner()) {
            if let Some(stage) = read_stage(&mut reader, registry, kind, &name, table) {
                stages.push(stage);
            }
        }
    }
    report_no_sinks(&mut reader, &objectives, &places, &stages);
    settings.objectives = objectives;
    let checked = check(Draft { settings, schemas: Arc::new(schemas), stages }, reader.mistakes);
    checked.map_err(|mistakes| mistake::without_what_follows(mistakes, &unresolved))
}

fn read_settings<'i>(reader: &mut Reader<'i>, value: Option<Spanned<DeValue<'i>>>, file: &str) -> Settings {
    let mut settings = Settings { name: name_of(file), ..Settings::default() };
    settings.data_dir = settings.data_dir.join(&settings.name);
    let Some(table) = value.and_then(|value| table_of(reader, value, "pipeline")) else { return settings };
    let places = KeyPlaces::new(table.span(), table.get_ref());
    let name = table.get_ref().get("name").and_then(|name| name.get_ref().as_str());
    if let Some(name) = name.filter(|name| !is_name(name)) {
        let message = format!("\"{name}\" can't be a pipeline's name");
        reader.report(Mistake::new(places.of("name"), message).hint(NAME_RULE));
    }
    let Some(text) = reader.config::<PipelineText>(table, places.of("").unwrap_or(0..0), "[pipeline]") else {
        return settings;
    };
    settings.name = text.name.unwrap_or(settings.name);
    settings.queue_rows = text.queue_rows.get();
    settings.drain_timeout = text.drain_timeout.0;
    settings.data_dir = text.data_dir.join(&settings.name);
    settings.checkpoint_interval = text.checkpoint_interval.0;
    settings.overflow_bytes_max = text.overflow_max.0;
    settings
}

fn read_http<'i>(reader: &mut Reader<'i>, value: Option<Spanned<DeValue<'i>>>) -> HttpSettings {
    let Some(table) = value.and_then(|value| table_of(reader, value, "http")) else { return HttpSettings::default() };
    let places = KeyPlaces::new(table.span(), table.get_ref());
    let text = reader.config::<HttpText>(table, places.of("").unwrap_or(0..0), "[http]");
    match text.map(HttpText::settings) {
        Some(Ok(settings)) => settings,
        Some(Err((key, mistake, hint))) => {
            reader.report(Mistake::new(places.of(key), mistake).hint(hint));
            HttpSettings::default()
        }
        None => HttpSettings::default(),
    }
}

fn read_slo<'i>(reader: &mut Reader<'i>, value: Option<Spanned<DeValue<'i>>>) -> (Objectives, KeyPlaces) {
    let none = (Objectives::default(), KeyPlaces::default());
    let Some(table) = value.and_then(|value| table_of(reader, value, "slo")) else { return none };
    let places = KeyPlaces::new(table.span(), table.get_ref());
    let Some(text) = reader.config::<SloText>(table, places.of("").unwrap_or(0..0), "[slo]") else { return none };
    let (objectives, wrong) = text.objectives();
    for (key, mistake, hint) in wrong {
        reader.report(Mistake::new(places.of(key), mistake).hint(hint));
    }
    (objectives, places)
}

/// An objective is about a sink of this file.
fn report_no_sinks(reader: &mut Reader<'_>, objectives: &Objectives, places: &KeyPlaces, stages: &[DraftStage<'_>]) {
    let named = [("latency_sink", &objectives.latency_sink), ("anomaly_sink", &objectives.anomaly_sink)];
    let sinks = || stages.iter().filter(|stage| stage.kind == Kind::Sink).map(|stage| stage.name.as_str());
    for (key, name) in named {
        if let Some(name) = name
            && !sinks().any(|sink| sink == name)
        {
            let hint = suggest(name, sinks(), "Sinks", "Add [sinks.NAME].");
            reader.report(Mistake::new(places.of(key), format!("no sink is named \"{name}\"")).hint(hint));
        }
    }
}

fn read_schemas<'i>(
    reader: &mut Reader<'i>,
    value: Option<Spanned<DeValue<'i>>>,
) -> BTreeMap<String, Arc<DeclaredSchema>> {
    let mut schemas = BTreeMap::new();
    let Some(tables) = value.and_then(|value| table_of(reader, value, "schema")) else { return schemas };
    for (name, table) in in_order(tables.into_inner()) {
        let what = format!("schema.{}", name.get_ref());
        let Some(table) = table_of(reader, table, &what) else { continue };
        if table.get_ref().is_empty() {
            reader.report(Mistake::new(Some(name.span()), format!("{what} has no columns")));
        }
        let mut columns = Vec::new();
        let mut rest: Option<String> = None;
        for (name, value) in in_order(table.into_inner()) {
            let Some(column) = read_column(reader, &name, value) else { continue };
            if column.origin == Origin::Rest
                && let Some(other) = rest.replace(column.name.clone())
            {
                let message = format!("\"{other}\" keeps already what no other column asks for");
                reader.report(Mistake::new(Some(name.span()), message));
            }
            columns.push(column);
        }
        schemas.insert(name.get_ref().to_string(), Arc::new(DeclaredSchema { columns }));
    }
    schemas
}

fn read_column<'i>(
    reader: &mut Reader<'i>,
    name: &Spanned<std::borrow::Cow<'i, str>>,
    value: Spanned<DeValue<'i>>,
) -> Option<crate::schema::Column> {
    let (text, places) = if value.get_ref().is_table() {
        let table = table_of(reader, value, name.get_ref())?;
        let places = KeyPlaces::new(name.span(), table.get_ref());
        (reader.config::<ColumnText>(table, name.span(), &format!("column \"{}\"", name.get_ref()))?, Some(places))
    } else {
        let place = value.span();
        match ColumnType::deserialize(toml::de::ValueDeserializer::from(value)) {
            Ok(kind) => (ColumnText::of(kind), None),
            Err(error) => {
                reader.report(Mistake::new(Some(place), readable(error.message())));
                return None;
            }
        }
    };
    match text.column(name.get_ref()) {
        Ok(column) => Some(column),
        Err((key, message)) => {
            let place = places.and_then(|places| places.of(key)).unwrap_or_else(|| name.span());
            reader.report(Mistake::new(Some(place), message));
            None
        }
    }
}

/// The name of a pipeline that its file does not give: the file's own, as far as it can be one.
fn name_of(file: &str) -> String {
    let stem = std::path::Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name: String = stem.unwrap_or_default().chars().take(NAME_CHARS_MAX).collect();
    name.chars().map(|letter| if is_name_letter(letter) { letter } else { '_' }).collect()
}

const NAME_RULE: &str = "Letters, digits, \"_\" and \"-\", at most 63.";

const NAME_CHARS_MAX: usize = 63;

fn is_name(name: &str) -> bool {
    name.chars().all(is_name_letter) && (1..=NAME_CHARS_MAX).contains(&name.len())
}

fn is_name_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == '-'
}

fn read_stage<'i>(
    reader: &mut Reader<'i>,
    registry: &Registry,
    kind: Kind,
    name: &Spanned<std::borrow::Cow<'i, str>>,
    value: Spanned<DeValue<'i>>,
) -> Option<DraftStage<'i>> {
    let header = name.span();
    let what = format!("{}.{}", kind.table(), name.get_ref());
    let mut table = table_of(reader, value, &what)?;
    if !is_name(name.get_ref()) {
        let message = format!("\"{}\" can't be a stage's name", name.get_ref());
        reader.report(Mistake::new(Some(header.clone()), message).hint(NAME_RULE));
    }
    let places = KeyPlaces::new(header.clone(), table.get_ref());
    let type_name = read_type(reader, table.get_mut().remove("type"), &header, &what);
    let inputs = read_inputs(reader, table.get_mut().remove("inputs"), kind, &header, &what);
    // Other stages may have a key of that name for themselves, as `validate` has.
    let required = kind != Kind::Sink || read_required(reader, table.get_mut().remove("required"));
    let found = type_name.and_then(|(word, place)| find_type(reader, registry, kind, &word, place));
    let config = found.and_then(|found| {
        let what = format!("{} \"{}\" of type \"{}\"", kind.word(), name.get_ref(), found.doc.type_name);
        reader.read(table.clone(), header.clone(), &what, &found.config_schema, found.read)
    });
    Some(DraftStage {
        name: name.get_ref().to_string(),
        kind,
        type_name: found.map_or("", |found| found.doc.type_name),
        ports: found.map_or(&[], |found| found.doc.ports),
        inputs,
        required,
        config,
        source: found.map(|found| Source { table, read: found.read }),
        places,
    })
}

fn read_type<'i>(
    reader: &mut Reader<'i>,
    value: Option<Spanned<DeValue<'i>>>,
    header: &Range<usize>,
    what: &str,
) -> Option<(String, Range<usize>)> {
    match value {
        Some(value) => match value.get_ref().as_str() {
            Some(word) => Some((word.to_owned(), value.span())),
            None => {
                reader.report(Mistake::new(Some(value.span()), "\"type\" is text, such as \"mqtt\""));
                None
            }
        },
        None => {
            let hint = "Add: type = \"...\". `pipeline stages` lists the types.";
            reader.report(Mistake::new(Some(header.clone()), format!("{what} needs the key \"type\"")).hint(hint));
            None
        }
    }
}

fn find_type<'r>(
    reader: &mut Reader<'_>,
    registry: &'r Registry,
    kind: Kind,
    word: &str,
    place: Range<usize>,
) -> Option<&'r crate::registry::StageType> {
    let found = registry.get(kind, word);
    if found.is_none() {
        let other = Kind::ALL.into_iter().find(|other| registry.get(*other, word).is_some());
        let hint = match other {
            Some(other) => {
                format!("\"{word}\" is a type of {}: move the stage to [{}.NAME].", other.word(), other.table())
            }
            None => {
                let known = registry.types().filter(|known| known.kind == kind).map(|known| known.doc.type_name);
                suggest(word, known, "Types", "No type of this kind is registered.")
            }
        };
        reader.report(Mistake::new(Some(place), format!("no type of {} is named \"{word}\"", kind.word())).hint(hint));
    }
    found
}

fn read_inputs<'i>(
    reader: &mut Reader<'i>,
    value: Option<Spanned<DeValue<'i>>>,
    kind: Kind,
    header: &Range<usize>,
    what: &str,
) -> Vec<(String, Option<Range<usize>>)> {
    let Some(value) = value else {
        if kind != Kind::Source {
            let hint = "Add: inputs = [\"...\"], the names of the stages it reads.";
            reader.report(Mistake::new(Some(header.clone()), format!("{what} needs the key \"inputs\"")).hint(hint));
        }
        return Vec::new();
    };
    if kind == Kind::Source {
        reader.report(Mistake::new(Some(value.span()), "a source has no inputs: it reads from outside"));
        return Vec::new();
    }
    let place = value.span();
    let Some(items) = value.get_ref().as_array() else {
        let hint = "Write: inputs = [\"name\", \"other.rejected\"].";
        reader.report(Mistake::new(Some(place), "\"inputs\" is a list of names").hint(hint));
        return Vec::new();
    };
    if items.is_empty() {
        reader.report(Mistake::new(Some(place), format!("{what} reads nothing: \"inputs\" is empty")));
    }
    let mut inputs = Vec::new();
    for item in items {
        match item.get_ref().as_str() {
            Some(name) => inputs.push((name.to_owned(), Some(item.span()))),
            None => reader.report(Mistake::new(Some(item.span()), "an input is the name of a stage, as text")),
        }
    }
    inputs
}

fn read_required<'i>(reader: &mut Reader<'i>, value: Option<Spanned<DeValue<'i>>>) -> bool {
    let Some(value) = value else { return true };
    value.get_ref().as_bool().unwrap_or_else(|| {
        reader.report(Mistake::new(Some(value.span()), "\"required\" is true or false"));
        true
    })
}

fn table_of<'i>(reader: &mut Reader<'i>, value: Spanned<DeValue<'i>>, what: &str) -> Option<Spanned<DeTable<'i>>> {
    let place = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(place, table)),
        _ => {
            reader.report(Mistake::new(Some(place), format!("\"{what}\" is a table: [{what}]")));
            None
        }
    }
}

type Entry<'i> = (Spanned<std::borrow::Cow<'i, str>>, Spanned<DeValue<'i>>);

/// Entries of a table as they stand in the file.
fn in_order(table: DeTable<'_>) -> Vec<Entry<'_>> {
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, file: &str) -> Settings {
        let variables = Variables { get: &|_| None, read: &|_| Err(std::io::ErrorKind::NotFound.into()) };
        let settings = read(text, file, &Registry::new(), &variables, None, |draft, mistakes| {
            assert_eq!(mistakes, []);
            Ok(draft.settings)
        });
        settings.expect("no mistakes")
    }

    #[test]
    fn every_pipeline_keeps_its_data_in_a_folder_of_its_name() {
        for (text, file, dir) in [
            ("", "etc/iot.toml", "pipeline-data/iot"),
            ("[pipeline]", "etc/iot.toml", "pipeline-data/iot"),
            ("[pipeline]\nname = \"a\"", "etc/iot.toml", "pipeline-data/a"),
            ("[pipeline]\ndata_dir = \"/var/lib/p\"", "etc/iot.toml", "/var/lib/p/iot"),
            ("", "etc/my fleet (2).toml", "pipeline-data/my_fleet__2_"),
            ("", "....toml", "pipeline-data/___"),
        ] {
            assert_eq!(settings(text, file).data_dir, PathBuf::from(dir), "{file} {text}");
        }
    }
}
