//! Three pipelines on one shared subscription, one of them killed: each reading is in their common table once, and each
//! has done a share.

use std::path::Path;

use tempfile::TempDir;

use super::fleet::Fleet;
use super::record::{Kind, Record};
use super::table::Table;
use crate::process::{Process, wait_until};
use crate::services;
use crate::shipped::{count, execute, pipeline};

const WORKERS: [&str; 3] = ["a", "b", "c"];
const PER_SECOND: u32 = 1_000;
/// What is to be stored before the next thing happens.
const STEP: i64 = 1_000;

/// A group of workers: one file, and for each the variables that set it apart.
struct Group {
    folder: TempDir,
    database: String,
    topic: String,
}

impl Group {
    fn new() -> Self {
        let group = Self {
            folder: TempDir::with_prefix("workers-").expect("a folder"),
            database: services::database("workers"),
            topic: services::unique("workers"),
        };
        // Made before: the first look is at how many rows it has.
        execute(
            &group.database,
            "CREATE TABLE readings (device_id text NOT NULL, timestamp timestamptz NOT NULL, seq bigint NOT NULL, \
             attempt bigint NOT NULL, temperature double precision NOT NULL, PRIMARY KEY (device_id, timestamp, seq))",
        );
        group
    }

    fn variables(&self, worker: &str) -> Vec<(&'static str, String)> {
        vec![
            ("WORKER", worker.to_owned()),
            ("MQTT_URL", services::mqtt_url()),
            ("MQTT_TOPIC", self.topic.clone()),
            ("DATABASE_URL", self.database.clone()),
            ("DATA_DIR", self.folder.path().join(worker).display().to_string()),
        ]
    }

    /// Starts a worker. Subscribed on return.
    fn start(&self, worker: &str, run: u32) -> Process {
        let variables = self.variables(worker);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments = ["run", "tests/it/delivery/workers.toml"];
        let mut worker = Process::start(&arguments, &variables, self.folder.path(), &format!("{worker}-{run}"));
        worker.wait_for_log("subscribed");
        worker
    }

    fn rows(&self) -> i64 {
        count(&self.database, "SELECT count(*) FROM readings")
    }

    fn wait_for_more(&self) {
        let until = self.rows() + STEP;
        wait_until("more rows", || (self.rows() >= until).then_some(()));
    }

    /// Rows that a worker was given to store, by its own book.
    fn share(&self, worker: &str) -> i64 {
        let sql = format!(
            "SELECT coalesce(sum(rows_total), 0)::bigint FROM _pipeline_ledger \
             WHERE pipeline = 'worker-{worker}' AND sink = 'readings'"
        );
        count(&self.database, &sql)
    }
}

#[test]
fn three_workers_share_a_subscription_and_one_that_is_killed_loses_and_repeats_nothing() {
    let group = Group::new();
    let mut workers: Vec<Process> = WORKERS.iter().map(|worker| group.start(worker, 1)).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let record = Record::default();
    let fleet = {
        let _inside = runtime.enter();
        let url = services::mqtt_url();
        Fleet::start(url.trim_start_matches("mqtt://"), &group.topic, &record, PER_SECOND)
    };
    group.wait_for_more();
    workers[1].kill();
    let killed_at = record.acknowledged();
    let share_of_killed = group.share("b");
    // The others go on while it is away.
    let others = || group.share("a") + group.share("c");
    let until = others() + STEP;
    wait_until("the others to go on", || (others() >= until).then_some(()));
    let missed = record.acknowledged() - killed_at;
    workers[1] = group.start("b", 2);
    group.wait_for_more();
    runtime.block_on(fleet.finish());

    let good = record.each().iter().filter(|(id, _)| id.kind() == Kind::Good).count();
    let good = i64::try_from(good).expect("few");
    wait_until("every reading", || (group.rows() >= good).then_some(()));
    for worker in workers {
        let (status, log) = worker.stop();
        assert!(status.success(), "{log}");
    }
    assert_eq!(group.rows(), good);
    assert_eq!(count(&group.database, "SELECT count(DISTINCT (device_id, seq)) FROM readings"), good);
    let refused = "SELECT count(*) FROM dead_letters WHERE reason = 'conflict'";
    assert_eq!(count(&group.database, refused), 0);
    let shares = WORKERS.map(|worker| group.share(worker));
    assert!(shares.iter().all(|share| *share >= good / 10), "{shares:?} of {good}");

    let mut table = Table::default();
    table.row("readings, each in the table once", good);
    table.row("rows given to a, b, c", format!("{shares:?}, {share_of_killed} of b's before it was killed"));
    table.row("acknowledged to devices while b was away", missed);
    table.print("three workers on one shared subscription, one killed");
}

#[test]
fn a_check_warns_where_a_transform_would_have_to_see_whole_devices() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("shared.toml");
    let text = |topics: &str| {
        format!(
            "[schema.telemetry]\ndevice_id = {{ type = \"text\", required = true }}\n\
             timestamp = {{ type = \"timestamp\", required = true }}\ntemperature = \"float64\"\n\
             [sources.telemetry]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1\"\ntopics = [\"{topics}\"]\n\
             schema = \"telemetry\"\n\
             [transforms.valid]\ntype = \"filter\"\ninputs = [\"telemetry\"]\nkeep = \"temperature > 0\"\n\
             [transforms.heard]\ntype = \"silence\"\ninputs = [\"valid\"]\n\
             [transforms.minutes]\ntype = \"downsample\"\ninputs = [\"heard\"]\nwindow = \"1m\"\n\
             [transforms.minutes.aggregates]\nreadings = \"count()\"\n\
             [sinks.none]\ntype = \"discard\"\ninputs = [\"minutes\"]\n\
             [sinks.others]\ntype = \"discard\"\ninputs = [\"telemetry.rejected\"]\n\
             [sinks.late]\ntype = \"discard\"\ninputs = [\"minutes.late\"]\n\
             [sinks.alerts]\ntype = \"discard\"\ninputs = [\"heard.alerts\"]\n"
        )
    };
    let said = |topics: &str| said_of(&file, &text(topics));
    let warning = said("$share/workers/iot/#");
    assert!(warning.contains("\"telemetry\" divides its messages with all of the group \"workers\""), "{warning}");
    assert!(
        warning.contains("what \"heard\" (silence), \"minutes\" (downsample) have made of it is wrong"),
        "{warning}"
    );
    assert!(!warning.contains("\"valid\""), "{warning}");
    assert!(!said("iot/#").contains("divides"));
}

fn said_of(file: &Path, text: &str) -> String {
    std::fs::write(file, text).expect("a folder of ours");
    let output = pipeline("check", file, &[], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}
