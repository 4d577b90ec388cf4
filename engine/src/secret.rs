//! How the JSON schema of a configuration says that a key holds a secret: so that tools and tests find every place where one
//! can stand, also those that are yet to come.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Stands for a [`secrecy::SecretString`] in the schema: `#[schemars(with = "Option<SecretText>")]` beside the field. It has no
/// values.
#[derive(Debug, Clone, Copy)]
pub enum SecretText {}

/// The `format` of such a key in the schema.
pub const SECRET: &str = "secret";

impl JsonSchema for SecretText {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": SECRET })
    }
}
