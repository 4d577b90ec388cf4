//! A rule over a whole batch: Arrow's kernels where the kinds of all operands are known, else row by
//! row into a column of the result's kind.
//!
//! Nothing here decides what a rule means: each kernel gives what [`evaluate`] gives, which the tests
//! hold for random expressions over random rows.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Datum, Float64Array, Int64Array, Scalar, StringArray, StringBuilder,
    new_null_array,
};
use arrow::compute::kernels::{cmp, numeric, zip::zip};
use arrow::compute::{and, cast, is_null, not, nullif, or, prep_null_mask_filter};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;

use super::column::Column;
use super::evaluate::{Row, evaluate};
use super::expression::{Arithmetic, Comparison, Expression, Kind, Op, Target};
use super::functions::Shape;
use super::input::Input;
use super::value::Value;

type Evaluated<T> = Result<T, ArrowError>;

/// The values of an expression in all rows.
pub fn column(expression: &Expression, input: &Input) -> Evaluated<Column> {
    match &expression.op {
        Op::Constant(value) if expression.kind != Kind::Dynamic => Ok(repeated(value, input.len())),
        Op::Column(index) if expression.kind != Kind::Dynamic => of_input(input.rows.column(*index), input),
        Op::Slot(slot) => Ok(input.slot_column(*slot).clone()),
        Op::ReceivedAt => {
            Ok(Column::Int(Int64Array::from_iter_values((0..input.len()).map(|row| input.received_at_ms(row)))))
        }
        Op::Topic(segment) => Ok(Column::Text(topics(segment.as_deref(), input))),
        Op::IsUndefined(of) if is_static(of) => Ok(Column::Bool(is_null(&array(of, input)?)?)),
        Op::Not(of) if of.kind == Kind::Bool => Ok(Column::Bool(not(&truths(of, input)?)?)),
        Op::And(left, right) if both(left, right, |kind| kind == Kind::Bool) => {
            Ok(Column::Bool(and(&truths(left, input)?, &truths(right, input)?)?))
        }
        Op::Or(left, right) if both(left, right, |kind| kind == Kind::Bool) => {
            Ok(Column::Bool(or(&truths(left, input)?, &truths(right, input)?)?))
        }
        Op::Compare(comparison, left, right) if both(left, right, Kind::is_number) => {
            compare(*comparison, left, right, input).map(Column::Bool)
        }
        Op::Equal { left, right, negated } if are_comparable(left, right) => {
            equal(left, right, *negated, input).map(Column::Bool)
        }
        Op::Calculate(arithmetic, left, right) if both(left, right, Kind::is_number) => {
            calculate(*arithmetic, left, right, input)
        }
        Op::Case { operand, arms, otherwise } if is_plain_case(expression, operand.as_deref(), arms) => {
            case(expression.kind, operand.as_deref(), arms, otherwise.as_deref(), input)
        }
        Op::Call { function, arguments, .. } if arguments.len() == 1 && is_static(&arguments[0]) => {
            match (&function.shape, arguments[0].kind) {
                (Shape::Decimal(compute), Kind::Int | Kind::Decimal) => {
                    Ok(Column::Decimal(finite(decimals(&arguments[0], input)?.unary(compute))))
                }
                (Shape::Whole(round), Kind::Decimal) => {
                    let whole = |number| {
                        if let Value::Int(whole) = Value::of_whole(round(number)) { Some(whole) } else { None }
                    };
                    Ok(Column::Int(decimals(&arguments[0], input)?.unary_opt(whole)))
                }
                (Shape::Text(compute), Kind::Text) => {
                    let texts = array(&arguments[0], input)?;
                    Ok(Column::Text(texts.as_string::<i32>().iter().map(|text| text.map(compute)).collect()))
                }
                (Shape::Count(compute), Kind::Text) => {
                    let texts = array(&arguments[0], input)?;
                    let count = |text: Option<&str>| text.map(|text| compute(text) as i64);
                    Ok(Column::Int(texts.as_string::<i32>().iter().map(count).collect()))
                }
                _ => Ok(row_by_row(expression, input)),
            }
        }
        Op::Call { function, arguments, .. } if arguments.len() == 2 && arguments[0].kind == Kind::Text => {
            match (function.name, arguments[1].as_constant()) {
                ("startswith", Some(Value::Text(start))) => {
                    text_test(&arguments[0], |text| text.starts_with(start.as_str()), input)
                }
                ("endswith", Some(Value::Text(end))) => {
                    text_test(&arguments[0], |text| text.ends_with(end.as_str()), input)
                }
                _ => Ok(row_by_row(expression, input)),
            }
        }
        Op::In(of, list) if of.kind == Kind::Text => match list.as_constant() {
            Some(Value::Array(elements)) => {
                let is_same = |element: &Value, text: &str| matches!(element, Value::Text(other) if other == text);
                text_test(of, |text| elements.iter().any(|element| is_same(element, text)), input)
            }
            _ => Ok(row_by_row(expression, input)),
        },
        Op::Cast(Target::Decimal, of) if of.kind.is_number() => Ok(Column::Decimal(decimals(of, input)?)),
        _ => Ok(row_by_row(expression, input)),
    }
}

/// Which rows a condition lets pass; never null.
pub fn passing(condition: &Expression, input: &Input) -> Evaluated<BooleanArray> {
    match column(condition, input)? {
        Column::Bool(truths) => Ok(without_nulls(truths)),
        other => Ok((0..input.len()).map(|row| Some(other.value(row).to_bool() == Some(true))).collect()),
    }
}

/// What is Undefined is not true.
fn without_nulls(truths: BooleanArray) -> BooleanArray {
    if truths.null_count() == 0 { truths } else { prep_null_mask_filter(&truths) }
}

fn row_by_row(expression: &Expression, input: &Input) -> Column {
    Column::of_values(expression.kind, (0..input.len()).map(|row| evaluate(expression, &Row::new(input, row))))
}

/// A question to each text; Undefined where there is none.
fn text_test(of: &Expression, holds: impl Fn(&str) -> bool, input: &Input) -> Evaluated<Column> {
    let texts = array(of, input)?;
    Ok(Column::Bool(texts.as_string::<i32>().iter().map(|text| text.map(&holds)).collect()))
}

fn is_static(expression: &Expression) -> bool {
    !matches!(expression.kind, Kind::Dynamic | Kind::Undefined)
}

fn both(left: &Expression, right: &Expression, are: impl Fn(Kind) -> bool) -> bool {
    are(left.kind) && are(right.kind)
}

fn are_comparable(left: &Expression, right: &Expression) -> bool {
    is_static(left) && (left.kind == right.kind || both(left, right, Kind::is_number))
}

fn repeated(value: &Value, rows: usize) -> Column {
    match value {
        Value::Bool(truth) => Column::Bool(BooleanArray::from(vec![*truth; rows])),
        Value::Int(whole) => Column::Int(Int64Array::from_value(*whole, rows)),
        Value::Decimal(number) => Column::Decimal(Float64Array::from_value(*number, rows)),
        Value::Text(text) => Column::Text(StringArray::from_iter_values(std::iter::repeat_n(text, rows))),
        other => Column::Dynamic(vec![other.clone(); rows]),
    }
}

/// A column of the batch as a rule sees it.
fn of_input(array: &ArrayRef, input: &Input) -> Evaluated<Column> {
    Ok(match array.data_type() {
        DataType::Boolean => Column::Bool(array.as_boolean().clone()),
        DataType::Int64 => Column::Int(array.as_primitive::<Int64Type>().clone()),
        DataType::Int16 | DataType::Int32 => {
            Column::Int(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        }
        DataType::Float64 => Column::Decimal(finite(array.as_primitive::<Float64Type>().clone())),
        DataType::Float32 => {
            Column::Decimal(finite(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone()))
        }
        DataType::Timestamp(..) => {
            Column::Int(array.as_primitive::<TimestampMicrosecondType>().unary(|time_us| time_us.div_euclid(1_000)))
        }
        DataType::Utf8 => Column::Text(array.as_string::<i32>().clone()),
        _ => {
            let encoded = array.as_binary::<i32>().iter().map(|bytes| bytes.map(super::functions::base64));
            debug_assert_eq!(array.len(), input.len());
            Column::Text(encoded.collect())
        }
    })
}

fn topics(segment: Option<&Expression>, input: &Input) -> StringArray {
    let mut builder = StringBuilder::with_capacity(input.len(), input.len() * 16);
    for row in 0..input.len() {
        builder.append_option(match segment {
            None => input.topic(row),
            Some(number) => {
                let number = evaluate(number, &Row::new(input, row)).to_int();
                number.and_then(|number| input.segment(row, number))
            }
        });
    }
    builder.finish()
}

fn array(expression: &Expression, input: &Input) -> Evaluated<ArrayRef> {
    Ok(column(expression, input)?.into_array())
}

fn truths(expression: &Expression, input: &Input) -> Evaluated<BooleanArray> {
    Ok(array(expression, input)?.as_boolean().clone())
}

fn decimals(expression: &Expression, input: &Input) -> Evaluated<Float64Array> {
    Ok(match column(expression, input)? {
        Column::Decimal(values) => values,
        other => cast(&other.into_array(), &DataType::Float64)?.as_primitive::<Float64Type>().clone(),
    })
}

/// A number that is none (NaN, an infinity) is Undefined.
fn finite(values: Float64Array) -> Float64Array {
    if values.values().iter().all(|value| value.is_finite()) {
        return values;
    }
    values.unary_opt(|value| value.is_finite().then_some(value))
}

/// A constant is one value for the kernels, whatever the number of rows.
fn operand(expression: &Expression, as_decimal: bool, input: &Input) -> Evaluated<Box<dyn Datum>> {
    let rows_of_one = match expression.as_constant() {
        Some(Value::Int(whole)) if as_decimal => Some(Column::Decimal(Float64Array::from(vec![*whole as f64]))),
        Some(constant) => Some(repeated(constant, 1)),
        None => None,
    };
    Ok(match rows_of_one {
        Some(one) => Box::new(Scalar::new(one.into_array())),
        None if as_decimal => Box::new(Arc::new(decimals(expression, input)?) as ArrayRef),
        None => Box::new(array(expression, input)?),
    })
}

/// Kernels order floats by their bits, where 0 is above -0: adding 0 makes them one.
fn ordered(expression: &Expression, input: &Input) -> Evaluated<Box<dyn Datum>> {
    let datum = operand(expression, true, input)?;
    let (array, is_scalar) = datum.get();
    let values = array.as_primitive::<Float64Type>();
    let has_negative_zero = values.values().iter().any(|value| value.to_bits() == (-0.0_f64).to_bits());
    if !has_negative_zero {
        return Ok(datum);
    }
    let values: ArrayRef = Arc::new(values.unary::<_, Float64Type>(|value| value + 0.0));
    Ok(if is_scalar { Box::new(Scalar::new(values)) } else { Box::new(values) })
}

fn compare(comparison: Comparison, left: &Expression, right: &Expression, input: &Input) -> Evaluated<BooleanArray> {
    let (left, right) = if both(left, right, |kind| kind == Kind::Int) {
        (operand(left, false, input)?, operand(right, false, input)?)
    } else {
        (ordered(left, input)?, ordered(right, input)?)
    };
    match comparison {
        Comparison::Less => cmp::lt(&*left, &*right),
        Comparison::LessOrEqual => cmp::lt_eq(&*left, &*right),
        Comparison::Greater => cmp::gt(&*left, &*right),
        Comparison::GreaterOrEqual => cmp::gt_eq(&*left, &*right),
    }
}

fn equal(left: &Expression, right: &Expression, negated: bool, input: &Input) -> Evaluated<BooleanArray> {
    if let (Some(left), Some(right)) = (left.as_constant(), right.as_constant()) {
        // Two constants meet in a CASE only; of two single values the kernels would make one row.
        return Ok(BooleanArray::from(vec![left.equals(right).map(|equal| equal != negated); input.len()]));
    }
    let is_decimal = left.kind == Kind::Decimal || right.kind == Kind::Decimal;
    let (left, right) = if is_decimal {
        (ordered(left, input)?, ordered(right, input)?)
    } else {
        (operand(left, false, input)?, operand(right, false, input)?)
    };
    if negated { cmp::neq(&*left, &*right) } else { cmp::eq(&*left, &*right) }
}

fn calculate(arithmetic: Arithmetic, left: &Expression, right: &Expression, input: &Input) -> Evaluated<Column> {
    let kernel = match arithmetic {
        Arithmetic::Add => numeric::add,
        Arithmetic::Subtract => numeric::sub,
        Arithmetic::Multiply => numeric::mul,
        Arithmetic::Divide => numeric::div,
        Arithmetic::Remainder => numeric::rem,
    };
    if both(left, right, |kind| kind == Kind::Int) {
        let result = kernel(&*operand(left, false, input)?, &*operand(right, false, input)?);
        return match result {
            Ok(values) => Ok(Column::Int(values.as_primitive::<Int64Type>().clone())),
            // A row that overflows or divides by zero fails the kernel, and is Undefined by itself.
            Err(_) => checked(arithmetic, left, right, input),
        };
    }
    let values = kernel(&*operand(left, true, input)?, &*operand(right, true, input)?)?;
    Ok(Column::Decimal(finite(values.as_primitive::<Float64Type>().clone())))
}

fn checked(arithmetic: Arithmetic, left: &Expression, right: &Expression, input: &Input) -> Evaluated<Column> {
    let (left, right) = (array(left, input)?, array(right, input)?);
    let pairs = left.as_primitive::<Int64Type>().iter().zip(right.as_primitive::<Int64Type>());
    Ok(Column::Int(pairs.map(|(left, right)| arithmetic.whole(left?, right?)).collect()))
}

/// Whether masks and `zip` do what the CASE says.
fn is_plain_case(case: &Expression, operand: Option<&Expression>, arms: &[(Expression, Expression)]) -> bool {
    is_static(case)
        && arms.iter().all(|(when, _)| match operand {
            Some(operand) => are_comparable(operand, when),
            None => when.kind == Kind::Bool,
        })
}

fn case(
    kind: Kind,
    of: Option<&Expression>,
    arms: &[(Expression, Expression)],
    otherwise: Option<&Expression>,
    input: &Input,
) -> Evaluated<Column> {
    let none = || new_null_array(&arrow_type(kind), input.len());
    let mut result: ArrayRef = match otherwise {
        Some(otherwise) if otherwise.kind != Kind::Undefined => whole_array(kind, otherwise, input)?,
        _ => none(),
    };
    for (when, then) in arms.iter().rev() {
        let mask = match of {
            Some(of) => equal(of, when, false, input)?,
            None => truths(when, input)?,
        };
        let value: Box<dyn Datum> = match then.kind {
            Kind::Undefined => Box::new(none()),
            _ => operand(then, kind == Kind::Decimal, input)?,
        };
        result = zip(&without_nulls(mask), &*value, &result)?;
    }
    if let Some(of) = of {
        result = nullif(&result, &is_null(&array(of, input)?)?)?;
    }
    Ok(of_array(kind, &result))
}

fn whole_array(kind: Kind, expression: &Expression, input: &Input) -> Evaluated<ArrayRef> {
    if kind == Kind::Decimal { Ok(Arc::new(decimals(expression, input)?)) } else { array(expression, input) }
}

fn arrow_type(kind: Kind) -> DataType {
    match kind {
        Kind::Bool => DataType::Boolean,
        Kind::Int => DataType::Int64,
        Kind::Decimal => DataType::Float64,
        Kind::Text | Kind::Dynamic | Kind::Undefined => DataType::Utf8,
    }
}

fn of_array(kind: Kind, array: &ArrayRef) -> Column {
    match kind {
        Kind::Bool => Column::Bool(array.as_boolean().clone()),
        Kind::Int => Column::Int(array.as_primitive::<Int64Type>().clone()),
        Kind::Decimal => Column::Decimal(array.as_primitive::<Float64Type>().clone()),
        Kind::Text | Kind::Dynamic | Kind::Undefined => Column::Text(array.as_string::<i32>().clone()),
    }
}
