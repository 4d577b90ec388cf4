//! What happens to rows on their way: `[transforms.NAME]`.

pub mod anomaly;
pub mod dedupe;
pub mod downsample;
pub mod enrich;
mod fleet;
pub mod gaps;
mod keys;
mod refusal;
mod snapshot;
#[cfg(test)]
mod testing;
pub mod validate;
mod values;
