//! Secrets stay secret: a canary in every place where a credential can stand, and none in anything that is said.
//!
//! The places come from the configurations themselves ([`slots`]): a stage that gets a new one fails
//! `every_place_for_a_secret_has_a_canary` until it has a canary here.

mod hostile;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::http::{free_port, get};
use crate::mqtt::Mosquitto;
use crate::process::{Process, root, wait_until};
use crate::services;

/// What no output may hold. Letters alone, so that no encoding of URLs or JSON hides it.
const CANARY: &str = "kanarienvogel";

/// The canary of a place.
fn canary(place: &str) -> String {
    format!("{CANARY}{}", place.replace(|letter: char| !letter.is_ascii_alphanumeric(), ""))
}

/// Every place for a secret that the reference knows: a type and a key of it.
fn slots() -> BTreeSet<String> {
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(arguments).output().expect("the binary runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let listed = said(&["stages"]);
    let types: BTreeSet<&str> = listed.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(types.len() > 15, "{listed}");
    let mut slots = BTreeSet::new();
    for word in types.into_iter().chain(["pipeline"]) {
        let reference = said(&["stages", word]);
        let mut kind = "";
        for line in reference.lines() {
            if let Some(table) = line.strip_prefix('[') {
                kind = table.split([']', '.', ':']).next().unwrap_or_default();
            }
            if let Some((key, facts)) = line.trim_start().split_once(" (")
                && facts.starts_with("secret")
            {
                slots.insert(format!("{kind} {word} {key}"));
            }
        }
    }
    slots
}

/// A pipeline with a canary in each of these places. The services take any password, or none of these.
struct Caged {
    folder: TempDir,
    file: PathBuf,
    port: u16,
    text: String,
    /// The places that were filled.
    filled: BTreeSet<String>,
    variables: Vec<(&'static str, String)>,
}

impl Caged {
    /// `database`: `user@host:port/name`.
    fn new(broker: &str, database: &str, lake: &str) -> Self {
        let (folder, port, topic) = (tempfile::tempdir().expect("a folder"), free_port(), services::unique("caged"));
        let mut filled = BTreeSet::new();
        let mut secret = |place: &str| {
            filled.insert(place.to_owned());
            canary(place)
        };
        let (user, host) = database.split_once('@').expect("a user");
        let mut by_url = |place: &str| format!("postgres://{user}:{}@{host}?sslmode=disable", secret(place));
        let urls = ["transforms enrich url", "transforms geofence url", "sinks timescaledb url"].map(&mut by_url);
        let [enrich_url, geofence_url, table_url] = urls;
        let plain = format!("postgres://{database}?sslmode=disable");
        let text = format!(
            r#"
[pipeline]
name = "caged"
data_dir = {data:?}
[http]
listen = "127.0.0.1:{port}"
token = "{token}"
[slo]
latency_p99 = "10s"
query_p95 = "2s"
measure_every = "10s"
[schema.reading]
device_id = {{ type = "text", required = true }}
timestamp = {{ type = "timestamp", required = true }}
lat       = "float64"
lon       = "float64"
seq       = "int64"
[sources.messages]
type = "mqtt"
url = "{broker}"
topics = "{topic}/+"
client_id = "{topic}"
username = "device"
password = "{source_password}"
schema = "reading"
[transforms.by_url]
type = "enrich"
inputs = ["messages"]
query = "SELECT 'x'::text AS device_id, 'here'::text AS site"
url = "{enrich_url}"
key = "device_id"
columns = ["site"]
[transforms.by_password]
type = "enrich"
inputs = ["by_url"]
query = "SELECT 'x'::text AS device_id, 'a'::text AS model"
url = "{plain}"
password = "{enrich_password}"
key = "device_id"
columns = ["model"]
[transforms.fenced_by_url]
type = "geofence"
inputs = ["by_password"]
query = "SELECT 'a'::text AS name, 'POLYGON((0 0, 0 1, 1 1, 1 0, 0 0))'::text AS geometry"
url = "{geofence_url}"
latitude = "lat"
longitude = "lon"
columns = {{ zone = "name" }}
[transforms.fenced]
type = "geofence"
inputs = ["messages"]
query = "SELECT 'a'::text AS name, 'POLYGON((0 0, 0 1, 1 1, 1 0, 0 0))'::text AS geometry"
url = "{plain}"
password = "{geofence_password}"
latitude = "lat"
longitude = "lon"
columns = {{ zone = "name" }}
[sinks.table]
type = "timescaledb"
inputs = ["fenced_by_url"]
url = "{table_url}"
table = "caged"
create = true
time_column = "timestamp"
key = ["device_id", "timestamp", "seq"]
[sinks.letters]
type = "timescaledb"
inputs = [
    "messages.rejected", "by_url.rejected", "by_password.rejected", "fenced_by_url.rejected", "fenced.rejected",
    "table.rejected",
]
url = "{plain}"
password = "{table_password}"
table = "caged_letters"
create = true
time_column = "received_at"
key = []
[sinks.lake]
type = "parquet"
inputs = ["messages"]
url = "{lake}"
time_column = "timestamp"
roll_age = "1s"
[sinks.onward]
type = "mqtt"
inputs = ["fenced"]
url = "{broker}"
topic = "{topic}-onward"
username = "device"
password = "{sink_password}"
"#,
            data = folder.path().join("state"),
            token = secret("http pipeline token"),
            source_password = secret("sources mqtt password"),
            enrich_password = secret("transforms enrich password"),
            geofence_password = secret("transforms geofence password"),
            table_password = secret("sinks timescaledb password"),
            sink_password = secret("sinks mqtt password"),
        );
        let file = folder.path().join("caged.toml");
        std::fs::write(&file, &text).expect("our own folder");
        let variables = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PIPELINE_MQTT_PASSWORD"];
        let variables = variables.map(|name| (name, canary(name))).to_vec();
        Self { folder, file, port, text, filled, variables }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(arguments).envs(self.variables.iter().cloned()).env("PIPELINE_LOG", "trace");
        command.env("AWS_REGION", "eu-central-1").current_dir(root()).output().expect("the binary runs")
    }

    /// `pipeline SUBCOMMAND FILE ARGUMENTS` says this; nothing of it may hold a canary.
    fn says(&self, subcommand: &[&str], arguments: &[&str]) -> String {
        let file = self.file.display().to_string();
        let output = self.command(&[subcommand, &[&file], arguments].concat());
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_is_silent(&format!("{subcommand:?} {arguments:?}"), &said);
        said.into_owned()
    }

    fn run(&self) -> Process {
        let mut variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        variables.extend([("PIPELINE_LOG", "trace"), ("AWS_REGION", "eu-central-1")]);
        Process::start(&["run".as_ref(), self.file.as_os_str()], &variables, self.folder.path(), "pipeline")
    }
}

/// Not as it is, not as base64, not as a list of bytes, not in hexadecimal digits.
fn assert_is_silent(what: &str, said: &str) {
    let bytes = CANARY.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    // What is in front of it shifts base64 by none, one or two bytes, and spoils its edges.
    let encoded = (0..3).map(|shift| {
        let all = STANDARD.encode([&b"xyz"[..shift], bytes].concat());
        all[4..all.len() - 4].to_owned()
    });
    for hidden in [CANARY.to_owned(), hex, list].into_iter().chain(encoded) {
        if let Some(at) = said.find(&hidden) {
            let from = said[..at].rfind('\n').map_or(0, |line| line + 1);
            let line = said[from..].lines().next().unwrap_or_default();
            panic!("{what} tells a secret: {}", line.chars().take(600).collect::<String>());
        }
    }
}

fn database() -> String {
    let url = services::database("caged");
    url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).expect("a URL").to_owned()
}

fn well() -> Caged {
    let lake = tempfile::tempdir().expect("a folder").keep().display().to_string();
    Caged::new(&services::mqtt_url(), &database(), &lake)
}

#[test]
fn every_place_for_a_secret_has_a_canary() {
    assert_eq!(well().filled, slots(), "a new place for a secret needs a canary in the pipeline of this test");
}

#[test]
fn every_secret_of_a_configuration_is_one_in_its_schema() {
    let mut wrong = Vec::new();
    for folder in ["engine/src", "stages/src", "src"] {
        look_through(&root().join(folder), &mut wrong);
    }
    assert_eq!(wrong, Vec::<String>::new(), "write #[schemars(with = \"SecretText\")] beside them");
}

/// A field that holds a secret and is text to the schema.
fn look_through(folder: &Path, wrong: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of ours").flatten() {
        let path = entry.path();
        if path.is_dir() {
            look_through(&path, wrong);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).expect("text");
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.windows(2) {
                if pair[1].contains("SecretString") && pair[0].contains("schemars(") && !pair[0].contains("SecretText")
                {
                    wrong.push(format!("{}: {}", path.display(), pair[1].trim()));
                }
            }
        }
    }
}

#[test]
fn nothing_that_a_pipeline_at_work_says_holds_a_secret() {
    let caged = well();
    for (subcommand, arguments) in [
        (&["check"][..], &[][..]),
        (&["check"], &["--connect"]),
        (&["doctor"], &[]),
        (&["doctor"], &["--json"]),
        (&["graph"], &[]),
        (&["graph"], &["--format", "mermaid"]),
        (&["dlq", "list"], &[]),
        (&["spool"], &[]),
        (&["schema", "diff"], &[]),
        (&["reconcile"], &[]),
        (&["status"], &[]),
    ] {
        caged.says(subcommand, arguments);
    }
    let mut pipeline = caged.run();
    pipeline.wait_for_log("subscribed");
    let token = canary("http pipeline token");
    wait_until("the pipeline to be ready", || (get(caged.port, "/readyz", Some(&token)).0 == 200).then_some(()));
    let said = caged.says(&["verify"], &["--messages", "3", "--timeout", "20s"]);
    assert!(said.contains("each arrived once"), "{said}");
    for (subcommand, arguments) in [
        (&["status"][..], &[][..]),
        (&["status"], &["--json"]),
        (&["slo"], &["--json"]),
        (&["slo"], &["--measure", "--runs", "1"]),
        (&["spool"], &[]),
        (&["reconcile"], &["--json"]),
        (&["schema", "diff"], &[]),
        (&["dlq", "list"], &[]),
        (&["doctor"], &["--json"]),
    ] {
        caged.says(subcommand, arguments);
    }
    for path in ["/", "/livez", "/readyz", "/healthz", "/metrics", "/snapshot", "/slo"] {
        let (code, body) = get(caged.port, path, Some(&token));
        assert!(code == 200 && !body.is_empty(), "{path}: {code}");
        assert_is_silent(path, &body);
        assert_is_silent(path, &get(caged.port, path, Some("another token")).1);
    }

    let said = caged.says(&["reload"], &[]);
    assert!(said.contains("nothing in the file has changed"), "{said}");
    // A mistake on every line with a secret: what is shown of the file shows none.
    let broken = caged.text.replace("password = \"", "pasword = \"").replace("url = \"postgres", "url = \"post gres");
    std::fs::write(&caged.file, broken).expect("our own folder");
    caged.says(&["check"], &[]);
    let url = format!("http://127.0.0.1:{}", caged.port);
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["reload", "--url", &url])
        .env("PIPELINE_TOKEN", &token)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("has no key \"pasword\""), "{said}");
    assert_is_silent("a reload that is refused", &said);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "it has stopped by itself");
    assert!(log.contains("DEBUG"), "the log is at its most talkative");
    assert_is_silent("the log", &log);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_without_being_repeated() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("passwords"), "device:another\n").expect("our own folder");
    let port = free_port();
    let conf = format!("listener {port} 127.0.0.1\nallow_anonymous false\npassword_file /data/passwords\n");
    let _broker = Mosquitto::start(folder.path(), &conf, &[port]).await;
    tokio::task::spawn_blocking(move || {
        let nobody = database().replacen("postgres@", "nobody@", 1);
        let mut caged = Caged::new(&format!("mqtt://127.0.0.1:{port}"), &nobody, "s3://caged/lake");
        caged.variables.push(("AWS_ENDPOINT_URL", services::s3().endpoint));
        let said = caged.says(&["check"], &["--connect"]);
        assert!(
            said.contains("does not accept the user name or the password") || said.contains("does not authorize"),
            "{said}"
        );
        assert!(said.contains("nobody"), "the database's refusal is shown");
        caged.says(&["doctor"], &["--json"]);
        caged.says(&["doctor"], &[]);
        caged.says(&["dlq", "list"], &[]);
        caged.says(&["schema", "diff"], &[]);
        caged.says(&["reconcile"], &[]);
        caged.says(&["slo"], &["--measure"]);
        caged.says(&["verify"], &["--messages", "1", "--timeout", "1s"]);
        let mut pipeline = caged.run();
        wait_until("something to be refused", || pipeline.log().contains("nobody").then_some(()));
        pipeline.kill();
        assert_is_silent("the log", &pipeline.log());
        let broker = format!("mqtt://127.0.0.1:{port}");
        let output = caged.command(&["simulate", "--mqtt-broker", &broker, "--username", "device", "--count", "1"]);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert_is_silent("simulate", &said);
    })
    .await
    .expect("it holds");
}

#[test]
fn a_mistake_beside_a_secret_does_not_show_it() {
    let secret = canary("beside");
    let stage = |lines: &str| {
        format!(
            "[sources.in]\ntype = \"mqtt\"\ntopics = \"a\"\n{lines}\n[sinks.out]\ntype = \"discard\"\ninputs = [\"in\"]\n"
        )
    };
    let table = |lines: &str| {
        format!(
            "[sources.in]\ntype = \"simulator\"\n[sinks.out]\ntype = \"timescaledb\"\ninputs = [\"in\"]\ntable = \"t\"\n{lines}\n"
        )
    };
    let broker = "url = \"mqtt://h\"\nusername = \"u\"";
    let files = [
        stage(&format!("url = \"mqtt://me:{secret}@broker\"")),
        stage(&format!("url = \"me:{secret}@broker\"")),
        stage(&format!("{broker}\npassword = [\"{secret}\"]")),
        stage(&format!("{broker}\npassword = {{ text = \"{secret}\" }}")),
        stage(&format!("{broker}\npasword = \"{secret}\"")),
        stage(&format!("url = \"mqtt://h\"\npassword = \"{secret}\"")),
        table(&format!("url = \"postgres://me:{secret}@h:port/d\"")),
        table(&format!("url = \"postgres://me:{secret}@h/d?colour=red\"")),
        table(&format!("url = \"postgres://me:{secret}@h@i/d\"")),
        table(&format!("url = \"me:{secret}@h/d\"")),
        table(&format!("url = [\"postgres://me:{secret}@h/d\"]")),
        table(&format!("url = \"postgres://me:{secret}@h/d\"\npassword = \"{secret}\"")),
        table(&format!("url = \"host=h password={secret}\"")),
        format!("[http]\ntoken = [\"{secret}\"]\n{}", stage(broker)),
        format!("[http]\ntoken = \"{secret}\"\nlisten = 5\n{}", stage(broker)),
        format!("[http]\ntokn = \"{secret}\"\n{}", stage(broker)),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for text in files {
        let file = folder.path().join("beside.toml");
        std::fs::write(&file, &text).expect("our own folder");
        let output =
            Command::new(env!("CARGO_BIN_EXE_pipeline")).arg("check").arg(&file).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}\n{said}");
        assert_is_silent(&text.replace(CANARY, "…"), &said);
    }
}
