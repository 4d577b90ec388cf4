//! The running stage: takes in each row, and tells the windows that have closed.

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, StageError, Transform};

use super::LATE;
use super::aggregate::Aggregate;
use super::column::{Needs, Values};
use super::output::{self, Closed};
use super::windows::{Columns, Shape, Windows};
use crate::transforms::followed::{Followed, Placed};
use crate::transforms::keys::KeyColumns;
use crate::transforms::snapshot::{Format, Reader, Writer};

const FORMAT: Format = Format { name: 5, version: 1 };

/// What the configuration says of time, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) shape: Shape,
    pub(super) lateness: i64,
    pub(super) idle: i64,
    pub(super) ahead_max: i64,
}

/// The windows of all devices.
pub(super) struct Downsample {
    pub(super) key: KeyColumns,
    pub(super) time: usize,
    pub(super) times: Times,
    /// With the place of its column in `columns`.
    pub(super) aggregates: Vec<(Aggregate, Option<usize>)>,
    /// The input's columns that are aggregated, and what of each is needed.
    pub(super) columns: Vec<usize>,
    pub(super) needs: Vec<Needs>,
    pub(super) devices: Followed<Windows>,
    pub(super) fingerprint: u128,
    pub(super) output: SchemaRef,
    pub(super) counters: Counters,
    /// Windows that the batch at hand has closed; kept for its capacity.
    pub(super) closed: Vec<Closed>,
    /// Rows of it that are in no window.
    pub(super) outside: Vec<u32>,
    /// The key at hand; kept for its capacity.
    pub(super) bytes: Vec<u8>,
}

/// What is counted.
pub(super) struct Counters {
    late: Counter,
    ahead: Counter,
    unplaced: Counter,
    windows: Counter,
    forgotten: Counter,
    left_out: Counter,
}

impl Counters {
    pub(super) fn of(cx: &BuildContext) -> Self {
        Self {
            late: cx.counter("late_rows"),
            ahead: cx.counter("ahead_rows"),
            unplaced: cx.counter("unplaced_rows"),
            windows: cx.counter("closed_windows"),
            forgotten: cx.counter("forgotten_devices"),
            left_out: cx.counter("left_out_values"),
        }
    }
}

impl Transform for Downsample {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let partition = self.devices.partition_named(batch.ack().span().map_or("", |(partition, _)| partition));
        let latest_us = batch.ack().received_at_us().map_or(i64::MAX, |us| us.saturating_add(self.times.ahead_max));
        self.outside.clear();
        self.observe(&batch.rows, partition, latest_us)?;
        let closed = self.take_closed()?;
        if self.outside.is_empty() {
            out.emit(batch.with_rows(closed));
            return Ok(());
        }
        let outside = UInt32Array::from(std::mem::take(&mut self.outside));
        let late = take_record_batch(&batch.rows, &outside)?;
        let (closed, late) = batch.split(closed, late);
        out.emit(closed);
        out.emit_to(LATE, late);
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new(FORMAT, self.fingerprint);
        self.devices.write(&mut writer, Windows::write);
        Some(writer.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        self.devices = self.read(snapshot)?;
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let devices = self.read(snapshot)?;
        self.devices.absorb(devices);
        Ok(())
    }

    /// The input has ended: there is nothing to wait for.
    fn finish(&mut self, out: &mut Emitter) -> Result<(), StageError> {
        for device in self.devices.devices() {
            let (key, closed) = (&device.key, &mut self.closed);
            device.state.close(i64::MAX, |window| closed.push((key.clone(), window)));
        }
        in_order(&mut self.closed);
        let closed = self.take_closed()?;
        if closed.num_rows() > 0 {
            out.emit(Batch::detached(closed));
        }
        Ok(())
    }
}

impl Downsample {
    fn read(&self, snapshot: &[u8]) -> Result<Followed<Windows>, StageError> {
        let mut reader = Reader::open(snapshot, FORMAT, self.fingerprint)?;
        let columns = self.columns.len();
        let devices = self.devices.read(&mut reader, |reader| Windows::read(reader, columns))?;
        reader.end()?;
        Ok(devices)
    }

    /// Takes in all rows. Windows that close thereby are put into `closed`, rows without one into `outside`.
    fn observe(&mut self, rows: &RecordBatch, partition: usize, latest_us: i64) -> Result<(), StageError> {
        let keys = self.key.of(rows)?;
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        let needs = std::mem::take(&mut self.needs);
        let values = self.columns.iter().map(|column| Values::of(rows.column(*column)));
        let columns = Columns { values: values.collect::<Result<_, _>>()?, needs: &needs };
        for row in 0..rows.num_rows() {
            let refused = if times.is_null(row) || !keys.encode(row, &mut self.bytes) {
                &self.counters.unplaced
            } else if times.value(row) > latest_us {
                &self.counters.ahead
            } else if self.observe_row(times.value(row), row, &columns, partition) {
                continue;
            } else {
                &self.counters.late
            };
            refused.increment();
            self.outside.push(row as u32);
        }
        drop(columns);
        self.needs = needs;
        Ok(())
    }

    /// Takes in a row of the device whose key is in `bytes`; false if it comes too late.
    fn observe_row(&mut self, time_us: i64, row: usize, columns: &Columns<'_>, partition: usize) -> bool {
        let begin = |swept_us| Windows::starting(partition, time_us, swept_us);
        let met = self.devices.meet(&self.bytes, partition, begin);
        if let Some(mut forgotten) = met.forgotten {
            self.counters.forgotten.increment();
            let (key, closed) = (forgotten.key, &mut self.closed);
            forgotten.state.close(i64::MAX, |window| closed.push((key.clone(), window)));
        }
        let Times { shape, lateness, .. } = self.times;
        let device = self.devices.device(met.slot);
        let is_in_time = device.state.add(shape, time_us, row, columns);
        if is_in_time && time_us >= device.state.newest_us() {
            device.state.newest_us = time_us;
            let (key, closed) = (&device.key, &mut self.closed);
            device.state.close(time_us.saturating_sub(lateness), |window| closed.push((key.clone(), window)));
            self.devices.partition(partition).saw(met.slot, time_us);
            self.sweep(partition);
        }
        is_in_time
    }

    /// Closes the windows of devices that are silent, once the partition has come so far.
    fn sweep(&mut self, number: usize) {
        let Times { shape, lateness, idle, .. } = self.times;
        let partition = self.devices.partition(number);
        let Some(time_us) = partition.time_of_three_us() else { return };
        let watermark_us = time_us.saturating_sub(lateness).saturating_sub(idle);
        let step = shape.step();
        if watermark_us.div_euclid(step) <= partition.swept_us.div_euclid(step) {
            return;
        }
        partition.swept_us = watermark_us;
        let from = self.closed.len();
        for device in self.devices.devices_of(number) {
            let (key, closed) = (&device.key, &mut self.closed);
            device.state.close(watermark_us, |window| closed.push((key.clone(), window)));
        }
        in_order(&mut self.closed[from..]);
    }

    fn take_closed(&mut self) -> Result<RecordBatch, StageError> {
        self.counters.windows.add(self.closed.len() as u64);
        let curves =
            self.closed.iter().flat_map(|(_, window)| window.columns.iter().filter_map(|state| state.curve.as_ref()));
        self.counters.left_out.add(curves.map(|curve| curve.left_out).sum());
        let rows = output::rows(&self.closed, &self.key, &self.aggregates, &self.output)?;
        self.closed.clear();
        Ok(rows)
    }
}

/// By their ends, and those of one end by device, since the order of devices means nothing.
fn in_order(closed: &mut [Closed]) {
    closed.sort_by(|left, right| (left.1.end, &left.0).cmp(&(right.1.end, &right.0)));
}
