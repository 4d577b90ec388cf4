//! Devices followed through time: what is remembered of each, and how far those of each partition have come.

use pipeline_engine::stage::StageError;

use super::clocks::{Partition, Partitions};
use super::fleet::{Device, Fleet};
use super::snapshot::{Reader, Writer, damaged};

/// What is remembered of a device that is followed.
pub(super) trait Placed {
    /// Where its rows last came from.
    fn partition(&self) -> usize;
    /// They come from elsewhere now.
    fn set_partition(&mut self, partition: usize);
    /// The newest time of its rows, in microseconds since 1970.
    fn newest_us(&self) -> i64;
}

/// Devices and the partitions that they are in.
pub(super) struct Followed<S> {
    fleet: Fleet<S>,
    partitions: Partitions,
}

/// A device whose row is at hand.
pub(super) struct Met<S> {
    pub(super) slot: usize,
    /// It was not known.
    pub(super) is_new: bool,
    /// Who had to be forgotten for it.
    pub(super) forgotten: Option<Device<S>>,
}

impl<S: Placed> Followed<S> {
    pub(super) fn new(devices_max: u32) -> Self {
        Self { fleet: Fleet::new(devices_max), partitions: Partitions::default() }
    }

    /// The number of the partition with this name.
    pub(super) fn partition_named(&mut self, name: &str) -> usize {
        self.partitions.find(name)
    }

    pub(super) fn partition(&mut self, number: usize) -> &mut Partition {
        self.partitions.partition(number)
    }

    pub(super) fn device(&mut self, slot: usize) -> &mut Device<S> {
        self.fleet.device(slot)
    }

    /// All devices of a partition, in an order that means nothing: another run may have another one.
    pub(super) fn devices_of(&mut self, partition: usize) -> impl Iterator<Item = &mut Device<S>> {
        self.devices().filter(move |device| device.state.partition() == partition)
    }

    /// All devices, in an order that means nothing.
    pub(super) fn devices(&mut self) -> impl Iterator<Item = &mut Device<S>> {
        self.fleet.devices().map(|(_, device)| device)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.fleet.count()
    }

    /// The device with this key, one of whose rows came from this partition. One that is not known begins as `new`
    /// says, which is told up to where the silent of the partition have been dealt with.
    pub(super) fn meet(&mut self, key: &[u8], partition: usize, new: impl FnOnce(i64) -> S) -> Met<S> {
        let Some(slot) = self.fleet.find(key) else {
            let state = new(self.partitions.partition(partition).swept_us);
            let newest_us = state.newest_us();
            let (slot, forgotten) = self.fleet.add(key, state);
            if let Some(forgotten) = &forgotten {
                self.leave(slot, forgotten.state.partition());
            }
            self.partitions.partition(partition).saw(slot, newest_us);
            return Met { slot, is_new: true, forgotten };
        };
        let state = &mut self.fleet.device(slot).state;
        let before = state.partition();
        if before != partition {
            state.set_partition(partition);
            let newest_us = state.newest_us();
            self.leave(slot, before);
            self.partitions.partition(partition).saw(slot, newest_us);
        }
        Met { slot, is_new: false, forgotten: None }
    }

    /// The slot has no part any more in how far a partition has come.
    fn leave(&mut self, slot: usize, partition: usize) {
        if !self.partitions.partition(partition).forget(slot) {
            return;
        }
        for (other, device) in self.fleet.devices().filter(|(other, _)| *other != slot) {
            if device.state.partition() == partition {
                self.partitions.partition(partition).saw(other, device.state.newest_us());
            }
        }
    }

    /// Also follows the devices of another one, whose rows come to this one from now on. A device that both know is the one
    /// that was seen last.
    pub(super) fn absorb(&mut self, other: Self) {
        let Self { mut fleet, partitions } = other;
        let numbers = self.partitions.absorb(&partitions);
        for (_, device) in fleet.devices() {
            let partition = device.state.partition();
            device.state.set_partition(numbers[partition]);
        }
        self.fleet.absorb(fleet, |theirs, ours| theirs.newest_us() > ours.newest_us());
        for (slot, device) in self.fleet.devices() {
            self.partitions.partition(device.state.partition()).saw(slot, device.state.newest_us());
        }
    }

    pub(super) fn write(&self, writer: &mut Writer, state: impl FnMut(&S, &mut Writer)) {
        self.partitions.write(writer);
        self.fleet.write(writer, state);
    }

    /// What [`Followed::write`] wrote, under the same bound.
    pub(super) fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        state: impl FnMut(&mut Reader<'a>) -> Result<S, StageError>,
    ) -> Result<Self, StageError> {
        let mut partitions = Partitions::read(reader)?;
        let mut fleet = self.fleet.read(reader, state)?;
        for (slot, device) in fleet.devices() {
            if device.state.partition() >= partitions.count() {
                return Err(damaged());
            }
            partitions.partition(device.state.partition()).saw(slot, device.state.newest_us());
        }
        Ok(Self { fleet, partitions })
    }
}
