//! What kind of file system a folder is on, and who holds a lock there. Linux tells in `/proc`; elsewhere nothing is
//! known, and nothing is said.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is known to lose data, or syncs and locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// In memory: gone after a reboot.
    Memory,
    /// The writable layer of a container: gone with it.
    Container,
    /// Behind a network: slow to sync, and locks that may mean nothing.
    Network,
}

impl Trouble {
    pub fn of(kind: &str) -> Option<Self> {
        match kind {
            "tmpfs" | "ramfs" => Some(Self::Memory),
            "overlay" | "aufs" => Some(Self::Container),
            "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "9p" | "afs" | "ceph" | "glusterfs" | "virtiofs" => {
                Some(Self::Network)
            }
            fuse if fuse.starts_with("fuse.") => Some(Self::Network),
            _ => None,
        }
    }

    /// What is wrong with it, and what to do.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory => (
                "in memory: what is there is gone after a reboot",
                "Set \"data_dir\" in [pipeline] to a folder on a disk.",
            ),
            Self::Container => (
                "the layer of a container: what is there is gone with it",
                "Mount a volume, and set \"data_dir\" in [pipeline] to a folder in it.",
            ),
            Self::Network => (
                "behind a network: syncs are slow, and a second run may not be kept out",
                "Set \"data_dir\" in [pipeline] to a folder on a local disk.",
            ),
        }
    }
}

/// The kind of file system that a folder is on, such as `ext4`.
pub fn kind_of(folder: &Path) -> Option<String> {
    kind_in(&fs::read_to_string("/proc/self/mounts").ok()?, &folder.canonicalize().ok()?)
}

/// The kind of the last and longest mount that the path is below.
fn kind_in(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = PathBuf::from(unescaped(words.next()?));
        path.starts_with(&place).then_some((place.components().count(), words.next()?))
    });
    // Of equals the last: it was mounted over the others.
    mounts.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned())
}

/// Spaces and their like are written as octal numbers.
fn unescaped(place: &str) -> String {
    place.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The process that holds a lock on this file, if one does and is to be seen from here.
pub fn holder_of(file: &Path) -> Option<u32> {
    let metadata = fs::metadata(file).ok()?;
    holder_in(&fs::read_to_string("/proc/locks").ok()?, metadata.ino())
}

/// A line is `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131105 0 EOF`.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = words.iter().position(|word| *word == "FLOCK" || *word == "OFDLCK")?;
        let (pid, of) = (words.get(place + 3)?, words.get(place + 4)?);
        // Waiting ones have an arrow before the kind.
        let is_held = words.get(place.checked_sub(1)?).is_some_and(|before| *before != "->");
        (is_held && of.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_on_the_longest_and_last_mount_above_it() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\nnas:/x /mnt/my\\040disk nfs4 rw 0 0\n\
                      /dev/vdb /run xfs rw 0 0\n";
        let kind = |path: &str| kind_in(mounts, Path::new(path)).expect("everything is below the root");
        assert_eq!(kind("/var/lib"), "ext4");
        assert_eq!(kind("/run/pipeline"), "xfs", "mounted over the first");
        assert_eq!(kind("/runner"), "ext4");
        assert_eq!(kind("/mnt/my disk/x"), "nfs4");
        assert_eq!(Trouble::of("ext4"), None);
        assert_eq!(Trouble::of("fuse.sshfs"), Some(Trouble::Network));
    }

    #[test]
    fn who_holds_a_lock_is_told_and_who_waits_for_it_is_not() {
        let locks = "1: POSIX  ADVISORY  READ 11 fe:00:77 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 fe:00:131105 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4242 fe:00:131105 0 EOF\n";
        assert_eq!(holder_in(locks, 131_105), Some(4242));
        assert_eq!(holder_in(locks, 77), None);
    }
}
