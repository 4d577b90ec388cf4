//! The engine of pipeline: batches, acks, plan, queues and run loop.
//!
//! It names no stage and knows no broker, cloud or database. To write a stage, read [`stage`]; to
//! see how a promise travels, read [`ack`].
//!
//! The promise, in small: a source opens it with a batch, and it is kept once every share of the batch is delivered.
//!
//! ```
//! use std::sync::Arc;
//!
//! use arrow::array::{Int64Array, RecordBatch};
//! use pipeline_engine::stage::Batch;
//! use pipeline_engine::{Partition, Span, testing};
//!
//! let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)])?;
//! let partition = Partition::new("source/0");
//! let first_to_last = Span::new(1_u64, 3_u64);
//! let received_at_us = 1_767_225_600_000_000;
//! let batch = Batch::new(rows.clone(), partition.open(first_to_last, received_at_us));
//!
//! // Two sinks: each has a share, and the source is told when both have stored theirs.
//! let (one, other) = batch.split(rows.slice(0, 1), rows.slice(1, 2));
//! testing::deliver(one);
//! assert_eq!(partition.progress().borrow().delivered, None);
//! testing::deliver(other);
//! assert_eq!(partition.progress().borrow().delivered, Some(3_u64.into()));
//! # Ok::<(), arrow::error::ArrowError>(())
//! ```

pub mod ack;
mod backlog;
mod balance;
mod batch;
mod blocking;
mod checkpoint;
pub mod columns;
mod context;
pub mod dead_letter;
pub mod dlq;
mod error;
mod examination;
pub mod far_end;
mod file;
pub mod fuzzing;
mod objectives;
mod outside;
mod overflow;
mod plan;
pub mod position;
mod queue;
mod registry;
mod report;
mod retry;
mod run;
pub mod schema;
pub mod secret;
#[cfg(test)]
mod simulated;
pub mod spool;
pub mod stage;
mod stats;
pub mod storage;
pub mod suggest;
pub mod tap;
mod tenure;
pub mod terminal;
pub mod testing;
pub mod time;
pub mod trial;
pub mod units;

pub use ack::{Ack, Partition, Progress};
pub use backlog::{Backlog, BacklogMeter};
pub use balance::Balance;
pub use examination::{Examination, Examined, Finding, Verdict};
pub use file::{HttpSettings, Mistake, Mistakes, Replacement, TableDoc, Variables, table_docs};
pub use objectives::{Objectives, Share, Within};
pub use outside::Outside;
pub use plan::{Declared, GraphFormat, Plan, PlanBuilder, PlanError, SpoolPlace};
pub use position::{Position, Span};
pub use registry::{Kind, Registry, StageType};
pub use report::Report;
pub use retry::Backoff;
pub use run::{Run, RunError};
pub use stats::{
    CertificateStats, Counter, DeviceStats, EdgeStats, Gauge, IntakeStats, LATENCY_BOUNDS_SECONDS, Latencies,
    LatencyCounts, RunStats, Running, StageState, StageStats, Stopwatch, now_us,
};
pub use tenure::Claimed;
