//! Where a pipeline keeps things, for the tools that look at it from beside.

use std::io;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;

use super::Plan;
use crate::dead_letter;
use crate::dlq::LetterStore;
use crate::registry::{Built, Kind};
use crate::stage::DiskBounds;

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

    /// The schema that a stage reads; `None` for a source.
    pub(crate) fn input_schema(&self, stage: usize) -> Option<SchemaRef> {
        let edge = self.edges.iter().find(|edge| edge.to == stage)?;
        let mut outputs = self.nodes[edge.from].outputs.iter();
        outputs.find(|(port, _)| *port == edge.port).map(|(_, schema)| schema.clone())
    }
}
