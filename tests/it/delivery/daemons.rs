//! The services around the pipeline as processes: killed, stopped and started again.
//!
//! A set of their own, so that no other test suffers. A kill is SIGKILL to every process of a service
//! at once, as when its machine resets; a freeze is SIGSTOP to each, as when its disk hangs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::wait_until;
use crate::services::{OwnSet, S3};

/// Whose processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Database,
    /// With its data on a disk: what it has acknowledged is there after a kill.
    ObjectStore,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Database => "timescaledb",
            Self::ObjectStore => "s3",
        }
    }
}

/// A database and an object store, left up for the next test.
pub struct Daemons {
    set: OwnSet,
    /// The database that is always there, to make others beside it.
    pub database_url: String,
    pub s3: S3,
}

impl Daemons {
    pub fn up() -> Self {
        let set = OwnSet::named("delivery", FIRST_PORT, &[("SERVICES_S3_DURABLE", "true")]);
        for service in [Service::Database, Service::ObjectStore] {
            // A test that failed midway may have left it frozen.
            signal("CONT", &processes(&set, service));
            set.run(&["up", service.name()]);
        }
        let variables = set.variables();
        let variable =
            |name: &str| variables.get(name).unwrap_or_else(|| panic!("`services env` prints {name}")).clone();
        Self { database_url: variable("TEST_DATABASE_URL"), s3: S3::of(variable), set }
    }

    /// Returns when its processes are gone.
    pub fn kill(&self, service: Service) {
        kill_all(&processes(&self.set, service));
    }

    /// Returns when it is ready.
    pub fn start(&self, service: Service) {
        self.set.run(&["up", service.name()]);
    }

    pub fn freeze(&self, service: Service) {
        signal("STOP", &processes(&self.set, service));
    }

    pub fn thaw(&self, service: Service) {
        signal("CONT", &processes(&self.set, service));
    }
}

/// The daemons of a service and all that they have started.
fn processes(set: &OwnSet, service: Service) -> Vec<u32> {
    let file = set.state.join(service.name()).join("pids");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    // With the time of its start, since the system may have given the number to somebody else.
    let daemons = text.lines().filter_map(|line| {
        let (pid, start) = line.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (stat(pid)?.start == start).then_some(pid)
    });
    daemons.flat_map(family).collect()
}

/// Ports of this set, and of brokers; see `tests/services/services`.
const FIRST_PORT: u16 = 22_500;
const BROKER_PORT: u16 = FIRST_PORT + 90;

/// What a broker is told beside where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerSettings {
    /// `ops/mosquitto/pipeline.conf`.
    Shipped,
    /// Nothing: at most 1,000 messages wait for a client, the rest is dropped.
    Defaults,
}

/// A Mosquitto of a test's own.
pub struct Broker {
    dir: PathBuf,
    child: Child,
}

impl Broker {
    /// `host:port`.
    pub const PLACE: &str = "127.0.0.1:22590";

    /// Its configuration and what it keeps are in `dir`.
    pub fn start(dir: &Path, settings: BrokerSettings) -> Self {
        std::fs::create_dir_all(dir.join("db")).expect("the test's own folder");
        let listener = format!("listener {BROKER_PORT} 127.0.0.1\nallow_anonymous true\nlog_dest stderr\n");
        let settings = match settings {
            BrokerSettings::Defaults => String::new(),
            BrokerSettings::Shipped => shipped_settings(),
        };
        std::fs::write(dir.join("mosquitto.conf"), listener + &settings).expect("the test's own folder");
        Self { dir: dir.to_owned(), child: spawn(dir) }
    }

    pub fn kill(&mut self) {
        // The script has become the daemon, so this is its own process.
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// After a kill. Returns when it listens.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.dir);
    }

    pub fn freeze(&self) {
        signal("STOP", &[self.child.id()]);
    }

    pub fn thaw(&self) {
        signal("CONT", &[self.child.id()]);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Killed already, where a test has failed between a kill and a start.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// As it ships but for the folder: a broker of the tests keeps what it keeps beside its configuration.
fn shipped_settings() -> String {
    let shipped = include_str!("../../../ops/mosquitto/pipeline.conf");
    let ours = shipped.replace("persistence_location /var/lib/mosquitto/", "persistence_location /data/db/");
    assert_ne!(ours, shipped, "the shipped configuration says where sessions are kept");
    ours
}

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("the test's own folder");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services");
    let mut child = Command::new(script)
        .arg("broker")
        .arg(dir)
        .stdin(Stdio::null())
        .stderr(log.try_clone().expect("an open file"))
        .stdout(log)
        .spawn()
        .expect("bash runs the services script");
    wait_until("the broker to listen", || {
        let ended = child.try_wait().expect("a child of ours");
        assert!(ended.is_none(), "mosquitto ended: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        std::net::TcpStream::connect(Broker::PLACE).ok().map(drop)
    });
    child
}

/// A process and all below it.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let parents = parents();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// Every process of this machine with its parent.
fn parents() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?.parent))).collect()
}

/// What the system says of a process; `None` if there is none.
struct Stat {
    parent: u32,
    /// In ticks since the system's start.
    start: String,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state is the first after it.
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat { parent: words.nth(1)?.parse().ok()?, start: words.nth(17)?.to_owned() })
}

fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    let pids = processes.iter().map(u32::to_string);
    // Some may have ended by themselves meanwhile, such as the server's process of a connection.
    let sent = Command::new("kill").args(["-s", name]).args(pids).stderr(Stdio::null()).status();
    sent.expect("kill is there");
}

fn kill_all(processes: &[u32]) {
    signal("KILL", processes);
    wait_until("killed processes to be gone", || {
        let gone = processes.iter().all(|pid| stat(*pid).is_none());
        std::thread::sleep(Duration::from_millis(20));
        gone.then_some(())
    });
}
