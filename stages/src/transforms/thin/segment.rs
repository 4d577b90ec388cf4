//! Rows since the one that was kept last, for the methods with a bound.

use pipeline_engine::stage::StageError;

use super::bounds::{Bounds, Corridor, Nulls};
use super::held::{HeldRows, Slot};
use crate::transforms::snapshot::{Reader, Writer};

/// What must be known of a device to decide on its next row.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// The row kept last; `None` before the first.
    kept: Option<Kept>,
    /// The newest row, which waits for the next one.
    candidate: Option<Slot>,
    /// What a line from the kept row must go through, for each column; of `swinging_door` alone.
    corridors: Box<[Corridor]>,
}

#[derive(Debug)]
struct Kept {
    time_us: i64,
    /// What is known of each column then; NaN is no value.
    values: Box<[f64]>,
}

impl Segment {
    /// A row of a `dead_band`: it stays where a value has moved away from that of the row kept last.
    pub(super) fn take_to_band(&mut self, bounds: &Bounds, slot: Slot, held: &mut HeldRows) {
        self.keep_in_time(bounds, slot, held);
        let is_told = self.kept.as_ref().is_some_and(|kept| {
            let mut columns = bounds.tolerances.iter().zip(&kept.values).zip(held.values(slot));
            let is_ignored = |value: f64| bounds.nulls == Nulls::Ignore && value.is_nan();
            columns.all(|((tolerance, kept), value)| is_ignored(*value) || tolerance.holds(*kept, *value))
        });
        if let Some(candidate) = self.candidate.take() {
            held.leave_out(candidate);
        }
        self.candidate = Some(slot);
        if !is_told {
            self.keep_candidate(bounds, held);
        }
    }

    /// A row of a `swinging_door`: the one before it stays where a line that ends here would miss a reading.
    pub(super) fn take_to_door(&mut self, bounds: &Bounds, slot: Slot, held: &mut HeldRows) {
        if bounds.nulls == Nulls::Ignore && held.values(slot).iter().all(|value| value.is_nan()) {
            held.leave_out(slot);
            return;
        }
        self.keep_in_time(bounds, slot, held);
        if self.kept.is_none() {
            self.candidate = Some(slot);
            self.keep_candidate(bounds, held);
            return;
        }
        if self.candidate.is_some() && !self.reaches(slot, held) {
            self.keep_candidate(bounds, held);
        }
        if let Some(candidate) = self.candidate.replace(slot) {
            held.leave_out(candidate);
        }
        self.narrow(bounds, slot, held);
    }

    /// Nothing more comes for now: the newest row stays, so that the series ends where its readings do.
    pub(super) fn keep_candidate(&mut self, bounds: &Bounds, held: &mut HeldRows) {
        let Some(candidate) = self.candidate.take() else { return };
        let mut values: Box<[f64]> = held.values(candidate).into();
        if let (Nulls::Ignore, Some(before)) = (bounds.nulls, &self.kept) {
            let unsaid = values.iter_mut().zip(&before.values).filter(|(value, _)| value.is_nan());
            unsaid.for_each(|(value, before)| *value = *before);
        }
        self.corridors = vec![Corridor::OPEN; values.len()].into();
        self.kept = Some(Kept { time_us: held.time_us(candidate), values });
        held.keep(candidate);
    }

    /// The row that waits, without a decision.
    pub(super) fn take_candidate(&mut self) -> Option<Slot> {
        self.candidate.take()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.candidate.is_some()
    }

    /// Keeps the newest row where this one would come too long after the one kept last.
    fn keep_in_time(&mut self, bounds: &Bounds, slot: Slot, held: &mut HeldRows) {
        let (Some(kept), Some(heartbeat)) = (&self.kept, bounds.heartbeat) else { return };
        if held.time_us(slot).saturating_sub(kept.time_us) > heartbeat {
            self.keep_candidate(bounds, held);
        }
    }

    /// Whether a line from the row kept last to this one misses no reading between them.
    fn reaches(&self, slot: Slot, held: &HeldRows) -> bool {
        self.kept.as_ref().is_some_and(|kept| {
            let elapsed_us = elapsed_us(kept.time_us, held.time_us(slot));
            let mut columns = self.corridors.iter().zip(&kept.values).zip(held.values(slot));
            columns.all(|((corridor, kept), value)| corridor.admits(elapsed_us, *kept, *value))
        })
    }

    fn narrow(&mut self, bounds: &Bounds, slot: Slot, held: &HeldRows) {
        let Some(kept) = &self.kept else { return };
        let elapsed_us = elapsed_us(kept.time_us, held.time_us(slot));
        let columns = self.corridors.iter_mut().zip(&bounds.tolerances).zip(kept.values.iter().zip(held.values(slot)));
        for ((corridor, tolerance), (kept, value)) in columns {
            corridor.narrow(*tolerance, elapsed_us, *kept, *value);
        }
    }

    pub(super) fn write(&self, waiting: &mut Vec<Slot>, writer: &mut Writer) {
        writer.u32(u32::from(self.candidate.is_some()));
        waiting.extend(self.candidate);
        writer.u32(u32::from(self.kept.is_some()));
        let Some(kept) = &self.kept else { return };
        writer.i64(kept.time_us);
        for (value, corridor) in kept.values.iter().zip(&self.corridors) {
            writer.f64(*value);
            writer.f64(corridor.least);
            writer.f64(corridor.greatest);
        }
    }

    /// What [`Segment::write`] wrote, for so many columns; rows that wait have the slots from `next` on.
    pub(super) fn read(reader: &mut Reader<'_>, columns: usize, next: &mut Slot) -> Result<Self, StageError> {
        let mut segment = Self::default();
        if reader.u32()? > 0 {
            segment.candidate = Some(*next);
            *next += 1;
        }
        if reader.u32()? == 0 {
            return Ok(segment);
        }
        let time_us = reader.i64()?;
        let (mut values, mut corridors) = (Vec::with_capacity(columns), Vec::with_capacity(columns));
        for _ in 0..columns {
            values.push(reader.f64()?);
            corridors.push(Corridor { least: reader.f64()?, greatest: reader.f64()? });
        }
        segment.kept = Some(Kept { time_us, values: values.into() });
        segment.corridors = corridors.into();
        Ok(segment)
    }
}

/// As a float, which is exact for 285 years.
fn elapsed_us(from_us: i64, to_us: i64) -> f64 {
    (i128::from(to_us) - i128::from(from_us)) as f64
}
