//! Knows a group again that the engine asks to be written once more.

use std::sync::Arc;

use arrow::array::RecordBatch;
use pipeline_engine::stage::Group;

/// The rows of a group whose writing broke off.
pub(super) struct SameRows(Vec<RecordBatch>);

impl SameRows {
    pub(super) fn of(group: &Group) -> Self {
        Self(group.batches().iter().map(|batch| batch.rows.clone()).collect())
    }

    /// The same columns in memory: we hold on to them, so no other group can have got their place.
    pub(super) fn are_of(&self, group: &Group) -> bool {
        let same = |(ours, theirs): (&RecordBatch, &RecordBatch)| {
            ours.num_rows() == theirs.num_rows()
                && ours.num_columns() == theirs.num_columns()
                && ours.columns().iter().zip(theirs.columns()).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let batches = group.batches();
        self.0.len() == batches.len() && self.0.iter().zip(batches.iter().map(|batch| &batch.rows)).all(same)
    }
}
