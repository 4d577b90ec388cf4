//! The text of a rule, read: words ([`token`]), then the tree they make ([`parse`],
//! [`expression`]).
//!
//! The grammar is AWS IoT's own and not SQL's: text stands in single *or* double quotes, `SET` comes
//! before `SELECT`, objects and arrays are written as in JSON, a source may be any expression inside a
//! nested query. General SQL parsers take parts of it for something else (`SELECT VALUE n` for an alias,
//! `"x"` for a column, a bare `end` for the end of the statement), so the parser is our own. It knows
//! no clause that does not run: what it can't read it refuses, with the place and what AWS writes
//! instead.

mod expression;
pub(super) mod parse;
mod refuse;
mod token;
pub(super) mod tree;

use std::ops::Range;

/// Why a rule can't run: the place in its text, what is wrong, a way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In bytes of the rule's text.
    pub(super) at: Range<usize>,
    /// Lower case, no full stop.
    pub(super) message: String,
    /// Sentences.
    pub(super) hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(at: Range<usize>, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Line and column of a byte, both from 1, the column in characters.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let mut end = at.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
