//! What can go wrong in a running stage, and whose it is.
//!
//! The engine has one behaviour for each [`Fault`]; a stage decides which it is where the error is
//! made, and nobody guesses from a text later.

use std::error::Error;
use std::fmt;

/// Whose an error is, and so what the engine does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// These rows can't be stored: they leave by the stage's `rejected` port, the rest goes on.
    Data,
    /// Outside, and will pass: retried with backoff for as long as it takes.
    Transient,
    /// Outside, and needs a person: the run stops and names the stage.
    Permanent,
    /// Ours: the run stops and says so.
    Bug,
}

/// A row of a group that the outside refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which batch of the group.
    pub batch: usize,
    /// Which row of the batch.
    pub row: usize,
    /// A word to group by, such as an SQLSTATE: the `reason` of the dead letter.
    pub reason: String,
    /// A sentence for a person.
    pub detail: String,
}

/// An error of a running stage.
#[derive(Debug)]
pub struct StageError {
    fault: Fault,
    code: Option<String>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    /// What of a group it is about; apart, since few errors have it.
    concerned: Option<Box<Concerned>>,
    /// Only follows from another stage's end: never reported where there is a real cause.
    consequence: bool,
}

/// The part of a group that an error is about.
#[derive(Debug)]
enum Concerned {
    /// Rows that are refused.
    Rows(Vec<Refused>),
    /// Partitions that are another worker's.
    Partitions(Vec<String>),
}

impl StageError {
    /// The stage that should have read this one's output has ended.
    pub(crate) fn reader_gone() -> Self {
        let mut error = Self::bug("a stage behind this one ended before it");
        error.consequence = true;
        error
    }

    pub(crate) fn is_consequence(&self) -> bool {
        self.consequence
    }

    /// Rows that the outside refuses for what they hold.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Fault::Data, message)
    }

    /// These rows of a group are refused, and none of the group is stored yet. In order, each row once.
    pub fn refused(rows: Vec<Refused>) -> Self {
        let mut error = Self::data(format!("{} rows are refused", rows.len()));
        error.concerned = Some(Box::new(Concerned::Rows(rows)));
        error
    }

    /// These partitions are another worker's by now, by their full names, and nothing of the group is stored.
    pub fn superseded(partitions: Vec<String>) -> Self {
        let mut error = Self::transient(format!("another worker has taken over {}", partitions.join(", ")));
        error.concerned = Some(Box::new(Concerned::Partitions(partitions)));
        error
    }

    /// An outside that is away for now. Past tense: it may work next time.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Fault::Transient, message)
    }

    /// An outside that a person has to mend.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(Fault::Permanent, message)
    }

    /// A state that our own code must never reach.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Fault::Bug, message)
    }

    fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            code: None,
            message: message.into(),
            hint: None,
            source: None,
            concerned: None,
            consequence: false,
        }
    }

    /// The error underneath; printed as part of the chain.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the reader can do about it, in sentences.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The outside's own code for the error, such as an SQLSTATE: the `reason` of a dead letter.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Whose it is.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The outside's own code, if it gave one.
    pub fn outside_code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The rows that a sink has named; empty for any other error.
    pub fn refused_rows(&self) -> &[Refused] {
        match self.concerned.as_deref() {
            Some(Concerned::Rows(rows)) => rows,
            _ => &[],
        }
    }

    /// The partitions that are another worker's by now; empty for any other error.
    pub fn superseded_partitions(&self) -> &[String] {
        match self.concerned.as_deref() {
            Some(Concerned::Partitions(partitions)) => partitions,
            _ => &[],
        }
    }

    /// What the reader can do about it, if anything is known.
    pub fn way_out(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The whole chain on one line, the hint last.
    pub fn chain(&self) -> String {
        let text = self.explanation();
        match &self.hint {
            Some(hint) => format!("{text}. {hint}"),
            None => text,
        }
    }

    /// The whole chain on one line, without the hint.
    pub fn explanation(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(error) = next {
            let line = error.to_string();
            // Many libraries print their source in their own text: once is enough.
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            next = error.source();
        }
        text
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// An Arrow kernel failed on rows whose schema the plan had checked: ours.
impl From<arrow::error::ArrowError> for StageError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::bug("an Arrow kernel failed").because(error)
    }
}
