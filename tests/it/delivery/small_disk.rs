//! Disks that are small enough to fill: a filesystem in a file, mounted where a test wants it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted filesystem. Unmounted when dropped.
pub struct SmallDisk {
    at: PathBuf,
}

const FILLER: &str = "filler";

impl SmallDisk {
    /// Of so many MiB, with its content in the file `image`.
    ///
    /// # Errors
    /// This machine lets nobody mount anything, as in most containers.
    pub fn mount(image: &Path, at: &Path, mebibytes: u64) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let file = File::create(image).map_err(|error| error.to_string())?;
        file.set_len(mebibytes << 20).map_err(|error| error.to_string())?;
        // -m 0: none of it is set aside for root, who runs these tests.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Leaves not a byte.
    pub fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.at.join(FILLER)).expect("a name is free");
        for bytes in [1 << 20, 4096, 1] {
            let block = vec![7; bytes];
            loop {
                match filler.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("can't fill \"{}\": {error}", self.at.display()),
                }
            }
        }
    }

    /// Takes away again what has filled it.
    pub fn make_room(&self) {
        fs::remove_file(self.at.join(FILLER)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that a failed test leaves behind may still be in it.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.at)) {
            eprintln!("\"{}\" stays mounted: {error}", self.at.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
