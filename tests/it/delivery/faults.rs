//! The services around the pipeline die, hang and break off in the middle of a word.

use std::time::{Duration, Instant};

use super::chance::{Chance, rounds};
use super::daemons::{BrokerSettings, Service};
use super::fleet::now_us;
use super::proxy::{Moment, Point};
use super::site::Site;
use super::table::Table;

const PER_SECOND: u32 = 1_000;
/// Where the broker is killed: also on a busy machine its window is not full then, with what nobody else has behind it.
const PER_SECOND_OF_KILLED_BROKER: u32 = 300;
/// How long a frozen service stands still.
const FREEZE: Duration = Duration::from_secs(20);
/// How long connections carry nothing: longer than `write_timeout` of the tables in `pipeline.toml`.
const STALL: Duration = Duration::from_secs(7);
/// `autosave_interval`, and a turn of the broker.
const BROKER_SAVES_EVERY: Duration = Duration::from_millis(1_500);
/// For the next COPY, COMMIT or PUT to come; a sink may wait half a minute before it tries again.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn services_killed_frozen_and_cut_off_cost_no_row_and_double_none() {
    if !super::chance::is_asked_for() {
        return;
    }
    let mut chance = Chance::new();
    let mut site = Site::new("faults", BrokerSettings::Shipped);
    let pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    site.wait_for_row_after(now_us());
    let mut table = Table::default();
    cut_connections(&site, &mut chance, &mut table);
    stall_connections(&site, &mut chance, &mut table);
    freeze_services(&site, &mut table);
    kill_services(&site, &mut chance, &mut table);
    site.settle(fleet, pipeline);
    site.conclude(&format!("faults of the services at {PER_SECOND} messages a second"), table);
}

/// A broker that is killed sends again, without a mark, what it had delivered and not saved as delivered: to MQTT these
/// are new messages. Only what is in them tells, so here the rows go through `dedupe`.
#[test]
fn killed_brokers_cost_no_row_and_double_none() {
    if !super::chance::is_asked_for() {
        return;
    }
    let mut chance = Chance::new();
    let mut site = Site::new("killed_broker", BrokerSettings::Shipped);
    site.set("ROWS", "once");
    site.set("UNREADABLE", "unreadable_once");
    site.set("OUT_OF_RANGE", "out_of_range_once");
    let pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND_OF_KILLED_BROKER);
    let mut table = Table::default();
    // Whether the broker had saved by then is its own timing: not each kill makes it send again.
    let times = rounds(40).div_ceil(20);
    for _ in 0..times {
        wait_for_saved_broker(&site);
        std::thread::sleep(chance.millis(1_000));
        site.broker.kill();
        std::thread::sleep(chance.millis(1_500));
        let before = Delivered::by_now(&site);
        site.broker.start_again();
        wait_until_the_queue_is_delivered(&site, &before);
        site.broker.kill();
        site.broker.start_again();
        site.wait_for_row_after(now_us());
    }
    table.row("Broker killed", 2 * times);
    let log = site.settle(fleet, pipeline);
    let again =
        log.lines().rev().find_map(|line| line.split(", ").find_map(|part| part.strip_suffix(" repeated rows")));
    let again: u64 = again.and_then(|count| count.parse().ok()).expect("a count in the report");
    table.row("sent again as new", again);
    site.conclude(&format!("kills of the broker at {PER_SECOND_OF_KILLED_BROKER} messages a second"), table);
}

/// Where a connection breaks, and how.
struct Cut {
    name: &'static str,
    moment: Moment,
    place: Place,
    times: u32,
}

#[derive(Clone, Copy)]
enum Place {
    /// At any byte.
    Inside,
    /// Nothing of it has gone through; all of it; or any.
    Around,
}

fn cuts(times: u32) -> [Cut; 8] {
    let cut = |name, moment, place, times| Cut { name, moment, place, times };
    // The source waits longer each time for a broker that breaks off again soon: up to half a minute.
    let (few, fewer) = (times.div_ceil(10), times.div_ceil(50));
    [
        cut("cut inside COPY", Moment::CopyData, Place::Inside, times),
        cut("cut around COMMIT", Moment::Commit, Place::Around, times.div_ceil(2)),
        cut("cut before COMMIT's answer", Moment::Ended, Place::Around, times / 2),
        cut("cut inside PUT", Moment::PutBody, Place::Inside, few),
        cut("cut around PUT's answer", Moment::PutReply, Place::Around, few),
        cut("cut around a PUBLISH", Moment::Publish, Place::Around, fewer),
        cut("cut around a PUBACK", Moment::PubAck, Place::Around, fewer),
        cut("cut around a CONNACK", Moment::ConnAck, Place::Around, fewer),
    ]
}

fn cut_connections(site: &Site, chance: &mut Chance, table: &mut Table) {
    for cut in cuts(rounds(20)) {
        let proxy = match cut.moment {
            Moment::ConnAck | Moment::Publish | Moment::PubAck => &site.mqtt,
            Moment::Begin | Moment::CopyData | Moment::Commit | Moment::Ended => &site.postgres,
            Moment::PutBody | Moment::PutReply => &site.s3,
        };
        for _ in 0..cut.times {
            let inside = match cut.place {
                Place::Inside => chance.fraction(),
                Place::Around => chance.one_of(&[0.0, 0.5, 1.0]),
            };
            let point = Point { moment: cut.moment, after: chance.below(3), inside };
            let struck = if cut.moment == Moment::ConnAck {
                // One comes with each connection, and another connection only after this one.
                proxy.cut_all();
                proxy.cut_at(Point { after: 0, ..point }, PATIENCE)
            } else {
                proxy.cut_at(point, PATIENCE)
            };
            let struck = site.runtime.block_on(struck);
            assert!(struck, "no {:?} came within {PATIENCE:?}", cut.moment);
        }
        table.row(cut.name, cut.times);
        site.wait_for_row_after(now_us());
    }
}

/// Connections that live on and carry nothing, for longer than a sink waits for an answer.
fn stall_connections(site: &Site, chance: &mut Chance, table: &mut Table) {
    for (name, proxy, moment) in [
        ("held inside COPY", &site.postgres, Moment::CopyData),
        ("held before COMMIT's answer", &site.postgres, Moment::Ended),
        ("held inside PUT", &site.s3, Moment::PutBody),
    ] {
        let inside = if moment == Moment::Ended { 0.0 } else { chance.fraction() };
        let held = site.runtime.block_on(proxy.hold_at(Point { moment, after: 0, inside }, PATIENCE));
        std::thread::sleep(STALL);
        held.unwrap_or_else(|| panic!("no {moment:?} came within {PATIENCE:?}")).release();
        site.wait_for_row_after(now_us());
        table.row(name, seconds(STALL));
    }
}

fn freeze_services(site: &Site, table: &mut Table) {
    for service in [Service::Database, Service::ObjectStore] {
        site.daemons.freeze(service);
        std::thread::sleep(FREEZE);
        site.daemons.thaw(service);
        wait_for_progress(site, service);
        table.row(&format!("{service:?} frozen for"), seconds(FREEZE));
    }
    site.broker.freeze();
    std::thread::sleep(FREEZE);
    site.broker.thaw();
    site.wait_for_row_after(now_us());
    table.row("Broker frozen for", seconds(FREEZE));
}

fn kill_services(site: &Site, chance: &mut Chance, table: &mut Table) {
    let times = rounds(20).div_ceil(20);
    // An object store takes long to come back.
    for (service, times) in [(Service::Database, times), (Service::ObjectStore, times.div_ceil(3))] {
        for _ in 0..times {
            std::thread::sleep(chance.millis(1_000));
            site.daemons.kill(service);
            std::thread::sleep(chance.millis(1_500));
            site.daemons.start(service);
            wait_for_progress(site, service);
        }
        table.row(&format!("{service:?} killed"), times);
    }
}

/// Waits until the broker has nothing waiting for the pipeline, and has saved that: what waits in the
/// broker is the broker's to keep, and it keeps what it has saved last.
fn wait_for_saved_broker(site: &Site) {
    // The first new row may be the first of what has waited; the second one is behind all of that.
    site.wait_for_row_after(now_us());
    site.wait_for_row_after(now_us());
    std::thread::sleep(BROKER_SAVES_EVERY);
}

/// What has gone between the broker and the pipeline.
struct Delivered {
    messages: u64,
    acknowledgements: u64,
}

impl Delivered {
    fn by_now(site: &Site) -> Self {
        // In this order: an acknowledgement that comes in between makes the broker look busier than it is, not idle.
        let acknowledgements = site.mqtt.passed(Moment::PubAck);
        Self { messages: site.mqtt.passed(Moment::Publish), acknowledgements }
    }
}

/// What has come while the pipeline was away is sent to it at once, a window at a time, and while any of it waits the window
/// is full. Until the broker saves again, it does not remember that it has sent that; what it has neither sent nor saved
/// would be lost with it.
fn wait_until_the_queue_is_delivered(site: &Site, before: &Delivered) {
    /// Half of `max_inflight_messages`.
    const HALF_A_WINDOW: u64 = 50;
    const TURNS: u32 = 6;
    let started = Instant::now();
    let mut turns = 0;
    while turns < TURNS {
        assert!(started.elapsed() < PATIENCE, "the broker's queue was not delivered within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
        let now = Delivered::by_now(site);
        let sent = now.messages - before.messages;
        let is_behind_it = sent > 0 && sent < now.acknowledgements - before.acknowledgements + HALF_A_WINDOW;
        turns = if is_behind_it { turns + 1 } else { 0 };
    }
}

/// Waits until the service takes in again what is sent now.
fn wait_for_progress(site: &Site, service: Service) {
    match service {
        Service::Database => site.wait_for_row_after(now_us()),
        Service::ObjectStore => {
            let before = site.s3.passed(Moment::PutReply);
            crate::process::wait_until("a new object", || (site.s3.passed(Moment::PutReply) > before).then_some(()));
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
