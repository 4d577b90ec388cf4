//! What happens to rows on their way: `[transforms.NAME]`.

pub mod anomaly;
mod clocks;
pub mod compute;
pub mod dedupe;
pub mod downsample;
pub mod enrich;
pub mod exec;
pub mod filter;
mod fleet;
mod followed;
pub mod gaps;
pub mod geofence;
mod keys;
pub mod partition;
mod refusal;
pub mod route;
pub mod rule;
pub mod silence;
mod snapshot;
mod tables;
#[cfg(test)]
mod testing;
pub mod thin;
mod units;
pub mod validate;
mod values;
