//! The types that a pipeline file can name, and the one place where configurations lose their Rust
//! type.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use arrow::datatypes::SchemaRef;
use toml::Spanned;
use toml::de::DeTable;

use crate::context::BuildContext;
use crate::stage::{
    BuildError, BuiltSink, BuiltSource, BuiltTransform, SinkConfig, SourceConfig, StageDoc, TransformConfig,
};

/// Which of the three kinds a stage is: the table of the pipeline file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `[sources.NAME]`
    Source,
    /// `[transforms.NAME]`
    Transform,
    /// `[sinks.NAME]`
    Sink,
}

impl Kind {
    /// All kinds, in the order in which rows meet them.
    pub const ALL: [Kind; 3] = [Kind::Source, Kind::Transform, Kind::Sink];

    /// The word for one: `source`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Transform => "transform",
            Self::Sink => "sink",
        }
    }

    /// The table of the pipeline file: `sources`.
    pub fn table(self) -> &'static str {
        match self {
            Self::Source => "sources",
            Self::Transform => "transforms",
            Self::Sink => "sinks",
        }
    }
}

/// A running stage with its ports, whatever its kind.
pub(crate) enum Built {
    Source(BuiltSource),
    Transform(BuiltTransform),
    Sink(BuiltSink),
}

/// A configuration that has been read, waiting for its input's schema.
pub(crate) trait Buildable: Send {
    /// `input` is `None` for a source and only for a source.
    fn build(self: Box<Self>, input: Option<&SchemaRef>, cx: &BuildContext) -> Result<Built, BuildError>;

    /// How to build the same transform once more; `None` for anything else.
    fn again(&self, input: Option<&SchemaRef>, cx: &BuildContext) -> Option<Anew> {
        let _ = (input, cx);
        None
    }

    /// See [`TransformConfig::ways`].
    fn ways(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Builds a transform once more, without what another instance of it remembers.
pub(crate) type Anew = Box<dyn Fn() -> Result<BuiltTransform, BuildError> + Send>;

struct Typed<C, K>(C, PhantomData<K>);
struct OfSource;
struct OfTransform;
struct OfSink;

const NO_INPUT: &str = "the plan gives transforms and sinks an input";

impl<C: SourceConfig> Buildable for Typed<C, OfSource> {
    fn build(self: Box<Self>, _: Option<&SchemaRef>, cx: &BuildContext) -> Result<Built, BuildError> {
        self.0.build(cx).map(Built::Source)
    }
}

impl<C: TransformConfig> Buildable for Typed<C, OfTransform> {
    fn build(self: Box<Self>, input: Option<&SchemaRef>, cx: &BuildContext) -> Result<Built, BuildError> {
        self.0.build(input.expect(NO_INPUT), cx).map(Built::Transform)
    }

    fn again(&self, input: Option<&SchemaRef>, cx: &BuildContext) -> Option<Anew> {
        let (config, input, cx) = (self.0.clone(), input?.clone(), cx.clone());
        Some(Box::new(move || config.clone().build(&input, &cx)))
    }

    fn ways(&self) -> Vec<(String, String)> {
        self.0.ways()
    }
}

impl<C: SinkConfig> Buildable for Typed<C, OfSink> {
    fn build(self: Box<Self>, input: Option<&SchemaRef>, cx: &BuildContext) -> Result<Built, BuildError> {
        self.0.build(input.expect(NO_INPUT), cx).map(Built::Sink)
    }
}

pub(crate) fn source<C: SourceConfig>(config: C) -> Box<dyn Buildable> {
    Box::new(Typed::<C, OfSource>(config, PhantomData))
}

pub(crate) fn transform<C: TransformConfig>(config: C) -> Box<dyn Buildable> {
    Box::new(Typed::<C, OfTransform>(config, PhantomData))
}

pub(crate) fn sink<C: SinkConfig>(config: C) -> Box<dyn Buildable> {
    Box::new(Typed::<C, OfSink>(config, PhantomData))
}

/// The stage's table without `type` and `inputs`.
pub(crate) type ConfigTable<'i> = Spanned<DeTable<'i>>;

/// One type: what it says about itself, and how its table becomes a configuration.
#[derive(Clone)]
pub struct StageType {
    /// Source, transform or sink.
    pub kind: Kind,
    /// What it says about itself.
    pub doc: StageDoc,
    /// The JSON schema of its configuration.
    pub config_schema: schemars::Schema,
    pub(crate) read: for<'i> fn(ConfigTable<'i>) -> Result<Box<dyn Buildable>, toml::de::Error>,
}

fn read<C: serde::de::DeserializeOwned>(table: ConfigTable<'_>) -> Result<C, toml::de::Error> {
    C::deserialize(toml::de::Deserializer::from(table))
}

/// The types that can be named, by kind and word.
#[derive(Clone, Default)]
pub struct Registry {
    types: BTreeMap<(Kind, &'static str), StageType>,
}

impl Registry {
    /// A registry without any type.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also knows this type of source.
    #[must_use]
    pub fn with_source<C: SourceConfig>(self) -> Self {
        self.with::<C>(Kind::Source, C::DOC, |table| read::<C>(table).map(source))
    }

    /// Also knows this type of transform.
    #[must_use]
    pub fn with_transform<C: TransformConfig>(self) -> Self {
        self.with::<C>(Kind::Transform, C::DOC, |table| read::<C>(table).map(transform))
    }

    /// Also knows this type of sink.
    #[must_use]
    pub fn with_sink<C: SinkConfig>(self) -> Self {
        self.with::<C>(Kind::Sink, C::DOC, |table| read::<C>(table).map(sink))
    }

    fn with<C: schemars::JsonSchema>(
        mut self,
        kind: Kind,
        doc: StageDoc,
        read: for<'i> fn(ConfigTable<'i>) -> Result<Box<dyn Buildable>, toml::de::Error>,
    ) -> Self {
        let config_schema = schemars::SchemaGenerator::default().into_root_schema_for::<C>();
        self.types.insert((kind, doc.type_name), StageType { kind, doc, config_schema, read });
        self
    }

    /// The type of that kind and word.
    pub fn get(&self, kind: Kind, type_name: &str) -> Option<&StageType> {
        self.types.iter().find(|((of, name), _)| *of == kind && *name == type_name).map(|(_, found)| found)
    }

    /// All types, sources first, by name within a kind.
    pub fn types(&self) -> impl Iterator<Item = &StageType> {
        self.types.values()
    }
}
