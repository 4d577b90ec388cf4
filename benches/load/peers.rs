//! Other programs on the same paths: a command each, which is to do the same job with the same service.
//!
//! | path | what waits for it | what it is to fill |
//! |---|---|---|
//! | `drain` | the session `load-peer` at `MQTT_URL`, subscribed to `load/peer` with QoS 1 | the table `load_peer` of `DATABASE_URL` |
//! | `file` | the JSON lines in the file `READINGS` | the same |
//!
//! It is ended when the table has every good row: what it makes of the bad ones is not looked at.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::table::{Line, Target};
use crate::{Options, fleet, machine};

/// The paths that a peer can be tried on.
pub const PATHS: [&str; 2] = ["drain", "file"];
pub const TABLE: &str = "load_peer";

/// A line for each peer that was named for this path, which brings so many messages. `begin` puts there what waits for it;
/// `variables` are what its command finds besides the services.
pub fn lines(
    options: &Options,
    path: &str,
    messages: u64,
    variables: &[(&str, String)],
    begin: impl Fn(),
) -> Vec<Line> {
    let commands = options.peers.iter().filter(|(of, _)| of == path);
    let line = |command: &str| {
        let mut cpu = Vec::new();
        let rates = (0..options.rounds).map(|_| {
            begin();
            let before = machine::ended_cpu_seconds();
            let took = fill(command, messages, variables);
            cpu.push((machine::ended_cpu_seconds() - before) / messages as f64 * 1e6);
            messages as f64 / took.as_secs_f64()
        });
        let ours = rates.collect();
        Line {
            path: format!("{path}, a peer: `{command}`"),
            unit: "messages/s",
            ours,
            limit: Vec::new(),
            target: Target::None,
            more: format!("{:.1} us of its CPU a message", crate::median(cpu)),
        }
    };
    commands.map(|(_, command)| line(command)).collect()
}

/// A peer at work, which is ended in any case: it would take from what is measured after it.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // Where it has ended by itself already, there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// How long the command takes to fill the table.
fn fill(command: &str, messages: u64, variables: &[(&str, String)]) -> Duration {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    runtime.block_on(database.batch_execute(&fleet::create_table(TABLE))).expect("a table");
    let started = Instant::now();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]);
    shell.env("MQTT_URL", machine::service("TEST_MQTT_URL")).env("DATABASE_URL", machine::service("TEST_DATABASE_URL"));
    shell.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut peer = Peer(shell.spawn().expect("a shell"));
    let good = fleet::good(messages) as i64;
    let count = format!("SELECT count(*) FROM {TABLE}");
    let took = loop {
        let ended = peer.0.try_wait().expect("a child of ours");
        let row = runtime.block_on(database.query_one(&count, &[])).expect("a count");
        if row.get::<_, i64>(0) >= good {
            break started.elapsed();
        }
        assert!(ended.is_none(), "the peer ends ({ended:?}) before the table has its rows: {command}");
        assert!(started.elapsed() < Duration::from_secs(300), "the peer does not come to an end: {command}");
        // Not so often that what counts is measured.
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(peer);
    runtime.block_on(database.batch_execute(&format!("DROP TABLE {TABLE}"))).expect("a table of ours");
    took
}
