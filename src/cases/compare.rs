//! Expected rows held against found ones, and what differs in words.

use pipeline_engine::terminal::printable_json;
use pipeline_engine::time::parse_us;
use serde_json::{Map, Value};

/// Numbers this close, relative to the larger, are the same.
const CLOSE: f64 = 1e-9;
/// So many rows are shown where there are too many or too few.
const SHOWN: usize = 5;

type Row = Map<String, Value>;

/// What differs at a place, in lines.
pub(super) fn differences(place: &str, expected: &[Row], found: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, (expected, found)) in expected.iter().zip(found).enumerate() {
        let mut wrong = Vec::new();
        for (column, value) in expected {
            let is = found.get(column).unwrap_or(&Value::Null);
            if !same(value, is) {
                wrong.push(format!("    {column}: expected {}, found {}", shown(value), shown(is)));
            }
        }
        if !wrong.is_empty() {
            lines.push(format!(
                "  {place}, row {}: {}",
                number + 1,
                printable_json(Value::Object(found.clone()).to_string())
            ));
            lines.extend(wrong);
        }
    }
    if expected.len() != found.len() {
        lines.push(format!("  {place}: expected {}, found {}", rows(expected.len()), rows(found.len())));
        let both = expected.len().min(found.len());
        for (word, rest) in [("missing", &expected[both..]), ("not expected", &found[both..])] {
            lines.extend(
                rest.iter()
                    .take(SHOWN)
                    .map(|row| format!("    {word}: {}", printable_json(Value::Object(row.clone()).to_string()))),
            );
            if rest.len() > SHOWN {
                lines.push(format!("    and {} more", rest.len() - SHOWN));
            }
        }
    }
    lines
}

fn rows(count: usize) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}

/// `"null"` expects none, since TOML has no word for it.
fn same(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => left == right,
            _ => match (left.as_f64(), right.as_f64()) {
                (Some(left), Some(right)) => (left - right).abs() <= CLOSE * left.abs().max(right.abs()),
                _ => left == right,
            },
        },
        (Value::String(text), Value::Null) => text == "null",
        (Value::String(left), Value::String(right)) => {
            left == right || matches!((parse_us(left, 0), parse_us(right, 0)), (Ok(left), Ok(right)) if left == right)
        }
        (left, right) => left == right,
    }
}

fn shown(value: &Value) -> String {
    printable_json(value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(value: Value) -> Row {
        if let Value::Object(row) = value { row } else { panic!("an object") }
    }

    #[test]
    fn only_the_columns_that_are_named_matter() {
        let found = [row(json!({ "a": 1.0, "b": "x", "at": "2026-01-01T00:00:00.000000Z" }))];
        for same in [
            json!({}),
            json!({ "a": 1 }),
            json!({ "a": 1.000_000_000_1, "c": "null" }),
            json!({ "at": "2026-01-01T00:00:00Z" }),
        ] {
            assert_eq!(differences("s", &[row(same.clone())], &found), [""; 0], "{same}");
        }
        let wrong = differences("s", &[row(json!({ "a": 2, "b": "null", "c": "x" }))], &found);
        assert_eq!(wrong[0], "  s, row 1: {\"a\":1.0,\"at\":\"2026-01-01T00:00:00.000000Z\",\"b\":\"x\"}");
        assert_eq!(
            wrong[1..],
            [
                "    a: expected 2, found 1.0",
                "    b: expected \"null\", found \"x\"",
                "    c: expected \"x\", found null"
            ]
        );
    }

    #[test]
    fn too_many_and_too_few_rows_are_shown() {
        let one = row(json!({ "a": 1 }));
        let told = differences("s", std::slice::from_ref(&one), &[]);
        assert_eq!(told, ["  s: expected 1 row, found 0 rows", "    missing: {\"a\":1}"]);
        let told = differences("s", &[], &vec![one; 7]);
        assert_eq!(told[0], "  s: expected 0 rows, found 7 rows");
        assert_eq!((told.len(), told[6].as_str()), (7, "    and 2 more"));
    }
}
