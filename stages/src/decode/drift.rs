//! What payloads hold that the schema does not know: counted, kept or refused, and told once.
//!
//! Devices change before pipelines do. A field that no column asks for costs a count and no more, unless a column with
//! `rest = true` keeps it or the source refuses it; the first one of its name is told, as is the first value of another
//! kind than its column's.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use pipeline_engine::Counter;
use schemars::JsonSchema;
use serde::Deserialize;

use super::fault::{Fault, reason};
use super::table::NodeId;

/// Names come from devices, and may be as many as these please: so many are told and remembered, by a decoder and its twins.
const TOLD_MAX: usize = 1_000;
/// A name beyond it is counted and not told.
const NAME_BYTES_MAX: usize = 256;

/// What becomes of a field that no column asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFields {
    /// It is left out and counted, or kept by the column with `rest = true`.
    #[default]
    Ignore,
    /// Its message is a dead letter with the reason `unknown_field`.
    Reject,
}

/// The name of a field, and the node that it lies in.
type Name = (NodeId, Box<str>);

/// What the payloads of one decoder have held beyond the schema.
#[derive(Debug, Default)]
pub(super) struct Drift {
    pub(super) policy: UnknownFields,
    /// Fields that no column asks for.
    count: Counter,
    /// Fields of messages read since the last flush.
    unflushed: u64,
    /// Names that this decoder has met, so that the others are asked once for each.
    met: HashSet<Name>,
    /// What this decoder and its twins have told.
    told: Arc<Mutex<HashSet<Name>>>,
    /// The last name was the last that may be told.
    is_at_bound: bool,
    news: Vec<String>,
}

impl Drift {
    pub(super) fn new(policy: UnknownFields, count: Counter) -> Self {
        Self { policy, count, ..Self::default() }
    }

    /// For a twin of the decoder.
    pub(super) fn twin(&self) -> Self {
        let (count, told) = (self.count.clone(), self.told.clone());
        Self { policy: self.policy, count, told, ..Self::default() }
    }

    /// A field that no column asks for.
    #[inline]
    pub(super) fn count(&mut self) {
        self.unflushed += 1;
    }

    /// Whether nobody has been told of this field yet, and somebody will be now.
    pub(super) fn is_new(&mut self, node: NodeId, key: &str) -> bool {
        let is_met = key.len() > NAME_BYTES_MAX || self.met.len() >= TOLD_MAX || !self.met.insert((node, key.into()));
        if is_met {
            return false;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = told.len() < TOLD_MAX && told.insert((node, key.into()));
        self.is_at_bound |= is_new && told.len() == TOLD_MAX;
        is_new
    }

    pub(super) fn tell_field(&mut self, path: &str, kept_in: Option<&str>) {
        let fate = match (self.policy, kept_in) {
            (UnknownFields::Reject, _) => "its messages are dead letters".to_owned(),
            (UnknownFields::Ignore, Some(column)) => format!("column \"{column}\" keeps it"),
            (UnknownFields::Ignore, None) => "it is left out".to_owned(),
        };
        self.news.push(format!("messages have a field {path:?} that no column asks for: {fate}"));
        self.tell_bound();
    }

    /// Tells the first of its kind of the values that are not of their column's type.
    pub(super) fn tell_fault(&mut self, fault: &Fault) {
        if fault.reason != reason::WRONG_TYPE {
            return;
        }
        let Some((column, found)) = fault.detail.rsplit_once(", found ") else { return };
        let kind = match found.chars().next() {
            Some('"') => "text",
            Some('0'..='9' | '-') => "a number",
            _ => found,
        };
        // No field has a key of this form under a node that is none.
        if self.is_new(NodeId::MAX, &format!("{column}, found {kind}")) {
            self.news.push(format!("{column}, and messages have {kind}: they are dead letters"));
            self.tell_bound();
        }
    }

    fn tell_bound(&mut self) {
        if std::mem::take(&mut self.is_at_bound) {
            self.news.push(format!("this is the {TOLD_MAX}th change of what messages hold: no more are told"));
        }
    }

    /// Puts the count where it is shown, and returns what is to be told.
    pub(super) fn flush(&mut self) -> Vec<String> {
        self.count.add(std::mem::take(&mut self.unflushed));
        std::mem::take(&mut self.news)
    }
}
