//! What happens to rows on their way: `[transforms.NAME]`.

pub mod anomaly;
mod clocks;
pub mod dedupe;
pub mod downsample;
pub mod enrich;
pub mod exec;
mod fleet;
mod followed;
pub mod gaps;
mod keys;
mod refusal;
pub mod rule;
pub mod silence;
mod snapshot;
#[cfg(test)]
mod testing;
mod units;
pub mod validate;
mod values;
