//! `rand()` and `newuuid()`, the same in every replay.
//!
//! A batch that is read again after a crash must come out as it did before, or a sink would store the
//! same message under two ids. So what looks random is a hash of where the row stands: pipeline, stage,
//! source, position and time of receipt of the batch, place in the batch, place in the rule and
//! in an array. Two rows
//! share a UUID with the odds that two random ones have; nobody who knows the positions must be kept
//! from guessing one, so don't use them as secrets.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

/// What the rows of one batch draw from.
#[derive(Debug, Clone, Default)]
pub struct Dice {
    seed: [u8; 16],
    /// Where each row stood before others were filtered out; empty: where it stands.
    places: Vec<u32>,
}

impl Dice {
    /// For a batch with this position, of the stage of this full name.
    pub fn new(stage: &str, position: &str, received_at_us: i64) -> Self {
        let mut hasher = SipHasher24::new();
        for text in [stage, position] {
            hasher.write_usize(text.len());
            hasher.write(text.as_bytes());
        }
        hasher.write_i64(received_at_us);
        Self { seed: hasher.finish128().as_bytes(), places: Vec::new() }
    }

    /// The same for the rows that a filter keeps.
    pub fn filtered(self, kept: &[u32]) -> Self {
        let places = kept.iter().map(|row| self.place(*row as usize)).collect();
        Self { seed: self.seed, places }
    }

    fn place(&self, row: usize) -> u32 {
        self.places.get(row).copied().unwrap_or(row as u32)
    }

    fn draw(&self, row: usize, lane: u64, site: u64) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.seed);
        hasher.write_u32(self.place(row));
        hasher.write_u64(lane);
        hasher.write_u64(site);
        hasher.finish128().as_u128()
    }

    /// From 0 to below 1.
    pub fn fraction(&self, row: usize, lane: u64, site: u64) -> f64 {
        // 53 bits are what a double holds.
        (self.draw(row, lane, site) >> 75) as f64 / (1_u64 << 53) as f64
    }

    /// In the form of a random UUID (version 4).
    pub fn uuid(&self, row: usize, lane: u64, site: u64) -> String {
        let bits = self.draw(row, lane, site) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}
