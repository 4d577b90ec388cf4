//! Which devices were heard, and how long ago.

use std::collections::HashMap;

use pipeline_engine::far_end::is_marked;

use super::snapshot::{AGES_SECONDS, DevicesView};

/// Told apart at most; those beyond are not counted, and that is said.
const DEVICES_MAX: usize = 10_000;
/// Shown by name.
const QUIETEST_MAX: usize = 12;

/// When each device was heard last.
#[derive(Default)]
pub struct Devices {
    heard_at_us: HashMap<String, i64>,
    is_bounded: bool,
    column: Option<String>,
}

impl Devices {
    /// The column that names devices, once it is known.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    pub fn name_column(&mut self, column: String) {
        if self.column.as_ref() != Some(&column) {
            self.column = Some(column);
        }
    }

    pub fn heard(&mut self, device: &str, now_us: i64) {
        if is_marked(device) {
            return;
        }
        let is_full = self.heard_at_us.len() >= DEVICES_MAX;
        match self.heard_at_us.get_mut(device) {
            Some(at) => *at = now_us,
            None if is_full => self.is_bounded = true,
            None => drop(self.heard_at_us.insert(device.to_owned(), now_us)),
        }
    }

    /// `None` if none was heard.
    pub fn view(&self, now_us: i64) -> Option<DevicesView> {
        if self.heard_at_us.is_empty() {
            return None;
        }
        let mut by_age = [0; 4];
        let mut quietest: Vec<(&str, u64)> = Vec::new();
        for (device, at) in &self.heard_at_us {
            let age = u64::try_from(now_us - at).unwrap_or(0) / 1_000_000;
            by_age[AGES_SECONDS.partition_point(|bound| *bound <= age)] += 1;
            quietest.push((device, age));
        }
        // By name among equals, so that the list stands still.
        quietest.sort_unstable_by(|(one, age), (other, other_age)| other_age.cmp(age).then(one.cmp(other)));
        quietest.truncate(QUIETEST_MAX);
        let quietest = quietest.into_iter().map(|(device, age)| (device.to_owned(), age)).collect();
        Some(DevicesView { known: self.heard_at_us.len(), is_bounded: self.is_bounded, by_age, quietest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quietest_come_first_and_all_are_counted_by_age() {
        let mut devices = Devices::default();
        assert_eq!(devices.view(0), None);
        for (device, second) in [("b", 0), ("a", 0), ("c", 350), ("d", 395), ("d", 399), ("pipeline-verify-1", 399)] {
            devices.heard(device, second * 1_000_000);
        }
        let view = devices.view(400_000_000).expect("some were heard");
        assert_eq!((view.known, view.by_age), (4, [1, 1, 0, 2]));
        let names: Vec<&str> = view.quietest.iter().map(|(device, _)| device.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!(view.quietest[0].1, 400);
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_said_to_be() {
        let mut devices = Devices::default();
        (0..DEVICES_MAX + 5).for_each(|device| devices.heard(&device.to_string(), 0));
        let view = devices.view(0).expect("some were heard");
        assert_eq!((view.known, view.is_bounded), (DEVICES_MAX, true));
    }
}
