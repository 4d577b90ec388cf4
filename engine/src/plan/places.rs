//! Where a pipeline keeps things, for the tools that look at it from beside.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::{Edge, Node, Plan};
use crate::checkpoint::CheckpointStore;
use crate::dead_letter;
use crate::dlq::{LetterStore, Resender};
use crate::far_end::FarEnd;
use crate::position::Position;
use crate::registry::{Built, Kind};
use crate::spool::{FsStorage, inspect};
use crate::stage::{DiskBounds, Port};

/// What a spool is called in the folder of its source.
const SPOOL: &str = "spool";

/// The spool of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolPlace {
    /// The source's name.
    pub source: String,
    /// The spool's directory.
    pub dir: PathBuf,
    /// The pipeline has no source of that name any more: nobody reads what is in it.
    pub orphaned: bool,
}

/// What one sink declares for the commands that know its type.
#[derive(Debug)]
pub struct Declared<T> {
    /// The sink's name.
    pub sink: String,
    /// Its inputs, as the pipeline file names them: `valid`, `valid.rejected`.
    pub inputs: Vec<String>,
    /// It has every row: the source waits for it, and it never goes without.
    pub required: bool,
    /// What it declares.
    pub value: T,
}

impl Plan {
    /// Where this pipeline keeps what must survive a restart.
    pub fn data_dir(&self) -> &Path {
        &self.settings.data_dir
    }

    /// The spools there are in the data directory, by name. Unlike the rest of a plan it looks at the
    /// disk.
    ///
    /// # Errors
    /// The data directory is there and can't be read.
    pub fn spools(&self) -> io::Result<Vec<SpoolPlace>> {
        let entries = match std::fs::read_dir(self.data_dir()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let folder = entry?;
            let dir = folder.path().join(SPOOL);
            let Ok(source) = folder.file_name().into_string() else { continue };
            if dir.is_dir() {
                let orphaned = !self.stages().any(|(name, kind, _)| kind == Kind::Source && name == source);
                found.push(SpoolPlace { source, dir, orphaned });
            }
        }
        found.sort_by(|left, right| left.source.cmp(&right.source));
        Ok(found)
    }

    /// Has the next run read its spools again from the oldest record that they still hold, with transforms as new: for
    /// sinks whose database was restored and that need older rows than the last checkpoint. Whatever a sink has stored by
    /// its own positions it leaves out; a sink that keeps none, such as one that publishes, is given it again. Says when the
    /// oldest record of each spool was received, in microseconds since 1970.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while the pipeline runs, or as the filesystem says.
    pub fn rewind(&self) -> io::Result<Vec<(String, Option<i64>)>> {
        let (store, last) = CheckpointStore::open(Arc::new(FsStorage), self.data_dir())?;
        let mut checkpoint = last.unwrap_or_default();
        let mut rewound = Vec::new();
        for place in self.spools()?.into_iter().filter(|place| !place.orphaned) {
            let found = inspect(&place.dir, &FsStorage).map_err(io::Error::other)?;
            let epoch = found.segments.iter().rev().find_map(|segment| segment.epoch);
            if let (Some(lsns), Some(epoch)) = (found.lsns, epoch) {
                let before = Position([0, 0, epoch, lsns.start().saturating_sub(1)]);
                checkpoint.positions.insert(format!("{}/{SPOOL}", place.source), before);
                rewound.push((place.source, found.oldest_received_at_us));
            }
        }
        // States belong to the place that was left.
        checkpoint.states.clear();
        checkpoint.id += 1;
        store.keep(&checkpoint)?;
        Ok(rewound)
    }

    /// Whether every source can be resumed, and so the run.
    pub(crate) fn resumes(&self) -> bool {
        self.not_resumable().is_none()
    }

    /// How much its sources and the queues to slow sinks may come to on disk, in the data directory: by stage, and what it
    /// keeps there.
    pub fn disk_bounds(&self) -> Vec<(&str, &'static str, DiskBounds)> {
        let sources = self.nodes.iter().filter_map(|node| match &node.built {
            Built::Source(built) => Some((node, &built.source)),
            _ => None,
        });
        let resumes = self.resumes();
        let spools = sources
            .filter_map(|(node, source)| source.disk_bounds().map(|bounds| (node.name.as_str(), "spool", bounds)));
        let mut found: Vec<_> = spools.collect();
        let edges = self.edges.iter().filter(|edge| resumes && self.nodes[edge.to].kind == Kind::Sink);
        found.extend(edges.map(|edge| {
            let bounds = DiskBounds { bytes_max: self.settings.overflow_bytes_max, free_bytes_min: 0 };
            (self.nodes[edge.to].name.as_str(), "overflow", bounds)
        }));
        found
    }

    /// The dead letters of each sink that collects them and that they can be read back from: the sink's
    /// name, its type and the letters.
    pub fn letter_stores(&self) -> Vec<(&str, &'static str, Box<dyn LetterStore>)> {
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let collects = self.input_schema(index).is_some_and(|input| input == dead_letter::schema());
            if let (true, Built::Sink(built)) = (collects, &node.built)
                && let Some(store) = built.sink.dead_letters()
            {
                found.push((node.name.as_str(), node.type_name, store));
            }
        }
        found
    }

    /// What the sinks declare of this type, see [`Sink::declared`](crate::stage::Sink::declared): in the order of the
    /// plan, each with the inputs of its sink as the pipeline file names them.
    pub fn declared<T: 'static>(&self) -> Vec<Declared<T>> {
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Built::Sink(built) = &node.built
                && let Some(Ok(value)) = built.sink.declared().map(|declared| declared.downcast::<T>())
            {
                let inputs = self.edges.iter().filter(|edge| edge.to == index).map(|edge| self.input_name(edge));
                let (sink, required) = (node.name.clone(), node.required);
                found.push(Declared { sink, inputs: inputs.collect(), required, value: *value });
            }
        }
        found
    }

    /// `valid`, `valid.rejected`.
    fn input_name(&self, edge: &Edge) -> String {
        let from = &self.nodes[edge.from].name;
        if edge.port == Port::MAIN { from.clone() } else { format!("{from}.{}", edge.port.name()) }
    }

    /// What lies at the far ends of the sinks that can be looked at: the sink's name, the look, and the schema of the rows that
    /// it is given.
    pub fn far_ends(&self) -> Vec<(String, Box<dyn FarEnd>, SchemaRef)> {
        let far_end = |(index, node): (usize, &Node)| match &node.built {
            Built::Sink(built) => Some((node.name.clone(), built.sink.far_end()?, self.input_schema(index)?)),
            _ => None,
        };
        self.nodes.iter().enumerate().filter_map(far_end).collect()
    }

    /// The way in by a source's own door; `None` where there is none.
    pub fn resender(&self, source: &str) -> Option<Box<dyn Resender>> {
        let node = self.nodes.iter().find(|node| node.name == source)?;
        match &node.built {
            Built::Source(built) => built.source.resender(),
            _ => None,
        }
    }

    /// Whether rows that a source sends by its main port come to this stage by main ports alone.
    pub fn leads_to(&self, source: &str, stage: &str) -> bool {
        let before = |name: &str| -> Vec<&str> {
            let edges = self.edges.iter().filter(|edge| edge.port == Port::MAIN && self.nodes[edge.to].name == name);
            edges.map(|edge| self.nodes[edge.from].name.as_str()).collect()
        };
        // A plan has no cycles.
        let mut reached = vec![stage];
        while let Some(name) = reached.pop() {
            if name == source {
                return true;
            }
            reached.extend(before(name));
        }
        false
    }

    /// The schema that a stage reads; `None` for a source.
    pub(crate) fn input_schema(&self, stage: usize) -> Option<SchemaRef> {
        let edge = self.edges.iter().find(|edge| edge.to == stage)?;
        let mut outputs = self.nodes[edge.from].outputs.iter();
        outputs.find(|(port, _)| *port == edge.port).map(|(_, schema)| schema.clone())
    }
}
