//! The engine of pipeline: batches, acks, plan, queues and run loop.
//!
//! It names no stage and knows no broker, cloud or database. To write a stage, read [`stage`]; to
//! see how a promise travels, read [`ack`].

pub mod ack;
mod batch;
pub mod columns;
mod context;
pub mod dead_letter;
mod error;
pub mod position;
mod queue;
mod registry;
pub mod schema;
pub mod spool;
pub mod stage;
mod stats;
pub mod suggest;
pub mod testing;
pub mod units;

pub use ack::{Ack, Partition, Progress};
pub use position::{Position, Span};
pub use registry::{Kind, Registry, StageType};
pub use stats::{Counter, EdgeStats, RunStats, StageState, StageStats, now_us};
