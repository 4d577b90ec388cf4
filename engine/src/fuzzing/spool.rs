//! The spool: directories of any content.
//!
//! An input is packed files: a byte of what it is, a length in two bytes, the content; for a segment its number in
//! eight bytes first. Checksums are set right before the files are written, unless the input says otherwise: else no
//! mutation would ever come behind one.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{Target, files_below};
use crate::spool::testing::SimulatedDisk;
use crate::spool::walk::{self, Walked};
use crate::spool::{Inspection, SpoolError, SpoolOptions, export, verify};
use crate::storage::Storage;

/// The fuzz target.
pub const TARGET: Target = Target { name: "spool", check, seeds };

const FILES_MAX: usize = 6;
const SEGMENT: u8 = 0;
const CURSORS: u8 = 1;
/// The checksums stay as they are.
const AS_IT_IS: u8 = 0x80;
/// Only the newest segments are read when the spool is opened.
const LAZILY: u8 = 0x40;

/// Where the spool lies: its last folders say whose it is.
const DIR: &str = "/corpus/spools/fuzzed";

/// Writes the files on a disk in memory, looks at the spool and takes it out as a person would, opens it and reads it
/// as a pipeline would.
///
/// # Panics
/// Looking, taking out and reading disagree; a record is silently absent or comes twice; a second start finds other
/// records than the first.
pub fn check(input: &[u8]) {
    let disk = SimulatedDisk::new(0);
    let dir = Path::new(DIR);
    let storage = disk.mount();
    let (files, lazily) = unpack(input);
    write_all(&*storage, dir, &files).expect("a disk in memory");

    let looked = look(&*storage, dir);
    // Blocking, and on no thread of its own: thousands of them a second.
    let opened = |storage: Arc<dyn Storage>| {
        let scan_bytes_max = if lazily { 0 } else { u64::MAX };
        walk::recover_and_read(dir, SpoolOptions { scan_bytes_max, ..options() }, storage)
    };
    let first = match opened(storage) {
        Ok(first) => first,
        Err(SpoolError::Foreign { .. } | SpoolError::Version { .. }) => return,
        Err(error) => panic!("the disk is fine, and yet: {error}"),
    };
    first.check_order();
    let Ok((inspection, exported)) = looked else { panic!("it can be opened, but not looked at") };
    for lsn in exported {
        assert!(first.lsns.contains(&lsn), "{lsn} is taken out but not read: {first:?}, {inspection:?}");
    }
    disk.kill_process();
    let second = opened(disk.mount()).expect("it could be opened before");
    second.check_order();
    assert_eq!(second.lsns, first.lsns, "a second start finds the same");
    assert!(second.next_lsn >= first.next_lsn, "no number is given twice");
}

fn options() -> SpoolOptions {
    // The disk in memory is small.
    SpoolOptions { free_space_min: 0, ..SpoolOptions::new("corpus", "spools") }
}

/// What `pipeline spool` shows and takes out.
fn look(storage: &dyn Storage, dir: &Path) -> Result<(Inspection, Vec<u64>), SpoolError> {
    let verified = verify(dir, storage)?;
    let mut lsns = Vec::new();
    let exported = export(dir, storage, 1..=u64::MAX, |record| {
        lsns.push(record.lsn);
        // No byte of a record may break the line that it is shown on.
        assert!(!record.json().contains('\n'));
        ControlFlow::Continue(())
    })?;
    assert_eq!(verified.damage, exported.damage);
    assert!(lsns.is_sorted_by(|left, right| left < right), "records come out once and in order");
    let counted: u64 = verified.segments.iter().filter_map(|segment| segment.counts).map(|counts| counts.records).sum();
    assert_eq!(lsns.len() as u64, counted, "as many come out as were counted");
    verified.damage.iter().for_each(|damage| assert!(!damage.to_string().is_empty()));
    Ok((verified, lsns))
}

impl Walked {
    /// Every number is read or reported as lost, in order and once.
    fn check_order(&self) {
        let mut expected = 1;
        for (lsns, is_lost) in &self.stretches {
            if self.never_given.iter().any(|gap| gap.contains(&expected)) && *lsns.start() > expected {
                expected = *lsns.start();
            }
            // A frame that was begun to be read in the middle comes whole.
            let fits = if *is_lost { *lsns.start() == expected } else { *lsns.start() <= expected };
            assert!(fits && *lsns.end() >= expected, "{expected} is silently absent: {self:?}");
            expected = lsns.end() + 1;
        }
        if let Some(gap) = self.never_given.iter().find(|gap| gap.contains(&expected)) {
            expected = gap.end() + 1;
        }
        assert!(expected > self.durable_lsn, "{expected} is silently absent: {self:?}");
        assert!(self.next_lsn >= expected, "{} is given again: {self:?}", self.next_lsn);
    }
}

struct File {
    name: String,
    content: Vec<u8>,
}

fn write_all(storage: &dyn Storage, dir: &Path, files: &[File]) -> io::Result<()> {
    storage.create_dir(dir)?;
    for File { name, content } in files {
        let mut file = storage.create(&dir.join(name))?;
        file.append(content)?;
        file.sync_data()?;
    }
    storage.sync_dir(dir)
}

fn unpack(mut input: &[u8]) -> (Vec<File>, bool) {
    let mut files: Vec<File> = Vec::new();
    let mut lazily = false;
    while let Some((&[kind, low, high], rest)) = input.split_first_chunk::<3>()
        && files.len() < FILES_MAX
    {
        let (content, behind) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
        input = behind;
        lazily |= kind & LAZILY != 0;
        let mends = kind & AS_IT_IS == 0;
        files.extend(match kind & !(AS_IT_IS | LAZILY) {
            SEGMENT => segment(content, mends),
            CURSORS => Some(File { name: "cursors".to_owned(), content: cursors(content, mends) }),
            _ => None,
        });
    }
    (files, lazily)
}

fn segment(content: &[u8], mends: bool) -> Option<File> {
    let (number, content) = content.split_first_chunk::<8>()?;
    let mut content = content.to_vec();
    if mends {
        walk::mend_segment(&mut content, &options());
    }
    Some(File { name: walk::segment_name(u64::from_le_bytes(*number)), content })
}

fn cursors(content: &[u8], mends: bool) -> Vec<u8> {
    let text = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if !mends {
        return content.to_vec();
    }
    [text, format!("\n{:08x}\n", crc32fast::hash(text)).as_bytes()].concat()
}

/// Each spool of the corpus, once as it is and once with its checksums set right.
fn seeds(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut folders: Vec<_> = std::fs::read_dir(corpus.join("spools"))?.collect::<io::Result<Vec<_>>>()?;
    folders.retain(|folder| folder.path().is_dir());
    folders.sort_by_key(std::fs::DirEntry::file_name);
    let mut seeds = Vec::new();
    for folder in folders {
        for flags in [AS_IT_IS, 0, AS_IT_IS | LAZILY] {
            let mut packed = Vec::new();
            for path in files_below(&folder.path())? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let content = std::fs::read(&path)?;
                let number = name.strip_suffix(".seg").and_then(|number| number.parse::<u64>().ok());
                let (kind, content) = match number {
                    Some(number) => (SEGMENT, [&number.to_le_bytes()[..], &content].concat()),
                    None if name == "cursors" => (CURSORS, content),
                    None => continue,
                };
                let Ok(length) = u16::try_from(content.len()) else { continue };
                packed.push(kind | flags);
                packed.extend(length.to_le_bytes());
                packed.extend(content);
            }
            seeds.push(packed);
        }
    }
    Ok(seeds)
}
