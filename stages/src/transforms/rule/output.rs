//! The columns that a rule gives: their types, and values put into them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::schema::{ColumnType, is_json, json_field};
use pipeline_engine::stage::{BuildError, StageError};
use pipeline_engine::suggest::suggest;

use super::expression::{Expression, Item, Kind, Op, Projection};
use super::fit::{can_fit, fit};
use super::input::Input;
use super::kernels;
use super::sql::Refusal;

/// One column of the output.
pub struct OutputColumn {
    pub field: Field,
    source: Source,
    /// The type that the configuration declares for it.
    declared: Option<ColumnType>,
}

enum Source {
    /// A column of the input as it is.
    Passed(usize),
    Computed(Expression),
}

/// A row whose value does not fit the type that is declared for its column: the row, the column's name,
/// the value.
pub type Misfit = (u32, String, String);

/// The columns of a selection, in its order; of two with one name the later one, in the earlier one's
/// place. `places` says where in the rule each item stands.
pub fn columns(projection: Projection, places: &[Range<usize>], input: &Schema) -> Result<Vec<OutputColumn>, Refusal> {
    let items = match projection {
        Projection::Items(items) => items,
        Projection::Value(_) => {
            let at = places.first().cloned().unwrap_or(0..0);
            return Err(Refusal::new(at, "SELECT VALUE gives a value without a name, and a row is made of columns")
                .hint("Write SELECT a AS name; over messages without a schema SELECT VALUE gives the payload."));
        }
    };
    let mut columns: Vec<(OutputColumn, bool)> = Vec::new();
    for (item, at) in items.into_iter().zip(places) {
        match item {
            Item::All => {
                for (index, field) in input.fields().iter().enumerate() {
                    let column =
                        OutputColumn { field: field.as_ref().clone(), source: Source::Passed(index), declared: None };
                    put(&mut columns, column, true, at)?;
                }
            }
            Item::Named(path, value) => {
                if value.kind == Kind::Undefined {
                    return Err(Refusal::new(
                        at.clone(),
                        "this is Undefined in every row: the column would always be empty",
                    )
                    .hint("AWS IoT gives Undefined for an operation on values of a type it does not take."));
                }
                nest(&mut columns, path, value, input, at)?;
            }
        }
    }
    Ok(columns.into_iter().map(|(column, _)| column).collect())
}

/// Adds a column, or replaces one that came by the star.
fn put(
    columns: &mut Vec<(OutputColumn, bool)>,
    column: OutputColumn,
    by_star: bool,
    at: &Range<usize>,
) -> Result<(), Refusal> {
    let known = columns.iter_mut().find(|(known, _)| known.field.name() == column.field.name());
    match known {
        None => columns.push((column, by_star)),
        Some(known) if known.1 || by_star => *known = (column, by_star),
        Some(_) => {
            return Err(Refusal::new(at.clone(), format!("two results are named \"{}\"", column.field.name()))
                .hint("Give one of them another name with AS."));
        }
    }
    Ok(())
}

/// A column by its name; `AS a.b` is key `b` of the JSON column `a`.
fn nest(
    columns: &mut Vec<(OutputColumn, bool)>,
    path: Vec<String>,
    value: Expression,
    input: &Schema,
    at: &Range<usize>,
) -> Result<(), Refusal> {
    let mut keys = path.into_iter();
    let Some(name) = keys.next() else { return Ok(()) };
    let keys: Vec<String> = keys.collect();
    if keys.is_empty() {
        return put(columns, column(name, value, input), false, at);
    }
    let opened = columns.iter_mut().find(|(known, by_star)| *known.field.name() == name && !by_star);
    if let Some((OutputColumn { source: Source::Computed(Expression { op: Op::Object(members), .. }), .. }, _)) = opened
    {
        if !insert(members, &keys, value) {
            return Err(Refusal::new(at.clone(), format!("two results are named \"{name}.{}\"", keys.join("."))));
        }
        return Ok(());
    }
    let mut members = Vec::new();
    insert(&mut members, &keys, value);
    let object = Expression::new(Kind::Dynamic, Op::Object(members));
    put(columns, column(name, object, input), false, at)
}

/// Whether there was room for it.
fn insert(members: &mut Vec<(String, Expression)>, keys: &[String], value: Expression) -> bool {
    let [key, rest @ ..] = keys else { return false };
    let known = members.iter_mut().find(|(known, _)| known == key);
    match (known, rest) {
        (None, []) => members.push((key.clone(), value)),
        (None, rest) => {
            let mut inner = Vec::new();
            insert(&mut inner, rest, value);
            members.push((key.clone(), Expression::new(Kind::Dynamic, Op::Object(inner))));
        }
        (Some((_, Expression { op: Op::Object(inner), .. })), [_, ..]) => return insert(inner, rest, value),
        (Some(_), _) => return false,
    }
    true
}

fn column(name: String, value: Expression, input: &Schema) -> OutputColumn {
    // A column by itself keeps its type, whatever a rule would make of it.
    if let Op::Column(index) = value.op {
        let field = input.field(index).clone().with_name(name);
        return OutputColumn { field, source: Source::Passed(index), declared: None };
    }
    let nullable = |kind| Field::new(&name, kind, true);
    let field = match value.kind {
        Kind::Bool => nullable(DataType::Boolean),
        Kind::Int => nullable(DataType::Int64),
        Kind::Decimal => nullable(DataType::Float64),
        Kind::Text => nullable(DataType::Utf8),
        Kind::Dynamic | Kind::Undefined => json_field(nullable(DataType::Utf8)),
    };
    OutputColumn { field, source: Source::Computed(value), declared: None }
}

/// Gives columns the types that the configuration declares.
pub fn declare(
    columns: &mut [OutputColumn],
    types: &BTreeMap<String, ColumnType>,
    input: &Schema,
) -> Result<(), BuildError> {
    for (name, wanted) in types {
        let key = format!("types.{name}");
        let Some(index) = columns.iter().position(|column| column.field.name() == name) else {
            let known = columns.iter().map(|column| column.field.name().as_str());
            return Err(BuildError::invalid(key, format!("the rule gives no column \"{name}\"")).hint(suggest(
                name,
                known,
                "Its columns",
                "",
            )));
        };
        let column = &mut columns[index];
        let is_that =
            *column.field.data_type() == wanted.arrow() && is_json(&column.field) == (*wanted == ColumnType::Json);
        if is_that {
            continue;
        }
        let value = match &column.source {
            Source::Computed(value) => value.clone(),
            Source::Passed(index) => {
                let field = input.field(*index);
                let kind = super::expression::kind_of_column(field.data_type(), is_json(field));
                let Some(kind) = kind else {
                    return Err(BuildError::invalid(key, format!("a rule can't convert {}", field.data_type())));
                };
                Expression::new(kind, Op::Column(*index))
            }
        };
        if !can_fit(value.kind, *wanted) {
            let message =
                format!("no value of column \"{name}\", which is {}, can be {wanted}", column.field.data_type());
            return Err(BuildError::invalid(key, message).hint("cast(a AS type) in the rule converts a value."));
        }
        let field = Field::new(name, wanted.arrow(), true);
        column.field = if *wanted == ColumnType::Json { json_field(field) } else { field };
        column.source = Source::Computed(value);
        column.declared = Some(*wanted);
    }
    Ok(())
}

/// The schema of the output.
pub fn schema(columns: &[OutputColumn]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()))
}

/// The output's rows, one for each of the input, and what did not fit: there the value is null.
pub fn rows(
    columns: &[OutputColumn],
    schema: &SchemaRef,
    input: &Input,
) -> Result<(RecordBatch, Vec<Misfit>), StageError> {
    let mut misfits = Vec::new();
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
    for column in columns {
        let value = match &column.source {
            Source::Passed(index) => {
                arrays.push(input.rows.column(*index).clone());
                continue;
            }
            Source::Computed(value) => value,
        };
        let values = kernels::column(value, input)?;
        arrays.push(match column.declared {
            None => values.into_array(),
            Some(wanted) => fit(&values, wanted, input.len(), |row, text| {
                misfits.push((row, column.field.name().clone(), text));
            }),
        });
    }
    debug_assert!(arrays.iter().all(|array| array.len() == input.len()));
    let options = RecordBatchOptions::new().with_row_count(Some(input.len()));
    Ok((RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?, misfits))
}
