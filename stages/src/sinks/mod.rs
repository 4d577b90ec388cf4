//! Where rows are stored: `[sinks.NAME]`.

pub mod console;
pub mod discard;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "parquet")]
pub mod parquet;
#[cfg(any(feature = "kinesis", feature = "mqtt"))]
mod same_rows;
#[cfg(feature = "timescaledb")]
pub mod timescaledb;
