//! The database is away for minutes: nothing is lost, the lake does not notice, and the rest is worked off.

use std::time::{Duration, Instant};

use super::chance::number_of;
use super::daemons::{BrokerSettings, Service};
use super::fleet::now_us;
use super::site::Site;
use super::table::Table;
use crate::process::{Process, wait_until};

const PER_SECOND: u32 = 1_000;
/// Generous: what matters is that it does not grow with the outage. 1 GiB would be 18,000 bytes for each
/// message of a minute.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

#[test]
fn a_database_away_for_minutes_loses_nothing_and_does_not_disturb_the_lake() {
    if !super::chance::is_asked_for() {
        return;
    }
    let outage = Duration::from_secs(number_of("DELIVERY_OUTAGE_SECONDS").unwrap_or(60).into());
    let mut site = Site::new("outage", BrokerSettings::Shipped);
    let pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    site.wait_for_row_after(now_us() + 3_000_000);
    let mut table = Table::default();
    table.row("memory before", mebibytes(memory(&pipeline)));

    site.daemons.kill(Service::Database);
    let (began, acknowledged_before) = (Instant::now(), site.record.acknowledged());
    let (mut most, mut lake_lag) = (0, Duration::ZERO);
    while began.elapsed() < outage {
        std::thread::sleep(Duration::from_secs(2));
        most = most.max(memory(&pipeline));
        lake_lag = lake_lag.max(site.age_of_newest_object());
    }
    let during = site.record.acknowledged() - acknowledged_before;
    table.row("outage", format!("{} s, {during} messages acknowledged meanwhile", outage.as_secs()));
    // While the database is still away, the lake gets all that was sent during the outage.
    let owed = site.record.rows_owed();
    wait_until("the lake to hold what came during the outage", || (site.rows_in_lake() >= owed).then_some(()));
    table.row("longest time without a new object", format!("{:.1} s", lake_lag.as_secs_f64()));

    site.daemons.start(Service::Database);
    let caught_up = catch_up(&site);
    most = most.max(memory(&pipeline));
    table.row("catch-up", &caught_up);
    table.row("memory at most", mebibytes(most));

    site.settle(fleet, pipeline);
    site.conclude(&format!("database away at {PER_SECOND} messages a second"), table);
    assert!(most < MEMORY_BYTES_MAX, "{} of memory", mebibytes(most));
}

/// Waits until the table holds what has come up to a moment ago. Gives the rate, as a multiple of what
/// came in meanwhile.
fn catch_up(site: &Site) -> String {
    let (began, rows_before, owed_before) = (Instant::now(), site.rows("keyed"), site.record.rows_owed());
    let behind = u64::from(PER_SECOND) / 2;
    let rows = wait_until("the outage to be worked off", || {
        let rows = site.rows("keyed");
        (rows + behind >= site.record.rows_owed()).then_some(rows)
    });
    let seconds = began.elapsed().as_secs_f64();
    let (stored, came) = (rows - rows_before, site.record.rows_owed() - owed_before);
    let multiple = stored as f64 / came.max(1) as f64;
    format!("{stored} rows in {seconds:.1} s: {multiple:.1} times the {came} that came meanwhile")
}

/// What the process holds of this machine's memory, in bytes.
fn memory(pipeline: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pipeline.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
