//! The head of a partition: one small object that says whose the partition is, how far the lake has come along it, and which
//! group is on its way. As JSON, for people too.

use bytes::Bytes;
use pipeline_engine::stage::{Advance, StageError};
use serde::{Deserialize, Serialize};

use crate::sinks::parquet::account::position;
use crate::sinks::parquet::journal::Positions;

const FORMAT: u32 = 1;

/// What a head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of the claim: what comes under a lower one is not stored.
    pub(super) tenure: u64,
    /// Which sink of which process has claimed it.
    pub(super) holder: String,
    /// How often it was changed: so no two heads are alike, and no ETag, which is a hash of the content, comes again.
    pub(super) revision: u64,
    /// All up to these is in objects under their own names.
    pub(super) positions: Positions,
    /// The group behind that, which is stored as well, but not under its own names yet.
    pub(super) staged: Option<StagedFile>,
}

/// Where a group is set aside with its objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedFile {
    pub(super) key: String,
    pub(super) bytes: usize,
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct HeadText {
    format: u32,
    partition: String,
    tenure: u64,
    holder: String,
    revision: u64,
    positions: Vec<PositionText>,
    staged: Option<StagedFile>,
}

#[derive(Serialize, Deserialize)]
struct PositionText {
    input: String,
    position: String,
}

impl Head {
    /// Of a partition that nobody has claimed before.
    pub(super) fn first(tenure: u64, holder: &str) -> Self {
        Self { tenure, holder: holder.to_owned(), revision: 0, positions: Positions::default(), staged: None }
    }

    pub(super) fn is_of(&self, tenure: u64, holder: &str) -> bool {
        self.tenure == tenure && self.holder == holder
    }

    /// The same under another claim.
    pub(super) fn claimed(&self, tenure: u64, holder: &str) -> Self {
        Self { tenure, holder: holder.to_owned(), ..self.clone() }.next()
    }

    /// The same with a group on its way.
    pub(super) fn staging(&self, file: StagedFile) -> Self {
        Self { staged: Some(file), ..self.clone() }.next()
    }

    /// The same with the group that was on its way under its own names.
    pub(super) fn settled(&self, advances: &[Advance]) -> Self {
        Self { positions: self.positions.after(advances), staged: None, ..self.clone() }.next()
    }

    fn next(self) -> Self {
        Self { revision: self.revision + 1, ..self }
    }

    pub(super) fn encode(&self, partition: &str) -> Bytes {
        let entry = |((input, _), position): (&(String, String), &pipeline_engine::Position)| PositionText {
            input: input.clone(),
            position: position.to_string(),
        };
        let text = HeadText {
            format: FORMAT,
            partition: partition.to_owned(),
            tenure: self.tenure,
            holder: self.holder.clone(),
            revision: self.revision,
            positions: self.positions.0.iter().map(entry).collect(),
            staged: self.staged.clone(),
        };
        serde_json::to_vec(&text).expect("numbers and text are JSON").into()
    }

    /// # Errors
    /// Nothing of ours, or of another version.
    pub(super) fn decode(content: &[u8], key: &str) -> Result<Self, StageError> {
        let unusable = || StageError::permanent(format!("\"{key}\" can't be used"));
        let damaged = |error: serde_json::Error| {
            unusable().because(error).hint(
                "Somebody else has written it. The newest objects of the partition say how far it was stored, in their footers \
                 (pipeline.group): write that into it, or put back an earlier version of it.",
            )
        };
        let Versioned { format } = serde_json::from_slice(content).map_err(damaged)?;
        if format != FORMAT {
            let text = format!("another version of the program wrote it, in format {format}");
            return Err(unusable().because(text).hint("Run that version on all workers."));
        }
        let text: HeadText = serde_json::from_slice(content).map_err(damaged)?;
        let HeadText { partition, tenure, holder, revision, positions, staged, .. } = text;
        let entry = |text: PositionText| Ok(((text.input, partition.clone()), position(&text.position)?));
        let positions = positions.into_iter().map(entry).collect::<Result<_, StageError>>()?;
        Ok(Self { tenure, holder, revision, positions: Positions(positions), staged })
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::Position;
    use pipeline_engine::stage::Fault;

    use super::*;

    fn head() -> Head {
        let advance = |input: &str, to: Position| Advance {
            input: input.to_owned(),
            partition: "telemetry/shard".to_owned(),
            from: None,
            to,
            tenure: None,
        };
        let advances = [advance("valid", Position([0, 1, 2, u64::MAX])), advance("valid.rejected", 7.into())];
        let file = StagedFile { key: "_pipeline/staged/x".to_owned(), bytes: 9 };
        Head::first(3, "holder").settled(&advances).staging(file)
    }

    #[test]
    fn what_was_written_reads_back() {
        let content = head().encode("telemetry/shard");
        assert_eq!(Head::decode(&content, "head").unwrap(), head());
    }

    #[test]
    fn every_change_makes_another_content() {
        let one = head();
        for other in [one.claimed(3, "holder"), one.staging(one.staged.clone().unwrap()), one.settled(&[])] {
            assert_ne!(other.encode("p"), one.encode("p"));
            assert_eq!(other.revision, one.revision + 1);
        }
    }

    #[test]
    fn a_later_format_and_what_is_no_head_are_told_apart_with_a_way_out() {
        for (content, says) in [("{\"format\":2}", "in format 2"), ("{", "EOF"), ("{\"format\":1}", "missing field")] {
            let error = Head::decode(content.as_bytes(), "head").unwrap_err();
            assert_eq!(error.fault(), Fault::Permanent);
            assert!(error.chain().contains(says), "{}", error.chain());
        }
    }
}
