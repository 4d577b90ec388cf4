//! What a PromQL expression asks for.

use std::collections::BTreeSet;

/// The metrics of the pipeline that it names, and what rules of ours have recorded (`pipeline:…`).
pub fn metrics(expression: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    // Every second part is within quotes.
    for outside in expression.split('"').step_by(2) {
        let words = outside.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        names.extend(words.filter(|word| word.starts_with("pipeline_") || word.starts_with("pipeline:")));
    }
    names
}

/// Its selectors for one value, as `label="value"`, but for those of labels that Prometheus itself adds.
pub fn selectors(expression: &str) -> BTreeSet<String> {
    let parts: Vec<&str> = expression.split('"').collect();
    let pairs = parts.chunks(2).filter_map(|pair| Some((pair.first()?.strip_suffix('=')?, *pair.get(1)?)));
    let pairs = pairs.filter(|(before, _)| !before.ends_with('!'));
    let label = |before: &str| {
        let start = before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        before[start..].to_owned()
    };
    let pairs = pairs.map(|(before, value)| (label(before), value));
    pairs.filter(|(label, _)| label != "job").map(|(label, value)| format!("{label}=\"{value}\"")).collect()
}

#[test]
fn names_and_selectors_are_found() {
    let text = r#"rate(pipeline_a_total{event="b", x!="c", y=~"pipeline_no"}[5m]) > pipeline:d:total and up{job="e"}"#;
    assert_eq!(metrics(text).into_iter().collect::<Vec<_>>(), ["pipeline:d:total", "pipeline_a_total"]);
    assert_eq!(selectors(text).into_iter().collect::<Vec<_>>(), [r#"event="b""#]);
}
