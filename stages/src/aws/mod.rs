//! What all stages that talk to AWS share: one identity, found by the standard chain (variables, profiles, web
//! identity, container, instance), where a service is, and whose an error is.
//!
//! Kinesis, DynamoDB and SQS are spoken by AWS's own SDK, S3 by `object_store`, which is lent the same
//! credentials ([`LentCredentials`]).

#[cfg(feature = "parquet")]
mod credentials;
mod endpoint;
#[cfg(any(feature = "kinesis", feature = "sqs"))]
pub(crate) mod fault;
mod identity;
#[cfg(any(feature = "kinesis", feature = "sqs"))]
mod settings;

#[cfg(feature = "parquet")]
pub(crate) use self::credentials::LentCredentials;
pub(crate) use self::endpoint::check_endpoint;
#[cfg(any(feature = "kinesis", feature = "sqs"))]
pub(crate) use self::settings::{AwsSettings, Service};
