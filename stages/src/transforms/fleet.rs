//! The devices whose numbers are remembered, bounded in number.
//!
//! The hash table's order shows nowhere: devices are forgotten by when they were last seen, and written
//! down in that order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use pipeline_engine::stage::StageError;

use super::sequence::{Gap, Sequence};
use crate::transforms::snapshot::{Reader, Writer, damaged};

/// Devices by their encoded keys.
pub(super) struct Fleet {
    devices_max: usize,
    slots: HashMap<Arc<[u8]>, usize, RandomState>,
    devices: Vec<Device>,
    /// Counts sightings: the order in which devices were last seen.
    sightings: u64,
    /// Devices by when they were last seen, as it was when this was filled.
    oldest: VecDeque<(u64, usize)>,
}

/// A device that has sent a number.
pub(super) struct Device {
    pub key: Arc<[u8]>,
    pub sequence: Sequence,
    last_sighting: u64,
}

impl Fleet {
    pub(super) fn new(devices_max: u32) -> Self {
        Self {
            devices_max: devices_max as usize,
            slots: HashMap::default(),
            devices: Vec::new(),
            sightings: 0,
            oldest: VecDeque::new(),
        }
    }

    /// A device that is known, which counts as seen.
    pub(super) fn find(&mut self, key: &[u8]) -> Option<&mut Device> {
        let slot = *self.slots.get(key)?;
        self.sightings += 1;
        let device = &mut self.devices[slot];
        device.last_sighting = self.sightings;
        Some(device)
    }

    /// Remembers a device that is not known. The one that had to be forgotten for it is returned: that
    /// seen least recently.
    pub(super) fn add(&mut self, key: &[u8], sequence: Sequence) -> Option<Device> {
        self.sightings += 1;
        let device = Device { key: key.into(), sequence, last_sighting: self.sightings };
        let key = device.key.clone();
        if self.devices.len() < self.devices_max {
            self.slots.insert(key, self.devices.len());
            self.devices.push(device);
            return None;
        }
        let slot = self.oldest_slot();
        let forgotten = std::mem::replace(&mut self.devices[slot], device);
        self.slots.remove(&forgotten.key);
        self.slots.insert(key, slot);
        Some(forgotten)
    }

    /// The slot of the device seen least recently.
    ///
    /// The queue is filled once and used up: an entry whose device has not been seen since is older
    /// than all behind it and than all that have. So a sighting costs one store, not a list to mend.
    fn oldest_slot(&mut self) -> usize {
        loop {
            while let Some((sighting, slot)) = self.oldest.pop_front() {
                if self.devices[slot].last_sighting == sighting {
                    return slot;
                }
            }
            self.oldest = self.by_sighting().into();
        }
    }

    fn by_sighting(&self) -> Vec<(u64, usize)> {
        let mut all: Vec<_> = (0..).zip(&self.devices).map(|(slot, device)| (device.last_sighting, slot)).collect();
        all.sort_unstable();
        all
    }

    /// Writes all devices, from the one seen least recently on.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.devices.len() as u32);
        for (_, slot) in self.by_sighting() {
            let Device { key, sequence, .. } = &self.devices[slot];
            writer.bytes(key);
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
    }

    /// The devices that [`Fleet::write`] wrote, under the same bound.
    pub(super) fn read(&self, reader: &mut Reader) -> Result<Self, StageError> {
        let mut fleet = Self::new(self.devices_max as u32);
        for _ in 0..reader.u32()? {
            let key = reader.bytes()?;
            let first = reader.i64()?;
            let mut sequence = Sequence::starting(reader.i64()?, reader.optional_i64()?);
            sequence.first = first;
            sequence.overdue = reader.u32()?;
            for _ in 0..reader.u32()? {
                let (first, last) = (reader.i64()?, reader.i64()?);
                let (before_us, after_us) = (reader.optional_i64()?, reader.optional_i64()?);
                sequence.awaited.push(Gap { first, last, before_us, after_us });
            }
            let is_known = fleet.find(key).is_some();
            if is_known || fleet.add(key, sequence).is_some() {
                return Err(damaged());
            }
        }
        Ok(fleet)
    }
}
