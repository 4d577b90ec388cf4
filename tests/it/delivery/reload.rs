//! The pipeline file is changed and read again under load.

use super::chance::{Chance, rounds};
use super::daemons::BrokerSettings;
use super::fleet::now_us;
use super::site::Site;
use super::table::Table;
use crate::process::{Process, wait_until};

const PER_SECOND: u32 = 2_000;

/// The pipeline of all other tests, and one with another rule, another queue and a further sink.
fn versions() -> [String; 2] {
    let first = include_str!("pipeline.toml").to_owned();
    let other = first
        .replace("range = { temperature = [-60, 150] }", "range = { temperature = [-60, 151] }")
        .replace("queue_rows = 4_000", "queue_rows = 5_000");
    assert_ne!(first, other, "both replacements find their text");
    [first, other + "\n[sinks.more]\ntype = \"discard\"\ninputs = [\"valid\"]\n"]
}

#[test]
fn a_file_that_is_read_again_under_load_costs_no_row_and_doubles_none() {
    if !super::chance::is_asked_for() {
        return;
    }
    let mut chance = Chance::new();
    let mut site = Site::new("reload", BrokerSettings::Shipped);
    let file = site.path("pipeline.toml");
    let versions = versions();
    let write = |text: &str| std::fs::write(&file, text).expect("the folder is the test's own");
    write(&versions[0]);
    site.run_file(&file);
    let pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    site.wait_for_row_after(now_us());
    let (times, mut refused) = (rounds(5), 0);
    for round in 0..times {
        std::thread::sleep(chance.millis(1_000));
        if round % 4 == 1 {
            write("[pipeline]\nname = 7\n");
            told(&pipeline, "the pipeline file is not reloaded", || pipeline.signal("HUP"));
            refused += 1;
        }
        write(&versions[(round + 1) as usize % 2]);
        told(&pipeline, "the pipeline file is reloaded: ", || pipeline.signal("HUP"));
        site.wait_for_row_after(now_us());
    }
    site.settle(fleet, pipeline);
    let mut table = Table::default();
    table.row("reloaded", times);
    table.row("refused, for a mistake in the file", refused);
    site.conclude(&format!("reloads at {PER_SECOND} messages a second"), table);
}

/// Waits until the log says it once more than before.
fn told(pipeline: &Process, text: &str, order: impl FnOnce()) {
    let times = || pipeline.log().matches(text).count();
    let before = times();
    order();
    wait_until(text, || (times() > before).then_some(()));
}
