//! The reference of stages and settings, made from the types that read them: what is documented is what is there.
//!
//! `keys.rs` reads a configuration's JSON schema; `text.rs` shows a page on a terminal, `markdown.rs` makes the file
//! `docs/stages.md`.

mod keys;
pub mod markdown;
pub mod text;

use pipeline_engine::{Kind, Registry, StageType, TableDoc, table_docs};
use serde_json::Value;

/// What there is to say of one type of stage, or of one table of settings.
pub struct Page {
    /// How it begins in a pipeline file, such as `[sinks.NAME]`.
    pub table: String,
    /// The value of `type`; `None` for settings.
    pub type_name: Option<&'static str>,
    pub summary: String,
    pub keys: Vec<Key>,
    /// Ports by name, with what leaves by them.
    pub ports: Vec<(String, String)>,
    /// What the stage does when its outside fails.
    pub failure: Option<&'static str>,
}

/// One key of a table; those of tables within are named with dots.
pub struct Key {
    pub name: String,
    /// Type, whether it is required, its default.
    pub facts: String,
    pub text: String,
}

/// A type's page; two types of one word (a source and a sink) have two.
pub fn of_type(registry: &Registry, word: &str) -> Vec<Page> {
    registry.types().filter(|known| known.doc.type_name == word).map(stage).collect()
}

/// All types of one kind, in the order of the registry.
pub fn of_kind(registry: &Registry, kind: Kind) -> Vec<Page> {
    registry.types().filter(|known| known.kind == kind).map(stage).collect()
}

/// The tables of a pipeline file, with what stages of a kind share.
pub fn settings() -> Vec<Page> {
    let page = |doc: TableDoc| {
        let keys = keys::of(&doc.schema.into()).into_iter();
        Page {
            table: doc.header.to_owned(),
            type_name: None,
            summary: doc.summary.to_owned(),
            keys: keys.map(|key| Key { name: format!("{}{}", doc.prefix, key.name), ..key }).collect(),
            ports: Vec::new(),
            failure: None,
        }
    };
    table_docs().into_iter().map(page).collect()
}

fn stage(stage: &StageType) -> Page {
    let (kind, doc) = (stage.kind, &stage.doc);
    Page {
        table: format!("[{}.NAME]", kind.table()),
        type_name: Some(doc.type_name),
        summary: doc.summary.to_owned(),
        keys: keys::of(&Value::from(stage.config_schema.clone())),
        ports: doc.ports.iter().map(|(port, what)| ((*port).to_owned(), (*what).to_owned())).collect(),
        failure: Some(doc.failure),
    }
}
