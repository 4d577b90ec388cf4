//! The running stage: takes in each row, and sends on those that stay.

use std::io::Cursor;

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, StageError, Transform};

use super::LATE;
use super::held::{HeldRows, Numbers, Slot};
use super::series::{Rule, Series};
use crate::transforms::followed::{Followed, Placed};
use crate::transforms::keys::KeyColumns;
use crate::transforms::snapshot::{self, Format, Reader, Writer};

const FORMAT: Format = Format { name: 7, version: 1 };

/// What the configuration says of time, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) lateness: i64,
    pub(super) idle: i64,
    pub(super) ahead_max: i64,
}

/// The series of all devices.
pub(super) struct Thin {
    pub(super) key: KeyColumns,
    pub(super) time: usize,
    pub(super) times: Times,
    pub(super) rule: Rule,
    pub(super) devices: Followed<Series>,
    pub(super) held: HeldRows,
    pub(super) held_rows_max: usize,
    /// Of the rows that wait, and of the rule.
    pub(super) fingerprints: (u128, u128),
    pub(super) counters: Counters,
    /// Rows of the batch at hand that belong to no series.
    pub(super) outside: Vec<u32>,
    /// The key at hand; kept for its capacity.
    pub(super) bytes: Vec<u8>,
}

/// What is counted.
pub(super) struct Counters {
    thinned: Counter,
    late: Counter,
    ahead: Counter,
    unplaced: Counter,
    early: Counter,
    forgotten: Counter,
}

impl Counters {
    pub(super) fn of(cx: &BuildContext) -> Self {
        Self {
            thinned: cx.counter("thinned_rows"),
            late: cx.counter("late_rows"),
            ahead: cx.counter("ahead_rows"),
            unplaced: cx.counter("unplaced_rows"),
            early: cx.counter("early_rows"),
            forgotten: cx.counter("forgotten_devices"),
        }
    }
}

impl Transform for Thin {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let partition = self.devices.partition_named(batch.ack().span().map_or("", |(partition, _)| partition));
        let latest_us = batch.ack().received_at_us().map_or(i64::MAX, |us| us.saturating_add(self.times.ahead_max));
        self.outside.clear();
        self.observe(&batch.rows, partition, latest_us)?;
        let kept = self.take_kept()?;
        if self.outside.is_empty() {
            // Goes on even without a row: the rows that wait are in the state, and the promise is kept by checkpoints.
            out.emit(batch.with_rows(kept));
            return Ok(());
        }
        let outside = UInt32Array::from(std::mem::take(&mut self.outside));
        let late = take_record_batch(&batch.rows, &outside)?;
        let (kept, late) = batch.split(kept, late);
        out.emit(kept);
        out.emit_to(LATE, late);
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let (rows, rule) = self.fingerprints;
        let mut writer = Writer::new(FORMAT, rows);
        writer.u128(rule);
        writer.u32(self.held.columns() as u32);
        let mut waiting = Vec::new();
        self.devices.write(&mut writer, |series, writer| series.write(&mut waiting, writer));
        writer.bytes(&as_stream(&self.held, &waiting).expect("rows of a batch can be written to memory"));
        Some(writer.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        (self.devices, self.held) = self.read(snapshot, self.held.emptied())?;
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let (devices, held) = self.read(snapshot, self.held.clone())?;
        self.devices.absorb(devices);
        self.held = held;
        Ok(())
    }

    /// The input has ended: there is nothing to wait for.
    fn finish(&mut self, out: &mut Emitter) -> Result<(), StageError> {
        let Self { devices, rule, held, .. } = self;
        decide_in_order(devices.devices().map(|device| (device.key.clone(), &mut device.state)), rule, held);
        let kept = self.take_kept()?;
        if kept.num_rows() > 0 {
            out.emit(Batch::detached(kept));
        }
        Ok(())
    }
}

impl Thin {
    /// The series of a snapshot, and their rows behind those that are held.
    fn read(&self, snapshot: &[u8], mut held: HeldRows) -> Result<(Followed<Series>, HeldRows), StageError> {
        let (of_rows, of_rule) = self.fingerprints;
        let mut reader = Reader::open(snapshot, FORMAT, of_rows)?;
        let is_same_rule = reader.u128()? == of_rule;
        let columns = reader.u32()? as usize;
        let first = held.next_slot();
        let mut next = first;
        let mut devices = self.devices.read(&mut reader, |reader| Series::read(reader, columns, &mut next))?;
        let stream = StreamReader::try_new(Cursor::new(reader.bytes()?), None)?;
        reader.end()?;
        let schema = stream.schema();
        let batches = stream.collect::<Result<Vec<_>, _>>()?;
        let rows = concat_batches(&schema, &batches)?;
        if rows.num_rows() != (next - first) as usize || !held.fits(&rows) {
            return Err(snapshot::damaged());
        }
        held.hold_all(&rows, self.time)?;
        if !is_same_rule {
            devices.devices().for_each(|device| device.state.begin_anew(&held));
        }
        Ok((devices, held))
    }

    /// Takes in all rows. Those without a series are put into `outside`.
    fn observe(&mut self, rows: &RecordBatch, partition: usize, latest_us: i64) -> Result<(), StageError> {
        let keys = self.key.of(rows)?;
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        let numbers = self.held.begin(rows)?;
        for row in 0..rows.num_rows() {
            let refused = if times.is_null(row) || !keys.encode(row, &mut self.bytes) {
                &self.counters.unplaced
            } else if times.value(row) > latest_us {
                &self.counters.ahead
            } else if self.observe_row(times.value(row), row, &numbers, partition) {
                continue;
            } else {
                &self.counters.late
            };
            refused.increment();
            self.outside.push(row as u32);
        }
        Ok(())
    }

    /// Takes in a row of the device whose key is in `bytes`; false if it comes too late.
    fn observe_row(&mut self, time_us: i64, row: usize, numbers: &Numbers, partition: usize) -> bool {
        let met = self.devices.meet(&self.bytes, partition, |_| Series::starting(partition, time_us));
        let Self { rule, held, .. } = self;
        if let Some(mut forgotten) = met.forgotten {
            self.counters.forgotten.increment();
            forgotten.state.decide_all(rule, held);
        }
        let series = &mut self.devices.device(met.slot).state;
        if series.is_past(time_us) {
            return false;
        }
        let slot = held.hold(row, time_us, numbers);
        series.take(slot, held);
        series.decide_until(series.newest_us().saturating_sub(self.times.lateness), rule, held);
        if held.waiting() > self.held_rows_max {
            self.counters.early.add(series.decide_early(rule, held) as u64);
        }
        if time_us == series.newest_us() {
            self.devices.partition(partition).saw(met.slot, time_us);
            self.sweep(partition);
        }
        true
    }

    /// Decides on the rows of devices that are silent, once the partition has come so far.
    fn sweep(&mut self, number: usize) {
        let partition = self.devices.partition(number);
        let Some(time_us) = partition.time_of_three_us() else { return };
        let watermark_us = time_us.saturating_sub(self.times.lateness).saturating_sub(self.times.idle);
        let step = (self.times.idle / 10).max(1);
        if watermark_us.div_euclid(step) <= partition.swept_us.div_euclid(step) {
            return;
        }
        partition.swept_us = watermark_us;
        let Self { devices, rule, held, .. } = self;
        let left_behind = devices
            .devices_of(number)
            .filter(|device| device.state.is_left_behind(watermark_us, rule))
            .map(|device| (device.key.clone(), &mut device.state));
        decide_in_order(left_behind, rule, held);
    }

    fn take_kept(&mut self) -> Result<RecordBatch, StageError> {
        let kept = self.held.take_kept()?;
        self.held.settle()?;
        self.counters.thinned.add(self.held.take_left_out());
        Ok(kept)
    }
}

/// Rows as an Arrow IPC stream, which any later version reads.
fn as_stream(held: &HeldRows, slots: &[Slot]) -> Result<Vec<u8>, StageError> {
    let rows = held.rows(slots)?;
    let mut stream = StreamWriter::try_new(Vec::new(), &rows.schema())?;
    stream.write(&rows)?;
    Ok(stream.into_inner()?)
}

/// Decides on all rows of these devices. What stays goes by device, since the order of devices means nothing.
fn decide_in_order<'a>(
    devices: impl Iterator<Item = (std::sync::Arc<[u8]>, &'a mut Series)>,
    rule: &Rule,
    held: &mut HeldRows,
) {
    let from = held.kept();
    let mut decided = Vec::new();
    for (key, series) in devices {
        series.decide_all(rule, held);
        decided.push((key, held.kept_since(from)));
    }
    decided.sort_by(|(left, _), (right, _)| left.cmp(right));
    decided.into_iter().flat_map(|(_, slots)| slots).for_each(|slot| held.keep(slot));
}
