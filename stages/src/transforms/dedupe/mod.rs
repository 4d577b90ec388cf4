//! Leaves out rows whose key was seen shortly before: what a device, a bridge or a broker sends twice.
//!
//! ```toml
//! [transforms.once]
//! type = "dedupe"
//! inputs = ["valid"]
//! key = ["device_id", "timestamp"]
//! within = "10m"
//! ```
//!
//! The first row of a key goes on. A later one whose time is at most `within` away from the first
//! one's, in either direction, is left out and counted as `repeated_rows`. One that is farther away is
//! a new first: so a counter that wraps, or a name that is used again, is no repetition.
//!
//! A row with a null in its key goes on unjudged, is not remembered, and is counted as `unjudged_rows`;
//! with `nulls = "equal"` a null is a value like any other, as in a table whose key is unique with
//! `NULLS NOT DISTINCT`. A row without a time always goes on unjudged.
//!
//! With all columns in the key, a row is left out only if another was the same in everything: one that
//! says something else under a known name goes on, for a sink with a key to refuse and keep.
//!
//! # What it remembers
//! Keys in the order in which they came, as 128-bit hashes with their times. A key is forgotten
//! - no sooner than a row arrives that is more than `within` newer, and then from the oldest on, two for
//!   each new key, so no row takes long. The time is the rows' own: there is no clock. One row from a
//!   clock that is far ahead costs two keys at most;
//! - when there would be more than `keys_max`: the oldest, counted as `forgotten_keys`. Where that
//!   counter grows, `keys_max` is too small for what arrives within `within`.
//!
//! A key takes 24 bytes in a snapshot, and 50 to 110 in memory. A first row is mistaken for a repetition
//! where its hash is that of another key at hand: one row in 2^128 / `keys_max`, which is 3 in 10^33 with
//! a million keys. The hash (SipHash-2-4) has fixed keys, so what is remembered means the same after a
//! restart; whoever wants two keys to collide has to try 2^64 of them.
//!
//! What comes out depends on the order of the rows alone, not on how they are cut into batches.

mod memory;
mod run;
#[cfg(test)]
mod tests;

use arrow::datatypes::SchemaRef;
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

use self::memory::Memory;
use self::run::Dedupe;
use super::keys::{KeyColumns, is_hashable};
use super::snapshot::Fingerprint;

/// `type = "dedupe"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupeConfig {
    /// The columns that tell one row from another, of any type; rows with the same values in all of
    /// them are the same row.
    pub key: Vec<String>,
    /// What a null in the key means.
    #[serde(default)]
    pub nulls: Nulls,
    /// How far the time of a row may lie from that of the first one with its key, in either direction,
    /// for the row to be a repetition. Also how long a key is remembered at least, by the time of the
    /// rows, unless there are more than `keys_max`.
    #[serde(default = "within")]
    pub within: DurationText,
    /// The column with the time of the reading. A row without a time goes on unjudged.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How many keys are remembered, each in 50 to 110 bytes of memory and 24 of a snapshot; beyond it
    /// the oldest is forgotten, and counted as `forgotten_keys`.
    #[serde(default = "keys_max")]
    pub keys_max: u32,
}

/// What a null in a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Nulls {
    /// Nothing is known: the row goes on unjudged.
    #[default]
    Unjudged,
    /// A value like any other.
    Equal,
}

fn within() -> DurationText {
    DurationText::secs(600)
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

fn keys_max() -> u32 {
    1_000_000
}

impl TransformConfig for DedupeConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "dedupe",
        summary: "Leaves out rows whose key was seen shortly before, and counts them.",
        ports: &[],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What it remembers goes on after \
                  a restart, so a replay leaves out the rows it left out before. Where that can't be read (the \
                  configuration has changed, the snapshot is damaged), it starts with nothing: rows that repeat what \
                  came before the restart go on once more. So let the sinks keep their keys.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let key = KeyColumns::find(input, &self.key, "a value that can be compared", is_hashable)?;
        let is_time = |kind: &_| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        let within_us = u64::try_from(self.within.0.as_micros())
            .map_err(|_| BuildError::invalid("within", "the duration is longer than any two times are apart"))?;
        if self.keys_max == 0 {
            return Err(BuildError::invalid("keys_max", "no key could be remembered"));
        }
        let mut fingerprint = Fingerprint::default();
        key.mark(&mut fingerprint);
        if self.nulls == Nulls::Equal {
            fingerprint.text("nulls are equal");
        }
        fingerprint.text(&self.time_column);
        fingerprint.number(within_us);
        fingerprint.number(self.keys_max.into());
        let transform = Dedupe {
            key,
            nulls: self.nulls,
            time,
            memory: Memory::new(within_us, self.keys_max),
            fingerprint: fingerprint.finish(),
            repeated: cx.counter("repeated_rows"),
            forgotten: cx.counter("forgotten_keys"),
            unjudged: cx.counter("unjudged_rows"),
            repetitions: Vec::new(),
            bytes: Vec::new(),
        };
        Ok(BuiltTransform { transform: Box::new(transform), outputs: vec![(Port::MAIN, input.clone())] })
    }
}
