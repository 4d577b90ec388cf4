//! The stage as its documentation has it, with every number kept: slow, and plain to see. The rules are
//! those of [`TEXT`](super::TEXT).

use std::collections::BTreeMap;

use crate::transforms::testing::Reading;

/// One device as the documentation has it: every number that came since its start is kept.
struct ModelDevice {
    seen: BTreeMap<i32, Option<i64>>,
    /// First numbers of the gaps that are settled.
    settled: Vec<i32>,
    overdue: u32,
}

/// First, last, time before, time after.
pub(super) type ModelGap = (i32, i32, Option<i64>, Option<i64>);

impl ModelDevice {
    fn starting(number: i32, time: Option<i64>) -> Self {
        Self { seen: BTreeMap::from([(number, time)]), settled: Vec::new(), overdue: 0 }
    }

    /// The gaps that are not settled yet and end at or below `last_max`, which are settled by that.
    fn settle(&mut self, last_max: i32) -> Vec<ModelGap> {
        let seen: Vec<_> = self.seen.iter().map(|(number, time)| (*number, *time)).collect();
        let mut gaps = Vec::new();
        for pair in seen.windows(2) {
            let gap = (pair[0].0 + 1, pair[1].0 - 1, pair[0].1, pair[1].1);
            if gap.0 <= gap.1 && gap.1 <= last_max && !self.settled.contains(&gap.0) {
                self.settled.push(gap.0);
                gaps.push(gap);
            }
        }
        gaps
    }
}

#[derive(Default)]
pub(super) struct Model {
    /// The device seen least recently first.
    devices: Vec<(String, ModelDevice)>,
    pub gaps: Vec<(String, ModelGap)>,
    pub counters: BTreeMap<&'static str, u64>,
}

impl Model {
    fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    pub(super) fn observe(&mut self, reading: &Reading) {
        let (Some(key), Some(number)) = (reading.device_id.clone(), reading.floor) else {
            return self.count("unnumbered_rows");
        };
        let time = reading.timestamp;
        let known = self.devices.iter().position(|(other, _)| *other == key);
        let Some(index) = known else {
            self.devices.push((key, ModelDevice::starting(number, time)));
            if self.devices.len() > 3 {
                let (key, mut device) = self.devices.remove(0);
                self.count("forgotten_devices");
                self.tell(&key, device.settle(i32::MAX));
            }
            return;
        };
        let (key, mut device) = self.devices.remove(index);
        let (newest, newest_time) = device.seen.last_key_value().map(|(number, time)| (*number, *time)).unwrap();
        if number >= newest - 4 && number >= *device.seen.first_key_value().unwrap().0 {
            let is_new = !device.seen.contains_key(&number);
            if !is_new {
                self.count("repeated_numbers");
            } else if number < newest {
                self.count("late_numbers");
            }
            if is_new {
                device.seen.insert(number, time);
            }
            device.overdue = 0;
            let gaps = device.settle(newest.max(number) - 5);
            self.tell(&key, gaps);
        } else {
            device.overdue += 1;
            if device.overdue == 3 || time.zip(newest_time).is_some_and(|(time, newest)| time > newest) {
                self.count("resets");
                self.tell(&key, device.settle(i32::MAX));
                device = ModelDevice::starting(number, time);
            } else {
                self.count("overdue_numbers");
            }
        }
        self.devices.push((key, device));
    }

    fn tell(&mut self, key: &str, gaps: Vec<ModelGap>) {
        for gap in gaps {
            self.count("gap_count");
            *self.counters.entry("missing_numbers").or_default() += u64::from((gap.1 - gap.0 + 1).unsigned_abs());
            self.gaps.push((key.to_owned(), gap));
        }
    }
}
