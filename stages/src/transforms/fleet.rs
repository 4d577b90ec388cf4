//! What a transform remembers of each device, bounded in number.
//!
//! The hash table's order shows nowhere: devices are forgotten by when they were last seen, and written
//! down in that order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use pipeline_engine::stage::StageError;

use super::snapshot::{Reader, Writer, damaged};

/// Devices by their encoded keys; each has a slot, which it keeps until it is forgotten.
pub(super) struct Fleet<S> {
    devices_max: usize,
    slots: HashMap<Arc<[u8]>, usize, RandomState>,
    devices: Vec<Device<S>>,
    /// Counts sightings: the order in which devices were last seen.
    sightings: u64,
    /// Devices by when they were last seen, as it was when this was filled.
    oldest: VecDeque<(u64, usize)>,
}

/// A device that was seen.
pub(super) struct Device<S> {
    /// Its encoded key.
    pub key: Arc<[u8]>,
    /// What is remembered of it.
    pub state: S,
    last_sighting: u64,
}

impl<S> Fleet<S> {
    pub(super) fn new(devices_max: u32) -> Self {
        Self {
            devices_max: devices_max as usize,
            slots: HashMap::default(),
            devices: Vec::new(),
            sightings: 0,
            oldest: VecDeque::new(),
        }
    }

    /// The slot of a device that is known, which counts as seen.
    pub(super) fn find(&mut self, key: &[u8]) -> Option<usize> {
        let slot = *self.slots.get(key)?;
        self.sightings += 1;
        self.devices[slot].last_sighting = self.sightings;
        Some(slot)
    }

    pub(super) fn device(&mut self, slot: usize) -> &mut Device<S> {
        &mut self.devices[slot]
    }

    /// How many are remembered.
    pub(super) fn count(&self) -> usize {
        self.devices.len()
    }

    /// All devices with their slots, in an order that means nothing.
    pub(super) fn devices(&mut self) -> impl Iterator<Item = (usize, &mut Device<S>)> {
        self.devices.iter_mut().enumerate()
    }

    /// Remembers a device that is not known. The one that had to be forgotten for it is returned: that
    /// seen least recently, whose slot the new one has.
    pub(super) fn add(&mut self, key: &[u8], state: S) -> (usize, Option<Device<S>>) {
        self.sightings += 1;
        let device = Device { key: key.into(), state, last_sighting: self.sightings };
        let key = device.key.clone();
        if self.devices.len() < self.devices_max {
            let slot = self.devices.len();
            self.slots.insert(key, slot);
            self.devices.push(device);
            return (slot, None);
        }
        let slot = self.oldest_slot();
        let forgotten = std::mem::replace(&mut self.devices[slot], device);
        self.slots.remove(&forgotten.key);
        self.slots.insert(key, slot);
        (slot, Some(forgotten))
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

    /// Also remembers the devices of another fleet. Of one that both know, `is_newer` says whether theirs is the one to keep;
    /// what there is no room for is left out.
    pub(super) fn absorb(&mut self, other: Self, is_newer: impl Fn(&S, &S) -> bool) {
        let Self { mut devices, .. } = other;
        devices.sort_by_key(|device| device.last_sighting);
        for Device { key, state, .. } in devices {
            match self.find(&key) {
                Some(slot) if is_newer(&state, &self.devices[slot].state) => self.devices[slot].state = state,
                Some(_) => {}
                None if self.devices.len() < self.devices_max => drop(self.add(&key, state)),
                None => {}
            }
        }
    }

    fn by_sighting(&self) -> Vec<(u64, usize)> {
        let mut all: Vec<_> = (0..).zip(&self.devices).map(|(slot, device)| (device.last_sighting, slot)).collect();
        all.sort_unstable();
        all
    }

    /// Writes all devices, from the one seen least recently on, each with what `state` writes of it.
    pub(super) fn write(&self, writer: &mut Writer, mut state: impl FnMut(&S, &mut Writer)) {
        writer.u32(self.devices.len() as u32);
        for (_, slot) in self.by_sighting() {
            let device = &self.devices[slot];
            writer.bytes(&device.key);
            state(&device.state, writer);
        }
    }

    /// The devices that [`Fleet::write`] wrote, under the same bound.
    pub(super) fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        mut state: impl FnMut(&mut Reader<'a>) -> Result<S, StageError>,
    ) -> Result<Self, StageError> {
        let mut fleet = Self::new(self.devices_max as u32);
        for _ in 0..reader.u32()? {
            let key = reader.bytes()?;
            let state = state(reader)?;
            let is_known = fleet.find(key).is_some();
            if is_known || fleet.add(key, state).1.is_some() {
                return Err(damaged());
            }
        }
        Ok(fleet)
    }
}
