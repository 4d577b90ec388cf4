//! The rows of one device: put in order of time, then decided.

use std::collections::VecDeque;

use pipeline_engine::stage::StageError;

use super::bounds::Bounds;
use super::buckets;
use super::held::{HeldRows, Slot};
use super::segment::Segment;
use crate::transforms::followed::Placed;
use crate::transforms::snapshot::{Reader, Writer};

/// How rows are chosen; times in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    DeadBand(Bounds),
    SwingingDoor(Bounds),
    Lttb { every: i64, points: usize },
    MinMax { every: i64 },
}

/// What is known of a device.
pub(super) struct Series {
    partition: usize,
    newest_us: i64,
    /// The time of the newest row that was decided, or is next to be: one before it comes too late.
    ordered_us: i64,
    /// Rows that are not in order for certain yet, by time; those of one time as they came.
    unordered: VecDeque<Slot>,
    segment: Segment,
    /// The rows of the bucket at hand, in order.
    bucket: Vec<Slot>,
}

impl Placed for Series {
    fn partition(&self) -> usize {
        self.partition
    }

    fn set_partition(&mut self, partition: usize) {
        self.partition = partition;
    }

    fn newest_us(&self) -> i64 {
        self.newest_us
    }
}

impl Series {
    /// Of a device that was not seen before, or was forgotten.
    pub(super) fn starting(partition: usize, newest_us: i64) -> Self {
        Self {
            partition,
            newest_us,
            ordered_us: i64::MIN,
            unordered: VecDeque::new(),
            segment: Segment::default(),
            bucket: Vec::new(),
        }
    }

    /// Whether a row of this time comes too late to be put in order.
    pub(super) fn is_past(&self, time_us: i64) -> bool {
        time_us < self.ordered_us
    }

    /// Takes a row in; most are the newest.
    pub(super) fn take(&mut self, slot: Slot, held: &HeldRows) {
        let time_us = held.time_us(slot);
        self.newest_us = self.newest_us.max(time_us);
        let mut at = self.unordered.len();
        while at > 0 && held.time_us(self.unordered[at - 1]) > time_us {
            at -= 1;
        }
        self.unordered.insert(at, slot);
    }

    /// Decides on the rows up to this time: no earlier ones are waited for.
    pub(super) fn decide_until(&mut self, until_us: i64, rule: &Rule, held: &mut HeldRows) {
        while let Some(slot) = self.unordered.front().copied().filter(|slot| held.time_us(*slot) <= until_us) {
            self.unordered.pop_front();
            self.ordered_us = held.time_us(slot);
            match rule {
                Rule::DeadBand(bounds) => self.segment.take_to_band(bounds, slot, held),
                Rule::SwingingDoor(bounds) => self.segment.take_to_door(bounds, slot, held),
                Rule::Lttb { every, .. } | Rule::MinMax { every } => self.take_to_bucket(*every, slot, rule, held),
            }
        }
    }

    /// Decides on all rows but the newest one, and returns how many waited for others. For want of room.
    pub(super) fn decide_early(&mut self, rule: &Rule, held: &mut HeldRows) -> usize {
        let early = self.unordered.len() + self.bucket.len();
        self.decide_until(i64::MAX, rule, held);
        self.close_bucket(rule, held);
        early
    }

    /// Decides on all rows: the device is silent, or the input has ended.
    pub(super) fn decide_all(&mut self, rule: &Rule, held: &mut HeldRows) {
        self.decide_early(rule, held);
        if let Rule::DeadBand(bounds) | Rule::SwingingDoor(bounds) = rule {
            self.segment.keep_candidate(bounds, held);
        }
    }

    /// Whether there is anything to decide, with a watermark that far: a bucket waits for its end.
    pub(super) fn is_left_behind(&self, watermark_us: i64, rule: &Rule) -> bool {
        let until_us = match rule {
            Rule::DeadBand(_) | Rule::SwingingDoor(_) => self.newest_us,
            Rule::Lttb { every, .. } | Rule::MinMax { every } => {
                self.newest_us.div_euclid(*every).saturating_add(1).saturating_mul(*every)
            }
        };
        let is_waiting = !self.unordered.is_empty() || !self.bucket.is_empty() || self.segment.is_waiting();
        is_waiting && until_us < watermark_us
    }

    fn take_to_bucket(&mut self, every: i64, slot: Slot, rule: &Rule, held: &mut HeldRows) {
        let bucket_of = |slot: Slot| held.time_us(slot).div_euclid(every);
        if self.bucket.first().is_some_and(|first| bucket_of(*first) != bucket_of(slot)) {
            self.close_bucket(rule, held);
        }
        self.bucket.push(slot);
        // What stays of a part of the bucket and of the rest stays of the whole.
        if matches!(rule, Rule::MinMax { .. }) && self.bucket.len() > 8 * held.columns() + 32 {
            let stays = buckets::extremes(&self.bucket, held);
            let mut marks = stays.into_iter();
            self.bucket.retain(|slot| {
                let stays = marks.next().unwrap_or(true);
                if !stays {
                    held.leave_out(*slot);
                }
                stays
            });
        }
    }

    fn close_bucket(&mut self, rule: &Rule, held: &mut HeldRows) {
        let stays = match rule {
            Rule::Lttb { points, .. } => buckets::largest_triangles(&self.bucket, *points, held),
            _ => buckets::extremes(&self.bucket, held),
        };
        for (slot, stays) in self.bucket.drain(..).zip(stays) {
            if stays { held.keep(slot) } else { held.leave_out(slot) }
        }
    }

    /// The rule is another one than before: what waits is to be decided by it, the first row as the first of all.
    pub(super) fn begin_anew(&mut self, held: &HeldRows) {
        let before = self.bucket.drain(..).chain(self.segment.take_candidate()).chain(self.unordered.drain(..));
        let mut rows: Vec<Slot> = before.collect();
        // Stable: those of one time stay as they came.
        rows.sort_by_key(|slot| held.time_us(*slot));
        self.unordered = rows.into();
        self.segment = Segment::default();
    }

    /// Puts the rows that wait behind those that are in `waiting`.
    pub(super) fn write(&self, waiting: &mut Vec<Slot>, writer: &mut Writer) {
        writer.u32(self.partition as u32);
        writer.i64(self.newest_us);
        writer.i64(self.ordered_us);
        for rows in [self.unordered.len(), self.bucket.len()] {
            writer.u32(rows as u32);
        }
        waiting.extend(&self.unordered);
        waiting.extend(&self.bucket);
        self.segment.write(waiting, writer);
    }

    /// What [`Series::write`] wrote, for so many columns; rows that wait have the slots from `next` on.
    pub(super) fn read(reader: &mut Reader<'_>, columns: usize, next: &mut Slot) -> Result<Self, StageError> {
        let partition = reader.u32()? as usize;
        let mut series = Self::starting(partition, reader.i64()?);
        series.ordered_us = reader.i64()?;
        let (unordered, bucket) = (reader.u32()?, reader.u32()?);
        let from = *next;
        *next += unordered + bucket;
        series.unordered = (from..from + unordered).collect();
        series.bucket = (from + unordered..*next).collect();
        series.segment = Segment::read(reader, columns, next)?;
        Ok(series)
    }
}
