//! How far the devices of a partition have come in time: what shows, without a clock, that time passes for those
//! that are silent.
//!
//! Each device counts once, with its newest time, and only the few that are farthest ahead matter: what so many have
//! come to is no mistake of one clock.

use pipeline_engine::stage::StageError;

use super::snapshot::{Reader, Writer, damaged};

/// So many of the devices that are ahead are known.
const LEADERS_MAX: usize = 3;

/// The devices of one partition of a source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Partition {
    name: String,
    /// The devices that are ahead, with their newest times, the newest first. At most [`LEADERS_MAX`].
    leaders: Vec<(i64, usize)>,
    /// Up to here silent devices have been dealt with.
    pub(super) swept_us: i64,
}

/// All partitions, in the order in which they were first seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Partitions(Vec<Partition>);

impl Partitions {
    /// The number of the partition with this name.
    pub(super) fn find(&mut self, name: &str) -> usize {
        if let Some(found) = self.0.iter().position(|partition| partition.name == name) {
            return found;
        }
        self.0.push(Partition { name: name.to_owned(), leaders: Vec::new(), swept_us: i64::MIN });
        self.0.len() - 1
    }

    pub(super) fn partition(&mut self, number: usize) -> &mut Partition {
        &mut self.0[number]
    }

    /// Also knows the partitions of others, and says which of its numbers each of theirs has now. Without the leaders, as after
    /// [`Partitions::read`].
    pub(super) fn absorb(&mut self, others: &Self) -> Vec<usize> {
        let mut numbers = Vec::with_capacity(others.0.len());
        for other in &others.0 {
            let number = self.find(&other.name);
            self.0[number].swept_us = self.0[number].swept_us.max(other.swept_us);
            numbers.push(number);
        }
        self.0.iter_mut().for_each(|partition| partition.leaders.clear());
        numbers
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.0.len() as u32);
        for partition in &self.0 {
            writer.bytes(partition.name.as_bytes());
            writer.i64(partition.swept_us);
        }
    }

    /// Without the leaders: [`Partition::saw`] must be told of all devices again.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let mut partitions = Self::default();
        for _ in 0..reader.u32()? {
            let name = std::str::from_utf8(reader.bytes()?).map_err(|_| damaged())?.to_owned();
            partitions.0.push(Partition { name, leaders: Vec::new(), swept_us: reader.i64()? });
        }
        Ok(partitions)
    }
}

impl Partition {
    /// A device has come to this time, its newest.
    pub(super) fn saw(&mut self, slot: usize, newest_us: i64) {
        if self.leaders.len() == LEADERS_MAX && self.leaders[LEADERS_MAX - 1].0 >= newest_us {
            return;
        }
        self.leaders.retain(|(_, leader)| *leader != slot);
        let at = self.leaders.partition_point(|(time_us, _)| *time_us >= newest_us);
        self.leaders.insert(at, (newest_us, slot));
        self.leaders.truncate(LEADERS_MAX);
    }

    /// A device is no longer here. True if it was ahead: then [`Partition::saw`] must be told of all that are.
    pub(super) fn forget(&mut self, slot: usize) -> bool {
        let is_leader = self.leaders.iter().any(|(_, leader)| *leader == slot);
        if is_leader {
            self.leaders.clear();
        }
        is_leader
    }

    /// What three devices have come to, or all where there are fewer; `None` without devices. So two clocks that are
    /// ahead move nothing.
    pub(super) fn time_of_three_us(&self) -> Option<i64> {
        self.leaders.last().map(|(time_us, _)| *time_us)
    }

    /// What two devices have come to besides any that is behind it; of two devices, what the one ahead has come to;
    /// `None` where there is one alone, since it tells nothing of itself.
    pub(super) fn time_of_others_us(&self) -> Option<i64> {
        match self.leaders.as_slice() {
            [] | [_] => None,
            [first, _] => Some(first.0),
            [_, second, ..] => Some(second.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clocks_that_are_ahead_move_nothing() {
        let mut partitions = Partitions::default();
        let number = partitions.find("a/0");
        assert_eq!((partitions.find("a/1"), partitions.find("a/0")), (1, number));
        let partition = partitions.partition(number);
        assert_eq!(partition.time_of_three_us(), None);
        partition.saw(7, 100);
        assert_eq!(partition.time_of_three_us(), Some(100));
        partition.saw(8, 90);
        partition.saw(9, 80);
        partition.saw(10, 70);
        assert_eq!(partition.time_of_three_us(), Some(80), "the third of four");
        partition.saw(7, 1_000_000);
        partition.saw(8, 2_000_000);
        assert_eq!(partition.time_of_three_us(), Some(80));
        partition.saw(10, 85);
        assert_eq!(partition.time_of_three_us(), Some(85));
        assert!(!partition.forget(9), "it was not ahead any more");
        assert_eq!(partition.time_of_others_us(), Some(1_000_000));
        assert!(partition.forget(7) && partition.time_of_three_us().is_none());
    }
}
