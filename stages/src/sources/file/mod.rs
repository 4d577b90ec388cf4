//! Reads rows from files: JSON lines or CSV, plain or packed, as fast as the pipeline takes them or at
//! the pace at which they were recorded.
//!
//! A line that does not fit the schema is a dead letter with its line number; its neighbours go on.
//! Where a batch ends depends on the content of the file alone, so reading it again makes the same
//! batches; only a paced replay cuts them by the clock. Every run reads its files from the start.
//!
//! JSON lines are read by one thread and decoded on several cores; they leave in the order of the file.

mod decoding;
mod pace;
mod reader;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSource, Outputs, Port, Source, SourceConfig, SourceContext, StageDoc, StageError,
};
use pipeline_engine::units::SizeText;
use pipeline_engine::{Partition, columns, dead_letter};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use self::decoding::Chunks;
use self::pace::{Pace, Paced};
use self::reader::{FileReader, Handing, Plan};
use super::decoder;
use super::records::{Compression, FileFormat};
use crate::decode::{self, Decoder, Format, UnknownFields};

/// `type = "file"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The file to read, or a list of files that are read one after the other.
    path: Paths,
    /// How the records of a file are written.
    format: FileFormat,
    /// How a file is compressed. Without it a name that ends in ".gz" means gzip, and one in ".zst" Zstandard.
    compression: Option<Compression>,
    /// The schema to decode into. Without one the rows are the lines themselves: topic, payload and
    /// received_at. CSV needs one.
    schema: Option<String>,
    /// What becomes of a field that no column of the schema asks for; a column with `rest = true` keeps it as JSON. All are
    /// counted as `unknown_fields`, and the first one of its name is told.
    unknown_fields: Option<UnknownFields>,
    /// The topic that each line seems to have come by.
    topic: Option<String>,
    /// The column of timestamps to replay by. Without it the files are read as fast as the pipeline
    /// takes them.
    pace: Option<String>,
    /// How many times faster than recorded a paced replay runs; 1.0 if not given.
    speed: Option<f64>,
    /// The longest line, or record of a CSV file. A longer one is a dead letter with its beginning.
    #[serde(default = "default_line_bytes_max")]
    line_bytes_max: SizeText,
}

fn default_line_bytes_max() -> SizeText {
    SizeText(1 << 20)
}

impl SourceConfig for FileConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "file",
        summary: "Reads rows from JSON lines or CSV files, plain, gzip or zstd, at full speed or as they were recorded.",
        ports: &[("rejected", "lines that do not fit the schema or are too long")],
        failure: "A file that is missing, has no fitting header or can't be read to its end stops the run with its \
                  name and line; what came before is stored. Nothing is retried. Each run reads from the start, so \
                  running it again repeats every row: the key for deduplication is the file and the line number, \
                  or a key of the rows themselves.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        if self.path.0.is_empty() {
            return Err(BuildError::invalid("path", "the list of files is empty"));
        }
        if self.schema.is_none() && self.format == FileFormat::Csv {
            let hint = "Declare its columns as [schema.NAME] and name that here.";
            return Err(BuildError::invalid("schema", "a CSV file needs a schema").hint(hint));
        }
        if self.line_bytes_max.0 == 0 {
            return Err(BuildError::invalid("line_bytes_max", "no line has zero bytes"));
        }
        let schema = self.schema.as_ref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoder = decoder(cx, schema.as_deref(), Format::Json, self.unknown_fields)?;
        let mut outputs = decoder.outputs();
        if outputs.iter().all(|(port, _)| *port != Port::REJECTED) {
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        let pace = self.pace(&outputs, &decoder.received_at_columns())?;
        let source = FileSource { config: self, decoder, pace };
        Ok(BuiltSource { source: Box::new(source), outputs })
    }
}

impl FileConfig {
    fn pace(&self, outputs: &Outputs, received_at: &[usize]) -> Result<Option<Pace>, BuildError> {
        let speed = self.speed.unwrap_or(1.0);
        let forward = speed > 0.0; // false for NaN as well
        if !forward || speed.is_infinite() {
            return Err(BuildError::invalid("speed", format!("a replay can't run at {speed} times its pace")));
        }
        let Some(name) = &self.pace else {
            return match self.speed {
                None => Ok(None),
                Some(_) => Err(BuildError::invalid("speed", "only a paced replay has a speed")
                    .hint("Name the column of timestamps to replay by: pace = \"timestamp\".")),
            };
        };
        let rows: &SchemaRef = &outputs[0].1;
        let column = columns::find_typed(rows, "pace", name, "a timestamp", |found| *found == timestamp_type())?;
        if received_at.contains(&column) {
            let message = format!("column \"{name}\" is the time of receipt, which a replay makes anew");
            return Err(BuildError::invalid("pace", message));
        }
        Ok(Some(Pace { column, speed, received_at: received_at.to_vec() }))
    }

    fn compression(&self, path: &std::path::Path) -> Compression {
        self.compression.unwrap_or_else(|| Compression::of_name(&path.to_string_lossy()))
    }
}

/// The running source.
struct FileSource {
    config: FileConfig,
    decoder: Decoder,
    pace: Option<Pace>,
}

#[async_trait]
impl Source for FileSource {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let partitions: Vec<Partition> =
            self.config.path.0.iter().map(|path| cx.partition(path.display().to_string())).collect();
        let mut paced = self.pace.clone().map(|pace| Paced::new(pace, partitions.len()));
        let decodes_apart = decode::width() > 1 && paced.is_none();
        let (handing, mut chunks) = Chunks::new(self.decoder.twin(), self.config.topic.as_deref());
        // Files block the thread that reads them, which therefore is none of the runtime's.
        let reading = tokio::task::spawn_blocking(move || self.read(decodes_apart, handing));
        loop {
            let chunk = tokio::select! {
                biased;
                () = cx.stop_requested() => break,
                chunk = chunks.next() => chunk?,
            };
            let Some(chunk) = chunk else { break };
            let partition = &partitions[chunk.file];
            match &mut paced {
                None => chunk.send(&cx, partition).await?,
                Some(paced) => paced.send(chunk, &cx, partition).await?,
            }
        }
        // The reading thread ends as soon as nobody takes its chunks.
        drop(chunks);
        let read = reading.await.unwrap_or_else(|panic| {
            Err(StageError::bug("the thread that reads the files ended before it was done").because(panic))
        });
        for partition in &partitions {
            let drained = cx.drain(partition).await;
            // A file that broke off is the cause, and not what followed from it.
            if read.is_ok() {
                drained?;
            }
        }
        read
    }

    /// On the caller's thread: a few opens and headers, and nothing else runs during a check.
    async fn probe(&mut self) -> Result<String, StageError> {
        let files = self.open_all()?.len();
        Ok(if files == 1 { "the file can be read".to_owned() } else { format!("all {files} files can be read") })
    }
}

impl FileSource {
    /// Reads all files, on a thread of its own, until nobody takes what it reads any more.
    fn read(mut self, decodes_apart: bool, mut handing: Handing) -> Result<(), StageError> {
        let files = self.open_all()?;
        let pace_column = self.pace.as_ref().map(|pace| pace.column);
        let plan = Plan { topic: self.config.topic.as_deref(), pace_column, decodes_apart };
        for (index, file) in files.into_iter().enumerate() {
            let read_on = file.read(index, &plan, &mut self.decoder, &mut handing)?;
            if !read_on {
                break;
            }
        }
        Ok(())
    }

    /// All are opened before any is read: a missing file or a header that doesn't fit shows before
    /// any row leaves.
    fn open_all(&mut self) -> Result<Vec<FileReader>, StageError> {
        let Self { config, decoder, .. } = self;
        let open = |path: &PathBuf| {
            FileReader::open(path, config.compression(path), config.format, config.line_bytes_max.bytes(), decoder)
        };
        config.path.0.iter().map(open).collect()
    }
}

/// One file or a list of them.
#[derive(Debug)]
struct Paths(Vec<PathBuf>);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathsVisitor)
    }
}

struct PathsVisitor;

impl<'de> Visitor<'de> for PathsVisitor {
    type Value = Paths;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path of a file, or a list of paths")
    }

    fn visit_str<E>(self, path: &str) -> Result<Paths, E> {
        Ok(Paths(vec![path.into()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
        let mut paths = Vec::new();
        while let Some(path) = list.next_element()? {
            paths.push(path);
        }
        Ok(Paths(paths))
    }
}

impl JsonSchema for Paths {
    fn schema_name() -> Cow<'static, str> {
        "Paths".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

#[cfg(test)]
mod tests;
