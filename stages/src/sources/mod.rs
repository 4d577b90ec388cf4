//! Where rows come from: `[sources.NAME]`.

pub mod file;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod simulator;
#[cfg(feature = "mqtt")]
mod spooled;
