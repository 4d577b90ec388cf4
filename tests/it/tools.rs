//! The operator's tools, as the real binary, against real spools, tables and buckets.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use pipeline_engine::spool::{FsStorage, Record, Spool, SpoolOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, root, wait_until};
use crate::services;

fn pipeline(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(arguments).envs(variables.iter().copied()).current_dir(root()).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// A pipeline file that reads MQTT, and its data directory.
struct Spooled {
    folder: TempDir,
    file: String,
}

impl Spooled {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("p.toml");
        let data = folder.path().join("data");
        let stages = format!(
            "[pipeline]\nname = \"p\"\ndata_dir = {data:?}\n
             [sources.readings]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"\ntopics = \"t/#\"\n
             [sinks.out]\ntype = \"console\"\ninputs = [\"readings\"]\n"
        );
        std::fs::write(&file, stages).expect("writable");
        Self { file: file.display().to_string(), folder }
    }

    fn dir(&self, source: &str) -> PathBuf {
        self.folder.path().join("data/p").join(source).join("spool")
    }

    /// A spool with these payloads, each a frame of its own, and a sink that has passed the first.
    fn fill(&self, source: &str, payloads: &[&[u8]]) {
        let dir = self.dir(source);
        let options = SpoolOptions { free_space_min: 0, ..SpoolOptions::new("p", source) };
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let (spool, mut writer, _) = Spool::open(&dir, options, Arc::new(FsStorage)).expect("a new spool");
            for (number, payload) in (0..).zip(payloads) {
                let received_at_us = 1_769_860_800_000_000 + number;
                let (topic, payload) = ("t/1".into(), payload.to_vec().into());
                let lsn =
                    writer.append(&Record { received_at_us, flags: 0, mark: 0, topic, payload }).await.expect("room");
                spool.durable().wait_for(|durable| *durable >= lsn).await.expect("the spool lives");
            }
            spool.cursors().register("out");
            spool.cursors().advance("out", 1);
            writer.close().await.expect("the disk is fine");
        });
    }
}

fn damage(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).expect("a segment");
    bytes[at] ^= 1;
    std::fs::write(file, bytes).expect("writable");
}

const SEGMENT: &str = "00000000000000000001.seg";

#[test]
fn a_spool_shows_its_segments_and_cursors_and_whose_it_was() {
    let spooled = Spooled::new();
    let none = pipeline(&["spool", &spooled.file], &[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("the pipeline has not run here yet"), "{}", text(&none.stderr));
    spooled.fill("readings", &[b"{\"n\":1}", b"{\"n\":2}", b"{\"n\":3}"]);
    spooled.fill("former", &[b"x"]);
    let output = pipeline(&["spool", &spooled.file, "--verify"], &[]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    let (former, readings) = (spooled.dir("former"), spooled.dir("readings"));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], format!("spool of source \"former\": {}", former.display()));
    assert!(lines[1].starts_with("  orphaned: the pipeline has no source of that name"), "{shown}");
    let own = lines.iter().position(|line| *line == format!("spool of source \"readings\": {}", readings.display()));
    let own = &lines[own.expect("the source's own spool")..];
    assert_eq!(own[1], "  records 1 to 3, the oldest received at 2026-01-31T12:00:00.000000Z");
    assert!(own[3].starts_with(&format!("  segment {SEGMENT}: 3 records (1 to 3), ")), "{shown}");
    assert!(own[3].ends_with(" old, written to"), "{shown}");
    assert_eq!(own[4..], ["  cursor out: has passed 1, 2 records behind", "  sound: every record was read"]);

    let output = pipeline(&["spool", "--dir", readings.to_str().expect("a plain path"), "--json"], &[]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(found["spool"]["lsns"], serde_json::json!({ "start": 1, "end": 3 }));
    assert_eq!((&found["sound"], &found["lag_records"]["out"]), (&true.into(), &2.into()));
    assert_eq!(found["spool"]["segments"][0]["state"], "open");
}

#[test]
fn damage_is_said_in_a_sentence_and_what_is_left_comes_out() {
    let spooled = Spooled::new();
    spooled.fill("readings", &[b"{\"n\":1}", b"two\x1b[2J", b"\xff\x00", b"four"]);
    damage(&spooled.dir("readings").join(SEGMENT), 64 + 40);
    let output = pipeline(&["spool", &spooled.file, "--verify"], &[]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert_eq!(text(&output.stderr), "error: a spool is damaged\n");
    let sentence = format!("bytes at offset 64 of {SEGMENT} are damaged: 1 record is lost (1 to 1)\n");
    assert!(shown.contains(&sentence), "{shown}");
    assert!(shown.contains("  damage: 1 records are lost in all"), "{shown}");

    let output = pipeline(&["spool", "export", &spooled.file], &[]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&sentence) && errors.ends_with("error: not every record could be read\n"), "{errors}");
    let lines = [
        r#"{"lsn":2,"payload":"two\u001b[2J","received_at":"2026-01-31T12:00:00.000001Z","topic":"t/1"}"#,
        r#"{"lsn":3,"payload_base64":"/wA=","received_at":"2026-01-31T12:00:00.000002Z","topic":"t/1"}"#,
        r#"{"lsn":4,"payload":"four","received_at":"2026-01-31T12:00:00.000003Z","topic":"t/1"}"#,
    ];
    assert_eq!(text(&output.stdout).lines().collect::<Vec<_>>(), lines);
    let output = pipeline(&["spool", "export", &spooled.file, "--from", "3", "--to", "3"], &[]);
    assert_eq!(text(&output.stdout).lines().collect::<Vec<_>>(), lines[1..2]);
}

#[test]
fn the_spool_tool_says_what_it_needs() {
    let spooled = Spooled::new();
    spooled.fill("readings", &[b"x"]);
    spooled.fill("former", &[b"x"]);
    for (arguments, message) in [
        (&["spool"][..], "required arguments were not provided"),
        (&["spool", "export", &spooled.file], "say which with --source: \"former\", \"readings\""),
        (&["spool", "export", &spooled.file, "--source", "reading"], "spools are there of \"former\", \"readings\""),
    ] {
        let output = pipeline(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
    let output = pipeline(&["spool", "--dir", "/nowhere/spool"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("could not list \"/nowhere/spool\": No such file"),
        "{}",
        text(&output.stderr)
    );
}

/// A pipeline with a table, dead letters in a table and in a bucket, and what its test looks at.
struct Refusing {
    folder: TempDir,
    file: String,
    runtime: tokio::runtime::Runtime,
    database: tokio_postgres::Client,
    topic: String,
    variables: Vec<(&'static str, String)>,
}

const REFUSING: &str = r#"
[pipeline]
name = "refusing"
data_dir = "${DATA_DIR}"

[schema.reading]
device_id   = { type = "text", required = true }
timestamp   = { type = "timestamp", required = true, path = "ts", format = "unix_ms" }
temperature = "float64"

[sources.readings]
type = "mqtt"
url = "${MQTT_URL}"
topics = "${TOPIC}/#"
client_id = "${CLIENT_ID}"
clean_session = "${CLEAN:-false}"
schema = "reading"

[transforms.valid]
type = "validate"
inputs = ["readings"]
range = { temperature = [-60, MAX] }

[sinks.table]
type = "timescaledb"
inputs = ["valid"]
url = "${DATABASE_URL}"
table = "readings"
create = true

[sinks.letters]
type = "timescaledb"
inputs = ["readings.rejected", "valid.rejected", "table.rejected"]
url = "${DATABASE_URL}"
table = "dead_letters"
create = true
key = []
columns = { received_at = "arrived", stage = "stage", reason = "reason", detail = "detail", topic = "topic", position = "position", payload = "message" }

[sinks.lake]
type = "parquet"
inputs = ["readings.rejected", "valid.rejected", "table.rejected"]
url = "${S3_URL}"
roll_age = "200ms"
"#;

impl Refusing {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("refusing.toml");
        let (url, s3) = (services::database("tools"), services::s3());
        let topic = services::unique("tools");
        let mut variables = vec![
            ("DATA_DIR", folder.path().join("data").display().to_string()),
            ("MQTT_URL", services::mqtt_url()),
            ("TOPIC", topic.clone()),
            ("CLIENT_ID", services::unique("tools")),
            ("DATABASE_URL", url.clone()),
            ("S3_URL", format!("s3://{}/letters", services::bucket())),
        ];
        let names = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];
        variables.extend(names.into_iter().zip(s3.environment().map(|(_, value)| value)));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let database = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the test database");
            tokio::spawn(connection);
            client
        });
        let refusing = Self { file: file.display().to_string(), folder, runtime, database, topic, variables };
        refusing.allow_up_to(50);
        refusing
    }

    /// Writes the pipeline file anew: readings above this are refused.
    fn allow_up_to(&self, max: u32) {
        std::fs::write(&self.file, REFUSING.replace("MAX", &max.to_string())).expect("writable");
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
    }

    fn start(&self, name: &str) -> Process {
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut process = Process::start(&["run", &self.file], &variables, self.folder.path(), name);
        process.wait_for_log("subscribed");
        process
    }

    fn publish(&self, messages: &[(&str, &[u8])]) {
        let messages = messages.iter().map(|(topic, payload)| (format!("{}/{topic}", self.topic), *payload));
        self.runtime.block_on(services::publish(messages));
    }

    fn wait_for(&self, sql: &str, rows: i64) {
        wait_until(&format!("{rows} from {sql}"), || {
            // Before the first start there is no table.
            let found = self.runtime.block_on(self.database.query_one(sql, &[])).ok()?;
            (found.get::<_, i64>(0) == rows).then_some(())
        });
    }

    /// Exit code, stdout and stderr of `pipeline dlq COMMAND FILE ARGUMENTS`.
    fn dlq(&self, command: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let output = pipeline(&[&["dlq", command, &self.file], arguments].concat(), &variables);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn list(&self, arguments: &[&str]) -> Value {
        let (code, shown, errors) = self.dlq("list", &[&["--json"], arguments].concat());
        assert_eq!(code, Some(0), "{errors}");
        serde_json::from_str(&shown).expect("one JSON object")
    }

    /// One good reading, one too hot, one that is no JSON and would move the cursor.
    fn refuse_two(&self) {
        let pipeline = self.start("strict");
        self.publish(&[
            ("a/json", br#"{"device_id":"a","ts":1769860800001,"temperature":20.5}"#),
            ("a/json", br#"{"device_id":"b","ts":1769860800002,"temperature":70.25}"#),
            ("b", b"{\x1b[2J"),
        ]);
        self.wait_for("select count(*) from dead_letters", 2);
        self.wait_for("select count(*) from readings", 1);
        let (status, log) = pipeline.stop();
        assert!(status.success(), "{log}");
    }
}

fn ids(list: &Value) -> Vec<String> {
    let letters = list["letters"].as_array().expect("letters").iter();
    let mut ids: Vec<String> = letters.map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn refused_messages_are_listed_and_shown_from_the_table_and_from_the_lake_alike() {
    let refusing = Refusing::new();
    let (code, _, errors) = refusing.dlq("list", &[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("there is no table \"dead_letters\". The pipeline makes it"), "{errors}");
    refusing.refuse_two();

    let (code, shown, errors) = refusing.dlq("list", &[]);
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("2 dead letters in sink \"letters\", table \"dead_letters\" of \"tools_"), "{shown}");
    assert!(lines[2].starts_with("letters  stage     reason             first "), "{shown}");
    assert!(lines[3].starts_with("      1  readings  invalid_json       20"), "{shown}");
    assert!(lines[4].starts_with("      1  valid     range.temperature  20"), "{shown}");
    assert_eq!(
        (lines[6], lines[10]),
        ("the newest 2:", "sink \"lake\" keeps dead letters too: --from lake"),
        "{shown}"
    );

    let table = refusing.list(&[]);
    assert_eq!((&table["total"], &table["sink"]), (&2.into(), &"letters".into()));
    for filter in [
        &[][..],
        &["--stage", "valid"],
        &["--stage", "valid", "--stage", "readings"],
        &["--reason", "invalid_json"],
        &["--topic", &format!("{}/+", refusing.topic)],
        &["--topic", &format!("{}/a/#", refusing.topic)],
        &["--since", "1h"],
        &["--until", "1h"],
        &["--since", "2020-01-01", "--until", "2020-02-01T00:00:00Z"],
        &[&ids(&table)[0][..6]],
    ] {
        let (table, lake) = (refusing.list(filter), refusing.list(&[filter, &["--from", "lake"]].concat()));
        assert_eq!(lake["sink"], "lake");
        assert_eq!(ids(&table), ids(&lake), "{filter:?}");
        assert_eq!((&table["groups"], &table["total"]), (&lake["groups"], &lake["total"]), "{filter:?}");
        let expected = match filter {
            [] | ["--since", "1h"] | ["--stage", _, "--stage", _] => 2,
            ["--until", _] | ["--since", ..] => 0,
            // A row does not know its topic.
            ["--topic", topic] if topic.ends_with('#') => 0,
            _ => 1,
        };
        assert_eq!(table["total"], expected, "{filter:?}");
    }

    let (_, shown, _) = refusing.dlq("show", &["--stage", "readings"]);
    let topic = format!("topic     {}/b\n", refusing.topic);
    assert!(shown.contains("stage     readings\nreason    invalid_json\n") && shown.contains(&topic), "{shown}");
    assert!(shown.ends_with("payload   {\\u{1b}[2J\n") && !shown.contains('\x1b'), "{shown}");
    let (_, shown, _) = refusing.dlq("show", &["--json", "--stage", "valid", "--from", "lake"]);
    let letter: Value = serde_json::from_str(&shown).expect("one line");
    let row = r#"{"device_id":"b","timestamp":"2026-01-31T12:00:00.002Z","temperature":70.25}"#;
    assert_eq!(
        (&letter["payload"], &letter["topic"], &letter["replayed_at"]),
        (&row.into(), &Value::Null, &Value::Null)
    );
    let (code, _, errors) = refusing.dlq("show", &["00"]);
    assert!(code == Some(1) && errors.contains("no such letter is in sink \"letters\""), "{errors}");
    for (arguments, message) in [
        (&["--since", "then"][..], "\"then\" is no time"),
        (&["--from", "table"], "\"table\" keeps no dead letters\n  = hint: These sinks do: \"letters\", \"lake\"."),
        (&["xyz"], "\"xyz\" is no id of a letter"),
    ] {
        let (code, _, errors) = refusing.dlq("list", arguments);
        assert!(code == Some(2) && errors.contains(message), "{errors}");
    }
}

#[test]
fn a_replay_brings_each_letter_through_the_mended_pipeline_once() {
    let refusing = Refusing::new();
    refusing.refuse_two();
    refusing.allow_up_to(100);
    let pipeline = refusing.start("mended");
    let to = refusing.topic.clone() + "/replayed";

    let (code, shown, errors) = refusing.dlq("replay", &["--dry-run"]);
    assert_eq!((code, errors.as_str()), (Some(1), "error: 1 letters can't be replayed\n"));
    assert!(shown.starts_with("1 letters would be sent again\n1 not: a letter like "), "{shown}");
    assert!(shown.ends_with(" is a row that does not know its topic: name one with --to\n"), "{shown}");
    assert!(refusing.list(&[])["letters"].as_array().expect("letters").iter().all(|l| l["replayed_at"].is_null()));

    let (code, shown, errors) = refusing.dlq("replay", &["--to", &to]);
    assert_eq!((code, shown.as_str()), (Some(0), "2 letters were sent again\n"), "{errors}");
    refusing.wait_for("select count(*) from readings", 2);
    // What is no JSON is refused again: a new letter.
    refusing.wait_for("select count(*) from dead_letters", 3);
    let sql = "select count(*) from readings where device_id = 'b' and temperature = 70.25 \
               and timestamp = '2026-01-31T12:00:00.002Z'";
    refusing.wait_for(sql, 1);
    let replayed = |list: &Value| {
        list["letters"].as_array().expect("letters").iter().filter(|letter| !letter["replayed_at"].is_null()).count()
    };
    assert_eq!(replayed(&refusing.list(&[])), 2);
    // The log is kept beside the table, and counts for the lake as well.
    wait_until("the new letter in the lake", || (refusing.list(&["--from", "lake"])["total"] == 3).then_some(()));
    assert_eq!(replayed(&refusing.list(&["--from", "lake"])), 2);
    let valid = ["--stage", "valid", "--to", &to];
    let (code, shown, _) = refusing.dlq("replay", &[&valid[..], &["--from", "lake"]].concat());
    assert_eq!(code, Some(0));
    assert!(
        shown.starts_with("0 letters were sent again\n1 were left out, since they were replayed before"),
        "{shown}"
    );

    let (code, shown, errors) = refusing.dlq("replay", &[&valid[..], &["--again"]].concat());
    assert_eq!((code, shown.as_str()), (Some(0), "1 letters were sent again\n"), "{errors}");
    // A message behind it, so that it has surely been through.
    refusing.publish(&[("c", br#"{"device_id":"c","ts":1769860800003,"temperature":1}"#)]);
    refusing.wait_for("select count(*) from readings where device_id = 'c'", 1);
    refusing.wait_for("select count(*) from readings", 3);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_letter_that_nobody_would_receive_is_not_sent() {
    let mut refusing = Refusing::new();
    refusing.set("CLEAN", "true");
    refusing.refuse_two();
    let (code, shown, errors) = refusing.dlq("replay", &["--stage", "readings"]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(shown.starts_with("0 letters were sent again\n1 not: a letter like "), "{shown}");
    assert!(shown.contains("nobody is subscribed to its topic at the broker; start the pipeline first"), "{shown}");
    let pipeline = refusing.start("again");
    let (code, shown, errors) = refusing.dlq("replay", &["--stage", "readings"]);
    assert_eq!((code, shown.as_str()), (Some(0), "1 letters were sent again\n"), "{errors}");
    refusing.wait_for("select count(*) from dead_letters", 3);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_purge_deletes_what_is_meant_from_the_table_and_nothing_from_the_lake() {
    let refusing = Refusing::new();
    refusing.refuse_two();
    let (code, _, errors) = refusing.dlq("purge", &[]);
    assert_eq!(code, Some(2));
    assert!(errors.starts_with("error: Delete 2 dead letters from sink \"letters\", table"), "{errors}");
    assert!(errors.ends_with("Nobody can be asked here: give --yes\n"), "{errors}");
    let (code, _, errors) = refusing.dlq("purge", &["--from", "lake", "--yes"]);
    assert!(code == Some(1) && errors.contains("are objects, which are never deleted. Let them expire"), "{errors}");

    let (_, shown, _) = refusing.dlq("replay", &["--stage", "readings"]);
    assert_eq!(shown, "1 letters were sent again\n", "the broker keeps it for the session of the pipeline");
    let (code, shown, errors) = refusing.dlq("purge", &["--replayed", "--yes"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(shown.starts_with("1 dead letters were deleted from sink \"letters\", table \"dead_letters\""), "{shown}");
    assert!(shown.ends_with("sink \"lake\" still has what it kept\n"), "{shown}");
    let left = refusing.list(&[]);
    assert_eq!((&left["total"], &left["groups"][0]["stage"]), (&1.into(), &"valid".into()));
    let id = &ids(&left)[0];
    for (arguments, deleted, left) in [
        (&["--stage", "readings", "--yes"][..], None, 1),
        (&["--until", "1h", "--yes"], None, 1),
        (&[id, "--yes"], Some(1), 0),
    ] {
        let (code, shown, errors) = refusing.dlq("purge", arguments);
        assert_eq!(code, Some(0), "{errors}");
        match deleted {
            Some(deleted) => assert!(shown.starts_with(&format!("{deleted} dead letters were deleted")), "{shown}"),
            None => assert!(shown.starts_with("no such letter is in sink"), "{shown}"),
        }
        assert_eq!(refusing.list(&[])["total"], left);
    }
    assert_eq!(refusing.list(&["--from", "lake"])["total"], 2);
}
