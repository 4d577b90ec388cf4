//! Columns computed from others, and readings converted into other units.
//!
//! ```toml
//! [transforms.computed]
//! type = "compute"
//! inputs = ["valid"]
//! convert = { temperature = { from = "degF", to = "degC" } }
//! columns = { dew_point = { expression = "temperature - (100 - humidity) / 5", type = "float64" } }
//! ```
//!
//! `docs/compute.md` lists the units, and says how expressions and units are read.
//!
//! # Units
//! `convert` puts a column's numbers into another unit, in its place or, with `as`, in a column of its own. A column of
//! floats keeps its type; whole numbers become float64. Factors are fractions of whole numbers, as the units are
//! defined, so 212 °F is 100 °C and not nearly that. Units that measure different things, and names that are no
//! units, are refused when the plan is built.
//!
//! # Expressions
//! `columns` holds what stands behind SELECT in a rule of AWS IoT, with its semantics: `docs/rule.md`. An expression
//! sees the columns of the input after `convert`, and no other computed one: for that, put a second stage behind this
//! one. What can't run is refused when the plan is built, with its place. Without `type` a column has that of its
//! expression: bool, int64, float64, text, or JSON where only the row tells. New columns stand behind those of the
//! input, by name; a column that is there already is computed anew with `replace = true` only.
//!
//! # What fails
//! A result of a null is null, and that is no failure. A row fails where a result can't be computed although all
//! columns that it reads have a value (a division by zero, a number too large), or does not fit its `type`. By
//! `failed = "null"` the value is null then, and counted in `failed_values`; by `failed = "reject"` the row leaves by
//! `rejected` as it came, with the reason `compute.NAME`.

mod run;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::dead_letter;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use schemars::JsonSchema;
use serde::Deserialize;

use self::run::{Compute, Computed, Converted};
use self::units::{Conversion, NoUnit, Unit};
use super::rule::Computation;

/// `type = "compute"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeConfig {
    /// Columns to compute, by their names: each with an `expression`, as behind SELECT in a rule, and where wanted its
    /// `type`, and `replace = true` where it takes the place of a column that is there.
    #[serde(default)]
    pub columns: BTreeMap<String, ColumnConfig>,
    /// Columns of numbers to put into another unit, by their names, before any column is computed: each with the unit
    /// that it is in, `from`, the one that it shall be in, `to`, and where wanted the name of a new column, `as`.
    #[serde(default)]
    pub convert: BTreeMap<String, ConvertConfig>,
    /// What becomes of a row for which something can't be computed: `null` keeps it without the value, `reject` sends
    /// it out by `rejected`. Default: `null`.
    #[serde(default)]
    pub failed: Failed,
}

/// A column to compute.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColumnConfig {
    /// What it holds, as behind SELECT in a rule: `temperature * 9 / 5 + 32`.
    pub expression: String,
    /// Its type, where that is not the expression's own. Numbers become timestamps as milliseconds since 1970.
    #[serde(rename = "type")]
    pub column_type: Option<ColumnType>,
    /// Whether it takes the place of a column that is there already.
    #[serde(default)]
    pub replace: bool,
}

/// A column to convert.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertConfig {
    /// The unit that its numbers are in.
    pub from: String,
    /// The unit that they shall be in.
    pub to: String,
    /// The name of a new column for the result. Default: it takes the column's place.
    #[serde(rename = "as")]
    pub new_name: Option<String>,
}

/// What becomes of a row for which something can't be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Failed {
    /// It goes on, and the value is null.
    #[default]
    Null,
    /// It leaves by `rejected`.
    Reject,
}

impl TransformConfig for ComputeConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "compute",
        summary: "Adds or replaces columns by expressions, and converts units.",
        ports: &[("rejected", "Rows for which something can't be computed, where `failed = \"reject\"`.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. It keeps nothing from one row to \
                  the next, so a replay gives the same rows again, also with rand() and newuuid(). Whether the keys of \
                  rows stay is up to what is replaced.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.columns.is_empty() && self.convert.is_empty() {
            return Err(BuildError::invalid("", "there is nothing to compute")
                .hint("Name a column in `columns` or in `convert`."));
        }
        let mut fields: Vec<FieldRef> = input.fields().to_vec();
        let mut converted = Vec::new();
        for (name, config) in &self.convert {
            converted.push(config.build(name, input, &mut fields)?);
        }
        let seen = Arc::new(Schema::new_with_metadata(fields.clone(), input.metadata().clone()));
        let mut computed = Vec::new();
        for (name, config) in &self.columns {
            computed.push(config.build(name, &seen, &mut fields, cx)?);
        }
        let output = Arc::new(Schema::new_with_metadata(fields, input.metadata().clone()));
        let transform = Compute {
            stage: cx.stage.clone(),
            converted,
            seen,
            computed,
            output: output.clone(),
            failed: self.failed,
            failed_values: cx.counter("failed_values"),
        };
        let outputs = vec![(Port::MAIN, output), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl ConvertConfig {
    /// Puts the column's new type into its place among the fields, or a new field behind them.
    fn build(&self, name: &str, input: &Schema, fields: &mut Vec<FieldRef>) -> Result<Converted, BuildError> {
        use DataType::{Float32, Float64, Int16, Int32, Int64};
        let key = format!("convert.{name}");
        let is_number = |kind: &_| matches!(kind, Int16 | Int32 | Int64 | Float32 | Float64);
        let source = columns::find_typed(input, &key, name, "a number", is_number)?;
        let conversion = self.conversion(&key)?;
        let is_single = *input.field(source).data_type() == Float32;
        let target_type = if is_single { Float32 } else { Float64 };
        let target = match &self.new_name {
            None => {
                fields[source] = Arc::new(Field::new(name, target_type, true));
                source
            }
            Some(new_name) => {
                check_new(&format!("{key}.as"), new_name, fields)?;
                fields.push(Arc::new(Field::new(new_name, target_type, true)));
                fields.len() - 1
            }
        };
        let name = fields[target].name().clone();
        Ok(Converted { name, source, target, conversion })
    }

    fn conversion(&self, key: &str) -> Result<Conversion, BuildError> {
        let unit = |part: &str, text: &str| {
            Unit::parse(text).map_err(|NoUnit { at, message, hint }| {
                let error = BuildError::invalid(format!("{key}.{part}"), message).within(at);
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            })
        };
        let (from, to) = (unit("from", &self.from)?, unit("to", &self.to)?);
        from.to(&to).ok_or_else(|| {
            let (left, right) = (from.measures(), to.measures());
            let message = format!("\"{}\" measures {left}, and \"{}\" {right}", self.from, self.to);
            let relatives = from.relatives();
            let hint = match relatives.as_slice() {
                [] => "Both must measure the same.".to_owned(),
                names => format!("Units for {left}: {}.", names.join(", ")),
            };
            BuildError::invalid(format!("{key}.to"), message).hint(hint)
        })
    }
}

impl ColumnConfig {
    /// Puts the column's field into its place among the fields, or behind them.
    fn build(
        &self,
        name: &str,
        seen: &Schema,
        fields: &mut Vec<FieldRef>,
        cx: &BuildContext,
    ) -> Result<Computed, BuildError> {
        let key = format!("columns.{name}");
        let computation =
            Computation::parse(&format!("{key}.expression"), &self.expression, self.column_type, seen, cx)?;
        let field = Arc::new(computation.field(name));
        let target = if self.replace {
            let target = columns::find(seen, format!("{key}.replace"), name)?;
            fields[target] = field;
            target
        } else {
            check_new(&key, name, fields)?;
            fields.push(field);
            fields.len() - 1
        };
        Ok(Computed { name: name.to_owned(), target, computation })
    }
}

/// Whether a column can be added under this name.
fn check_new(key: &str, name: &str, fields: &[FieldRef]) -> Result<(), BuildError> {
    if name.is_empty() {
        return Err(BuildError::invalid(key, "the new column has no name"));
    }
    if fields.iter().any(|field| field.name() == name) {
        return Err(BuildError::invalid(key, format!("there is a column \"{name}\" already")).hint(
            "Give the new one another name, or say that it takes that one's place: `replace = true` in `columns`.",
        ));
    }
    Ok(())
}
