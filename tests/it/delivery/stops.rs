//! Stops and starts under load, and a second pipeline where one runs already.

use std::time::Instant;

use super::chance::{Chance, rounds};
use super::daemons::BrokerSettings;
use super::fleet::now_us;
use super::site::Site;
use super::table::Table;

const PER_SECOND: u32 = 2_000;

#[test]
fn a_stop_under_load_is_clean_and_a_second_pipeline_is_refused() {
    if !super::chance::is_asked_for() {
        return;
    }
    let mut chance = Chance::new();
    let mut site = Site::new("stops", BrokerSettings::Shipped);
    let mut pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    let (mut stops, mut starts) = (Vec::new(), Vec::new());
    let times = rounds(40).div_ceil(20);
    for _ in 0..times {
        site.wait_for_row_after(now_us());
        std::thread::sleep(chance.millis(1_000));

        let mut second = site.start_as("second", &[]);
        let status = second.wait();
        assert_eq!(status.code(), Some(1), "{}", second.log());
        assert!(second.log().contains("runs already with this directory"), "{}", second.log());

        let stopping = Instant::now();
        let (status, log) = pipeline.stop();
        stops.push(stopping.elapsed().as_secs_f64());
        assert!(status.success(), "{log}");
        let (starting, at_us) = (Instant::now(), now_us());
        pipeline = site.start();
        site.wait_for_row_after(at_us);
        starts.push(starting.elapsed().as_secs_f64());
    }
    site.settle(fleet, pipeline);
    let mut table = Table::default();
    table.row("stops", times);
    table.row("signal to exit", longest(&stops));
    table.row("start to the first new row", longest(&starts));
    site.conclude(&format!("stops at {PER_SECOND} messages a second"), table);
}

fn longest(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (median, most) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    format!("{median:.2} s, {most:.2} s at most")
}
