//! A device's numbers as they are written down.

use pipeline_engine::stage::StageError;

use super::sequence::{Gap, Sequence};
use crate::transforms::snapshot::{Reader, Writer};

pub(super) fn write(sequence: &Sequence, writer: &mut Writer) {
    writer.i64(sequence.first);
    writer.i64(sequence.newest);
    writer.optional_i64(sequence.newest_us);
    writer.u32(sequence.overdue);
    writer.u32(sequence.awaited.len() as u32);
    for gap in &sequence.awaited {
        writer.i64(gap.first);
        writer.i64(gap.last);
        writer.optional_i64(gap.before_us);
        writer.optional_i64(gap.after_us);
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Sequence, StageError> {
    let first = reader.i64()?;
    let mut sequence = Sequence::starting(reader.i64()?, reader.optional_i64()?);
    sequence.first = first;
    sequence.overdue = reader.u32()?;
    for _ in 0..reader.u32()? {
        let (first, last) = (reader.i64()?, reader.i64()?);
        let (before_us, after_us) = (reader.optional_i64()?, reader.optional_i64()?);
        sequence.awaited.push(Gap { first, last, before_us, after_us });
    }
    Ok(sequence)
}
