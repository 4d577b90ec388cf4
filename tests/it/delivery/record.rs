//! What the fleet has sent, and what of it the broker has acknowledged: the side of the devices.
//!
//! Everything about a reading follows from its device and number, but its time and what became of it.
//! So the oracle can tell what a row must hold, and a run of hours fits in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device and its number of a reading, from 0: what names a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub device: u16,
    pub seq: u32,
}

/// One sending of a reading. A device that did not hear that the broker has it sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    pub id: Id,
    /// From 1.
    pub attempt: u16,
}

/// What must become of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A row.
    Good,
    /// A dead letter of `valid`.
    OutOfRange,
    /// A dead letter of `telemetry`: text that ends too early.
    Torn,
}

/// What the fleet remembers of a reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The device's time, in microseconds since 1970.
    pub at_us: i64,
    /// How often it was handed to a connection; the last may not have left it.
    pub attempts: u16,
    /// The broker has answered for it: from here on losing it is a fault.
    pub acknowledged: bool,
}

impl Id {
    pub fn kind(self) -> Kind {
        // Coprime strides, so that bad readings come at all times and of all devices.
        match (self.seq % 211, self.seq % 307) {
            (7, _) => Kind::OutOfRange,
            (_, 11) => Kind::Torn,
            _ => Kind::Good,
        }
    }

    pub fn device_name(self) -> String {
        format!("device-{:03}", self.device)
    }

    pub fn temperature(self) -> f64 {
        match self.kind() {
            Kind::OutOfRange => 1_000.0 + f64::from(self.seq % 10),
            _ => f64::from((self.seq * 7 + u32::from(self.device)) % 1_000) / 8.0,
        }
    }
}

impl Message {
    /// As the device sends it. Torn text still says whose it is, so that its dead letter can be told.
    pub fn payload(self, at_us: i64) -> String {
        let Self { id, attempt } = self;
        let whole = format!(
            "{{\"device_id\":\"{}\",\"seq\":{},\"attempt\":{attempt},\"timestamp\":{at_us},\"temperature\":{:?}}}",
            id.device_name(),
            id.seq,
            id.temperature()
        );
        match id.kind() {
            Kind::Torn => whole[..whole.len() - 4].to_owned(),
            _ => whole,
        }
    }

    /// Whose a payload or a row in JSON is, also if it is torn; `None` if it is none of ours.
    pub fn of_text(text: &str) -> Option<Self> {
        let after = |key: &str| text.split_once(&format!("\"{key}\":")).map(|(_, rest)| rest);
        let number = |key: &str| {
            let rest = after(key)?;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u32>().ok()
        };
        let device = device_of_name(after("device_id")?.trim_start_matches('"').split('"').next()?)?;
        Some(Self { id: Id { device, seq: number("seq")? }, attempt: number("attempt")?.try_into().ok()? })
    }
}

pub fn device_of_name(name: &str) -> Option<u16> {
    name.strip_prefix("device-")?.parse().ok()
}

/// The fleet's memory. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Record(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// By device, then by number.
    readings: Vec<Vec<Reading>>,
    acknowledged: u64,
}

impl Record {
    /// A new reading of a device; sent by nobody yet.
    pub fn make(&self, device: u16, at_us: i64) -> Id {
        let mut inside = self.inside();
        let devices = inside.readings.len().max(usize::from(device) + 1);
        inside.readings.resize_with(devices, Vec::new);
        let of_device = &mut inside.readings[usize::from(device)];
        of_device.push(Reading { at_us, attempts: 0, acknowledged: false });
        Id { device, seq: u32::try_from(of_device.len() - 1).expect("fewer readings than that") }
    }

    /// The next sending of a reading.
    pub fn send(&self, id: Id) -> (Message, i64) {
        let mut inside = self.inside();
        let reading = inside.reading(id);
        reading.attempts += 1;
        (Message { id, attempt: reading.attempts }, reading.at_us)
    }

    pub fn acknowledge(&self, id: Id) {
        let mut inside = self.inside();
        let reading = inside.reading(id);
        if !std::mem::replace(&mut reading.acknowledged, true) {
            inside.acknowledged += 1;
        }
    }

    /// How many readings the broker has answered for.
    pub fn acknowledged(&self) -> u64 {
        self.inside().acknowledged
    }

    /// How many acknowledged readings must become rows.
    pub fn rows_owed(&self) -> u64 {
        self.each().iter().filter(|(id, reading)| reading.acknowledged && id.kind() == Kind::Good).count() as u64
    }

    /// Every reading there is, by device and number.
    pub fn each(&self) -> Vec<(Id, Reading)> {
        let inside = self.inside();
        let devices = inside.readings.iter().enumerate();
        devices
            .flat_map(|(device, readings)| {
                readings.iter().enumerate().map(move |(seq, reading)| {
                    (
                        Id { device: u16::try_from(device).expect("few"), seq: u32::try_from(seq).expect("few") },
                        *reading,
                    )
                })
            })
            .collect()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn reading(&mut self, id: Id) -> &mut Reading {
        &mut self.readings[usize::from(id.device)][id.seq as usize]
    }
}

#[test]
fn a_message_is_told_from_its_text_also_when_torn() {
    for seq in [0, 7, 11, 211 * 3 + 7, 307 * 2 + 11] {
        let message = Message { id: Id { device: 42, seq }, attempt: 3 };
        assert_eq!(Message::of_text(&message.payload(1_769_817_600_000_000)), Some(message));
    }
    assert_eq!(Message::of_text("{\"device_id\":\"somebody\",\"seq\":1,\"attempt\":1}"), None);
}
