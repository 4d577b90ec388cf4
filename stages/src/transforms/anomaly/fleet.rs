//! The devices that are remembered, bounded in number.
//!
//! A device is found by one look into a hash table; what is remembered of its metrics lies side by side. The table's order
//! shows nowhere: devices are numbered as they come, and forgotten by when they were last seen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use pipeline_engine::Counter;
use pipeline_engine::stage::StageError;

use super::methods::Method;
use super::series::Series;
use crate::transforms::snapshot::{Reader, Writer, damaged};

/// All devices, and the method that says what is remembered of each.
pub(super) struct Fleet<M: Method> {
    metrics: usize,
    devices_max: usize,
    slots: HashMap<Arc<str>, usize, RandomState>,
    devices: Vec<Device>,
    /// By device, then metric.
    series: Vec<Series<M::State>>,
    /// By device, then metric, then the method's place.
    places: Vec<f64>,
    /// Counts sightings: the order in which devices were last seen.
    sightings: u64,
    /// Devices by when they were last seen, as it was when this was filled.
    oldest: VecDeque<(u64, usize)>,
}

struct Device {
    key: Arc<str>,
    last_sighting: u64,
}

impl<M: Method> Fleet<M> {
    pub(super) fn new(metrics: usize, devices_max: u32) -> Self {
        Self {
            metrics,
            devices_max: devices_max as usize,
            slots: HashMap::default(),
            devices: Vec::new(),
            series: Vec::new(),
            places: Vec::new(),
            sightings: 0,
            oldest: VecDeque::new(),
        }
    }

    /// The slot of a device, which counts as seen. A new one takes the place of the device seen least
    /// recently when there are too many; no other slot changes.
    pub(super) fn slot(&mut self, key: &str, method: &M, evicted: &Counter) -> usize {
        self.sightings += 1;
        if let Some(slot) = self.slots.get(key) {
            self.devices[*slot].last_sighting = self.sightings;
            return *slot;
        }
        let device = Device { key: key.into(), last_sighting: self.sightings };
        let key = device.key.clone();
        let slot = if self.devices.len() < self.devices_max {
            self.devices.push(device);
            self.series.resize(self.devices.len() * self.metrics, Series::empty(method.empty()));
            self.places.resize(self.series.len() * method.places(), 0.0);
            self.devices.len() - 1
        } else {
            let slot = self.forget_oldest();
            evicted.increment();
            self.devices[slot] = device;
            // What is left in the places means nothing to an empty state.
            self.series[slot * self.metrics..][..self.metrics].fill(Series::empty(method.empty()));
            slot
        };
        self.slots.insert(key, slot);
        slot
    }

    /// The readings of a device's metric, and its `places`.
    pub(super) fn series(&mut self, slot: usize, metric: usize, places: usize) -> (&mut Series<M::State>, &mut [f64]) {
        let index = slot * self.metrics + metric;
        (&mut self.series[index], &mut self.places[index * places..][..places])
    }

    /// All series, device by device. Not the hash table and the queue, which can be made again.
    pub(super) fn write(&self, method: &M, state: &mut Writer) {
        let places = method.places();
        state.u64(self.sightings);
        state.u64(self.devices.len() as u64);
        for (slot, device) in self.devices.iter().enumerate() {
            state.bytes(device.key.as_bytes());
            state.u64(device.last_sighting);
            for index in slot * self.metrics..(slot + 1) * self.metrics {
                self.series[index].write(method, &self.places[index * places..][..places], state);
            }
        }
    }

    /// A fleet that was written, of the same metrics as this one and by the same method. Of too many
    /// devices those are left out that were seen least recently.
    ///
    /// # Errors
    /// There can't be such a fleet.
    pub(super) fn read(&self, method: &M, state: &mut Reader<'_>) -> Result<Self, StageError> {
        let mut fleet = Self { sightings: state.u64()?, ..self.without_devices() };
        let devices = usize::try_from(state.u64()?).map_err(|_| damaged())?;
        for slot in 0..devices {
            let key: Arc<str> = std::str::from_utf8(state.bytes()?).map_err(|_| damaged())?.into();
            let last_sighting = state.u64()?;
            if last_sighting > fleet.sightings || fleet.slots.insert(key.clone(), slot).is_some() {
                return Err(damaged());
            }
            fleet.devices.push(Device { key, last_sighting });
            for _ in 0..self.metrics {
                let start = fleet.places.len();
                fleet.places.resize(start + method.places(), 0.0);
                fleet.series.push(Series::read(method, &mut fleet.places[start..], state)?);
            }
        }
        if devices > self.devices_max { Ok(fleet.with_newest(method.places())) } else { Ok(fleet) }
    }

    /// Also remembers the devices of another fleet. One that both know is taken as it was seen last, by its readings' own time;
    /// what there is no room for is left out.
    pub(super) fn absorb(&mut self, other: &Self, places: usize) {
        let newest = |series: &[Series<M::State>]| series.iter().map(Series::newest_us).max();
        let mut theirs: Vec<usize> = (0..other.devices.len()).collect();
        theirs.sort_unstable_by_key(|slot| other.devices[*slot].last_sighting);
        for from in theirs {
            let key = &other.devices[from].key;
            let from = from * self.metrics..(from + 1) * self.metrics;
            self.sightings += 1;
            let to = match self.slots.get(key) {
                Some(slot) => {
                    let to = slot * self.metrics..(slot + 1) * self.metrics;
                    if newest(&self.series[to.clone()]) >= newest(&other.series[from.clone()]) {
                        continue;
                    }
                    to
                }
                None if self.devices.len() >= self.devices_max => continue,
                None => {
                    let slot = self.devices.len();
                    self.slots.insert(key.clone(), slot);
                    self.devices.push(Device { key: key.clone(), last_sighting: self.sightings });
                    self.series.extend_from_slice(&other.series[from.clone()]);
                    self.places.resize(self.series.len() * places, 0.0);
                    slot * self.metrics..(slot + 1) * self.metrics
                }
            };
            self.series[to.clone()].clone_from_slice(&other.series[from.clone()]);
            self.places[to.start * places..to.end * places]
                .copy_from_slice(&other.places[from.start * places..from.end * places]);
        }
    }

    fn without_devices(&self) -> Self {
        Self {
            metrics: self.metrics,
            devices_max: self.devices_max,
            slots: HashMap::default(),
            devices: Vec::new(),
            series: Vec::new(),
            places: Vec::new(),
            sightings: self.sightings,
            oldest: VecDeque::new(),
        }
    }

    /// As many of the devices as may be, those seen most recently.
    fn with_newest(self, places: usize) -> Self {
        let mut kept: Vec<usize> = (0..self.devices.len()).collect();
        kept.sort_unstable_by_key(|slot| std::cmp::Reverse(self.devices[*slot].last_sighting));
        kept.truncate(self.devices_max);
        let mut fleet = self.without_devices();
        for (slot, from) in kept.into_iter().enumerate() {
            let Device { key, last_sighting } = &self.devices[from];
            fleet.slots.insert(key.clone(), slot);
            fleet.devices.push(Device { key: key.clone(), last_sighting: *last_sighting });
            let series = from * self.metrics..(from + 1) * self.metrics;
            fleet.places.extend(&self.places[series.start * places..series.end * places]);
            fleet.series.extend_from_slice(&self.series[series]);
        }
        fleet
    }

    /// Removes the device seen least recently from the table; its slot is free.
    ///
    /// The queue is filled once and used up: an entry whose device has not been seen since is older
    /// than all behind it and than all that have. So a sighting costs one store, not a list to mend.
    fn forget_oldest(&mut self) -> usize {
        loop {
            while let Some((sighting, slot)) = self.oldest.pop_front() {
                if self.devices[slot].last_sighting == sighting {
                    self.slots.remove(&self.devices[slot].key);
                    return slot;
                }
            }
            let mut all: Vec<_> = (0..).zip(&self.devices).map(|(slot, device)| (device.last_sighting, slot)).collect();
            all.sort_unstable();
            self.oldest = all.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transforms::anomaly::methods::zscore::Zscore;

    proptest! {
        #[test]
        fn the_device_seen_least_recently_is_forgotten(
            keys in prop::collection::vec(0..12u8, 0..300),
            devices_max in 1..8u32,
        ) {
            let evicted = Counter::default();
            let method = Zscore { window: 2, warmup: 2 };
            let mut fleet = Fleet::new(1, devices_max);
            let mut model: Vec<String> = Vec::new();
            let mut model_evicted = 0;
            for key in keys {
                let key = format!("dev-{key}");
                fleet.slot(&key, &method, &evicted);
                model.retain(|other| *other != key);
                model.push(key);
                if model.len() > devices_max as usize {
                    model.remove(0);
                    model_evicted += 1;
                }
                let mut known: Vec<String> = fleet.slots.keys().map(ToString::to_string).collect();
                known.sort();
                let mut expected = model.clone();
                expected.sort();
                prop_assert_eq!(known, expected);
                prop_assert_eq!(evicted.get(), model_evicted);
            }
            for (key, slot) in &fleet.slots {
                prop_assert_eq!(&fleet.devices[*slot].key, key);
            }
        }
    }
}
