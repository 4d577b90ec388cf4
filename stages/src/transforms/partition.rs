//! Deals rows out by a key: all rows of a device take the same way, in their order.
//!
//! ```toml
//! [transforms.split]
//! type = "partition"
//! inputs = ["valid"]
//! key = ["device_id"]
//! parts = 2
//! ```
//!
//! Each part is a port, `split.0` and `split.1`, and what reads it works beside the readers of the others: a transform that remembers
//! devices has a core to itself in each part, a sink a connection of its own. Which part a key belongs to depends on the key and on
//! `parts` alone: on no machine, run or version.
//!
//! With another `parts` or `key` devices change places. Rows that were on their way then come again, so that none is left out by a sink
//! that was ahead of the one it was meant for: a table's `key` makes one row of them. What a transform behind the parts remembers of a device
//! stays in its old place, and an open window of it is closed there without the rows of the new one.

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::keys::{KeyColumns, is_hashable};
use super::snapshot;

/// More would be more than any machine has cores.
const PARTS_MAX: u16 = 64;

/// `type = "partition"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionConfig {
    /// The columns that rows are told apart by. A null is a value like any other.
    pub key: Vec<String>,
    /// How many parts there are, from 2 to 64.
    pub parts: u16,
}

impl TransformConfig for PartitionConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "partition",
        summary: "Deals rows out by a key, so that several transforms or sinks share the work and each has the devices that are its own.",
        ports: &[("N", "Rows of part N, counted from 0.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. A replay deals the rows out as before, \
                  as long as `parts` and `key` are the same; the rows themselves are untouched.",
    };

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if !(2..=PARTS_MAX).contains(&self.parts) {
            return Err(BuildError::invalid("parts", format!("{} is not between 2 and {PARTS_MAX}", self.parts))
                .hint("About as many as there are cores to share the work."));
        }
        let key = KeyColumns::find(input, &self.key, "something that can be told apart", is_hashable)?;
        let ports: Vec<Port> = (0..self.parts).map(|part| Port::configured(part.to_string())).collect();
        let outputs = ports.iter().map(|port| (*port, input.clone())).collect();
        let rows = ports.iter().map(|_| Vec::new()).collect();
        Ok(BuiltTransform { transform: Box::new(Partition { key, ports, rows, bytes: Vec::new() }), outputs })
    }

    fn ways(&self) -> Vec<(String, String)> {
        let dealt = format!("{} by {:?}", self.parts, self.key);
        (0..self.parts).map(|part| (part.to_string(), dealt.clone())).collect()
    }
}

struct Partition {
    key: KeyColumns,
    ports: Vec<Port>,
    /// The rows of each part of the batch at hand; kept for their capacity.
    rows: Vec<Vec<u32>>,
    /// The key at hand; kept for its capacity.
    bytes: Vec<u8>,
}

impl Transform for Partition {
    fn apply(&mut self, mut batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let all = batch.rows.clone();
        let keys = self.key.of(&all)?;
        let parts = self.ports.len() as u128;
        self.rows.iter_mut().for_each(Vec::clear);
        for (index, row) in (0..all.num_rows()).zip(0_u32..) {
            keys.encode_with_nulls(index, &mut self.bytes);
            self.rows[(snapshot::hash(&self.bytes) % parts) as usize].push(row);
        }
        // An empty batch goes on by one port: its promise must be kept.
        let last = self.rows.iter().rposition(|rows| !rows.is_empty()).unwrap_or(0);
        for (port, rows) in self.ports.iter().zip(&self.rows).take(last).filter(|(_, rows)| !rows.is_empty()) {
            let rows = take_record_batch(&all, &UInt32Array::from_iter_values(rows.iter().copied()))?;
            let (part, rest) = batch.split(rows, all.clone());
            out.emit_to(*port, part);
            batch = rest;
        }
        let rows = &self.rows[last];
        if rows.len() < all.num_rows() {
            batch = batch.with_rows(take_record_batch(&all, &UInt32Array::from_iter_values(rows.iter().copied()))?);
        }
        out.emit_to(self.ports[last], batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::AsArray;
    use arrow::datatypes::TimestampMicrosecondType;

    use super::*;
    use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

    const TEXT: &str = "key = [\"device_id\"]\nparts = 4";

    fn times(outcome: &Outcome, port: Port) -> Vec<i64> {
        let Some(rows) = outcome.port(port) else { return Vec::new() };
        rows.column_by_name("timestamp").unwrap().as_primitive::<TimestampMicrosecondType>().values().to_vec()
    }

    #[test]
    fn each_device_takes_one_way_and_its_rows_keep_their_order() {
        let mut stage = built::<PartitionConfig>(TEXT, &context()).unwrap();
        let ports: Vec<Port> = stage.outputs.iter().map(|(port, _)| *port).collect();
        assert_eq!(ports.iter().map(|port| port.name()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        let given: Vec<Reading> = (0..1_000).map(|n| Reading::of(&format!("device-{}", n % 100), n)).collect();
        let mut ways: BTreeMap<String, Port> = BTreeMap::new();
        let mut seen: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for batch in given.chunks(300) {
            let outcome = apply(&mut *stage.transform, Batch::detached(rows(batch)));
            assert!(outcome.keeps(&stage.outputs));
            for port in &ports {
                for (device, at) in outcome.texts(*port, "device_id").into_iter().zip(times(&outcome, *port)) {
                    assert_eq!(ways.entry(device.clone()).or_insert(*port), port, "{device}");
                    seen.entry(device).or_default().push(at);
                }
            }
        }
        assert_eq!(seen.values().map(Vec::len).sum::<usize>(), given.len(), "every row once");
        assert!(seen.values().all(|times| times.is_sorted()), "in their order");
        for port in ports {
            let devices = ways.values().filter(|way| **way == port).count();
            assert!((10..=40).contains(&devices), "{devices} of 100 devices in one of four parts");
        }
    }

    #[test]
    fn where_a_device_belongs_is_the_same_in_every_version() {
        let mut stage = built::<PartitionConfig>(TEXT, &context()).unwrap();
        let given: Vec<Reading> = (0..8).map(|n| Reading::of(&format!("device-{n}"), n)).collect();
        let nobody = Reading { device_id: None, ..Reading::of("", 8) };
        let given = [given, vec![nobody]].concat();
        let outcome = apply(&mut *stage.transform, Batch::detached(rows(&given)));
        let parts: Vec<Vec<i64>> = stage.outputs.iter().map(|(port, _)| times(&outcome, *port)).collect();
        // Written down once: whoever changes it sends devices another way in running systems.
        assert_eq!(parts, [vec![6, 7], vec![1, 5, 8], vec![2, 4], vec![0, 3]]);
    }

    #[test]
    fn one_device_alone_and_no_row_at_all_go_on_as_they_came() {
        let mut stage = built::<PartitionConfig>(TEXT, &context()).unwrap();
        for given in [vec![Reading::of("device-1", 1), Reading::of("device-1", 2)], vec![]] {
            let outcome = apply(&mut *stage.transform, Batch::detached(rows(&given)));
            assert_eq!(outcome.0.len(), 1, "no part without rows keeps anybody busy");
            assert_eq!(outcome.0[0].1.rows, rows(&given));
        }
    }

    #[test]
    fn mistakes_are_named_with_a_way_out() {
        for (text, key, says) in [
            ("key = [\"device_id\"]\nparts = 1", "parts", "not between 2 and 64"),
            ("key = [\"device_id\"]\nparts = 65", "parts", "as many as there are cores"),
            ("key = []\nparts = 2", "key", "Name at least one"),
            ("key = [\"divice_id\"]\nparts = 2", "key", "device_id"),
        ] {
            let (found, message) = mistake::<PartitionConfig>(text);
            assert!(found == key && message.contains(says), "{text}: {found}: {message}");
        }
        built::<PartitionConfig>(&example(include_str!("partition.rs")), &context()).unwrap();
    }
}
