//! What is told of a window: `"mean(temperature)"`.

use arrow::datatypes::{DataType, Schema};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::BuildError;

use super::curve::Between;

/// What can be written, for a person who has written something else.
const FORMS: &str = "count(), count(column), sum, mean, min, max, first, last, stddev and median of a column, \
                     percentile(column, 95), time_weighted_mean(column) and time_weighted_mean(column, line)";

/// What is computed of one column, or of the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Function {
    /// Of the rows.
    Rows,
    /// Of the values that are there.
    Count,
    Sum,
    Mean,
    Min,
    Max,
    First,
    Last,
    /// Of a sample: divided by the count less one.
    Stddev,
    Percentile(f64),
    TimeWeightedMean(Between),
}

/// A column of the output.
#[derive(Debug, Clone)]
pub(super) struct Aggregate {
    /// Its name.
    pub(super) name: String,
    pub(super) function: Function,
    /// The input's column; `None` for [`Function::Rows`].
    pub(super) column: Option<usize>,
    /// The type of the result.
    pub(super) kind: DataType,
}

impl Aggregate {
    /// Reads `text`, which stands at `aggregates.NAME`.
    ///
    /// # Errors
    /// It has another form, or the column isn't there or has no such aggregate.
    pub(super) fn parse(name: &str, text: &str, input: &Schema) -> Result<Self, BuildError> {
        let key = format!("aggregates.{name}");
        let wrong = |message: String| BuildError::invalid(key.clone(), message).hint(format!("It can be {FORMS}."));
        let form = || wrong(format!("\"{text}\" is not of the form function(column)"));
        let (function, rest) = text.trim().split_once('(').ok_or_else(form)?;
        let arguments = rest.strip_suffix(')').ok_or_else(form)?;
        let arguments: Vec<&str> = match arguments.trim() {
            "" => Vec::new(),
            some => some.split(',').map(str::trim).collect(),
        };
        let function = match (function.trim(), arguments.as_slice()) {
            ("count", []) => Function::Rows,
            ("count", [_]) => Function::Count,
            ("sum", [_]) => Function::Sum,
            ("mean" | "avg", [_]) => Function::Mean,
            ("min", [_]) => Function::Min,
            ("max", [_]) => Function::Max,
            ("first", [_]) => Function::First,
            ("last", [_]) => Function::Last,
            ("stddev", [_]) => Function::Stddev,
            ("median", [_]) => Function::Percentile(50.0),
            ("percentile", [_, percent]) => match percent.parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Function::Percentile(percent),
                _ => return Err(wrong(format!("\"{percent}\" is no percentage from 0 to 100"))),
            },
            ("time_weighted_mean", [_] | [_, "step"]) => Function::TimeWeightedMean(Between::Step),
            ("time_weighted_mean", [_, "line"]) => Function::TimeWeightedMean(Between::Line),
            _ => return Err(wrong(format!("there is no aggregate \"{text}\""))),
        };
        let column = match arguments.first() {
            None => None,
            Some(column) => Some(function.column(&key, column, input)?),
        };
        let kind = function.kind(column.map(|column| input.field(column).data_type()));
        Ok(Self { name: name.to_owned(), function, column, kind })
    }
}

impl Function {
    fn column(self, key: &str, name: &str, input: &Schema) -> Result<usize, BuildError> {
        match self {
            Self::Rows | Self::Count | Self::First | Self::Last => {
                columns::find_typed(input, key, name, "a number, a time, text or a truth value", |kind| {
                    is_number(kind) || *kind == timestamp_type() || matches!(kind, DataType::Utf8 | DataType::Boolean)
                })
            }
            Self::Min | Self::Max => columns::find_typed(input, key, name, "a number or a time", |kind| {
                is_number(kind) || *kind == timestamp_type()
            }),
            _ => columns::find_typed(input, key, name, "a number", is_number),
        }
    }

    fn kind(self, column: Option<&DataType>) -> DataType {
        match (self, column) {
            (Self::Rows | Self::Count, _) => DataType::Int64,
            (Self::Min | Self::Max | Self::First | Self::Last, Some(kind)) => kind.clone(),
            _ => DataType::Float64,
        }
    }
}

fn is_number(kind: &DataType) -> bool {
    use DataType::{Float32, Float64, Int16, Int32, Int64};
    matches!(kind, Int16 | Int32 | Int64 | Float32 | Float64)
}
