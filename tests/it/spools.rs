//! `pipeline spool` on the corpus of damaged spools: its exit code says whether anything is wrong, its text says
//! what. What else must become of them is tested beside the spool.

use std::collections::BTreeMap;
use std::process::Command;

use crate::process::root;

/// `tests/corpus/spools/EXPECTED.toml`, as far as the command shows it.
#[derive(serde::Deserialize)]
struct Expected {
    #[serde(default)]
    damage: Vec<String>,
    #[serde(default)]
    torn: u64,
    #[serde(default)]
    cursors_damaged: bool,
    #[serde(default)]
    error: String,
}

#[test]
fn every_spool_of_the_corpus_is_told_about() {
    let folder = root().join("tests/corpus/spools");
    let index = std::fs::read_to_string(folder.join("EXPECTED.toml")).expect("the corpus");
    let corpus: BTreeMap<String, Expected> = toml::from_str(&index).expect("valid TOML");
    assert!(corpus.len() > 70, "{} spools", corpus.len());
    for (name, expected) in corpus {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        let output = command.args(["spool", "--verify", "--dir"]).arg(folder.join(&name)).output();
        let output = output.expect("the binary runs");
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let is_sound = expected.damage.is_empty() && !expected.cursors_damaged && expected.error.is_empty();
        assert_eq!(output.status.code(), Some(if is_sound { 0 } else { 1 }), "{name}: {told}");
        assert_eq!(told.contains("sound: every record was read"), is_sound, "{name}: {told}");
        for sentence in &expected.damage {
            assert!(told.contains(&format!("  damage: {sentence}\n")), "{name}: {told}");
        }
        assert_eq!(told.contains("the file \"cursors\" can't be read"), expected.cursors_damaged, "{name}: {told}");
        assert_eq!(told.contains("  note: the last "), expected.torn > 0, "{name}: {told}");
        assert!(told.contains(expected.error.trim_start_matches('"')), "{name}: {told}");
    }
}
