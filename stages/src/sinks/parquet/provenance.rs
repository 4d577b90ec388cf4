//! What the footer of each file says about where its rows came from: enough to prove later, from the
//! objects alone, that nothing is missing and nothing is there twice.
//!
//! `pipeline.source` names the positions of the rows. `pipeline.group` says how far the group took
//! the sink, and how many rows it had: the objects with one `pipeline.group` are one group, their
//! rows must add up to its `rows`, and the groups must follow on each other, each `from` being the
//! `to` of the one before.

use std::collections::BTreeMap;

use pipeline_engine::stage::{Advance, Batch};
use pipeline_engine::{Ack, Position};
use serde_json::{Value, json};

/// The key of what says how far a group took the sink, and how many rows it had.
pub(super) const GROUP: &str = "pipeline.group";

/// The entries of the footer that all files of a group share, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Provenance {
    source: String,
    /// Not for groups of sources that can't resume: their positions mean nothing in another run.
    group: Option<String>,
}

impl Provenance {
    /// What there is to say about the rows of a group, of which these are all batches, and how far it takes the sink.
    pub(super) fn of(batches: &[&Batch], advances: &[Advance]) -> Self {
        let rows = batches.iter().map(|batch| batch.rows.num_rows()).sum();
        Self {
            source: source(batches.iter().map(|batch| batch.ack())),
            group: (!advances.is_empty()).then(|| whole_group(rows, advances)),
        }
    }

    /// Key and value of each entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let group = self.group.as_deref().map(|group| (GROUP, group));
        [("pipeline.source", self.source.as_str())].into_iter().chain(group)
    }
}

/// For each partition of a source the first and last position, and when the first and the last batch
/// were received (microseconds since 1970). Empty for rows that no source promised anything for,
/// which only tests make.
fn source<'a>(acks: impl Iterator<Item = &'a Ack>) -> String {
    let mut partitions = BTreeMap::<String, (Position, Position, i64, i64)>::new();
    for ack in acks {
        let (Some((partition, span)), Some(received)) = (ack.span(), ack.received_at_us()) else { continue };
        let first = (span.first, span.last, received, received);
        let whole = partitions.entry(partition.to_owned()).or_insert(first);
        *whole = (whole.0.min(span.first), whole.1.max(span.last), whole.2.min(received), whole.3.max(received));
    }
    let entries = partitions.into_iter().map(|(partition, (first, last, from_us, to_us))| {
        json!({
            "partition": partition,
            "first": first.to_string(),
            "last": last.to_string(),
            "received_from_us": from_us,
            "received_to_us": to_us,
        })
    });
    Value::Array(entries.collect()).to_string()
}

fn whole_group(rows: usize, advances: &[Advance]) -> String {
    let advance = |advance: &Advance| {
        json!({
            "input": advance.input,
            "partition": advance.partition,
            "from": advance.from.map(|from| from.to_string()),
            "to": advance.to.to_string(),
        })
    };
    json!({ "rows": rows, "advances": advances.iter().map(advance).collect::<Vec<_>>() }).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use arrow::record_batch::{RecordBatch, RecordBatchOptions};
    use pipeline_engine::{Partition, Span};

    use super::*;

    /// Rows without columns.
    fn rows(count: usize) -> RecordBatch {
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap()
    }

    fn batches() -> Vec<Batch> {
        let partition = Partition::new("shard \"1\"");
        let open = |(first, last, at)| Batch::new(rows(5), partition.open(Span::new(first, last), at));
        [(5, 9, 2_000), (1, 4, 1_000)].map(open).into()
    }

    fn entry(provenance: &Provenance, key: &str) -> Option<Value> {
        let mut entries = provenance.entries();
        entries.find(|(name, _)| *name == key).map(|(_, value)| serde_json::from_str(value).unwrap())
    }

    #[test]
    fn it_says_where_the_rows_came_from() {
        let expected = json!([{
            "partition": "shard \"1\"", "first": "1", "last": "9", "received_from_us": 1_000, "received_to_us": 2_000,
        }]);
        let provenance = Provenance::of(&batches().iter().collect::<Vec<_>>(), &[]);
        assert_eq!(entry(&provenance, "pipeline.source"), Some(expected));
        assert_eq!(entry(&provenance, "pipeline.group"), None, "it can't be resumed");
    }

    #[test]
    fn it_says_how_far_the_group_goes_and_how_many_rows_it_has() {
        let advance = |input: &str, from, to: u64| Advance {
            input: input.to_owned(),
            partition: "shard \"1\"".to_owned(),
            from,
            to: to.into(),
            tenure: None,
        };
        let advances = vec![advance("valid", None, 9), advance("late.rejected", Some(Position([0, 0, 1, 2])), 12)];
        let provenance = Provenance::of(&batches().iter().collect::<Vec<_>>(), &advances);
        let expected = json!({ "rows": 10, "advances": [
            { "input": "valid", "partition": "shard \"1\"", "from": null, "to": "9" },
            { "input": "late.rejected", "partition": "shard \"1\"", "from": "18446744073709551618", "to": "12" },
        ]});
        assert_eq!(entry(&provenance, "pipeline.group"), Some(expected));
    }
}
