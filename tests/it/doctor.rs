//! `pipeline doctor` with one thing wrong at a time: each fault is named with its cause, at the place where it is.

mod database;
mod fake_broker;
mod machine;
mod mqtt;
mod store;
mod stream;
mod whole;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::root;

/// What all pipelines here have in common. The spool fits on any disk, so that only what a test plants is wrong.
const HEAD: &str = r#"
[pipeline]
name = "examined"
data_dir = "DATA"
overflow_max = "1MiB"
[http]
listen = "off"
[schema.reading]
device_id   = { type = "text", required = true }
timestamp   = { type = "timestamp", required = true }
temperature = "float64"
"#;

/// A source that needs nothing.
const SIMULATOR: &str = "[sources.in]\ntype = \"simulator\"\nschema = \"reading\"\n";
/// A sink that needs nothing.
const DISCARD: &str = "[sinks.out]\ntype = \"discard\"\ninputs = [\"in\"]\n";

/// A pipeline file in a folder of its own.
struct Patient {
    folder: TempDir,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
}

/// What was found.
struct Diagnosis {
    code: i32,
    text: String,
    json: Value,
}

impl Patient {
    /// With the usual head.
    fn new(stages: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data").display().to_string();
        let patient = Self { folder, variables: Vec::new(), arguments: Vec::new() };
        patient.write(&format!("{}{stages}", HEAD.replace("DATA", &data)))
    }

    /// With another text for the whole file.
    fn write(self, text: &str) -> Self {
        std::fs::write(self.folder.path().join("examined.toml"), text).expect("writable");
        self
    }

    /// With another text in place of a part of the file.
    fn with(self, old: &str, new: &str) -> Self {
        let text = std::fs::read_to_string(self.folder.path().join("examined.toml")).expect("it was written");
        assert!(text.contains(old), "{old}: {text}");
        self.write(&text.replace(old, new))
    }

    fn set(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The folder that the pipeline's data is in.
    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data/examined")
    }

    fn examine(&self) -> Diagnosis {
        examine(&self.folder.path().join("examined.toml"), &self.arguments, &self.variables)
    }
}

fn examine(file: &Path, arguments: &[String], variables: &[(String, String)]) -> Diagnosis {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("doctor").arg(file).arg("--json").args(arguments).current_dir(root());
    let output = command.envs(variables.iter().cloned()).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let line = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {text}"));
    Diagnosis { code: output.status.code().expect("it ends by itself"), text: text.into_owned(), json }
}

impl Diagnosis {
    /// The findings of one check, each as its verdict and what was found, with the fix.
    fn of(&self, part: &str, check: &str) -> Vec<(String, String)> {
        let checks = self.json["checks"].as_array().expect("a list");
        let found = checks.iter().filter(|found| found["part"] == part && found["check"] == check);
        let word = |found: &Value, key: &str| found[key].as_str().unwrap_or_default().to_owned();
        found.map(|it| (word(it, "verdict"), format!("{} {}", word(it, "found"), word(it, "fix")))).collect()
    }

    /// One of its findings has this verdict and all of these words, in what was found or in the fix; a fault in all
    /// means exit code 2, and a warning 1 or 2.
    #[track_caller]
    fn says(&self, part: &str, check: &str, verdict: &str, words: &[&str]) -> &Self {
        let found = self.of(part, check);
        let says = |(verdict_found, text): &(String, String)| {
            verdict_found == verdict && words.iter().all(|word| text.contains(word))
        };
        assert!(found.iter().any(says), "{part} {check} {verdict} {words:?}: {}", self.text);
        match verdict {
            "fail" => assert_eq!(self.code, 2, "{}", self.text),
            "warn" => assert!([1, 2].contains(&self.code), "{}", self.text),
            _ => {}
        }
        self
    }

    /// Nothing but this part has failed.
    #[track_caller]
    fn blames_only(&self, part: &str) {
        let checks = self.json["checks"].as_array().expect("a list");
        let blamed: Vec<_> = checks.iter().filter(|found| found["verdict"] == "fail").collect();
        assert!(blamed.iter().all(|found| found["part"] == part), "{part}: {blamed:?}");
    }
}
