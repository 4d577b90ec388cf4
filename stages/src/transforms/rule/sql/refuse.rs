//! What a person who knows another SQL would write, and what AWS IoT writes for it.

use std::ops::Range;

use pipeline_engine::suggest::nearest;

use super::Refusal;

/// The words that mean something by themselves. They name no attribute, other than behind a dot.
pub(super) const KEYWORDS: [&str; 16] = [
    "SELECT", "FROM", "WHERE", "SET", "AS", "AND", "OR", "NOT", "IN", "CASE", "WHEN", "THEN", "ELSE", "END", "NULL",
    "VALUE",
];

/// Clauses and operators of other SQLs, and the nearest thing that works.
const FOREIGN: [(&str, &str); 19] = [
    ("LIKE", "startswith(a, 'x'), endswith(a, 'x') and regexp_matches(a, '^x.*y$') compare text with a pattern."),
    ("RLIKE", "regexp_matches(a, 'pattern') compares text with a pattern."),
    ("REGEXP", "regexp_matches(a, 'pattern') compares text with a pattern."),
    ("BETWEEN", "Write a >= low AND a <= high."),
    ("IS", "isUndefined(a) tells whether a is missing, isNull(a) whether it is null."),
    ("GROUP", "A rule looks at one message at a time; a transform behind it can aggregate."),
    ("ORDER", "A rule looks at one message at a time: there is nothing to order."),
    ("HAVING", "A rule looks at one message at a time: write WHERE."),
    ("LIMIT", "A rule looks at one message at a time: write WHERE."),
    ("OFFSET", "A rule looks at one message at a time: write WHERE."),
    ("JOIN", "A rule reads one topic filter; the transform `enrich` adds columns of a table."),
    ("LEFT", "A rule reads one topic filter; the transform `enrich` adds columns of a table."),
    ("INNER", "A rule reads one topic filter; the transform `enrich` adds columns of a table."),
    ("UNION", "Write one rule a transform; a sink can read several."),
    ("EXCEPT", "List the attributes to keep in place of the star."),
    ("DISTINCT", "The transform `dedupe` leaves out rows that repeat a key."),
    ("WITH", "SET @name = expression names an intermediate result."),
    ("INTO", "Where results go is said by the sinks of the pipeline."),
    (
        "EXISTS",
        "A condition on a nested query: get((SELECT ... FROM a WHERE ...), 0) is Undefined where nothing matches.",
    ),
];

/// The way out for a word of another SQL.
pub(super) fn foreign(word: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, way_out)| *way_out)
}

/// Whether it is a word that can't be an attribute.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(word))
}

/// A word where none of its kind can stand: `expected` says what can, `keywords` which words those are.
pub(super) fn unexpected(word: &str, at: Range<usize>, expected: &str, keywords: &[&str]) -> Refusal {
    if let Some(way_out) = foreign(word) {
        return Refusal::new(at, format!("AWS IoT SQL has no {}", word.to_ascii_uppercase())).hint(way_out);
    }
    let refusal = Refusal::new(at, format!("unexpected \"{word}\""));
    match nearest(&word.to_ascii_uppercase(), keywords) {
        Some(near) if !near.eq_ignore_ascii_case(word) => {
            refusal.hint(format!("Did you mean {near}? Expected {expected}."))
        }
        _ => refusal.hint(format!("Expected {expected}.")),
    }
}
