//! `kill -9` of the pipeline, again and again, while the fleet publishes.
//!
//! Half of the kills strike at a random time after the start; the others are held by a proxy at a point
//! of the protocols where a crash is said to hurt, such as between COMMIT and its answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::chance::{Chance, rounds};
use super::daemons::BrokerSettings;
use super::fleet::now_us;
use super::proxy::{Moment, Point, Proxy};
use super::site::Site;
use super::table::Table;
use crate::process::Process;

const PER_SECOND: u32 = 2_000;
/// What a held kill waits for its point to come; then it kills where it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Every so many rounds all that waits is worked off first.
const CAUGHT_UP_EVERY: u32 = 10;

#[test]
fn a_pipeline_killed_at_any_moment_loses_nothing_and_stores_nothing_twice() {
    let (mut chance, rounds) = (Chance::new(), rounds(40));
    let mut site = Site::new("crashes", BrokerSettings::Shipped);
    let mut pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    let began = Instant::now();
    let mut phases: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..rounds {
        if round % CAUGHT_UP_EVERY == CAUGHT_UP_EVERY - 1 {
            site.wait_for_row_after(now_us());
        }
        let phase = kill_somewhere(&site, pipeline, &mut chance);
        *phases.entry(phase).or_default() += 1;
        pipeline = site.start();
    }
    let acknowledged_per_second = site.record.acknowledged() as f64 / began.elapsed().as_secs_f64();
    site.settle(fleet, pipeline);
    let mut table = Table::default();
    table.row("kills", rounds);
    for (phase, kills) in &phases {
        table.row(&format!("  {phase}"), kills);
    }
    table.row("acknowledged per second", format!("{acknowledged_per_second:.0}"));
    site.conclude(&format!("kill -9 of the pipeline at {PER_SECOND} messages a second"), table);
    assert!(phases.len() > 3 || rounds < 20, "the kills hit too few phases: {phases:?}");
}

/// Kills the pipeline; says in the middle of what.
fn kill_somewhere(site: &Site, mut pipeline: Process, chance: &mut Chance) -> String {
    if chance.below(2) == 0 {
        std::thread::sleep(chance.millis(3_000));
        // Stopped first, so that what is seen is what is killed.
        pipeline.signal("STOP");
        let phase = phase(site);
        pipeline.kill();
        return phase;
    }
    let (name, proxy, point) = chance.one_of(&points(site));
    // There is one CONNACK, soon after the start.
    let after = if point.moment == Moment::ConnAck { 0 } else { chance.below(3) };
    let point = Point { after, ..point };
    let held = site.runtime.block_on(proxy.hold_at(point, PATIENCE));
    pipeline.kill();
    match held {
        Some(_) => format!("held {name}"),
        None => "held in vain".to_owned(),
    }
}

/// Where a crash is said to hurt.
fn points(site: &Site) -> [(&'static str, &Proxy, Point); 8] {
    [
        ("before CONNACK", &site.mqtt, Point::before(Moment::ConnAck)),
        ("before a PUBACK", &site.mqtt, Point::before(Moment::PubAck)),
        ("behind a PUBACK", &site.mqtt, Point::behind(Moment::PubAck)),
        ("inside COPY", &site.postgres, Point { moment: Moment::CopyData, after: 0, inside: 0.5 }),
        ("before COMMIT", &site.postgres, Point::before(Moment::Commit)),
        ("before COMMIT's answer", &site.postgres, Point::before(Moment::Ended)),
        ("inside PUT", &site.s3, Point { moment: Moment::PutBody, after: 0, inside: 0.5 }),
        ("before PUT's answer", &site.s3, Point::before(Moment::PutReply)),
    ]
}

/// In the middle of what the pipeline is.
fn phase(site: &Site) -> String {
    let has = |proxy: &Proxy, moment| proxy.now().contains(&Some(moment));
    let connected = site.mqtt.now().iter().any(Option::is_some);
    let phases = [
        ("starting", !connected),
        ("COPY", has(&site.postgres, Moment::CopyData)),
        ("COMMIT", has(&site.postgres, Moment::Commit)),
        ("BEGIN", has(&site.postgres, Moment::Begin)),
        ("PUT", has(&site.s3, Moment::PutBody)),
    ];
    let all: Vec<&str> = phases.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if all.is_empty() { "random: between groups".to_owned() } else { format!("random: {}", all.join(" + ")) }
}
