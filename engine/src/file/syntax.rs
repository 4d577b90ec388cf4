//! Text that is no TOML: what the parser found, in words for people who do not know its grammar.

use std::ops::Range;

use super::mistake::Mistake;

/// What the parser says of a name that is used twice, be it of a key or of a table.
const DUPLICATE: &str = "duplicate key";

/// The parser's errors as mistakes of the file.
pub(super) fn mistakes(text: &str, errors: &[toml::de::Error]) -> Vec<Mistake> {
    // It goes on as if the keys of a second table stood in the first: each that both have would be one more mistake.
    let again: Vec<Range<usize>> = errors
        .iter()
        .filter(|error| is_of_header(text, error))
        .filter_map(|error| block(text, &error.span()?))
        .collect();
    let follows = |error: &toml::de::Error| {
        let place = error.span().unwrap_or_default();
        error.message() == DUPLICATE
            && !is_of_header(text, error)
            && again.iter().any(|block| block.contains(&place.start))
    };
    errors.iter().filter(|error| !follows(error)).map(|error| mistake(text, error)).collect()
}

fn mistake(text: &str, error: &toml::de::Error) -> Mistake {
    let place = error.span();
    let found = place.clone().and_then(|place| text.get(place)).unwrap_or_default();
    if error.message() == DUPLICATE && is_of_header(text, error) {
        let header = place.as_ref().map(|place| line_of(text, place).trim()).unwrap_or_default();
        let header = header.split_inclusive(']').next().unwrap_or(header);
        return Mistake::new(place, format!("{header} is in the file twice"))
            .hint("A name is used once: give this one another, or put its keys into the first.");
    }
    if error.message() == DUPLICATE {
        return Mistake::new(place, format!("the key \"{found}\" is in this table twice"));
    }
    match error.message().split_once(" string, expected `") {
        Some((_, quote)) if is_open(text, place.as_ref(), quote.trim_end_matches('`')) => {
            let quote = quote.trim_end_matches('`');
            Mistake::new(place, format!("the text has no end: {quote} is missing behind it"))
        }
        _ => Mistake::new(place, error.message().replace('`', "\"")),
    }
}

/// Whether a text begins by this quote before the place: where a value is not even quoted, the parser misses a quote too.
fn is_open(text: &str, place: Option<&Range<usize>>, quote: &str) -> bool {
    let Some(before) = place.and_then(|place| text.get(..place.start)) else { return false };
    let line = before.rsplit('\n').next().unwrap_or(before);
    match quote {
        "\"" | "'" => line.contains(quote),
        // A text of many lines.
        "\"\"\"" | "'''" => before.contains(quote),
        _ => false,
    }
}

fn is_of_header(text: &str, error: &toml::de::Error) -> bool {
    let line = error.span().map(|place| line_of(text, &place)).unwrap_or_default();
    error.message() == DUPLICATE && line.trim_start().starts_with('[')
}

/// The line in which a place begins.
fn line_of<'t>(text: &'t str, place: &Range<usize>) -> &'t str {
    let (before, behind) = text.split_at_checked(place.start).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let end = behind.find('\n').map_or(text.len(), |length| place.start + length);
    &text[start..end]
}

/// From a header up to the next one.
fn block(text: &str, header: &Range<usize>) -> Option<Range<usize>> {
    let behind = text.get(header.start..)?;
    let next = behind
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .find(|at| behind[*at..].trim_start_matches([' ', '\t']).starts_with('['));
    Some(header.start..next.map_or(text.len(), |length| header.start + length))
}
