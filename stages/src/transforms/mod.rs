//! What happens to rows on their way: `[transforms.NAME]`.

pub mod anomaly;
pub mod enrich;
mod refusal;
mod state;
#[cfg(test)]
mod testing;
pub mod validate;
mod values;
