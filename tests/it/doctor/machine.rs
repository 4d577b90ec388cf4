//! What belongs to no service: the file, the disk, the address.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use super::{DISCARD, Patient, SIMULATOR, examine};

fn patient() -> Patient {
    Patient::new(&format!("{SIMULATOR}{DISCARD}"))
}

#[test]
fn a_typo_in_the_file_is_told_with_its_line_and_a_way_out() {
    let found = patient().with("inputs = [\"in\"]", "inputs = [\"inn\"]").examine();
    found.says(
        "file",
        "file",
        "fail",
        &["examined.toml:17:11", "no stage or port is named \"inn\"", "Did you mean \"in\"?"],
    );
}

#[test]
fn an_unknown_variable_is_named() {
    let found = patient().with("schema = \"reading\"", "schema = \"${DOCTOR_HAS_NO_SUCH}\"").examine();
    found.says("file", "file", "fail", &["DOCTOR_HAS_NO_SUCH"]);
}

#[test]
fn a_file_that_is_not_there_leaves_everything_unknown() {
    let found = examine(Path::new("/nowhere/pipeline.toml"), &[], &[]);
    assert_eq!((found.code, &found.json["status"]), (3, &"UNKNOWN".into()), "{}", found.text);
}

#[test]
fn all_is_well_where_nothing_is_needed_and_nothing_is_left_behind() {
    let patient = patient();
    let found = patient.examine();
    found.says("data directory", "write", "pass", &["removed"]).says("http", "address", "pass", &["off"]);
    assert!([0, 1].contains(&found.code), "only the folder for temporary files may be in memory: {}", found.text);
    let left: Vec<_> =
        std::fs::read_dir(patient.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["examined.toml"]);
}

/// A small file system in memory; `None` where nobody may mount one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn with(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        eprintln!("skipped: nothing can be mounted here");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

fn patient_on(disk: &Mounted) -> Patient {
    let patient = patient();
    let data = patient.folder.path().join("data").display().to_string();
    patient.with(&data, &disk.0.path().display().to_string())
}

#[test]
fn a_read_only_data_directory_is_told() {
    let Some(disk) = Mounted::with("ro,size=1m") else { return };
    patient_on(&disk)
        .examine()
        .says("data directory", "write", "fail", &["mounted read-only"])
        .blames_only("data directory");
}

#[test]
fn a_full_disk_is_told_and_that_it_is_in_memory() {
    let Some(disk) = Mounted::with("size=64k") else { return };
    std::fs::write(disk.0.path().join("filler"), vec![7; 64 << 10]).unwrap();
    let found = patient_on(&disk).examine();
    found.says("data directory", "write", "fail", &["is full", "Make room"]);
    found.says("data directory", "file system", "warn", &["tmpfs", "gone after a reboot"]);
}

#[test]
fn a_file_in_the_place_of_the_data_directory_is_told() {
    let patient = patient();
    std::fs::write(patient.folder.path().join("data"), "").unwrap();
    patient.examine().says("data directory", "write", "fail", &["a file is where the folder"]);
}

#[test]
fn another_run_with_the_data_directory_is_told_with_its_process() {
    let patient = patient();
    std::fs::create_dir_all(patient.data()).unwrap();
    let lock = File::create(patient.data().join("lock")).unwrap();
    lock.lock().unwrap();
    let process = format!("process {}", std::process::id());
    patient.examine().says("data directory", "in use", "warn", &["is in use by a run", &process]);
    lock.unlock().unwrap();
    patient.examine().says("data directory", "in use", "pass", &["no run has it now"]);
}

#[test]
fn a_spool_that_nobody_reads_is_told() {
    let patient = patient();
    let spool = patient.data().join("renamed/spool");
    std::fs::create_dir_all(&spool).unwrap();
    std::fs::write(spool.join("segment"), "records").unwrap();
    patient.examine().says("data directory", "spools", "warn", &["\"renamed\"", "nobody reads", "delete"]);
}

#[test]
fn less_room_than_the_spool_leaves_free_is_told() {
    let source = "[sources.in]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"\ntopics = \"#\"\n\
                  [sources.in.spool]\nmin_free = \"4000TiB\"\n";
    let found = Patient::new(&format!("{source}{DISCARD}")).examine();
    found.says("data directory", "free space", "fail", &["\"in\" takes in nothing", "min_free"]);
}

#[test]
fn an_outage_that_fills_the_disk_is_foreseen() {
    let source = "[sources.in]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"\ntopics = \"#\"\n\
                  [sources.in.spool]\nmax = \"4000TiB\"\nmin_free = \"1MiB\"\n";
    let found = Patient::new(&format!("{source}{DISCARD}")).examine();
    found.says("data directory", "free space", "warn", &["the disk fills up before the bounds hold", "spool.max"]);
}

#[test]
fn a_port_that_another_program_has_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // What connects is told at once that this is no HTTP.
    let address = taken.local_addr().unwrap();
    std::thread::spawn(move || taken.incoming().for_each(drop));
    let found = patient().with("listen = \"off\"", &format!("listen = \"{address}\"")).examine();
    found.says("http", "address", "fail", &["taken by another program", "would not start"]).blames_only("http");
}

#[test]
fn a_table_to_look_up_in_that_is_missing_is_told() {
    let enrich = "[transforms.located]\ntype = \"enrich\"\ninputs = [\"in\"]\ntable = \"/nowhere/devices.csv\"\n\
                  key = \"device_id\"\ncolumns = [\"site\"]\n";
    let found = Patient::new(&format!("{SIMULATOR}{enrich}{}", DISCARD.replace("\"in\"", "\"located\""))).examine();
    found.says("located", "reach", "fail", &["/nowhere/devices.csv"]).blames_only("located");
}
