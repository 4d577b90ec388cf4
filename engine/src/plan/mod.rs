//! The checked graph: every stage built, every edge with its schema, before anything starts.
//!
//! A plan comes from a pipeline file ([`Plan::load`], [`Plan::parse`]) or from code
//! ([`Plan::builder`]); both go through the same check. Making a plan does no I/O but reading the
//! file and what it refers to.

mod builder;
mod check;
mod graph;
mod places;
mod shared;
mod warnings;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use builder::PlanBuilder;
pub use graph::GraphFormat;
pub use places::{Declared, SpoolPlace};

use crate::file::{self, HttpSettings, KeyPlaces, Mistake, Mistakes, Replacement, Variables};
use crate::objectives::Objectives;
use crate::registry::{Anew, Buildable, Built, ConfigTable, Kind, Registry};
use crate::schema::DeclaredSchema;
use crate::stage::{Outputs, Port};
use crate::stats::StageStats;

/// Settings of a run as a whole: `[pipeline]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The pipeline's name.
    pub name: String,
    /// Rows that may wait on each edge.
    pub queue_rows: u32,
    /// How long a stop waits for rows on their way.
    pub drain_timeout: Duration,
    /// Where this pipeline keeps what must survive a restart.
    pub data_dir: PathBuf,
    /// How often the state of transforms is kept.
    pub checkpoint_interval: Duration,
    /// How much may lie on disk for one slow sink.
    pub overflow_bytes_max: u64,
    /// Where it can be looked at while it runs.
    pub http: HttpSettings,
    /// What it has to keep.
    pub objectives: Objectives,
}

impl Default for Settings {
    fn default() -> Self {
        // 16,384 rows: two batches of the largest size, about 2 MB of telemetry an edge.
        Self {
            name: "pipeline".to_owned(),
            queue_rows: 16_384,
            drain_timeout: Duration::from_secs(25),
            data_dir: PathBuf::from("pipeline-data"),
            checkpoint_interval: Duration::from_secs(10),
            // As much as a spool holds by default.
            overflow_bytes_max: 20 << 30,
            http: HttpSettings::default(),
            objectives: Objectives::default(),
        }
    }
}

/// Stages and their inputs by name, not checked yet.
pub(crate) struct Draft<'i> {
    pub(crate) settings: Settings,
    pub(crate) schemas: Arc<BTreeMap<String, Arc<DeclaredSchema>>>,
    pub(crate) stages: Vec<DraftStage<'i>>,
}

pub(crate) struct DraftStage<'i> {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Empty if the type is unknown, which has been reported.
    pub(crate) type_name: &'static str,
    /// The type's ports besides the main one, whether or not this stage has them.
    pub(crate) ports: &'static [(&'static str, &'static str)],
    pub(crate) inputs: Vec<(String, Option<Range<usize>>)>,
    /// A sink that holds up the source's progress; true for all other stages.
    pub(crate) required: bool,
    /// `None` if the configuration could not be read, which has been reported.
    pub(crate) config: Option<Box<dyn Buildable>>,
    /// What the configuration was read from; `None` for a plan made in code.
    pub(crate) source: Option<Source<'i>>,
    pub(crate) places: KeyPlaces,
}

/// A stage's table, kept so that it can be read again without a key that was wrong.
pub(crate) struct Source<'i> {
    pub(crate) table: ConfigTable<'i>,
    pub(crate) read: for<'t> fn(ConfigTable<'t>) -> Result<Box<dyn Buildable>, toml::de::Error>,
}

impl Source<'_> {
    /// The configuration without a key; `None` if the key is not there or can't be left out.
    pub(crate) fn without(&mut self, key: &str) -> Option<Box<dyn Buildable>> {
        take_out(self.table.get_mut(), key).then(|| (self.read)(self.table.clone()).ok()).flatten()
    }
}

/// Takes out the value at a dotted path; of a list, the whole list.
fn take_out(table: &mut DeTable<'_>, path: &str) -> bool {
    let Some((key, rest)) = path.split_once('.') else { return table.remove(path).is_some() };
    if let Some(DeValue::Table(inner)) = table.get_mut(key).map(Spanned::get_mut) {
        return take_out(inner, rest);
    }
    table.remove(key).is_some()
}

/// A checked graph, ready to run once.
pub struct Plan {
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
    warnings: Vec<String>,
}

/// One stage of a plan.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) type_name: &'static str,
    pub(crate) outputs: Outputs,
    pub(crate) required: bool,
    pub(crate) built: Built,
    /// By port, what decides which rows take it. See [`TransformConfig::ways`](crate::stage::TransformConfig::ways).
    pub(crate) ways: BTreeMap<String, String>,
    /// How to build a transform once more: one for each partition that several workers share.
    pub(crate) anew: Option<Anew>,
    pub(crate) stats: Arc<StageStats>,
}

/// One edge of a plan: stages by index, writers before readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) port: Port,
    pub(crate) to: usize,
}

impl Plan {
    /// Reads and checks a pipeline file, with the process's environment.
    ///
    /// # Errors
    /// The file can't be read, or every mistake in it.
    pub fn load(path: &Path, registry: &Registry) -> Result<Self, PlanError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| PlanError::Unreadable { file: name.clone(), source })?;
        Self::parse(&text, &name, registry, &Variables::of_process()).map_err(PlanError::Mistakes)
    }

    /// Checks the text of a pipeline file. `file` names it in messages.
    ///
    /// # Errors
    /// Every mistake in the text.
    pub fn parse(text: &str, file: &str, registry: &Registry, variables: &Variables<'_>) -> Result<Self, Mistakes> {
        let plan = file::read(text, file, registry, variables, None, check::check);
        plan.map_err(|mistakes| Mistakes::new(file, text, mistakes))
    }

    /// The same with another source in the place of the file's own.
    ///
    /// # Errors
    /// Every mistake in what becomes of the text.
    pub fn parse_replaced(
        text: &str,
        file: &str,
        registry: &Registry,
        variables: &Variables<'_>,
        replacement: &Replacement,
    ) -> Result<Self, Mistakes> {
        let plan = file::read(text, file, registry, variables, Some(replacement), check::check);
        plan.map_err(|mistakes| Mistakes::new(file, text, mistakes))
    }

    /// A plan made in code.
    pub fn builder(name: impl Into<String>) -> PlanBuilder {
        PlanBuilder::new(name)
    }

    /// The pipeline's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where whoever runs it should answer requests about it. The engine itself opens no socket.
    pub fn http(&self) -> &HttpSettings {
        &self.settings.http
    }

    /// What it has to keep. Whoever runs it measures that; the engine counts what is needed for it.
    pub fn objectives(&self) -> &Objectives {
        &self.settings.objectives
    }

    /// What is allowed but probably not meant, such as a port that nobody reads.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The first source that begins anew in each run; `None` if all go on where the last run was.
    pub fn not_resumable(&self) -> Option<&str> {
        let begins_anew = |node: &&Node| matches!(&node.built, Built::Source(built) if !built.source.is_resumable());
        self.nodes.iter().find(begins_anew).map(|node| node.name.as_str())
    }

    /// Names of the stages, each after those it reads.
    pub fn stages(&self) -> impl Iterator<Item = (&str, Kind, &'static str)> {
        self.nodes.iter().map(|node| (node.name.as_str(), node.kind, node.type_name))
    }

    /// The schema of the rows that leave a stage by a port.
    pub fn schema(&self, stage: &str, port: Port) -> Option<SchemaRef> {
        let node = self.nodes.iter().find(|node| node.name == stage)?;
        node.outputs.iter().find(|(name, _)| *name == port).map(|(_, schema)| schema.clone())
    }

    /// The graph as text.
    pub fn graph(&self, format: GraphFormat) -> String {
        graph::draw(self, format)
    }
}

/// A pipeline file that makes no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It can't be read.
    #[error("can't read the pipeline file \"{file}\": {source}")]
    Unreadable {
        /// As its user named it.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It holds mistakes.
    #[error(transparent)]
    Mistakes(Mistakes),
}

pub(crate) fn mistakes_of_code(mistakes: Vec<Mistake>) -> Mistakes {
    Mistakes::new("", "", mistakes)
}
