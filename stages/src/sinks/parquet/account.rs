//! What the objects in a store prove by themselves: how far the sink has come, and that no group is
//! missing, incomplete or there twice.
//!
//! Each file says of what group it is (see [`super::provenance`]): how many rows the group had in all its
//! files, and from which positions to which it took the sink. So the groups of an input must follow on
//! each other without a gap, and the rows in a group's files must be as many as it says. Where some files
//! have no place to say it (lines that are not packed), a gap proves nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use pipeline_engine::Position;
use pipeline_engine::stage::{Account, Committed, StageError};
use serde::Deserialize;

use super::format::{Origin, Written};

/// `pipeline.group` of a footer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct GroupText {
    pub(super) rows: u64,
    pub(super) advances: Vec<AdvanceText>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct AdvanceText {
    pub(super) input: String,
    pub(super) partition: String,
    pub(super) from: Option<String>,
    pub(super) to: String,
}

/// Adds up the objects of a sink.
#[derive(Debug, Default)]
pub(super) struct Objects {
    objects: u64,
    rows: u64,
    /// Rows in the files of each group.
    groups: BTreeMap<GroupText, u64>,
    /// Objects of runs that took no checkpoints: nothing is known of what they should hold.
    unplaced: u64,
    /// Objects that have no place to say what they should hold.
    silent: u64,
    contradictions: Vec<String>,
}

impl Objects {
    /// Takes in one object. What can't be read is a contradiction, not an error.
    pub(super) async fn add(&mut self, key: &str, content: Bytes) {
        self.objects += 1;
        let Some(written) = Written::of(key) else { return };
        // On a damaged object the library may panic.
        let read = tokio::task::spawn_blocking(move || written.count(&content)).await;
        match read.unwrap_or_else(|panic| Err(panic.into())) {
            Ok((rows, origin)) => {
                self.rows += rows;
                match origin {
                    Origin::Group(group) => *self.groups.entry(group).or_default() += rows,
                    Origin::Unplaced => self.unplaced += 1,
                    Origin::Silent => self.silent += 1,
                }
            }
            Err(mistake) => self.contradictions.push(format!("\"{key}\" can't be read: {mistake}")),
        }
    }

    /// What they come to.
    ///
    /// # Errors
    /// A footer holds a position that is none.
    pub(super) fn account(mut self) -> Result<Account, StageError> {
        // The steps of each input and partition: where each begins, and where it ends.
        let mut steps = BTreeMap::<(String, String), BTreeMap<Option<Position>, Position>>::new();
        for (group, rows) in &self.groups {
            if *rows != group.rows {
                let place = group.advances.first().map_or_else(String::new, |advance| format!(" up to {}", advance.to));
                self.contradictions
                    .push(format!("the group{place} had {} rows, and its objects hold {rows}", group.rows));
            }
            for advance in &group.advances {
                let from = advance.from.as_deref().map(position).transpose()?;
                let steps = steps.entry((advance.input.clone(), advance.partition.clone())).or_default();
                if steps.insert(from, position(&advance.to)?).is_some() {
                    let from = advance.from.as_deref().unwrap_or("the start");
                    self.contradictions.push(format!("\"{}\" goes on from {from} in two ways", advance.input));
                }
            }
        }
        let mut positions = Vec::new();
        for ((input, partition), steps) in steps {
            let mut last = None;
            // A bucket from which old days have expired begins later.
            for (index, (from, to)) in steps.into_iter().enumerate() {
                if index > 0 && from != last && self.silent == 0 {
                    let shown =
                        |place: Option<Position>| place.map_or("the start".to_owned(), |place| place.to_string());
                    self.contradictions.push(format!(
                        "\"{input}\": nothing is there between {} and {}",
                        shown(last),
                        shown(from)
                    ));
                }
                last = Some(to);
            }
            positions.extend(last.map(|position| Committed { input, partition, position }));
        }
        let mut found_in = format!("{} objects of {} groups", self.objects, self.groups.len());
        if self.unplaced > 0 {
            found_in.push_str(&format!(", {} of runs without checkpoints", self.unplaced));
        }
        if self.silent > 0 {
            found_in.push_str(&format!(
                ", {} of lines that are not packed and don't say which group is theirs",
                self.silent
            ));
        }
        Ok(Account {
            positions,
            rows_recorded: (self.unplaced + self.silent == 0).then(|| self.groups.keys().map(|group| group.rows).sum()),
            rows_found: self.rows,
            found_in,
            contradictions: self.contradictions,
        })
    }
}

pub(super) fn position(text: &str) -> Result<Position, StageError> {
    text.parse().map_err(|error| StageError::permanent(format!("\"{text}\" is no position")).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(rows: u64, from: Option<u64>, to: u64) -> GroupText {
        let text = |place: u64| place.to_string();
        let advance =
            AdvanceText { input: "in".to_owned(), partition: "p".to_owned(), from: from.map(text), to: text(to) };
        GroupText { rows, advances: vec![advance] }
    }

    fn account(groups: &[(GroupText, u64)]) -> Account {
        let objects = Objects { groups: groups.iter().cloned().collect(), ..Objects::default() };
        objects.account().unwrap()
    }

    #[test]
    fn groups_that_follow_on_each_other_are_sound() {
        let account = account(&[(group(5, Some(10), 20), 5), (group(7, None, 10), 7), (group(1, Some(20), 21), 1)]);
        assert_eq!(account.contradictions, Vec::<String>::new());
        assert_eq!(account.rows_recorded, Some(13));
        assert_eq!(account.positions[0].position, Position::from(21));
    }

    #[test]
    fn a_group_that_is_missing_incomplete_or_there_twice_is_told() {
        let missing = account(&[(group(7, None, 10), 7), (group(1, Some(20), 21), 1)]);
        assert_eq!(missing.contradictions, ["\"in\": nothing is there between 10 and 20"]);
        let incomplete = account(&[(group(7, None, 10), 4)]);
        assert_eq!(incomplete.contradictions, ["the group up to 10 had 7 rows, and its objects hold 4"]);
        let twice = account(&[(group(7, None, 10), 7), (group(6, None, 9), 6)]);
        assert_eq!(twice.contradictions, ["\"in\" goes on from the start in two ways"]);
        let groups = [(group(7, None, 10), 7), (group(1, Some(20), 21), 1)];
        let objects = Objects { groups: groups.into_iter().collect(), silent: 1, ..Objects::default() };
        assert_eq!(
            objects.account().unwrap().contradictions,
            Vec::<String>::new(),
            "it may be in the one that is silent"
        );
        let expired = account(&[(group(7, Some(5), 10), 7)]);
        assert_eq!(expired.contradictions, Vec::<String>::new(), "old days may be gone");
    }
}
