//! Rows on their way to the sinks, with the promise owed to the source that read them.

use arrow::record_batch::RecordBatch;

use crate::ack::Ack;

/// What travels on an edge. A batch is also the unit of replay: a source that reads again from a
/// position makes the same batches again, so no cursor ever falls inside one.
#[must_use = "a batch dropped without a verdict counts as failed"]
#[derive(Debug)]
pub struct Batch {
    /// The rows, in the schema that the plan gave the edge.
    pub rows: RecordBatch,
    pub(crate) ack: Ack,
}

impl Batch {
    /// Rows and the promise made for them.
    pub fn new(rows: RecordBatch, ack: Ack) -> Self {
        Self { rows, ack }
    }

    /// Rows that nobody waits for: tests and benchmarks.
    pub fn detached(rows: RecordBatch) -> Self {
        Self::new(rows, Ack::detached())
    }

    /// The same promise, other rows.
    pub fn with_rows(self, rows: RecordBatch) -> Self {
        Self { rows, ack: self.ack }
    }

    /// Two batches that share the promise. Rows in neither are filtered: leaving them out is their
    /// verdict.
    pub fn split(self, left: RecordBatch, right: RecordBatch) -> (Self, Self) {
        let share = self.ack.share();
        (Self { rows: left, ack: self.ack }, Self { rows: right, ack: share })
    }

    /// The promise: where the rows came from and when they were received.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// Another reader of the same rows; columns are shared, not copied.
    pub(crate) fn fan_out(&self) -> Self {
        Self { rows: self.rows.clone(), ack: self.ack.share() }
    }
}
