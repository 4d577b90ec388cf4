//! Tests of the spool as a whole. Those of one file's own rules are in that file.

mod corpus;
mod every_place;
mod live;
mod model;
mod real_files;
mod tools;

use std::path::Path;
use std::time::Duration;

use super::*;

fn dir() -> &'static Path {
    Path::new("/spool")
}

/// A spool small enough to fill up and to begin new segments all the time.
fn small() -> SpoolOptions {
    SpoolOptions {
        segment_bytes: 4 << 10,
        bytes_max: 64 << 10,
        free_space_min: 0,
        retain: Duration::ZERO,
        group_linger: Duration::ZERO,
        cursor_interval: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        ..SpoolOptions::new("p", "s")
    }
}

/// A record that can be told from every other one.
fn record(number: u64, payload_bytes: usize) -> Record {
    let mut payload = format!("payload {number} ").into_bytes();
    payload.resize(payload.len().max(payload_bytes), b'.');
    Record {
        received_at_us: 1_000 + i64::try_from(number).expect("small"),
        flags: number as u8,
        mark: number as u16,
        topic: format!("devices/{}", number % 3).into(),
        payload: payload.into(),
    }
}
