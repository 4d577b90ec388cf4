//! What one seed draws: how large everything is, and what goes wrong when.
//!
//! Each kind of fault is there in some seeds and not in others, so that none hides what only shows
//! without it. After [`Climate::calm_at`] nothing goes wrong any more: from then on everything must come
//! to its end.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// A stream of chance for each actor, so that one's draws don't shift another's.
pub(super) fn chance(seed: u64, actor: &str) -> StdRng {
    StdRng::seed_from_u64(seed ^ (u64::from(crc32fast::hash(actor.as_bytes())) << 32))
}

/// What a part of the outside suffers for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Every call fails at once, as when nobody listens.
    Away,
    /// Every call fails until a person has mended something.
    NeedsPerson,
    /// Every call takes long.
    Slow,
}

#[derive(Debug)]
pub(super) struct Outage {
    pub of: &'static str,
    pub trouble: Trouble,
    pub during: Range<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum DiskFault {
    Syncs(u32),
    Writes(u32),
    Reads(u32),
    /// Only so many bytes are left, for so long.
    Full {
        left_bytes: u64,
        lasts: Duration,
    },
}

/// How a life of the process ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub when: When,
    pub how: How,
    /// Until the next life.
    pub down: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    After(Duration),
    /// In the midst of a stage's dealings with the outside.
    AtStep(u64),
    AtDiskOperation(u64),
    /// Once so many checkpoints are kept.
    AtCheckpoint(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Kill,
    PowerCut,
    /// SIGTERM.
    Stop,
}

/// Everything that a seed decides beforehand.
#[derive(Debug)]
pub(super) struct Climate {
    pub messages: u32,
    /// All messages are published within this.
    pub period: Duration,
    /// How likely a message is not to wait for the one before: bursts.
    pub in_burst: f64,
    /// What calls of sinks take at most.
    pub latency_ms_max: u64,
    pub calm_at: Duration,
    pub undecodable: f64,
    pub refused: f64,
    /// The table says which rows it refuses.
    pub names_refused: bool,
    pub receive_maximum: usize,
    /// A connection lives for at most so many packets.
    pub packets_max: Option<u32>,
    pub connect_fails: f64,
    pub session_lost: f64,
    pub repeated: f64,
    /// A call of a sink fails.
    pub faults: f64,
    /// It fails, and may have had its effect.
    pub unknown: f64,
    pub tap_hangs: f64,
    pub outages: Vec<Outage>,
    pub disk_faults: Vec<(Duration, DiskFault)>,
    pub ends: Vec<End>,
    pub queue_rows: u32,
    pub checkpoint_interval: Duration,
    pub drain_timeout: Duration,
    pub overflow_bytes_max: u64,
    pub group_linger: Duration,
    pub group_records_max: usize,
    pub segment_bytes: u64,
    pub spool_bytes_max: u64,
    pub retain: Duration,
    pub lake_linger: Duration,
    pub lake_rows_max: usize,
}

/// The parts of the outside that have outages.
pub(super) const PLACES: [&str; 7] = ["table", "rollups", "letters", "lake", "tap", "broker 0", "broker 1"];

impl Climate {
    pub(super) fn of(seed: u64) -> Self {
        let rng = &mut chance(seed, "climate");
        let period = Duration::from_millis(between(rng, 2_000, 60_000));
        let calm_at = period + seconds(rng, 1..30);
        let crashes = if rng.random_bool(0.9) { rng.random_range(1..9) } else { 0 };
        let segment_bytes = rng.random_range(500..3_000);
        let receive_maximum = rng.random_range(1..16);
        // Two segments, and what is kept in any case: the window that may come again.
        let spool_bytes_min = 2 * segment_bytes + 2_000 + receive_maximum as u64 * 200;
        Self {
            messages: rng.random_range(10..45),
            period,
            in_burst: rng.random_range(0.0..0.95),
            latency_ms_max: between(rng, 2, 500),
            calm_at,
            undecodable: some(rng, 0.1),
            refused: some(rng, 0.1),
            names_refused: rng.random(),
            receive_maximum,
            packets_max: rng.random_bool(0.6).then(|| rng.random_range(4..80)),
            connect_fails: some(rng, 0.5),
            session_lost: if rng.random_bool(0.3) { some(rng, 0.5) } else { 0.0 },
            repeated: some(rng, 0.2),
            faults: some(rng, 0.3),
            unknown: some(rng, 0.3),
            tap_hangs: some(rng, 0.3),
            outages: outages(rng, calm_at),
            disk_faults: disk_faults(rng, calm_at),
            ends: (0..crashes).map(|_| End::any(rng, period / crashes)).collect(),
            queue_rows: rng.random_range(2..20),
            checkpoint_interval: Duration::from_millis(between(rng, 50, 2_000)),
            drain_timeout: seconds(rng, 1..20),
            overflow_bytes_max: if rng.random() { 0 } else { rng.random_range(0..20_000) },
            group_linger: Duration::from_millis(rng.random_range(0..10)),
            group_records_max: rng.random_range(1..12),
            segment_bytes,
            spool_bytes_max: spool_bytes_min + rng.random_range(0..10_000),
            retain: if rng.random() { Duration::ZERO } else { seconds(rng, 1..60) },
            lake_linger: Duration::from_millis(between(rng, 1, 5_000)),
            lake_rows_max: rng.random_range(2..60),
        }
    }
}

impl End {
    fn any(rng: &mut StdRng, within: Duration) -> Self {
        let when = match rng.random_range(0..4) {
            0 => When::After(within.mul_f64(rng.random_range(0.0..1.0))),
            1 => When::AtStep(between(rng, 1, 150)),
            2 => When::AtCheckpoint(rng.random_range(1..4)),
            _ => When::AtDiskOperation(between(rng, 1, 500)),
        };
        let how = match rng.random_range(0..10) {
            0..4 => How::Kill,
            4..8 => How::PowerCut,
            _ => How::Stop,
        };
        let down = Duration::from_millis(between(rng, 10, 20_000));
        Self { when, how, down }
    }
}

/// In half of all seeds not at all, else up to this.
fn some(rng: &mut StdRng, most: f64) -> f64 {
    if rng.random() { rng.random_range(0.0..most) } else { 0.0 }
}

/// As often between 10 and 100 as between 100 and 1,000.
fn between(rng: &mut StdRng, least: u64, most: u64) -> u64 {
    (least as f64 * (most as f64 / least as f64).powf(rng.random_range(0.0..1.0))) as u64
}

fn seconds(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range.start * 1_000..range.end * 1_000))
}

fn outages(rng: &mut StdRng, calm_at: Duration) -> Vec<Outage> {
    let count = if rng.random_bool(0.7) { rng.random_range(1..6) } else { 0 };
    let mut any = || {
        let of = PLACES[rng.random_range(0..PLACES.len())];
        let trouble = [Trouble::Away, Trouble::NeedsPerson, Trouble::Slow][rng.random_range(0..3)];
        let start = calm_at.mul_f64(rng.random_range(0.0..1.0));
        Outage { of, trouble, during: start..start + seconds(rng, 1..90) }
    };
    (0..count).map(|_| any()).collect()
}

fn disk_faults(rng: &mut StdRng, calm_at: Duration) -> Vec<(Duration, DiskFault)> {
    let count = if rng.random_bool(0.7) { rng.random_range(1..20) } else { 0 };
    let mut faults: Vec<_> = (0..count)
        .map(|_| {
            let fault = match rng.random_range(0..7) {
                0..3 => DiskFault::Syncs([1, 1, 2, 3][rng.random_range(0..4)]),
                3 => DiskFault::Writes(rng.random_range(1..4)),
                4 => DiskFault::Reads(rng.random_range(1..4)),
                _ => DiskFault::Full { left_bytes: rng.random_range(0..2_000), lasts: seconds(rng, 1..30) },
            };
            (calm_at.mul_f64(rng.next_u32() as f64 / f64::from(u32::MAX)), fault)
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}
