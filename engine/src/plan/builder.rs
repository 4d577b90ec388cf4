//! Plans made in code: for programs that embed the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Draft, DraftStage, Plan, Settings, check, mistakes_of_code};
use crate::file::{HttpSettings, KeyPlaces, Mistakes};
use crate::registry::{self, Buildable, Kind};
use crate::schema::DeclaredSchema;
use crate::stage::{SinkConfig, SourceConfig, StageDoc, TransformConfig};

/// Collects stages by name; [`PlanBuilder::build`] checks them as a pipeline file is checked.
#[must_use]
pub struct PlanBuilder {
    settings: Settings,
    schemas: BTreeMap<String, Arc<DeclaredSchema>>,
    stages: Vec<DraftStage<'static>>,
}

impl PlanBuilder {
    pub(super) fn new(name: impl Into<String>) -> Self {
        let settings = Settings { name: name.into(), ..Settings::default() };
        Self { settings, schemas: BTreeMap::new(), stages: Vec::new() }
    }

    /// How many rows may wait on each edge.
    pub fn queue_rows(mut self, rows: u32) -> Self {
        self.settings.queue_rows = rows.max(1);
        self
    }

    /// How long a stop waits for rows on their way.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    /// Where the pipeline keeps what must survive a restart; used by no other pipeline.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.settings.data_dir = dir.into();
        self
    }

    /// How often the state of transforms is kept.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.settings.checkpoint_interval = interval;
        self
    }

    /// How much may lie on disk for one slow sink.
    pub fn overflow_bytes_max(mut self, bytes: u64) -> Self {
        self.settings.overflow_bytes_max = bytes;
        self
    }

    /// Where whoever runs it should answer requests about it.
    pub fn http(mut self, http: HttpSettings) -> Self {
        self.settings.http = http;
        self
    }

    /// The sink named is optional: it holds up nothing, and goes without what it is too slow for.
    pub fn optional(mut self, sink: &str) -> Self {
        for stage in self.stages.iter_mut().filter(|stage| stage.kind == Kind::Sink && stage.name == sink) {
            stage.required = false;
        }
        self
    }

    /// A declared schema that sources can name.
    pub fn schema(mut self, name: impl Into<String>, schema: DeclaredSchema) -> Self {
        self.schemas.insert(name.into(), Arc::new(schema));
        self
    }

    /// A source.
    pub fn source<C: SourceConfig>(self, name: &str, config: C) -> Self {
        self.stage(name, Kind::Source, C::DOC, &[], registry::source(config))
    }

    /// A transform that reads these stages or ports.
    pub fn transform<C: TransformConfig>(self, name: &str, inputs: &[&str], config: C) -> Self {
        self.stage(name, Kind::Transform, C::DOC, inputs, registry::transform(config))
    }

    /// A sink that reads these stages or ports.
    pub fn sink<C: SinkConfig>(self, name: &str, inputs: &[&str], config: C) -> Self {
        self.stage(name, Kind::Sink, C::DOC, inputs, registry::sink(config))
    }

    fn stage(mut self, name: &str, kind: Kind, doc: StageDoc, inputs: &[&str], config: Box<dyn Buildable>) -> Self {
        self.stages.push(DraftStage {
            name: name.to_owned(),
            kind,
            type_name: doc.type_name,
            ports: doc.ports,
            inputs: inputs.iter().map(|input| ((*input).to_owned(), None)).collect(),
            required: true,
            config: Some(config),
            source: None,
            places: KeyPlaces::default(),
        });
        self
    }

    /// Checks the graph and builds its stages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn build(self) -> Result<Plan, Mistakes> {
        let draft = Draft { settings: self.settings, schemas: Arc::new(self.schemas), stages: self.stages };
        check::check(draft, Vec::new()).map_err(mistakes_of_code)
    }
}
