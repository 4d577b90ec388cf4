//! What all stages that talk to an S3 store share: where a bucket is, who may use it, and whose an error is.

pub(crate) mod fault;
mod settings;

/// A folder below a sink's prefix for what is no object of rows: readers leave out what begins with an underscore, and so does
/// the source `s3`.
pub(crate) const ASIDE: &str = "_pipeline";

pub(crate) use self::settings::S3Settings;
pub(crate) use crate::aws::check_endpoint;
