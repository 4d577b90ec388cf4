//! The engine of pipeline: batches, acks, plan, queues and run loop.
//!
//! It names no stage and knows no broker, cloud or database. To write a stage, read [`stage`]; to
//! see how a promise travels, read [`ack`].

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
mod file;
pub mod fuzzing;
mod overflow;
mod plan;
pub mod position;
mod queue;
mod registry;
mod report;
mod retry;
mod run;
pub mod schema;
#[cfg(test)]
mod simulated;
pub mod spool;
pub mod stage;
mod stats;
pub mod storage;
pub mod suggest;
pub mod tap;
pub mod terminal;
pub mod testing;
pub mod time;
pub mod trial;
pub mod units;

pub use ack::{Ack, Partition, Progress};
pub use backlog::{Backlog, BacklogMeter};
pub use balance::Balance;
pub use examination::{Examination, Examined, Finding, Verdict};
pub use file::{HttpSettings, Mistake, Mistakes, Variables, http_schema, pipeline_schema};
pub use plan::{GraphFormat, Plan, PlanBuilder, PlanError, SpoolPlace};
pub use position::{Position, Span};
pub use registry::{Kind, Registry, StageType};
pub use report::Report;
pub use retry::Backoff;
pub use run::{Run, RunError};
pub use stats::{
    Counter, EdgeStats, Gauge, IntakeStats, LATENCY_BOUNDS_SECONDS, Latencies, LatencyCounts, RunStats, Running,
    StageState, StageStats, Stopwatch, now_us,
};
