//! Disks that are full: where the source spools, where rows wait for a sink that is away, where finished
//! objects are staged, where checkpoints are kept. Each time the pipeline lives on, and goes on by itself
//! once there is room.

use std::time::Duration;

use super::daemons::{BrokerSettings, Service};
use super::fleet::now_us;
use super::proxy::Moment;
use super::site::Site;
use super::small_disk::SmallDisk;
use super::table::Table;
use crate::process::{Process, wait_until};

const PER_SECOND: u32 = 1_000;
/// Long enough to take in what the fleet sends meanwhile, several times over.
const MEBIBYTES: u64 = 256;
/// How long a disk stays full once the pipeline has felt it.
const FULL: Duration = Duration::from_secs(4);

/// A disk for each folder in which something else is written.
struct Disks {
    spool: SmallDisk,
    overflow: SmallDisk,
    staging: SmallDisk,
    /// Last, since the others are mounted inside it.
    checkpoints: SmallDisk,
}

impl Disks {
    fn mount(site: &Site) -> Result<Self, String> {
        let home = site.data_dir().join("delivery");
        let mount = |stage: &str| SmallDisk::mount(&site.path(&format!("{stage}.image")), &home.join(stage), MEBIBYTES);
        let checkpoints = SmallDisk::mount(&site.path("checkpoints.image"), &home, MEBIBYTES)?;
        Ok(Self { spool: mount("telemetry")?, overflow: mount("keyed")?, staging: mount("lake")?, checkpoints })
    }
}

#[test]
fn a_pipeline_whose_disk_is_full_waits_and_goes_on_when_there_is_room() {
    if !super::chance::is_asked_for() {
        return;
    }
    let mut site = Site::new("disk", BrokerSettings::Shipped);
    let disks = match Disks::mount(&site) {
        Ok(disks) => disks,
        Err(why) => {
            println!("skipped: no disk can be mounted here: {why}");
            return;
        }
    };
    // The spool writes until there is not a byte left.
    site.set("SPOOL_MIN_FREE", "0B");
    let mut pipeline = site.start_and_subscribe();
    let fleet = site.fleet(PER_SECOND);
    site.wait_for_row_after(now_us());
    let mut table = Table::default();

    let pubacks = |site: &Site| site.mqtt.passed(Moment::PubAck);
    full(&disks.spool, || wait_for_standstill(&site, pubacks));
    site.wait_for_row_after(now_us());
    table.row("spool", "acknowledges nothing while full, goes on by itself");

    full(&disks.spool, || {
        wait_for_standstill(&site, pubacks);
        pipeline.kill();
        pipeline = site.start();
        wait_for_standstill(&site, pubacks);
    });
    site.wait_for_row_after(now_us());
    table.row("spool, killed while full", "the next run acknowledges nothing either, goes on by itself");

    let puts = |site: &Site| site.s3.passed(Moment::PutReply);
    full(&disks.staging, || {
        wait_for_standstill(&site, puts);
        // The table has a cursor of its own.
        site.wait_for_row_after(now_us());
    });
    let before = puts(&site);
    wait_until("a new object", || (puts(&site) > before).then_some(()));
    table.row("staging of objects", "makes no object while full, the table goes on; goes on by itself");

    site.daemons.kill(Service::Database);
    full(&disks.overflow, || wait_for_log(&pipeline, "waiting for the sink instead"));
    site.daemons.start(Service::Database);
    site.wait_for_row_after(now_us());
    table.row("overflow, database away", "goes on by itself");

    full(&disks.checkpoints, || wait_for_log(&pipeline, "a checkpoint could not be kept"));
    site.wait_for_row_after(now_us());
    table.row("checkpoints", "goes on by itself");

    site.settle(fleet, pipeline);
    site.conclude(&format!("full disks at {PER_SECOND} messages a second"), table);
}

/// Fills a disk until this has been seen, and somewhat longer: whatever the pipeline deletes meanwhile is
/// taken away from it again.
fn full(disk: &SmallDisk, seen: impl FnOnce()) {
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // Ends with the sender, also where the test fails.
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(50))
            {
                disk.fill();
            }
        });
        seen();
        std::thread::sleep(FULL);
        drop(stop);
    });
    disk.make_room();
}

/// Waits until a count has not grown for a while.
fn wait_for_standstill(site: &Site, count: impl Fn(&Site) -> u64) {
    wait_until("the pipeline to stand still", || {
        let before = count(site);
        std::thread::sleep(Duration::from_secs(2));
        (count(site) == before).then_some(())
    });
}

fn wait_for_log(pipeline: &Process, text: &str) {
    wait_until(&format!("the log to say \"{text}\""), || pipeline.log().contains(text).then_some(()));
}
