//! What happens to rows on their way: `[transforms.NAME]`.

pub mod anomaly;
pub mod enrich;
pub mod validate;
