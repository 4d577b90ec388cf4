//! The running stage: finds repetitions, and leaves them out.

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::Nulls;
use super::memory::{Memory, Verdict};
use crate::transforms::keys::KeyColumns;
use crate::transforms::refusal;
use crate::transforms::snapshot::{self, Format, Reader, Writer};

const FORMAT: Format = Format { name: 1, version: 1 };

/// What has been seen, by the columns that tell.
pub(super) struct Dedupe {
    pub(super) key: KeyColumns,
    pub(super) nulls: Nulls,
    pub(super) time: usize,
    pub(super) memory: Memory,
    pub(super) fingerprint: u128,
    pub(super) repeated: Counter,
    pub(super) forgotten: Counter,
    pub(super) unjudged: Counter,
    /// Rows of the batch at hand that are left out, in order; kept for its capacity.
    pub(super) repetitions: Vec<u32>,
    /// The key at hand; kept for its capacity.
    pub(super) bytes: Vec<u8>,
}

impl Transform for Dedupe {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        self.repetitions.clear();
        let keys = self.key.of(&batch.rows)?;
        let times = batch.rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        for (index, row) in (0..batch.rows.num_rows()).zip(0u32..) {
            let has_key = match self.nulls {
                Nulls::Unjudged => keys.encode(index, &mut self.bytes),
                Nulls::Equal => {
                    keys.encode_with_nulls(index, &mut self.bytes);
                    true
                }
            };
            if times.is_null(index) || !has_key {
                self.unjudged.increment();
                continue;
            }
            match self.memory.observe(snapshot::hash(&self.bytes), times.value(index)) {
                Verdict::First => {}
                Verdict::FirstInPlaceOfAnother => self.forgotten.increment(),
                Verdict::Repeated => self.repetitions.push(row),
            }
        }
        if self.repetitions.is_empty() {
            out.emit(batch);
            return Ok(());
        }
        self.repeated.add(self.repetitions.len() as u64);
        // Goes on even without a row left: a promise with no share left would count as broken.
        let kept = refusal::keep_rest(&batch.rows, self.repetitions.iter().copied())?;
        out.emit(batch.with_rows(kept));
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new(FORMAT, self.fingerprint);
        let places = self.memory.places();
        writer.reserve(4 + 24 * places.len());
        writer.u32(places.len() as u32);
        for (hash, time_us) in places {
            writer.u128(hash);
            writer.i64(time_us);
        }
        Some(writer.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let mut memory = self.memory.emptied();
        for (hash, time_us) in self.read(snapshot)? {
            if !memory.put(hash, time_us) {
                return Err(snapshot::damaged());
            }
        }
        self.memory = memory;
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let theirs = self.read(snapshot)?;
        self.memory.absorb(theirs);
        Ok(())
    }
}

impl Dedupe {
    /// Hashes and times of a snapshot, oldest first.
    fn read(&self, snapshot: &[u8]) -> Result<Vec<(u128, i64)>, StageError> {
        let mut reader = Reader::open(snapshot, FORMAT, self.fingerprint)?;
        let mut places = Vec::new();
        for _ in 0..reader.u32()? {
            places.push((reader.u128()?, reader.i64()?));
        }
        reader.end()?;
        Ok(places)
    }
}
