//! How often a device sends, learned from what it has sent.

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer};

/// So many of the newest intervals are known.
const INTERVALS: usize = 32;
/// Fewer tell nothing.
const INTERVALS_MIN: usize = 8;

/// The newest intervals between two rows of a device, in microseconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Rhythm {
    intervals: Vec<i64>,
    /// Where the next one goes.
    next: usize,
}

impl Rhythm {
    pub(super) fn learn(&mut self, interval_us: i64) {
        if self.intervals.len() < INTERVALS {
            self.intervals.push(interval_us);
        } else {
            self.intervals[self.next] = interval_us;
        }
        self.next = (self.next + 1) % INTERVALS;
    }

    /// The second-longest interval: a device that sends in bursts is known by its pauses, and one that was held up
    /// once is not. `None` while too little is known.
    pub(super) fn longest_us(&self) -> Option<i64> {
        if self.intervals.len() < INTERVALS_MIN {
            return None;
        }
        let (mut first, mut second) = (0, 0);
        for interval in &self.intervals {
            if *interval > first {
                (first, second) = (*interval, first);
            } else {
                second = second.max(*interval);
            }
        }
        Some(second)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.next as u32);
        writer.u32(self.intervals.len() as u32);
        self.intervals.iter().for_each(|interval| writer.i64(*interval));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let next = reader.u32()? as usize % INTERVALS;
        let intervals = (0..reader.u32()?).map(|_| reader.i64()).collect::<Result<_, _>>()?;
        Ok(Self { intervals, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_known_and_one_delay_is_not() {
        let mut rhythm = Rhythm::default();
        for _ in 0..INTERVALS_MIN - 1 {
            rhythm.learn(1);
        }
        assert_eq!(rhythm.longest_us(), None);
        rhythm.learn(5_000);
        assert_eq!(rhythm.longest_us(), Some(1), "once is a delay");
        for round in 0..200 {
            rhythm.learn(if round % 10 == 0 { 3_600 } else { 1 });
        }
        assert_eq!(rhythm.longest_us(), Some(3_600), "every tenth is a pause");
        for _ in 0..INTERVALS {
            rhythm.learn(2);
        }
        assert_eq!(rhythm.longest_us(), Some(2), "what was long ago is forgotten");
    }
}
