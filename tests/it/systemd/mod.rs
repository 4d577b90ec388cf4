//! The units that are shipped: as systemd's own checks see them, against each other, and run by a systemd.

mod booted;

use std::process::Command;

use crate::process::root;

/// What systemd calls OK is below 5.0, of 10: this unit is far below, and stays so.
const EXPOSURE_TENTHS_MAX: &str = "15";

/// All read the same pipeline file.
const SERVICES: [&str; 3] = ["pipeline.service", "pipeline-backup.service", "pipeline-db.service"];

#[test]
fn systemd_finds_no_mistake_in_the_units_and_little_that_is_exposed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let binary = env!("CARGO_BIN_EXE_pipeline");
    let unit = |name: &str| {
        let shipped = std::fs::read_to_string(root().join("ops/systemd").join(name)).expect("it is shipped");
        let unit = folder.path().join(name);
        std::fs::write(&unit, shipped.replace("/usr/local/bin/pipeline", binary)).expect("our own folder");
        unit
    };
    let services = SERVICES.map(unit);
    let timers = ["pipeline-backup.timer", "pipeline-db.timer"].map(unit);
    let verify: &[&str] = &["verify", "--man=no"];
    let security: &[&str] = &["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_TENTHS_MAX];
    let checks = services.iter().flat_map(|unit| [(verify, unit), (security, unit)]);
    for (arguments, unit) in checks.chain(timers.iter().map(|unit| (verify, unit))) {
        let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().expect("it was there");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{arguments:?}: {said}");
        // Unknown settings are but warned of.
        assert!(!said.contains("Unknown") && !said.contains("ignoring"), "{said}");
    }
}

/// The values of a setting in a unit, in their order.
fn settings(unit: &str, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("ops/systemd").join(unit)).expect("it is shipped");
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

#[test]
fn what_the_pipeline_file_names_is_the_same_for_all_units_that_read_it() {
    const FOLDER: &str = "/etc/pipeline/credentials";
    let of_all = |name: &str| SERVICES.map(|unit| settings(unit, name));
    for name in ["LoadCredential", "StateDirectory", "WorkingDirectory", "DynamicUser"] {
        let [run, backup, upkeep] = of_all(name);
        assert!(!run.is_empty() && run == backup && run == upkeep, "{name}: {run:?}, {backup:?}, {upkeep:?}");
    }
    assert_eq!(settings(SERVICES[0], "LoadCredential"), [format!("pipeline:{FOLDER}")], "a folder: it may be empty");
    let [run, backup, upkeep] = of_all("EnvironmentFile");
    assert_eq!((run.len(), &backup), (1, &upkeep));
    assert!(backup.starts_with(&run), "more rights are for upkeep alone: {run:?}, {backup:?}");
    let [run, backup, upkeep] = of_all("Environment");
    assert!(run.iter().all(|line| backup.contains(line) && upkeep.contains(line)), "{run:?}, {backup:?}, {upkeep:?}");
    for (unit, command) in SERVICES.iter().zip(of_all("ExecStart")) {
        assert!(command.iter().all(|line| line.contains(" /etc/pipeline/pipeline.toml")), "{unit}: {command:?}");
    }
    // Who makes the folder, and who tells of it.
    for page in ["ops/package/postinst", "docs/operations.md", "docs/guide/install.md", "ops/systemd/pipeline.service"]
    {
        let text = std::fs::read_to_string(root().join(page)).expect("it is shipped");
        assert!(text.contains(FOLDER), "{page} says nothing of {FOLDER}");
        assert!(!text.contains("/run/credentials/"), "{page}: the place is another one for each unit");
    }
}
