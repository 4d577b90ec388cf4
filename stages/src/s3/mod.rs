//! What all stages that talk to an S3 store share: where a bucket is, who may use it, and whose an error is.

pub(crate) mod fault;
mod settings;

pub(crate) use self::settings::S3Settings;
pub(crate) use crate::aws::check_endpoint;
