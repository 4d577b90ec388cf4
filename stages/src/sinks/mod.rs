//! Where rows are stored: `[sinks.NAME]`.

pub mod console;
pub mod discard;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "parquet")]
pub mod parquet;
#[cfg(feature = "timescaledb")]
pub mod timescaledb;
