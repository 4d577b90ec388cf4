use std::time::Duration;

use pipeline_engine::stage::{Batch, BuiltTransform, Emitter, Fault, Port, StageError};

use super::*;
use crate::transforms::testing::{Outcome, Reading, built, context, mistake, rows};

/// A program in the language that each machine has: passes bytes on, with what `body` does to them.
fn shell(body: &str, more: &str) -> BuiltTransform {
    let text = format!("command = [\"sh\", \"-c\", '''{body}''']\n{more}");
    let mut stage = built::<ExecConfig>(&text, &context()).unwrap_or_else(|error| panic!("{error}"));
    stage.transform.open().unwrap();
    stage
}

fn readings(devices: &[&str]) -> Vec<Reading> {
    devices.iter().zip(1..).map(|(device, second)| Reading::of(device, second * 1_000_000)).collect()
}

fn run(stage: &mut BuiltTransform, devices: &[&str]) -> Result<Outcome, StageError> {
    let mut out = Emitter::default();
    stage.transform.apply(Batch::detached(rows(&readings(devices))), &mut out)?;
    let outcome = Outcome(out.take());
    assert!(outcome.keeps(&stage.outputs));
    Ok(outcome)
}

#[test]
fn what_the_program_answers_goes_on() {
    let mut stage = shell("exec cat", "");
    for devices in [&["a", "b"][..], &["c"], &[], &["d", "e", "f"]] {
        let outcome = run(&mut stage, devices).unwrap();
        assert_eq!(outcome.texts(Port::MAIN, "device_id"), devices);
    }
    stage.transform.finish(&mut Emitter::default()).unwrap();
}

#[test]
fn a_program_that_ends_or_hangs_is_given_the_same_rows_again() {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("was-here");
    for how in ["exit 3", "sleep 60"] {
        std::fs::remove_file(&flag).ok();
        let body = format!("test -e {0} && exec cat; touch {0}; {how}", flag.display());
        let mut stage = shell(&body, "timeout = \"2s\"");
        assert_eq!(run(&mut stage, &["a", "b"]).unwrap().texts(Port::MAIN, "device_id"), ["a", "b"]);
        assert_eq!(run(&mut stage, &["c"]).unwrap().texts(Port::MAIN, "device_id"), ["c"]);
    }
}

/// Passes bytes on until it reads the word.
const ENDS_ON_POISON: &str = "import os, sys
while data := os.read(0, 1 << 16):
    if b'poison' in data: sys.exit(9)
    os.write(1, data)";

#[test]
fn a_row_that_the_program_cannot_bear_is_refused_and_its_neighbours_go_on() {
    let body = format!("exec python3 -c \"{ENDS_ON_POISON}\"");
    let mut stage = shell(&body, "attempts = 1");
    let outcome = run(&mut stage, &["a", "b", "poison", "c"]).unwrap();
    assert_eq!(outcome.texts(Port::MAIN, "device_id"), ["a", "b", "c"]);
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["exec_failed"]);
    assert!(outcome.texts(Port::REJECTED, "detail")[0].contains("exit status: 9"));
    assert_eq!(outcome.payloads()[0]["device_id"], "poison");
}

#[test]
fn a_program_that_fails_on_everything_stops_the_run_with_its_last_words() {
    let mut stage = shell("echo 'no module named numpy' >&2; exit 1", "attempts = 1");
    let error = run(&mut stage, &["a"; 40]).unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    let text = error.chain();
    assert!(text.contains("fails on all that it is given") && text.contains("nothing is lost"), "{text}");
    assert!(text.contains("exit status: 1") && text.contains("no module named numpy"), "{text}");
}

#[test]
fn an_answer_of_another_form_is_told() {
    for (body, says) in [
        ("echo hello, world; exec cat >/dev/null", "no Arrow IPC stream"),
        ("cat > /dev/null; true", "no answer within"),
    ] {
        let mut stage = shell(body, "attempts = 1\ntimeout = \"1s\"");
        let outcome = run(&mut stage, &["a"]).unwrap();
        let detail = &outcome.texts(Port::REJECTED, "detail")[0];
        assert!(detail.contains(says), "{body}: {detail}");
    }
    let cx = pipeline_engine::testing::build_context("stage", "[schema.other]\ndevice_id = \"int64\"");
    let mut stage = built::<ExecConfig>("command = [\"cat\"]\nschema = \"other\"\nattempts = 1", &cx).unwrap();
    stage.transform.open().unwrap();
    let detail = &run(&mut stage, &["a"]).unwrap().texts(Port::REJECTED, "detail")[0];
    assert!(detail.contains("a column `device_id Utf8` where `device_id Int64` is declared"), "{detail}");
}

#[test]
fn a_program_that_is_not_there_is_told_before_anything_is_read() {
    let mut stage = built::<ExecConfig>("command = [\"no-such-program\"]", &context()).unwrap();
    let error = stage.transform.open().unwrap_err();
    assert!(error.chain().contains("can't start `no-such-program`"), "{}", error.chain());
}

#[test]
fn a_program_that_does_not_end_is_killed() {
    let mut stage = shell("cat; exec sleep 600", "timeout = \"100ms\"");
    run(&mut stage, &["a"]).ok();
    let began = std::time::Instant::now();
    stage.transform.finish(&mut Emitter::default()).unwrap();
    drop(stage);
    // Ten minutes would be the program's own time.
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    for (text, key, says) in [
        ("command = []", "command", "no program"),
        ("command = [\"\"]", "command", "python3"),
        ("command = [\"cat\"]\ntimeout = \"0s\"", "timeout", "no time"),
        ("command = [\"cat\"]\nattempts = 0", "attempts", "at least once"),
        ("command = [\"cat\"]\nschema = \"none\"", "schema", "[schema.NAME]"),
    ] {
        let (found, message) = mistake::<ExecConfig>(text);
        assert!(found == key && message.contains(says), "{text}: {found}: {message}");
    }
}
