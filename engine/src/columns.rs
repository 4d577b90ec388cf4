//! Names become indices while the plan is built, so that a running stage looks nothing up.

use arrow::datatypes::{DataType, Schema};

use crate::stage::BuildError;
use crate::suggest::suggest;

/// The index of a column.
///
/// # Errors
/// At `key`: the input has no such column; the hint lists those it has.
pub fn find(schema: &Schema, key: impl Into<String>, name: &str) -> Result<usize, BuildError> {
    schema.index_of(name).map_err(|_| {
        let known = schema.fields().iter().map(|field| field.name().as_str());
        BuildError::invalid(key, format!("the input has no column \"{name}\"")).hint(suggest(
            name,
            known,
            "Its columns",
            "The input has no columns at all.",
        ))
    })
}

/// The index of a column whose type `accepts`; `wanted` says which types those are.
///
/// # Errors
/// At `key`: no such column, or one of another type.
pub fn find_typed(
    schema: &Schema,
    key: impl Into<String>,
    name: &str,
    wanted: &str,
    accepts: impl Fn(&DataType) -> bool,
) -> Result<usize, BuildError> {
    let key = key.into();
    let index = find(schema, key.clone(), name)?;
    let found = schema.field(index).data_type();
    if accepts(found) {
        return Ok(index);
    }
    Err(BuildError::invalid(key, format!("column \"{name}\" is {found}, not {wanted}")))
}
