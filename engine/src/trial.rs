//! A plan tried without its outside: rows put in where a source would, and rows out by every port.
//!
//! Sources and sinks are not opened, and nothing is stored. Transforms run as in a pipeline, in one thread, with the
//! time of receipt that the caller names. For `pipeline test`, and for tests of a pipeline in code.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;

use crate::ack::Partition;
use crate::batch::Batch;
use crate::error::StageError;
use crate::plan::{Node, Plan};
use crate::position::Span;
use crate::registry::Built;
use crate::schema::timestamp_type;
use crate::stage::{Emitter, Port};
use crate::suggest::suggest;

/// What has left each port, in order: by `stage`, or `stage.port` where it is not the main one.
pub type Left = BTreeMap<String, Vec<RecordBatch>>;

/// A plan whose transforms are open.
pub struct Trial {
    nodes: Vec<Node>,
    /// Readers of each node's ports.
    readers: Vec<Vec<(Port, usize)>>,
    partition: Partition,
    /// Batches that were put in.
    fed: u64,
    left: Left,
}

impl Trial {
    /// Opens the transforms, which may read files and reach what else they look things up in.
    ///
    /// # Errors
    /// A transform can't be opened; its name is in the error.
    pub fn open(plan: Plan) -> Result<Self, StageError> {
        let Plan { mut nodes, edges, .. } = plan;
        for node in &mut nodes {
            if let Built::Transform(built) = &mut node.built {
                built.transform.open().map_err(|error| in_stage(&node.name, error))?;
            }
        }
        let mut readers = vec![Vec::new(); nodes.len()];
        for edge in edges {
            readers[edge.from].push((edge.port, edge.to));
        }
        Ok(Self { nodes, readers, partition: Partition::new("trial/0"), fed: 0, left: Left::new() })
    }

    /// Where rows can be put in or come out, as `inputs` in a pipeline file names it.
    pub fn ports(&self) -> impl Iterator<Item = String> + '_ {
        self.nodes.iter().flat_map(|node| node.outputs.iter().map(|(port, _)| shown(&node.name, *port)))
    }

    /// The schema of the rows at such a place.
    ///
    /// # Errors
    /// There is none of this name; the text lists those that there are.
    pub fn schema(&self, place: &str) -> Result<SchemaRef, String> {
        self.find(place).map(|(node, port)| {
            let outputs = &self.nodes[node].outputs;
            outputs
                .iter()
                .find(|(name, _)| *name == port)
                .map_or_else(|| Arc::new(Schema::empty()), |(_, schema)| schema.clone())
        })
    }

    fn find(&self, place: &str) -> Result<(usize, Port), String> {
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some((port, _)) = node.outputs.iter().find(|(port, _)| shown(&node.name, *port) == place) {
                return Ok((index, *port));
            }
        }
        let known: Vec<String> = self.ports().collect();
        let hint = suggest(place, known.iter().map(String::as_str), "There are", "Nothing leaves any stage.");
        Err(format!("no stage or port is named \"{place}\". {hint}"))
    }

    /// Puts a batch in, as if it had left at this place, received at this time.
    ///
    /// # Errors
    /// There is no such place, or a transform fails.
    pub fn feed(&mut self, place: &str, rows: RecordBatch, received_at_us: i64) -> Result<(), StageError> {
        let (node, port) = self.find(place).map_err(StageError::permanent)?;
        self.fed += 1;
        let ack = self.partition.open(Span::new(self.fed, self.fed), received_at_us);
        self.pass_on(node, port, Batch::new(rows, ack))
    }

    /// The input has ended. Gives all that has left each port since the trial began.
    ///
    /// # Errors
    /// A transform fails.
    pub fn finish(mut self) -> Result<Left, StageError> {
        // Writers come before their readers.
        for node in 0..self.nodes.len() {
            let mut out = Emitter::default();
            if let Built::Transform(built) = &mut self.nodes[node].built {
                built.transform.finish(&mut out).map_err(|error| in_stage(&self.nodes[node].name, error))?;
            }
            for (port, batch) in out.take() {
                self.pass_on(node, port, batch)?;
            }
        }
        Ok(self.left)
    }

    fn pass_on(&mut self, node: usize, port: Port, batch: Batch) -> Result<(), StageError> {
        if batch.rows.num_rows() > 0 {
            self.left.entry(shown(&self.nodes[node].name, port)).or_default().push(batch.rows.clone());
        }
        for index in 0..self.readers[node].len() {
            let (read, reader) = self.readers[node][index];
            let node = &mut self.nodes[reader];
            if let (true, Built::Transform(built)) = (read == port, &mut node.built) {
                let mut out = Emitter::default();
                built.transform.apply(batch.fan_out(), &mut out).map_err(|error| in_stage(&node.name, error))?;
                for (port, batch) in out.take() {
                    self.pass_on(reader, port, batch)?;
                }
            }
        }
        Ok(())
    }
}

fn shown(stage: &str, port: Port) -> String {
    if port == Port::MAIN { stage.to_owned() } else { format!("{stage}.{}", port.name()) }
}

fn in_stage(stage: &str, error: StageError) -> StageError {
    StageError::permanent(format!("stage \"{stage}\"")).because(error)
}

/// Rows from JSON, one object a line, such as [`crate::dead_letter::json_lines`] writes. What an object leaves out is
/// null.
///
/// # Errors
/// In words: a line is no object, or has a column that is not there or of another type, or lacks one that can't be null.
pub fn rows_of_json(lines: &str, schema: &SchemaRef) -> Result<RecordBatch, String> {
    // Arrow reads times with an offset and not with the name of a zone.
    let with_offsets: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            kind if *kind == timestamp_type() => {
                let kind = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
                field.as_ref().clone().with_data_type(kind)
            }
            _ => field.as_ref().clone(),
        })
        .collect();
    let text = |error: arrow::error::ArrowError| error.to_string();
    let reader = ReaderBuilder::new(Arc::new(Schema::new(with_offsets))).with_strict_mode(true);
    let mut decoder = reader.build_decoder().map_err(text)?;
    decoder.decode(lines.as_bytes()).map_err(text)?;
    let Some(rows) = decoder.flush().map_err(text)? else { return Ok(RecordBatch::new_empty(schema.clone())) };
    let columns = rows.columns().iter().zip(schema.fields()).map(|(column, field)| -> ArrayRef {
        match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(times) if *field.data_type() == timestamp_type() => Arc::new(times.clone().with_timezone("UTC")),
            _ => column.clone(),
        }
    });
    RecordBatch::try_new(schema.clone(), columns.collect()).map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::json_lines;

    #[test]
    fn rows_are_what_their_json_says() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("device_id", DataType::Utf8, false),
            Field::new("at", timestamp_type(), true),
            Field::new("value", DataType::Float64, true),
            Field::new("count", DataType::Int32, true),
            Field::new("ok", DataType::Boolean, true),
        ]));
        let text = "{\"device_id\":\"a\",\"at\":\"2026-01-31T12:00:00.5Z\",\"value\":1.25,\"count\":-3,\"ok\":true}\n{\"device_id\":\"b\"}\n";
        let rows = rows_of_json(text, &schema).unwrap();
        assert_eq!(rows.schema(), schema);
        let again = rows_of_json(std::str::from_utf8(&json_lines(&rows).unwrap()).unwrap(), &schema).unwrap();
        assert_eq!(again, rows);
        assert_eq!(rows_of_json("", &schema).unwrap().num_rows(), 0);
        for (wrong, says) in [
            ("{\"device_id\":\"a\",\"vaule\":1}", "vaule"),
            ("{\"device_id\":\"a\",\"count\":\"many\"}", "many"),
            ("{\"count\":1}", "device_id"),
            ("[1]", "expected {"),
        ] {
            let error = rows_of_json(wrong, &schema).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
