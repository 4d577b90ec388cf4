//! The running stage: takes in the numbers of each row, and tells what is missing.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, StageError, Transform};

use super::GAPS;
use super::memory;
use super::report::report;
use super::sequence::{Arrival, Gap, Rules, Sequence};
use crate::transforms::fleet::Fleet;
use crate::transforms::keys::KeyColumns;
use crate::transforms::snapshot::{Format, Reader, Writer};

const FORMAT: Format = Format { name: 2, version: 1 };

/// The numbers of all devices.
pub(super) struct Gaps {
    pub(super) key: KeyColumns,
    pub(super) counter: usize,
    pub(super) time: usize,
    pub(super) rules: Rules,
    pub(super) fleet: Fleet<Sequence>,
    pub(super) fingerprint: u128,
    pub(super) report: SchemaRef,
    pub(super) counters: Counters,
    /// Gaps that the batch at hand has settled, with their devices; kept for its capacity.
    pub(super) found: Vec<(Arc<[u8]>, Gap)>,
    /// The key at hand; kept for its capacity.
    pub(super) bytes: Vec<u8>,
}

/// What is counted.
pub(super) struct Counters {
    gaps: Counter,
    missing: Counter,
    resets: Counter,
    late: Counter,
    repeated: Counter,
    overdue: Counter,
    forgotten: Counter,
    unnumbered: Counter,
}

impl Counters {
    pub(super) fn of(cx: &BuildContext) -> Self {
        Self {
            gaps: cx.counter("gap_count"),
            missing: cx.counter("missing_numbers"),
            resets: cx.counter("resets"),
            late: cx.counter("late_numbers"),
            repeated: cx.counter("repeated_numbers"),
            overdue: cx.counter("overdue_numbers"),
            forgotten: cx.counter("forgotten_devices"),
            unnumbered: cx.counter("unnumbered_rows"),
        }
    }
}

impl Transform for Gaps {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        self.found.clear();
        self.observe(&batch.rows)?;
        if self.found.is_empty() {
            out.emit(batch);
            return Ok(());
        }
        self.counters.gaps.add(self.found.len() as u64);
        let missing = self.found.iter().map(|(_, gap)| gap.count().unsigned_abs());
        self.counters.missing.add(missing.fold(0, u64::saturating_add));
        let gaps = report(&self.found, &self.key, &self.report)?;
        let rows = batch.rows.clone();
        let (rows, gaps) = batch.split(rows, gaps);
        out.emit(rows);
        out.emit_to(GAPS, gaps);
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new(FORMAT, self.fingerprint);
        self.fleet.write(&mut writer, memory::write);
        Some(writer.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        self.fleet = self.read(snapshot)?;
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let fleet = self.read(snapshot)?;
        let age = |sequence: &Sequence| (sequence.newest_us, sequence.newest);
        self.fleet.absorb(fleet, |theirs, ours| age(theirs) > age(ours));
        Ok(())
    }
}

impl Gaps {
    fn read(&self, snapshot: &[u8]) -> Result<Fleet<Sequence>, StageError> {
        let mut reader = Reader::open(snapshot, FORMAT, self.fingerprint)?;
        let fleet = self.fleet.read(&mut reader, memory::read)?;
        reader.end()?;
        Ok(fleet)
    }

    /// Takes in all rows; gaps that they settle are put into `found`, in the order of the rows.
    fn observe(&mut self, rows: &RecordBatch) -> Result<(), StageError> {
        let keys = self.key.of(rows)?;
        let numbers: Int64Array =
            cast(rows.column(self.counter), &DataType::Int64)?.as_primitive::<Int64Type>().clone();
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        for row in 0..rows.num_rows() {
            if numbers.is_null(row) || !keys.encode(row, &mut self.bytes) {
                self.counters.unnumbered.increment();
                continue;
            }
            self.observe_number(numbers.value(row), times.is_valid(row).then(|| times.value(row)));
        }
        Ok(())
    }

    /// Takes in a number of the device whose key is in `bytes`.
    fn observe_number(&mut self, number: i64, time_us: Option<i64>) {
        let Some(slot) = self.fleet.find(&self.bytes) else {
            if let (_, Some(forgotten)) = self.fleet.add(&self.bytes, Sequence::starting(number, time_us)) {
                self.counters.forgotten.increment();
                self.found.extend(forgotten.state.awaited.iter().map(|gap| (forgotten.key.clone(), *gap)));
            }
            return;
        };
        let device = self.fleet.device(slot);
        let (key, found) = (&device.key, &mut self.found);
        let arrival = device.state.observe(number, time_us, self.rules, |gap| found.push((key.clone(), gap)));
        match arrival {
            Arrival::Newest => {}
            Arrival::Late => self.counters.late.increment(),
            Arrival::Repeated => self.counters.repeated.increment(),
            Arrival::Overdue => self.counters.overdue.increment(),
            Arrival::Reset => self.counters.resets.increment(),
        }
    }
}
