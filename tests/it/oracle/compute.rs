//! `compute` gives the numbers of numpy, and of units those that fractions give.

use arrow::array::Int64Array;
use pipeline_stages::transforms::compute::ComputeConfig;

use super::*;

const CONFIG: &str = r#"
[convert]
a = { from = "degF", to = "degC", as = "a_celsius" }

[columns]
fahrenheit = { expression = "a * 9 / 5 + 32", type = "float64" }
quotient = { expression = "a / b" }
root = { expression = "sqrt(a)" }
power = { expression = "power(abs(b), 1.5)" }
folded = { expression = "CASE WHEN a > b THEN a - b ELSE -(b - a) END" }
third = { expression = "n / 3" }
"#;

/// Units to convert `a` into, beside those of [`CONFIG`].
const UNITS: [(&str, &str, &str); 6] = [
    ("a_psi", "kPa", "psi"),
    ("a_gpm", "m3/h", "gpm"),
    ("a_mph", "mm/s", "mph"),
    ("a_kwh", "kJ", "kWh"),
    ("a_rpm", "deg/s", "rpm"),
    ("a_kelvin", "degF", "K"),
];

fn applied(text: &str, rows: &RecordBatch) -> RecordBatch {
    let config: ComputeConfig = toml::from_str(text).unwrap();
    let context = BuildContext::detached("computed", Default::default());
    let mut transform = config.build(&rows.schema(), &context).unwrap().transform;
    let mut out = Emitter::default();
    transform.apply(Batch::detached(rows.clone()), &mut out).unwrap();
    let [(Port::MAIN, batch)] = &out.take()[..] else { panic!("one batch by the main port") };
    batch.rows.clone()
}

#[test]
fn computed_numbers_are_those_of_numpy_and_of_fractions() {
    let mut rng = StdRng::seed_from_u64(11);
    let mut number = |size: i32| {
        let number = rng.random_range(-1.0..1.0) * 10_f64.powi(rng.random_range(-size..size));
        if rng.random_bool(0.1) { 0.0 } else { number }
    };
    let (mut a, mut b, mut n) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..400 {
        // Each has its nulls.
        a.push((row % 13 != 0).then(|| number(6)));
        b.push((row % 17 != 0).then(|| number(3)));
        n.push((row % 7 != 0).then_some(row * 37 - 5000));
    }
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("a", Arc::new(Float64Array::from(a.clone())) as ArrayRef, true),
        ("b", Arc::new(Float64Array::from(b.clone())) as ArrayRef, true),
        ("n", Arc::new(Int64Array::from(n.clone())) as ArrayRef, true),
    ])
    .unwrap();
    let mut ours = applied(CONFIG, &rows);
    // A column is converted once in a stage, so each further unit has a stage of its own.
    for (name, from, to) in UNITS {
        let text = format!("convert = {{ a = {{ from = \"{from}\", to = \"{to}\", as = \"{name}\" }} }}");
        ours = applied(&text, &ours);
    }
    let input = a.iter().zip(&b).zip(&n).map(|((a, b), n)| json!({ "a": a, "b": b, "n": n }));
    let files = [("rows.jsonl", lines(input)), ("ours.jsonl", String::from_utf8(json_lines(&ours).unwrap()).unwrap())];
    let (agrees, said) = ask("compute.py", &files);
    assert!(agrees, "{said}");
}
