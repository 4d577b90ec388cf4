//! The kernels give what the row-wise evaluator gives, for random expressions over random rows.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::DataType;
use proptest::prelude::*;

use super::row_schema;
use crate::transforms::rule::bind::{Surroundings, bind};
use crate::transforms::rule::column::Column;
use crate::transforms::rule::dice::Dice;
use crate::transforms::rule::evaluate::{Row, evaluate, holds};
use crate::transforms::rule::expression::{Expression, Item, Projection};
use crate::transforms::rule::input::{Input, Places};
use crate::transforms::rule::kernels;
use crate::transforms::rule::sql::parse::parse;
use crate::transforms::rule::value::Value;

#[derive(Debug, Clone)]
struct Sample {
    text: String,
    temperature: Option<f64>,
    humidity: Option<f32>,
    count: Option<i32>,
    armed: Option<bool>,
    reading: Option<String>,
    time: Option<i64>,
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let text = prop::sample::select(vec!["", "dev-1", "12", "-1.5e3", "true", "FALSE", "ä b", "1."]);
    let number = prop_oneof![
        4 => -50.0..50.0f64,
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, 2.0, f64::NAN, f64::INFINITY, 1e308, -1e308, 9.3e18]),
    ];
    let whole = prop_oneof![4 => -5..5i32, 1 => prop::sample::select(vec![i32::MIN, i32::MAX])];
    let reading = prop::sample::select(vec!["1", "2.5", "\"12\"", "true", "null", "{\"a\":[1,2]}", "[1,\"x\"]", "{"]);
    let time = prop_oneof![4 => -5_000..5_000i64, 1 => prop::sample::select(vec![i64::MIN, i64::MAX])];
    (
        text,
        prop::option::of(number.clone()),
        prop::option::of(number),
        prop::option::of(whole),
        prop::option::of(any::<bool>()),
        prop::option::of(reading),
        prop::option::of(time),
    )
        .prop_map(|(text, temperature, humidity, count, armed, reading, time)| Sample {
            text: text.to_owned(),
            temperature,
            humidity: humidity.map(|number| number as f32),
            count,
            armed,
            reading: reading.map(str::to_owned),
            time,
        })
}

fn batch(samples: &[Sample]) -> RecordBatch {
    let times: TimestampMicrosecondArray = samples.iter().map(|sample| sample.time).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(samples.iter().map(|sample| &sample.text))),
        Arc::new(samples.iter().map(|sample| sample.temperature).collect::<Float64Array>()),
        Arc::new(samples.iter().map(|sample| sample.humidity).collect::<Float32Array>()),
        Arc::new(samples.iter().map(|sample| sample.count).collect::<Int32Array>()),
        Arc::new(samples.iter().map(|sample| sample.armed).collect::<BooleanArray>()),
        Arc::new(samples.iter().map(|sample| sample.reading.as_deref()).collect::<StringArray>()),
        new_null_array(&DataType::Binary, samples.len()),
        Arc::new(times.with_timezone("UTC")),
        new_null_array(&DataType::Utf8, samples.len()),
    ];
    RecordBatch::try_new(row_schema(), columns).unwrap()
}

fn any_expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "temperature",
        "humidity",
        "count",
        "armed",
        "reading",
        "time",
        "device_id",
        "reading.a",
        "0",
        "1",
        "-2",
        "2.5",
        "0.0",
        "'12'",
        "'x'",
        "true",
        "null",
        "9223372036854775807",
        "timestamp()",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, |inner| {
        let operator = prop::sample::select(vec![
            "+", "-", "*", "/", "%", "=", "<>", "<", "<=", ">", ">=", "AND", "OR",
        ]);
        let function = prop::sample::select(vec![
            "abs", "floor", "ceil", "round", "sqrt", "exp", "ln", "upper", "length", "trim", "isUndefined", "sign", "md5",
        ]);
        let target = prop::sample::select(vec!["Int", "Decimal", "String", "Boolean"]);
        prop_oneof![
            6 => (inner.clone(), operator, inner.clone()).prop_map(|(left, operator, right)| format!("({left} {operator} {right})")),
            2 => (function, inner.clone()).prop_map(|(function, of)| format!("{function}({of})")),
            1 => inner.clone().prop_map(|of| format!("startswith({of}, 'd')")),
            1 => inner.clone().prop_map(|of| format!("endswith({of}, '2')")),
            1 => inner.clone().prop_map(|of| format!("({of} IN ['12', 'dev-1', 12, 0])")),
            1 => inner.clone().prop_map(|of| format!("(NOT {of})")),
            1 => inner.clone().prop_map(|of| format!("-({of})")),
            1 => (inner.clone(), target).prop_map(|(of, target)| format!("cast({of} AS {target})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("nanvl({left}, {right})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left} IN [{right}, 1])")),
            2 => (inner.clone(), inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(of, when, then, other)| format!("CASE {of} WHEN {when} THEN {then} WHEN 1 THEN 2 ELSE {other} END")),
            1 => (inner.clone(), inner.clone(), inner)
                .prop_map(|(when, then, other)| format!("CASE WHEN {when} > 1 THEN {then} WHEN armed THEN {other} END")),
        ]
    })
}

/// The expression in the only result of a rule; `None` if the rule is refused.
fn bound(sql_expression: &str) -> Option<Expression> {
    let schema = row_schema();
    let around = Surroundings { schema: &schema, messages: false, topic: Some(8), client_id: None };
    let rule =
        parse(&format!("SELECT {sql_expression} AS x")).unwrap_or_else(|error| panic!("{sql_expression}: {error:?}"));
    let Ok(bound) = bind(&rule, &around) else { return None };
    match bound.projection {
        Projection::Items(items) => items.into_iter().find_map(|item| match item {
            Item::Named(_, value) => Some(value),
            Item::All => None,
        }),
        Projection::Value(_) => None,
    }
}

fn agree(sql_expression: &str, samples: &[Sample]) -> Result<(), TestCaseError> {
    let Some(expression) = bound(sql_expression) else { return Ok(()) };
    let input = Input::new(batch(samples), Places::default(), 5_000, Dice::default());
    let column = kernels::column(&expression, &input).unwrap();
    let passing = kernels::passing(&expression, &input).unwrap();
    let is_dynamic = matches!(column, Column::Dynamic(_));
    for (row, sample) in samples.iter().enumerate() {
        let by_row = evaluate(&expression, &Row::new(&input, row)).into_owned();
        let by_kernel = column.value(row).into_owned();
        // Only a column of values keeps Null apart from Undefined.
        let alike = by_row == by_kernel || !is_dynamic && by_row == Value::Null && by_kernel.is_undefined();
        prop_assert!(
            alike,
            "{sql_expression} of {sample:?}: {by_row:?} by row, {by_kernel:?} by kernel ({:?})",
            expression.kind
        );
        prop_assert_eq!(passing.value(row), holds(&expression, &Row::new(&input, row)));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn kernels_and_rows_agree(expression in any_expression(), samples in prop::collection::vec(any_sample(), 0..12)) {
        agree(&expression, &samples)?;
    }
}
