//! Compares what the fleet has sent with what is found in the table, the lake and the dead letters.
//!
//! A reading that the broker has acknowledged is owed: one row by key, and each time it was sent at most
//! one row in the table without a key and in the lake, the same in both; or, where it is bad, a dead
//! letter. One that was never acknowledged may have arrived or not, but as wholly as the others.

use std::collections::BTreeMap;
use std::fmt;

use super::record::{Id, Kind, Message, Reading};

/// What was found outside.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Rows of the table with a key; their attempt is not stored.
    pub keyed: Vec<Id>,
    pub keyless: Vec<Message>,
    /// Rows of all objects.
    pub lake: Vec<Message>,
    pub letters: Vec<Message>,
    /// Rows and dead letters that hold what nobody has sent.
    pub strange: Vec<String>,
}

/// What became of the readings.
#[derive(Debug, Default)]
pub struct Verdict {
    pub acknowledged: usize,
    pub unacknowledged: usize,
    pub rows: usize,
    pub letters: usize,
    /// Acknowledged readings that are missing somewhere. Each of these begins with the place.
    pub lost: Vec<String>,
    pub duplicate: Vec<String>,
    pub unexpected: Vec<String>,
}

const PLACES: [&str; 4] = ["keyed", "keyless", "lake", "dead_letters"];

/// Compares. `readings` are in order of device and number.
pub fn judge(readings: &[(Id, Reading)], found: Found) -> Verdict {
    let keyed = found.keyed.into_iter().map(|id| Message { id, attempt: 0 }).collect();
    let mut places = [keyed, found.keyless, found.lake, found.letters];
    places.iter_mut().for_each(|messages: &mut Vec<Message>| messages.sort_unstable());
    let mut verdict = Verdict { unexpected: found.strange, ..Verdict::default() };
    (verdict.rows, verdict.letters) = (places[0].len(), places[3].len());
    for (place, messages) in PLACES.iter().zip(&places) {
        verdict.find_unknown(place, messages, readings);
    }
    for (id, reading) in readings {
        *(if reading.acknowledged { &mut verdict.acknowledged } else { &mut verdict.unacknowledged }) += 1;
        let sightings = [0, 1, 2, 3].map(|place| of(&places[place], *id));
        verdict.judge_reading(*id, reading, sightings);
    }
    verdict
}

/// The messages of one reading.
fn of(sorted: &[Message], id: Id) -> &[Message] {
    let start = sorted.partition_point(|message| message.id < id);
    let end = start + sorted[start..].partition_point(|message| message.id == id);
    &sorted[start..end]
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.duplicate.is_empty() && self.unexpected.is_empty()
    }

    fn find_unknown(&mut self, place: &str, messages: &[Message], readings: &[(Id, Reading)]) {
        for message in messages {
            let known = readings.binary_search_by_key(&message.id, |(id, _)| *id).map(|index| readings[index].1);
            match known {
                Ok(reading) if message.attempt <= reading.attempts => {}
                _ => self.unexpected.push(format!("{place}: {message:?}, which was never sent")),
            }
        }
    }

    fn judge_reading(&mut self, id: Id, reading: &Reading, sightings: [&[Message]; 4]) {
        let is_good = id.kind() == Kind::Good;
        let mut missing = Vec::new();
        for (place, seen) in PLACES.iter().zip(sightings) {
            let belongs = is_good == (*place != "dead_letters");
            if !belongs && !seen.is_empty() {
                self.unexpected.push(format!("{place}: {seen:?}, a reading that is {:?}", id.kind()));
            }
            if belongs && seen.is_empty() && reading.acknowledged {
                missing.push(*place);
            }
            for twice in seen.windows(2).filter(|pair| pair[0] == pair[1]) {
                self.duplicate.push(format!("{place}: {:?}, {reading:?}", twice[0]));
            }
        }
        if !missing.is_empty() {
            self.lost.push(format!("{}: {id:?}, {reading:?}", missing.join(", ")));
        }
        let [keyed, keyless, lake, _] = sightings;
        if distinct(keyless) != distinct(lake) {
            self.unexpected.push(format!("keyless against lake: {id:?}, {keyless:?} against {lake:?}"));
        }
        if keyed.is_empty() != keyless.is_empty() {
            self.unexpected.push(format!("keyed against keyless: {id:?}, {keyed:?} against {keyless:?}"));
        }
    }
}

fn distinct(messages: &[Message]) -> Vec<Message> {
    let mut messages = messages.to_vec();
    messages.dedup();
    messages
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, unacknowledged, rows, letters, lost, duplicate, unexpected } = self;
        writeln!(
            f,
            "{} lost, {} duplicate, {} unexpected; {acknowledged} readings acknowledged, {unacknowledged} not, \
             {rows} rows, {letters} dead letters",
            lost.len(),
            duplicate.len(),
            unexpected.len()
        )?;
        for (word, examples) in [("lost", lost), ("duplicate", duplicate), ("unexpected", unexpected)] {
            let mut by_place: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for example in examples {
                let (place, what) = example.split_once(": ").unwrap_or(("", example));
                by_place.entry(place).or_default().push(what);
            }
            for (place, examples) in by_place {
                writeln!(
                    f,
                    "  {} {word} in {place}: {}",
                    examples.len(),
                    examples[..examples.len().min(3)].join("; ")
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    /// Three devices, some hundred readings each, all acknowledged but one; and where they must be.
    fn all_well() -> (Record, Found) {
        let (record, mut found) = (Record::default(), Found::default());
        for number in 0..1_200 {
            let id = record.make(number % 3, 1_000_000 + i64::from(number));
            let (message, _) = record.send(id);
            if number == 600 {
                continue;
            }
            record.acknowledge(id);
            if id.kind() == Kind::Good {
                found.keyed.push(id);
                found.keyless.push(message);
                found.lake.push(message);
            } else {
                found.letters.push(message);
            }
        }
        (record, found)
    }

    fn counts(change: impl FnOnce(&mut Found)) -> [usize; 3] {
        let (record, mut found) = all_well();
        change(&mut found);
        let verdict = judge(&record.each(), found);
        [verdict.lost.len(), verdict.duplicate.len(), verdict.unexpected.len()]
    }

    #[test]
    fn a_run_without_fault_is_clean() {
        let (record, found) = all_well();
        assert!(found.letters.len() > 3);
        let verdict = judge(&record.each(), found);
        assert!(verdict.is_clean(), "{verdict}");
        assert_eq!((verdict.acknowledged, verdict.unacknowledged), (1_199, 1));
    }

    #[test]
    fn a_row_missing_anywhere_is_lost() {
        assert_eq!(counts(|found| found.letters.truncate(found.letters.len() - 1)), [1, 0, 0]);
        // The tables and the lake then differ, too.
        assert_eq!(counts(|found| found.keyed.truncate(found.keyed.len() - 1)), [1, 0, 1]);
        assert_eq!(counts(|found| found.keyless.truncate(found.keyless.len() - 1)), [1, 0, 2]);
        assert_eq!(counts(|found| found.lake.truncate(found.lake.len() - 1)), [1, 0, 1]);
    }

    #[test]
    fn a_row_that_is_there_twice_is_a_duplicate() {
        assert_eq!(counts(|found| found.keyed.push(found.keyed[5])), [0, 1, 0]);
        assert_eq!(counts(|found| found.keyless.push(found.keyless[5])), [0, 1, 0]);
        assert_eq!(counts(|found| found.lake.push(found.lake[5])), [0, 1, 0]);
        assert_eq!(counts(|found| found.letters.push(found.letters[1])), [0, 1, 0]);
    }

    #[test]
    fn what_nobody_sent_is_unexpected() {
        let unknown = Message { id: Id { device: 1, seq: 5_000 }, attempt: 1 };
        assert_eq!(counts(|found| found.letters.push(unknown)), [0, 0, 1]);
        // A second sending that never was; and the lake knows nothing of it.
        let again = |found: &mut Found| {
            let message = found.keyless[5];
            found.keyless.push(Message { attempt: 2, ..message });
        };
        assert_eq!(counts(again), [0, 0, 2]);
        assert_eq!(counts(|found| found.strange.push("a row".to_owned())), [0, 0, 1]);
    }

    #[test]
    fn a_reading_that_was_sent_again_may_be_there_as_often() {
        let (record, mut found) = all_well();
        let (second, _) = record.send(found.keyless[5].id);
        found.keyless.push(second);
        found.lake.push(second);
        let verdict = judge(&record.each(), found);
        assert!(verdict.is_clean(), "{verdict}");
    }

    #[test]
    fn an_unacknowledged_reading_arrives_everywhere_or_nowhere() {
        let (record, found) = all_well();
        let absent = record.each().into_iter().find(|(_, reading)| !reading.acknowledged).expect("there is one");
        let mut everywhere = found.clone();
        let message = Message { id: absent.0, attempt: 1 };
        everywhere.keyed.push(message.id);
        everywhere.keyless.push(message);
        let verdict = judge(&record.each(), everywhere.clone());
        assert_eq!(verdict.unexpected.len(), 1, "not in the lake: {verdict}");
        everywhere.lake.push(message);
        let verdict = judge(&record.each(), everywhere);
        assert!(verdict.is_clean(), "{verdict}");
    }
}
