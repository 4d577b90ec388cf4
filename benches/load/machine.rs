//! Processes on this machine: the pipeline under load, services, and what each of them takes.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Linux counts a process's time in these; 100 on every machine we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor, cores, load and version of the compiler, for whoever compares.
pub fn description(bench: &str) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: String = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let commit = output(Command::new("git").args(["log", "-1", "--format=%h of %cs"]));
    let profile = if cfg!(debug_assertions) { "a DEBUG build, no figure of which counts" } else { "optimised" };
    let binary = match std::env::var_os("PIPELINE_BINARY") {
        Some(_) => "the binary that PIPELINE_BINARY names",
        None => "a binary of the same profile",
    };
    format!(
        "`cargo bench --bench {bench}`: {cores} cores ({}), load average before it {load}, {profile}, {binary}, commit {commit}.",
        model.trim_start_matches(['\t', ' ', ':'])
    )
}

fn output(command: &mut Command) -> String {
    let found = command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    found.unwrap_or_default()
}

/// Brings up services of the benches' own set, once, and gives a variable that they print.
pub fn service(name: &str) -> String {
    let all = services().unwrap_or_else(|| panic!("no services"));
    all.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap_or_else(|| panic!("no {name}"))
}

/// The variables that tell where services are, once they are up; `None` where this machine can't have them, and their script
/// has told why.
pub fn services() -> Option<&'static [(String, String)]> {
    static VARIABLES: OnceLock<Option<Vec<(String, String)>>> = OnceLock::new();
    let all = VARIABLES.get_or_init(|| {
        let run = |arguments: &[&str]| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services");
            let mut command = Command::new(script);
            command.args(arguments).env("SERVICES_PORT", "23800");
            command.env("SERVICES_STATE", std::env::temp_dir().join("pipeline-services-load"));
            let output = command.stderr(Stdio::inherit()).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        run(&["up", "mosquitto", "timescaledb"])?;
        let env = run(&["env"])?;
        let assignments = env.lines().flat_map(|line| line.trim_start_matches("export ").split(' '));
        let variables = assignments.filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').to_owned()))
        });
        Some(variables.collect())
    });
    all.as_deref()
}

/// HOST:PORT of the broker.
pub fn broker() -> String {
    service("TEST_MQTT_URL").trim_start_matches("mqtt://").to_owned()
}

/// The binary that is measured: the one that users get, where it is named, or else that of this profile.
pub fn binary() -> PathBuf {
    std::env::var_os("PIPELINE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_pipeline").into()).into()
}

/// A pipeline that runs in a folder of its own.
pub struct Pipeline {
    child: Child,
    port: u16,
    log: PathBuf,
    pub started: Instant,
}

impl Pipeline {
    /// Starts the binary of this profile on a pipeline file with this text.
    pub fn start(folder: &Path, text: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let file = folder.join("pipeline.toml");
        let settings = format!(
            "[pipeline]\nname = \"load\"\ndata_dir = \"{}\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n",
            folder.join("data").display()
        );
        fs::write(&file, settings + text).expect("a folder of ours");
        let log = folder.join("pipeline.log");
        let out = fs::File::create(&log).expect("a folder of ours");
        let started = Instant::now();
        let child = Command::new(binary())
            .args(["--log", "info", "run"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("an open file"))
            .stderr(out)
            .spawn()
            .expect("the binary runs");
        Self { child, port, log, started }
    }

    /// Seconds of CPU that it has used, of all its threads.
    pub fn cpu_seconds(&self) -> f64 {
        ticks(&self.child.id().to_string(), [11, 12])
    }

    /// Most memory that it has had, in MiB.
    pub fn peak_mib(&self) -> f64 {
        memory_mib(self.child.id(), "VmHWM:")
    }

    /// Memory that it has now, in MiB.
    pub fn resident_mib(&self) -> f64 {
        memory_mib(self.child.id(), "VmRSS:")
    }

    /// One of the counters at /metrics, of one component; 0 before there is any.
    pub fn counter(&self, name: &str, component: &str) -> u64 {
        let text = self.metrics();
        let is_wanted = |line: &&str| line.starts_with(name) && line.contains(&format!("component=\"{component}\""));
        let line = text.lines().find(is_wanted);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |value| value as u64)
    }

    fn metrics(&self) -> String {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", self.port)) else { return String::new() };
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        let read = connection.write_all(request.as_bytes()).and_then(|()| connection.read_to_string(&mut text));
        // It may have ended between the two.
        read.map(|_| text).unwrap_or_default()
    }

    /// Waits until the source listens to its topic: what is published before that is published to nobody.
    pub fn wait_for_subscription(&self) {
        while !self.log().contains("subscribed") {
            assert!(self.started.elapsed() < Duration::from_secs(30), "it never subscribes:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a sink has stored so many rows; how long that took from `since`.
    pub fn wait_for_rows(&mut self, sink: &str, rows: u64, since: Instant) -> Duration {
        loop {
            if self.counter("pipeline_sink_stored_rows", sink) >= rows {
                return since.elapsed();
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the pipeline ended with {status}:\n{}", self.log());
            }
            assert!(
                since.elapsed() < Duration::from_secs(300),
                "only {} rows:\n{}",
                self.counter("pipeline_sink_stored_rows", sink),
                self.log()
            );
            // Not so often that what answers is measured.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of a run that ends by itself: how long it took.
    pub fn wait(mut self) -> Duration {
        let status = self.child.wait().expect("a child of ours");
        let took = self.started.elapsed();
        assert!(status.success(), "{status}:\n{}", self.log());
        took
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // It has usually ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Seconds of CPU that this process has used, of all its threads.
pub fn own_cpu_seconds() -> f64 {
    ticks("self", [11, 12])
}

/// Seconds of CPU of all processes of that name on this machine, and of their children that have ended.
pub fn cpu_seconds_of(name: &str) -> f64 {
    let processes = fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    let named = processes.filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let ids = named.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    ids.map(|id| ticks(&id, [11, 12]) + ticks(&id, [13, 14])).sum()
}

/// Seconds of CPU of all processes of ours that have ended.
pub fn ended_cpu_seconds() -> f64 {
    ticks("self", [13, 14])
}

/// Numbers of `/proc/PROCESS/stat`, by their places behind the name, as seconds.
fn ticks(process: &str, places: [usize; 2]) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; what is behind it is numbers.
    let numbers: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let number = |place: usize| numbers.get(place).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    places.into_iter().map(number).sum::<f64>() / TICKS_PER_SECOND
}

/// A figure of `/proc/PROCESS/status`, such as `VmHWM:`, most that it ever had, in MiB.
pub fn memory_mib(process: u32, key: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

/// A connection to the database of the benches.
pub async fn database() -> tokio_postgres::Client {
    let url = service("TEST_DATABASE_URL");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the database");
    tokio::spawn(connection);
    client
}

/// A runtime for what a limit does by itself.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}
