//! What `ops/package/build` gives out: a Debian package and a tarball that hold what they should and work where they are
//! unpacked. The bill of materials and the licences need tools that are built on first use, and are left out here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::root;

/// Runs a command and gives what it says on stdout.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The one file of a folder that ends so.
fn file(folder: &Path, end: &str) -> PathBuf {
    let all = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut found = all.filter(|path| path.to_string_lossy().ends_with(end));
    let first = found.next().unwrap_or_else(|| panic!("no {end} in {}", folder.display()));
    assert_eq!(found.next(), None, "more than one {end}");
    first
}

/// What a user finds, wherever the files were unpacked.
fn check(tree: &Path) {
    let binary = tree.join("usr/bin/pipeline");
    assert_eq!(run(Command::new(&binary).arg("--version")).trim(), concat!("pipeline ", env!("CARGO_PKG_VERSION")));
    let shipped = tree.join("usr/share/pipeline");
    run(Command::new(&binary).args(["check", "pipelines/demo.toml"]).current_dir(&shipped));
    for name in [
        "usr/share/man/man1/pipeline.1.gz",
        "usr/share/man/man1/pipeline-run.1.gz",
        "usr/share/bash-completion/completions/pipeline",
        "usr/share/zsh/vendor-completions/_pipeline",
        "usr/share/fish/vendor_completions.d/pipeline.fish",
        "usr/share/doc/pipeline/copyright",
        "usr/share/doc/pipeline/LICENSE-MIT",
        "usr/share/doc/pipeline/docs/runbook.md",
        "usr/share/pipeline/prometheus/rules.yml",
        "usr/share/pipeline/grafana/dashboards/slo.json",
        "usr/share/pipeline/mosquitto/pipeline.conf",
    ] {
        let size = fs::metadata(tree.join(name)).map(|about| about.len());
        assert!(size.as_ref().is_ok_and(|size| *size > 0), "{name}: {size:?}");
    }
    run(Command::new("bash").arg("-n").arg(tree.join("usr/share/bash-completion/completions/pipeline")));
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/pipeline.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/usr/bin/pipeline "), "{unit}");
    assert!(!unit.contains("ExecStart=/usr/local"), "{unit}");
}

#[test]
fn a_package_and_a_tarball_work_where_they_are_unpacked() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("dist");
    let mut build = Command::new(root().join("ops/package/build"));
    build.args(["--skip-inventory", "--binary", env!("CARGO_BIN_EXE_pipeline"), "--out"]).arg(&out);
    run(&mut build);
    run(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&out));

    let package = file(&out, ".deb");
    let fields = run(Command::new("dpkg-deb").arg("--field").arg(&package));
    for field in [concat!("Version: ", env!("CARGO_PKG_VERSION"), "-1"), "Depends: libc6 (>= 2.", "ca-certificates"] {
        assert!(fields.contains(field), "{fields}");
    }
    let tree = folder.path().join("deb");
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&tree));
    run(Command::new("md5sum").args(["--check", "--quiet", "DEBIAN/md5sums"]).current_dir(&tree));
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(tree.join("DEBIAN").join(script)));
    }
    // Files of somebody else than root, or that others may write, are a way into the machine.
    let list = run(Command::new("dpkg-deb").arg("--contents").arg(&package));
    let wrong: Vec<&str> =
        list.lines().filter(|line| !line.contains(" root/root ") || line.chars().nth(8) == Some('w')).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    check(&tree);

    let unpacked = folder.path().join("tar");
    fs::create_dir(&unpacked).expect("a folder of ours");
    run(Command::new("tar")
        .arg("-xzf")
        .arg(file(&out, ".tar.gz"))
        .arg("-C")
        .arg(&unpacked)
        .arg("--strip-components=1"));
    check(&unpacked);
}
