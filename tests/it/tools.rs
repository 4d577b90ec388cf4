//! The operator's tools, as the real binary, against real spools, tables and buckets.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use pipeline_engine::spool::{FsStorage, Record, Spool, SpoolOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::root;

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
                let lsn = writer.append(&Record { received_at_us, flags: 0, topic, payload }).await.expect("room");
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
