use std::collections::HashMap;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use pipeline_engine::Span;
use pipeline_engine::ack::Partition;
use pipeline_engine::schema::is_json;
use pipeline_engine::stage::Batch;
use proptest::prelude::*;

use super::*;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

fn stage(text: &str) -> BuiltTransform {
    built::<ComputeConfig>(text, &context()).unwrap_or_else(|error| panic!("{error} {:?}: {text}", error.hint))
}

fn run(text: &str, readings: &[Reading]) -> Outcome {
    let mut stage = stage(text);
    let outcome = apply(&mut *stage.transform, Batch::detached(rows(readings)));
    assert!(outcome.keeps(&stage.outputs), "{text}");
    outcome
}

fn reading(temperature: Option<f64>, humidity: Option<f64>) -> Reading {
    Reading { temperature, humidity, ..Reading::of("a", 0) }
}

#[test]
fn the_example_in_its_header_works() {
    stage(&example(include_str!("mod.rs")));
}

#[test]
fn columns_are_computed_from_others_behind_them() {
    let text = "[columns]\n\
                fahrenheit = { expression = \"temperature * 9 / 5 + 32\", type = \"float64\" }\n\
                floor_name = { expression = \"concat('F', floor)\" }\n\
                hot = { expression = \"temperature > 30\" }\n\
                next = { expression = \"floor + 1\", type = \"int16\" }\n\
                whatever = { expression = \"CASE WHEN armed THEN floor ELSE 'none' END\" }";
    let outcome = run(text, &[reading(Some(100.0), None), reading(None, None)]);
    assert_eq!(outcome.texts(Port::MAIN, "fahrenheit"), ["212.0", ""]);
    assert_eq!(outcome.texts(Port::MAIN, "floor_name"), ["F3", "F3"]);
    assert_eq!(outcome.texts(Port::MAIN, "hot"), ["true", ""]);
    assert_eq!(outcome.texts(Port::MAIN, "next"), ["4", "4"]);
    let schema = outcome.port(Port::MAIN).unwrap().schema();
    let names: Vec<&str> = schema.fields()[7..].iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["fahrenheit", "floor_name", "hot", "next", "whatever"]);
    assert_eq!(*schema.field(10).data_type(), DataType::Int16);
    assert!(is_json(schema.field(11)), "only the row tells its type");
}

#[test]
fn a_column_is_replaced_where_that_is_said() {
    let text = "columns = { temperature = { expression = \"round(temperature)\", type = \"int32\", replace = true } }";
    let outcome = run(text, &[reading(Some(20.6), None)]);
    assert_eq!(outcome.texts(Port::MAIN, "temperature"), ["21"]);
    let schema = outcome.port(Port::MAIN).unwrap().schema();
    assert_eq!((schema.fields().len(), schema.index_of("temperature").unwrap()), (7, 2), "in its place");
}

#[test]
fn units_are_converted_before_anything_is_computed() {
    let text = "convert = { temperature = { from = \"degF\", to = \"degC\" }, floor = { from = \"ft\", to = \"m\", as = \"height\" } }\n\
                columns = { boils = { expression = \"temperature >= 100 AND height < 1\" } }";
    let outcome = run(text, &[reading(Some(212.0), None), reading(Some(211.9), None), reading(None, None)]);
    assert_eq!(outcome.texts(Port::MAIN, "temperature")[0], "100.0");
    assert_eq!(
        outcome.texts(Port::MAIN, "height"),
        ["0.9144"; 3].map(|text| format!("{}", text.parse::<f64>().unwrap()))
    );
    assert_eq!(outcome.texts(Port::MAIN, "floor"), ["3"; 3], "it keeps its own");
    assert_eq!(outcome.texts(Port::MAIN, "boils"), ["true", "false", ""]);
}

#[test]
fn floats_keep_their_type_and_what_is_no_number_stays() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("single", DataType::Float32, false),
        Field::new("whole", DataType::Int64, true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Float32Array::from(vec![1.0, f32::NAN, f32::INFINITY, 3e38])),
        Arc::new(Int64Array::from(vec![Some(5), None, Some(-40), Some(0)])),
    ];
    let given = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let text = "convert = { single = { from = \"m\", to = \"cm\" }, whole = { from = \"degC\", to = \"degF\" } }";
    let config: ComputeConfig = toml::from_str(text).unwrap();
    let cx = context();
    let mut built = config.build(&schema, &cx).unwrap();
    let outcome = apply(&mut *built.transform, Batch::detached(given));
    assert!(outcome.keeps(&built.outputs));
    assert_eq!(outcome.texts(Port::MAIN, "single"), ["100.0", "NaN", "inf", ""], "beyond a float of 32 bits");
    assert_eq!(outcome.texts(Port::MAIN, "whole"), ["41.0", "", "-40.0", "32.0"]);
    assert_eq!(cx.counter("failed_values").get(), 1);
}

#[test]
fn a_row_that_fails_is_kept_without_the_value_or_refused_as_it_came() {
    let columns = "[columns]\n\
                   ratio = { expression = \"temperature / humidity\" }\n\
                   small = { expression = \"temperature * 1000\", type = \"int16\" }";
    let readings = [
        reading(Some(20.0), Some(50.0)),
        reading(Some(20.0), Some(0.0)),
        reading(Some(40.0), Some(0.0)),
        reading(Some(40.0), Some(10.0)),
        reading(None, Some(0.0)),
        reading(Some(f64::NAN), Some(10.0)),
    ];
    let cx = context();
    let mut kept = built::<ComputeConfig>(columns, &cx).unwrap();
    let outcome = apply(&mut *kept.transform, Batch::detached(rows(&readings)));
    assert_eq!(outcome.texts(Port::MAIN, "ratio"), ["0.4", "", "", "4.0", "", ""]);
    assert_eq!(outcome.texts(Port::MAIN, "small"), ["20000", "20000", "", "", "", ""]);
    assert_eq!(cx.counter("failed_values").get(), 4);
    let outcome = run(&format!("failed = \"reject\"\n{columns}"), &readings);
    assert_eq!(outcome.texts(Port::MAIN, "temperature"), ["20.0", "", "NaN"], "a null makes null, and that is all");
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["compute.ratio", "compute.ratio", "compute.small"]);
    let details = outcome.texts(Port::REJECTED, "detail");
    assert_eq!(details[0], "ratio: it can't be computed");
    assert_eq!(details[1], "ratio: it can't be computed; small: 40000 does not fit its type");
    assert_eq!(outcome.payloads()[0]["temperature"], 20.0, "{:?}", outcome.payloads()[0]);
    assert!(outcome.payloads()[0].get("ratio").is_none(), "as it came");
}

#[test]
fn mistakes_are_placed_and_named_with_a_way_out() {
    let column = |of: &str| format!("columns = {{ x = {of} }}");
    let convert = |of: &str| format!("convert = {{ {of} }}");
    for (text, key, says) in [
        (String::new(), "", "nothing to compute"),
        (column("{ expression = \"temprature * 2\" }"), "columns.x.expression", "Did you mean \"temperature\"?"),
        (column("{ expression = \"temperature *\" }"), "columns.x.expression", "line 1, column 14 of the expression"),
        (column("{ expression = \"-temperature +\\n 2 2\" }"), "columns.x.expression", "line 2, column 4"),
        (column("{ expression = \"temperature, humidity\" }"), "columns.x.expression", "unexpected \",\""),
        (column("{ expression = \"temperature FROM 'a'\" }"), "columns.x.expression", "unexpected \"FROM\""),
        (column("{ expression = \"temperature AS y\" }"), "columns.x.expression", "unexpected \"AS\""),
        (column("{ expression = \"flor(temperature)\" }"), "columns.x.expression", "Did you mean floor()?"),
        (column("{ expression = \" \" }"), "columns.x.expression", "there is no expression"),
        (column("{ expression = \"armed + armed\" }"), "columns.x.expression", "Undefined in every row"),
        (
            column("{ expression = \"armed\", type = \"float64\" }"),
            "columns.x.expression",
            "no result of this can be float64",
        ),
        (column("{ expression = \"1\", replace = true }"), "columns.x.replace", "no column \"x\""),
        ("columns = { floor = { expression = \"1\" } }".to_owned(), "columns.floor", "replace = true"),
        (convert("status = { from = \"m\", to = \"m\" }"), "convert.status", "not a number"),
        (convert("flor = { from = \"m\", to = \"m\" }"), "convert.flor", "Did you mean \"floor\"?"),
        (convert("floor = { from = \"degc\", to = \"K\" }"), "convert.floor.from", "Did you mean \"degC\"?"),
        (
            convert("floor = { from = \"degC\", to = \"kPa\" }"),
            "convert.floor.to",
            "a temperature, and \"kPa\" a pressure",
        ),
        (convert("floor = { from = \"bar\", to = \"m\" }"), "convert.floor.to", "psi"),
        (convert("floor = { from = \"m\", to = \"ft\", as = \"armed\" }"), "convert.floor.as", "already"),
        (convert("floor = { from = \"m\", to = \"ft\", as = \"\" }"), "convert.floor.as", "no name"),
    ] {
        let (found, message) = mistake::<ComputeConfig>(&text);
        assert!(found == key && message.contains(says), "{text}: {found}: {message}");
    }
}

proptest! {
    /// Each row for itself gives what the batch gives, and no row is lost.
    #[test]
    fn no_row_is_lost_and_none_depends_on_another(
        values in prop::collection::vec((prop::option::of(-1e6..1e6), prop::option::of(-2i32..3)), 1..40),
        reject in any::<bool>(),
    ) {
        let policy = if reject { "reject" } else { "null" };
        let text = format!(
            "failed = \"{policy}\"\nconvert = {{ temperature = {{ from = \"degF\", to = \"degC\" }} }}\n\
             columns = {{ ratio = {{ expression = \"temperature / floor\" }} }}"
        );
        let readings: Vec<Reading> =
            values.iter().map(|(temperature, floor)| Reading { floor: *floor, ..reading(*temperature, None) }).collect();
        let whole = run(&text, &readings);
        prop_assert_eq!(whole.count(Port::MAIN) + whole.count(Port::REJECTED), readings.len());
        let mut alone = Vec::new();
        for reading in &readings {
            alone.extend(run(&text, std::slice::from_ref(reading)).texts(Port::MAIN, "ratio"));
        }
        prop_assert_eq!(&whole.texts(Port::MAIN, "ratio"), &alone);
        let failing = |(temperature, floor): &&(Option<f64>, Option<i32>)| temperature.is_some() && *floor == Some(0);
        let failed = if reject { values.iter().filter(failing).count() } else { 0 };
        prop_assert_eq!(whole.count(Port::REJECTED), failed);
    }
}

#[test]
fn the_docs_list_every_unit() {
    let docs = include_str!("../../../../docs/compute.md");
    let mut missing: HashMap<&str, &str> = HashMap::new();
    for (name, usual) in units::names() {
        if !docs.contains(&format!("`{name}`")) {
            missing.insert(name, usual);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_around_a_row_can_be_asked_for_and_a_replay_gives_the_same() {
    let text = "[columns]\n\
                seen = { expression = \"timestamp()\", type = \"timestamp\" }\n\
                dice = { expression = \"rand()\" }\n\
                id = { expression = \"newuuid()\" }";
    let partition = Partition::new("in/0");
    let outcome = |position: u64| {
        let mut stage = stage(text);
        let ack = partition.open(Span::new(position, position), 1_500_000);
        let readings = [reading(None, None), reading(None, None)];
        let outcome = apply(&mut *stage.transform, Batch::new(rows(&readings), ack));
        ["seen", "dice", "id"].map(|column| outcome.texts(Port::MAIN, column))
    };
    let first = outcome(7);
    assert_eq!(first[0], ["1970-01-01T00:00:01.500Z"; 2]);
    assert!(first[1][0] != first[1][1] && first[2][0] != first[2][1]);
    assert_eq!(outcome(7), first);
    assert_ne!(outcome(8)[1], first[1]);
}
