//! `pipeline test`: cases of a pipeline, without its services.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code and all that was printed.
fn test(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    let output = command.arg("test").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), printed)
}

const PIPELINE: &str = r#"
[schema.reading]
device_id = { type = "text", required = true }
value = "float64"

[sources.in]
type = "file"
path = "nothing-is-read.jsonl"
format = "jsonl"
schema = "reading"

[transforms.valid]
type = "validate"
inputs = ["in"]
range = { value = [0, 10] }

[sinks.out]
type = "console"
inputs = ["valid"]
"#;

/// A pipeline and its cases in a folder of their own.
fn with_cases(cases: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    fs::write(&file, PIPELINE).unwrap();
    fs::write(folder.path().join("p.test.toml"), cases).unwrap();
    (folder, file)
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_pipeline_that_ships_has_cases_and_they_pass() {
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.ends_with(".test.toml") {
            let (code, printed) = test(&[shown(&path)]);
            assert_eq!(code, Some(0), "{name}: {printed}");
            assert!(printed.starts_with("ok    "), "{printed}");
        }
    }
}

#[test]
fn what_differs_is_shown_by_row_and_column() {
    let cases = r#"
        [[case]]
        name = "good"
        given = [{ at = "in", rows = [{ device_id = "a", value = 5 }] }]
        expect.valid = [{ device_id = "a", value = 5.0 }]

        [[case]]
        name = "wrong"
        given = [{ at = "in", rows = [{ device_id = "a", value = 5 }, { device_id = "b", value = 11 }] }]
        expect.valid = [{ device_id = "x", value = 5 }]
        expect."valid.rejected" = []
    "#;
    let (_folder, file) = with_cases(cases);
    let (code, printed) = test(&[shown(&file)]);
    assert_eq!(code, Some(1), "{printed}");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..2], ["ok    good", "FAIL  wrong"]);
    assert_eq!(
        lines[2..4],
        ["  valid, row 1: {\"device_id\":\"a\",\"value\":5.0}", "    device_id: expected \"x\", found \"a\""]
    );
    assert_eq!(lines[4], "  valid.rejected: expected 0 rows, found 1 row");
    assert!(lines[5].starts_with("    not expected: {") && lines[5].contains("range.value"), "{printed}");
    assert_eq!(lines[6], "error: 1 of 2 cases failed");
    assert_eq!(test(&[shown(&file), "--only", "good"]).0, Some(0));
    assert_eq!(test(&[shown(&file), "--only", "nothing"]).0, Some(2));
}

#[test]
fn mistakes_in_cases_are_named() {
    for (case, code, says) in [
        (
            "given = [{ at = \"inn\", rows = [] }]\nexpect.valid = []",
            1,
            "no stage or port is named \"inn\". Did you mean \"in\"?",
        ),
        ("given = []\nexpect.vald = []", 1, "\"vald\""),
        ("given = [{ at = \"in\", rows = [{ device = \"a\" }] }]\nexpect.valid = []", 1, "rows at \"in\""),
        ("given = []\nexpected.valid = []", 2, "expected"),
    ] {
        let (_folder, file) = with_cases(&format!("[[case]]\nname = \"case\"\n{case}"));
        let (found, printed) = test(&[shown(&file)]);
        assert!(found == Some(code) && printed.contains(says), "{case}: {found:?} {printed}");
    }
    let (folder, file) = with_cases("");
    assert_eq!(test(&[shown(&file)]).0, Some(2), "no cases");
    fs::remove_file(folder.path().join("p.test.toml")).unwrap();
    let (code, printed) = test(&[shown(&file)]);
    assert!(code == Some(2) && printed.contains("can't read the cases"), "{printed}");
}
