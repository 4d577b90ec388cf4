//! Broken pipeline files show exactly these texts; the pipelines that ship are valid.
//!
//! Each `tests/corpus/pipelines/NAME.toml` has its text beside it in `NAME.txt`. After a deliberate change
//! of the texts, write them anew with `BLESS=1 cargo test --test it -- pipeline_file`, and read the diff.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn check(file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    // As a service of systemd a runner of tests may have one.
    command.env_remove("CREDENTIALS_DIRECTORY");
    command.arg("check").arg(file).current_dir(root()).output().expect("the binary runs")
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("the folder is part of the project");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Path::new(folder).join(entry.expect("readable").file_name()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_broken_file_shows_all_its_mistakes_with_their_places() {
    let mut wrong = Vec::new();
    let broken = files("tests/corpus/pipelines");
    assert!(broken.len() >= 20, "only {} files", broken.len());
    for file in broken {
        let output = check(&file);
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{}: a wrong file exits with 2\n{text}", file.display());
        let golden = root().join(&file).with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &text).expect("writable");
        } else if std::fs::read_to_string(&golden).ok().as_ref() != Some(&text) {
            wrong.push(format!("{} shows\n{text}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "texts changed:\n\n{}", wrong.join("\n\n"));
}

#[test]
fn every_pipeline_that_ships_is_valid() {
    // `iot.test.toml` holds the cases of `iot.toml`.
    let is_pipeline = |file: &PathBuf| !file.to_string_lossy().ends_with(".test.toml");
    let shipped: Vec<PathBuf> = files("pipelines").into_iter().filter(is_pipeline).collect();
    assert!(shipped.len() >= 2);
    for file in shipped {
        let output = check(&file);
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_type_has_a_reference_and_the_graph_draws_in_three_forms() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(arguments).current_dir(root()).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    for stage in pipeline_stages::registry().types() {
        let text = run(&["stages", stage.doc.type_name]);
        assert!(text.contains(stage.doc.summary), "{text}");
        for key in stage.config_schema.get("properties").and_then(|keys| keys.as_object()).into_iter().flatten() {
            assert!(text.contains(key.0.as_str()), "{}: {} is missing", stage.doc.type_name, key.0);
        }
    }
    for (format, start) in [("text", "source "), ("mermaid", "flowchart LR"), ("dot", "digraph \"iot\"")] {
        let text = run(&["graph", "pipelines/iot.toml", "--format", format]);
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("telemetry_table"), "{text}");
    }
}
