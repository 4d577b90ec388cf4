//! The examples of AWS's reference, our own cases, and what is refused, from `tests/corpus/rules/`.

use std::path::PathBuf;

use pipeline_engine::stage::Port;
use serde::Deserialize;
use serde_json::Value;

use super::{build, message_schema, over_messages, payloads, row_schema};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    expression: Option<String>,
    sql: Option<String>,
    message: Option<String>,
    topic: Option<String>,
    gives: String,
    documented: Option<String>,
    because: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Examples {
    example: Vec<Example>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedRule {
    sql: String,
    at: String,
    nth: Option<usize>,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedRules {
    refused: Vec<RefusedRule>,
}

fn read(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/rules").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            let (left, right) = (left.as_f64().unwrap(), right.as_f64().unwrap());
            // The last digit of a hyperbolic cosine is the library's own.
            (left - right).abs() <= 1e-15 * left.abs().max(right.abs())
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| same(value, other)))
        }
        _ => left == right,
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What came out, in the words of the table.
fn outcome_of(example: &Example) -> String {
    let sql = match (&example.sql, &example.expression) {
        (Some(sql), None) => sql.clone(),
        (None, Some(expression)) => format!("SELECT VALUE ({expression})"),
        _ => panic!("either sql or expression: {example:?}"),
    };
    let topic = example.topic.as_deref().unwrap_or("a/b");
    let message = example.message.as_deref().unwrap_or("{}");
    let outcome = over_messages(&sql, &[(Some(topic), message.as_bytes())]);
    if outcome.count(Port::REJECTED) == 1 {
        return "rejected".to_owned();
    }
    match payloads(&outcome).first().map(String::as_str) {
        None => "nothing".to_owned(),
        Some("") => "Undefined".to_owned(),
        Some(payload) => payload.to_owned(),
    }
}

fn check(file: &str, examples_min: usize) {
    let examples: Examples = toml::from_str(&read(file)).unwrap();
    let mut wrong = Vec::new();
    for example in &examples.example {
        assert_eq!(example.documented.is_some(), example.because.is_some(), "a reason for each deviation: {example:?}");
        assert_ne!(example.documented.as_ref(), Some(&example.gives), "no deviation at all: {example:?}");
        let found = outcome_of(example);
        let is_word = |text: &str| ["Undefined", "nothing", "rejected"].contains(&text);
        let agrees = match (is_word(&found), is_word(&example.gives)) {
            (false, false) => same(&parsed(&found), &parsed(&example.gives)),
            _ => found == example.gives,
        };
        if !agrees {
            wrong.push(format!("{example:?}\n  gave {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), examples.example.len(), wrong.join("\n"));
    assert!(examples.example.len() >= examples_min, "only {} examples", examples.example.len());
}

#[test]
fn the_examples_of_the_reference_give_the_documented_outputs() {
    check("reference.toml", 130);
}

#[test]
fn conversions_and_undefined_follow_the_tables_of_the_reference() {
    check("semantics.toml", 100);
}

#[test]
fn what_cannot_run_is_refused_with_its_place_and_a_way_out() {
    let rules: RefusedRules = toml::from_str(&read("refused.toml")).unwrap();
    for rule in &rules.refused {
        let Err(error) = build(&rule.sql, "", &row_schema()) else { panic!("must be refused: {}", rule.sql) };
        assert_eq!(error.key, "sql", "{}", rule.sql);
        let at = error.within.clone().expect("a place in the rule");
        assert_eq!(&rule.sql[at.clone()], rule.at, "{}: {error}", rule.sql);
        let before = rule.sql[..at.start].matches(&rule.at).count();
        if let Some(nth) = rule.nth {
            assert_eq!(before + 1, nth, "{}: {error}", rule.sql);
        }
        assert!(error.message.contains(&rule.message), "{}: {error}", rule.sql);
        let column = rule.sql[..at.start].chars().count() + 1;
        assert!(error.message.contains(&format!("line 1, column {column} ")), "{}: {error}", rule.sql);
        if let Some(hint) = &rule.hint {
            let found = error.hint.clone().unwrap_or_default();
            assert!(found.contains(hint), "{}: {found}", rule.sql);
        }
    }
    assert!(rules.refused.len() >= 60);
}

#[test]
fn a_place_on_a_later_line_is_told_by_line_and_column() {
    let error = build("SELECT temperature\nFROM 'a/b'\nWHERE größe > 5 AND  temprature > 3", "", &message_schema());
    assert!(error.is_ok(), "a message can have any key");
    let error = build("SELECT temperature\nFROM 'a/b'\nWHERE 'größe' = 'x' AND temprature > 3", "", &row_schema());
    let message = error.err().unwrap().message;
    assert!(message.ends_with("(line 3, column 25 of the rule)"), "{message}");
}

#[test]
fn expressions_that_nest_without_end_are_refused_and_not_run_out_of_stack() {
    for (open, close) in [("(", ")"), ("[", "]"), ("NOT ", ""), ("abs(", ")"), ("CASE a WHEN ", " THEN 1 END")] {
        let sql = format!("SELECT {}1{} AS x", open.repeat(5_000), close.repeat(5_000));
        let error = build(&sql, "", &message_schema()).err().unwrap();
        assert!(error.message.contains("nests deeper"), "{open}: {error}");
    }
    for (first, more) in [("1", " + 1"), ("a", ".b"), ("a", "[0]"), ("true", " AND true")] {
        let sql = format!("SELECT {first}{} AS x", more.repeat(5_000));
        let error = build(&sql, "", &message_schema()).err().unwrap();
        assert!(error.message.contains("stand in each other"), "{more}: {error}");
    }
    let sum = format!("SELECT VALUE n{}", " + n".repeat(199));
    assert_eq!(payloads(&over_messages(&sum, &[(None, b"{\"n\":2}")])), ["400"]);
}
