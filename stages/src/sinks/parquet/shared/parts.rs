//! A group by partition: each has an owner of its own, who may be another one by the time the group is stored.

use std::collections::BTreeMap;

use pipeline_engine::stage::{Advance, Batch, Group};

/// What a group has of one partition.
#[derive(Debug)]
pub(in crate::sinks::parquet) struct Part<'g> {
    pub(in crate::sinks::parquet) partition: &'g str,
    /// Under which the rows were read.
    pub(in crate::sinks::parquet) tenure: Option<u64>,
    /// In order of arrival.
    pub(in crate::sinks::parquet) batches: Vec<&'g Batch>,
    /// How far the part takes the sink along the partition. Without their tenures: an advance is the same under each.
    pub(in crate::sinks::parquet) advances: Vec<Advance>,
}

/// The parts of a group, each partition once. Rows that nobody waits for make one without a name.
pub(in crate::sinks::parquet) fn split(group: &Group) -> Vec<Part<'_>> {
    let claims = group.claims();
    let mut parts = BTreeMap::new();
    let fresh = |partition| Part {
        partition,
        tenure: claims.get(partition).copied(),
        batches: Vec::new(),
        advances: Vec::new(),
    };
    for batch in group.batches() {
        let partition = batch.ack().span().map_or("", |(partition, _)| partition);
        parts.entry(partition).or_insert_with(|| fresh(partition)).batches.push(batch);
    }
    for advance in group.advances() {
        let partition = &*advance.partition;
        let part = parts.entry(partition).or_insert_with(|| fresh(partition));
        part.advances.push(Advance { tenure: None, ..advance.clone() });
    }
    parts.into_values().collect()
}
