//! Prefixes in Firehose's own language: text, and expressions `!{namespace:value}` in it.
//!
//! | expression | becomes |
//! |---|---|
//! | `!{timestamp:yyyy/MM/dd/HH}` | the time of the rows, by a pattern of Java's |
//! | `!{partitionKeyFromQuery:column}`, `!{partitionKeyFromLambda:column}` | the value of a column |
//! | `!{firehose:random-string}` | 11 letters and digits, others at each place and for each object |
//! | `!{firehose:error-output-type}` | why the rows lie here, in an error prefix alone |

use std::ops::Range;

use arrow::datatypes::{DataType, Schema};
use pipeline_engine::columns;
use pipeline_engine::stage::BuildError;

use super::escape::{NULL, push_value};
use crate::time_pattern::{Dialect, TimePattern, Zone};

/// What Firehose appends to a prefix without expressions.
const DEFAULT_TIME: &str = "yyyy/MM/dd/HH/";
const EXPRESSIONS: &str = "Expressions are !{timestamp:yyyy/MM/dd}, !{partitionKeyFromQuery:COLUMN}, \
                           !{firehose:random-string} and, in error_output_prefix, !{firehose:error-output-type}.";

/// Stands for a random string until the object is known; no prefix and no value holds it.
pub(super) const RANDOM: char = '\u{1}';
/// Stands for the value of a column while a template is looked at; likewise.
const VALUE: char = '\u{2}';

/// The key of the pipeline file that a template stands at, which says what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Prefix,
    /// Of rows for which the other has no place; `Some`: of dead letters, by their column of reasons.
    Errors(Option<usize>),
}

impl Role {
    fn key(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Errors(_) => "error_output_prefix",
        }
    }
}

/// A prefix that has been read.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pieces: Vec<Piece>,
    zone: Zone,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Time(TimePattern),
    /// The number of a column among the rows'.
    Column(usize),
    Random,
    ErrorType,
}

/// What a template says of some rows.
pub(super) struct Values<'a> {
    /// Microseconds since 1970; `None` for rows without a time, or with one that no calendar holds.
    pub(super) time_us: Option<i64>,
    /// By the number of a column.
    pub(super) column: &'a dyn Fn(usize) -> Option<&'a str>,
    pub(super) error_type: &'a str,
}

impl Template {
    /// # Errors
    /// What is wrong with it, with the place in the text.
    pub(super) fn parse(text: &str, role: Role, input: &Schema, zone: Zone) -> Result<Self, BuildError> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(begin) = text[at..].find("!{").map(|offset| at + offset) {
            push_text(&mut pieces, &text[at..begin]);
            let Some(end) = text[begin..].find('}').map(|offset| begin + offset + 1) else {
                let open = BuildError::invalid(role.key(), "an expression is never closed").within(begin..text.len());
                return Err(open.hint(EXPRESSIONS));
            };
            pieces.push(expression(&text[begin + 2..end - 1], begin..end, role, input)?);
            at = end;
        }
        push_text(&mut pieces, &text[at..]);
        if !pieces.iter().any(|piece| !matches!(piece, Piece::Text(_))) {
            pieces.extend(default_pieces(role));
        }
        let template = Self { pieces, zone };
        template.check(role, text)?;
        if role == Role::Prefix {
            template.check_folders(input)?;
        }
        Ok(template)
    }

    /// Numbers of the columns whose values it holds.
    pub(super) fn columns(&self) -> Vec<usize> {
        let column = |piece: &Piece| if let Piece::Column(column) = piece { Some(*column) } else { None };
        let mut columns: Vec<_> = self.pieces.iter().filter_map(column).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// Times that lie between the same multiples of this are written alike; `None`: all are.
    pub(super) fn step_us(&self) -> Option<i64> {
        let step_us = |piece: &Piece| match piece {
            // Offsets of zones are whole seconds.
            Piece::Time(pattern) if self.zone != Zone::UTC => Some(pattern.step_us().min(1_000_000)),
            Piece::Time(pattern) => Some(pattern.step_us()),
            _ => None,
        };
        self.pieces.iter().filter_map(step_us).min()
    }

    /// The folder of rows with these values, with [`RANDOM`] where the object decides.
    pub(super) fn fill(&self, values: &Values<'_>) -> String {
        let mut path = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Random => path.push(RANDOM),
                Piece::ErrorType => push_value(&mut path, values.error_type),
                Piece::Column(column) => match (values.column)(*column) {
                    Some(value) => push_value(&mut path, value),
                    None => path.push_str(NULL),
                },
                Piece::Time(pattern) => match self.time(pattern, values.time_us) {
                    Some(time) => path.push_str(&time),
                    None => {
                        path.push_str(NULL);
                        // The pattern may have said where the folder ends.
                        if self.time(pattern, Some(0)).is_some_and(|time| time.ends_with('/')) {
                            path.push('/');
                        }
                    }
                },
            }
        }
        path
    }

    fn time(&self, pattern: &TimePattern, time_us: Option<i64>) -> Option<String> {
        pattern.write(time_us?.div_euclid(1_000), &self.zone)
    }

    /// The path of some rows, with a mark in the place of every value.
    fn sample(&self) -> String {
        let mark = VALUE.to_string();
        let sample = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Time(pattern) => self.time(pattern, Some(0)).unwrap_or_default(),
            Piece::Column(_) | Piece::Random | Piece::ErrorType => mark.clone(),
        });
        sample.collect()
    }

    /// Its text makes folders that lie below the url.
    fn check(&self, role: Role, text: &str) -> Result<(), BuildError> {
        let refuse = |what: &str, hint: &str| Err(BuildError::invalid(role.key(), what).hint(hint));
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return refuse("a control character or a backslash is no part of a folder's name", "Leave it out.");
        }
        let sample = self.sample();
        let Some(folders) = sample.strip_suffix('/') else {
            let hint = "End it with a slash: the names of the objects in it are the sink's own.";
            return refuse("a prefix names folders, and this one ends without a slash", hint);
        };
        if folders.split('/').any(|name| matches!(name, "" | "." | "..")) {
            let hint = "Write folders below `url`, such as \"raw/!{timestamp:yyyy/MM/dd}/\".";
            return refuse("a folder has no name, or one that leads elsewhere", hint);
        }
        if super::is_too_long(&sample) {
            return refuse("the prefix is too long", "It may have 512 bytes, and the name of a folder 255.");
        }
        Ok(())
    }

    /// A reader takes `name=value` for a column, and could not tell it from a column of that name in the rows.
    fn check_folders(&self, input: &Schema) -> Result<(), BuildError> {
        let mut name = String::new();
        for (place, piece) in self.pieces.iter().enumerate() {
            let text = match piece {
                Piece::Text(text) => text.clone(),
                Piece::Time(pattern) => self.time(pattern, Some(0)).unwrap_or_default(),
                Piece::Column(_) | Piece::Random | Piece::ErrorType => VALUE.to_string(),
            };
            for c in text.chars() {
                match c {
                    '/' => name.clear(),
                    '=' if input.index_of(&name).is_ok() && !self.is_value_of(place, input.index_of(&name).ok()) => {
                        return Err(BuildError::invalid("", format!("column \"{name}\" has the name of a folder"))
                            .hint(format!(
                                "Readers see folders such as {name}=... as columns. Rename the column or the folder."
                            )));
                    }
                    c => name.push(c),
                }
            }
        }
        Ok(())
    }

    /// Whether the piece that follows is the value of that column.
    fn is_value_of(&self, place: usize, column: Option<usize>) -> bool {
        let ends_with_equals = matches!(&self.pieces[place], Piece::Text(text) if text.ends_with('='));
        ends_with_equals && matches!(self.pieces.get(place + 1), Some(Piece::Column(found)) if Some(*found) == column)
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Behind a prefix without expressions.
fn default_pieces(role: Role) -> Vec<Piece> {
    let time = TimePattern::read(DEFAULT_TIME, Dialect::Jdk).map(Piece::Time);
    let error_type = match role {
        Role::Prefix => Vec::new(),
        Role::Errors(reason) => vec![reason.map_or(Piece::ErrorType, Piece::Column), Piece::Text("/".to_owned())],
    };
    error_type.into_iter().chain(time).collect()
}

fn expression(text: &str, place: Range<usize>, role: Role, input: &Schema) -> Result<Piece, BuildError> {
    let refuse = |what: String, hint: &str| {
        Err(BuildError::invalid(role.key(), what).hint(hint.to_owned()).within(place.clone()))
    };
    let Some((namespace, value)) = text.split_once(':') else {
        return refuse(format!("\"!{{{text}}}\" is no expression"), EXPRESSIONS);
    };
    match (namespace, value) {
        ("timestamp", pattern) => match TimePattern::read(pattern, Dialect::Jdk) {
            Ok(pattern) => Ok(Piece::Time(pattern)),
            Err(mistake) => {
                let hint = if pattern.contains('Y') {
                    "Java's YYYY is the year of the week, which is another one around New Year: write yyyy."
                } else {
                    "Patterns are Java's: yyyy, MM, dd, HH, mm; a slash makes a folder."
                };
                refuse(mistake, hint)
            }
        },
        ("firehose", "random-string") => Ok(Piece::Random),
        ("firehose", "error-output-type") => match role {
            Role::Errors(reason) => Ok(reason.map_or(Piece::ErrorType, Piece::Column)),
            Role::Prefix => refuse(
                "rows that are not refused have no error type".to_owned(),
                "Write !{firehose:error-output-type} in error_output_prefix.",
            ),
        },
        ("firehose", other) => refuse(
            format!("firehose has no value \"{other}\""),
            "It has random-string and, in error_output_prefix, error-output-type.",
        ),
        ("partitionKeyFromQuery" | "partitionKeyFromLambda", column) => {
            if role != Role::Prefix {
                return refuse("an error prefix takes no values of columns".to_owned(), "Write it in prefix.");
            }
            let fits = |kind: &DataType| kind.is_integer() || matches!(kind, DataType::Utf8 | DataType::Boolean);
            let found = columns::find_typed(input, role.key(), column, "text, a whole number or a bool", fits);
            found.map(Piece::Column).map_err(|error| error.within(place))
        }
        (other, _) => refuse(format!("\"{other}\" is no namespace of expressions"), EXPRESSIONS),
    }
}
