//! The running stage: takes in when each device was heard, and tells of those that are not any more.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, StageError, Transform};
use pipeline_engine::{Counter, DeviceStats};

use super::ALERTS;
use super::rhythm::Rhythm;
use crate::transforms::followed::{Followed, Placed};
use crate::transforms::keys::KeyColumns;
use crate::transforms::snapshot::{Format, Reader, Writer};

const FORMAT: Format = Format { name: 6, version: 1 };

/// Devices are looked through each time their partition has moved on by this much: not for each row.
const TICK_US: i64 = 1_000_000;

/// How long a device may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Allowance {
    /// So many microseconds.
    Fixed(i64),
    /// So many times its usual pause, and no less than `least_us`.
    Learned { times: i64, least_us: i64 },
}

impl Allowance {
    /// In microseconds; `None` for a device that can't be judged yet.
    fn of(self, device: &Heard) -> Option<i64> {
        match self {
            Self::Fixed(micros) => Some(micros),
            Self::Learned { times, least_us } => {
                device.rhythm.longest_us().map(|pause| pause.saturating_mul(times).max(least_us))
            }
        }
    }
}

/// What is known of a device.
pub(super) struct Heard {
    newest_us: i64,
    partition: usize,
    is_silent: bool,
    rhythm: Rhythm,
}

impl Placed for Heard {
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

/// A device that falls silent or is back.
pub(super) struct Alert {
    key: Arc<[u8]>,
    status: &'static str,
    last_seen_us: i64,
    noticed_us: i64,
    allowed_us: i64,
}

/// When all devices were heard.
pub(super) struct Silence {
    pub(super) key: KeyColumns,
    pub(super) time: usize,
    pub(super) allowance: Allowance,
    pub(super) ahead_max_us: i64,
    pub(super) devices: Followed<Heard>,
    pub(super) fingerprint: u128,
    pub(super) schema: SchemaRef,
    pub(super) counters: Counters,
    /// How many are known, and how many of them are silent: shown after each batch.
    pub(super) shown: DeviceStats,
    pub(super) silent_now: u64,
    /// What the batch at hand tells; kept for its capacity.
    pub(super) alerts: Vec<Alert>,
    /// The key at hand; kept for its capacity.
    pub(super) bytes: Vec<u8>,
}

/// What is counted.
pub(super) struct Counters {
    silent: Counter,
    returned: Counter,
    forgotten: Counter,
    unplaced: Counter,
}

impl Counters {
    pub(super) fn of(cx: &BuildContext) -> Self {
        Self {
            silent: cx.counter("silent_devices"),
            returned: cx.counter("returned_devices"),
            forgotten: cx.counter("forgotten_devices"),
            unplaced: cx.counter("unplaced_rows"),
        }
    }
}

impl Transform for Silence {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let partition = self.devices.partition_named(batch.ack().span().map_or("", |(partition, _)| partition));
        let latest_us = batch.ack().received_at_us().map_or(i64::MAX, |us| us.saturating_add(self.ahead_max_us));
        self.alerts.clear();
        self.observe(&batch.rows, partition, latest_us)?;
        self.show();
        if self.alerts.is_empty() {
            out.emit(batch);
            return Ok(());
        }
        let alerts = self.rows_of_alerts()?;
        let rows = batch.rows.clone();
        let (rows, alerts) = batch.split(rows, alerts);
        out.emit(rows);
        out.emit_to(ALERTS, alerts);
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new(FORMAT, self.fingerprint);
        self.devices.write(&mut writer, |device, writer| {
            writer.i64(device.newest_us);
            writer.u32(device.partition as u32);
            writer.u32(device.is_silent.into());
            device.rhythm.write(writer);
        });
        Some(writer.seal())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        self.devices = self.read(snapshot)?;
        self.count_silent();
        Ok(())
    }

    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let devices = self.read(snapshot)?;
        self.devices.absorb(devices);
        self.count_silent();
        Ok(())
    }
}

impl Silence {
    fn read(&self, snapshot: &[u8]) -> Result<Followed<Heard>, StageError> {
        let mut reader = Reader::open(snapshot, FORMAT, self.fingerprint)?;
        let devices = self.devices.read(&mut reader, |reader| {
            Ok(Heard {
                newest_us: reader.i64()?,
                partition: reader.u32()? as usize,
                is_silent: reader.u32()? != 0,
                rhythm: Rhythm::read(reader)?,
            })
        })?;
        reader.end()?;
        Ok(devices)
    }

    fn count_silent(&mut self) {
        self.silent_now = self.devices.devices().filter(|device| device.state.is_silent).count() as u64;
        self.show();
    }

    fn observe(&mut self, rows: &RecordBatch, partition: usize, latest_us: i64) -> Result<(), StageError> {
        let keys = self.key.of(rows)?;
        let times = rows.column(self.time).as_primitive::<TimestampMicrosecondType>();
        for row in 0..rows.num_rows() {
            if times.is_null(row) || !keys.encode(row, &mut self.bytes) {
                self.counters.unplaced.increment();
                continue;
            }
            if keys.is_marked(row) {
                continue;
            }
            self.observe_device(times.value(row).min(latest_us), partition);
        }
        Ok(())
    }

    fn show(&self) {
        let known = self.devices.count() as u64;
        self.shown.known.set(known);
        self.shown.connected.set(known.saturating_sub(self.silent_now));
    }

    /// The device whose key is in `bytes` is heard.
    fn observe_device(&mut self, time_us: i64, partition: usize) {
        let begin = |_| Heard { newest_us: time_us, partition, is_silent: false, rhythm: Rhythm::default() };
        let met = self.devices.meet(&self.bytes, partition, begin);
        if let Some(forgotten) = &met.forgotten {
            self.counters.forgotten.increment();
            self.silent_now -= u64::from(forgotten.state.is_silent);
        }
        if met.is_new {
            self.look_through(partition);
            return;
        }
        let device = self.devices.device(met.slot);
        if time_us <= device.state.newest_us {
            return;
        }
        if device.state.is_silent {
            device.state.is_silent = false;
            self.silent_now -= 1;
            self.counters.returned.increment();
            self.alerts.push(Alert {
                key: device.key.clone(),
                status: "returned",
                last_seen_us: device.state.newest_us,
                noticed_us: time_us,
                allowed_us: self.allowance.of(&device.state).unwrap_or_default(),
            });
        } else {
            device.state.rhythm.learn(time_us - device.state.newest_us);
        }
        device.state.newest_us = time_us;
        self.devices.partition(partition).saw(met.slot, time_us);
        self.look_through(partition);
    }

    /// Tells of all devices of the partition that the others have left behind.
    fn look_through(&mut self, number: usize) {
        let partition = self.devices.partition(number);
        let Some(now_us) = partition.time_of_others_us() else { return };
        if now_us.div_euclid(TICK_US) <= partition.swept_us.div_euclid(TICK_US) {
            return;
        }
        partition.swept_us = now_us;
        let from = self.alerts.len();
        for device in self.devices.devices_of(number) {
            let Some(allowed_us) = self.allowance.of(&device.state).filter(|_| !device.state.is_silent) else {
                continue;
            };
            if now_us.saturating_sub(device.state.newest_us) > allowed_us {
                device.state.is_silent = true;
                self.silent_now += 1;
                self.counters.silent.increment();
                self.alerts.push(Alert {
                    key: device.key.clone(),
                    status: "silent",
                    last_seen_us: device.state.newest_us,
                    noticed_us: now_us,
                    allowed_us,
                });
            }
        }
        // The order of devices means nothing.
        self.alerts[from..].sort_by(|left, right| left.key.cmp(&right.key));
    }

    fn rows_of_alerts(&self) -> Result<RecordBatch, StageError> {
        let times = |of: fn(&Alert) -> i64| {
            let times = TimestampMicrosecondArray::from_iter_values(self.alerts.iter().map(of));
            Arc::new(times.with_timezone("UTC")) as ArrayRef
        };
        let seconds = |of: fn(&Alert) -> i64| {
            Arc::new(Float64Array::from_iter_values(self.alerts.iter().map(|alert| of(alert) as f64 / 1e6))) as ArrayRef
        };
        let mut columns = self.key.decode(self.alerts.iter().map(|alert| &*alert.key))?;
        columns.push(Arc::new(StringArray::from_iter_values(self.alerts.iter().map(|alert| alert.status))));
        columns.push(times(|alert| alert.last_seen_us));
        columns.push(times(|alert| alert.noticed_us));
        columns.push(seconds(|alert| alert.noticed_us - alert.last_seen_us));
        columns.push(seconds(|alert| alert.allowed_us));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}
