//! Where rows come from: `[sources.NAME]`.

pub mod file;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub(crate) mod records;
#[cfg(feature = "s3")]
pub mod s3;
pub mod simulator;
#[cfg(any(feature = "http", feature = "mqtt"))]
mod spooled;

use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::{BuildContext, BuildError};

use crate::decode::{Decoder, Format, UnknownFields};

/// The decoder of a source whose keys are `schema` and `unknown_fields`.
fn decoder(
    cx: &BuildContext,
    schema: Option<&DeclaredSchema>,
    format: Format,
    unknown_fields: Option<UnknownFields>,
) -> Result<Decoder, BuildError> {
    let decoder = Decoder::new(schema, format, &cx.stage);
    match (schema, unknown_fields) {
        (None, Some(_)) => Err(BuildError::invalid("unknown_fields", "without a schema no field is known")
            .hint("Name the schema that payloads are decoded by: schema = \"NAME\".")),
        (None, None) => Ok(decoder),
        (Some(_), policy) => Ok(decoder.with_unknown_fields(policy.unwrap_or_default(), cx.counter("unknown_fields"))),
    }
}
