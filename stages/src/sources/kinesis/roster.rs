//! Where each shard starts, and how far it need not be read again: one small file, replaced as a whole.
//!
//! It is written before the first record of a shard is read. So "latest" means the same after a restart as at the first
//! start, whatever came or did not come in between.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pipeline_engine::Position;
use pipeline_engine::stage::StageError;
use pipeline_engine::storage::{self, Storage};
use serde::{Deserialize, Serialize};

const FILE: &str = "shards.json";

/// Where a shard is read from if nothing was ever read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    /// Its oldest record.
    Horizon,
    /// The first that arrived at this time or later, microseconds since 1970.
    Time(i64),
    /// What comes from now on, which was at this time.
    Latest(i64),
    /// Nowhere: it was closed before the first start, which began at the latest.
    Skipped,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) origin: Origin,
    /// Everything up to here is stored in every sink.
    pub(super) passed: Option<Position>,
}

/// All shards of a stream, as this source reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roster {
    /// Another one for each data directory: what sinks know of the positions of one means nothing for another.
    pub(super) generation: String,
    pub(super) stream: String,
    /// A stream of the same name that was made at another time is another one.
    pub(super) stream_created_at_us: i64,
    pub(super) shards: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct RosterText {
    generation: String,
    stream: String,
    stream_created_at_us: i64,
    shards: BTreeMap<String, EntryText>,
}

#[derive(Serialize, Deserialize)]
struct EntryText {
    origin: Origin,
    passed: Option<String>,
}

impl Roster {
    /// For a stream of which nothing was read.
    pub(super) fn new(stream: &str, stream_created_at_us: i64) -> Self {
        let generation = format!("{:08x}", rand::random::<u32>());
        Self { generation, stream: stream.to_owned(), stream_created_at_us, shards: BTreeMap::new() }
    }

    fn encode(&self) -> Vec<u8> {
        let entry =
            |entry: &Entry| EntryText { origin: entry.origin, passed: entry.passed.as_ref().map(ToString::to_string) };
        let text = RosterText {
            generation: self.generation.clone(),
            stream: self.stream.clone(),
            stream_created_at_us: self.stream_created_at_us,
            shards: self.shards.iter().map(|(id, known)| (id.clone(), entry(known))).collect(),
        };
        serde_json::to_vec_pretty(&text).expect("names and numbers are JSON")
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text: RosterText = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut shards = BTreeMap::new();
        for (id, entry) in text.shards {
            let passed = entry.passed.map(|passed| passed.parse::<Position>()).transpose();
            let passed = passed.map_err(|error| error.to_string())?;
            shards.insert(id, Entry { origin: entry.origin, passed });
        }
        let RosterText { generation, stream, stream_created_at_us, .. } = text;
        Ok(Self { generation, stream, stream_created_at_us, shards })
    }
}

/// Where a roster is kept.
#[derive(Debug, Clone)]
pub(super) struct RosterFile {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) dir: PathBuf,
}

impl RosterFile {
    /// What was kept; `None` where nothing was. Blocks.
    ///
    /// # Errors
    /// The file is damaged, or the disk refuses.
    pub(super) fn load(&self) -> Result<Option<Roster>, StageError> {
        let path = self.dir.join(FILE);
        let refused = |what: &str| StageError::permanent(format!("can't {what} \"{}\"", path.display()));
        let bytes = match storage::read_all(&*self.storage, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused("read").because(error)),
        };
        Roster::decode(&bytes).map(Some).map_err(|why| {
            refused("make sense of").because(why).hint(
                "Put it back from a backup. Without it the stream is read anew from \"start\", and what is stored \
                 already comes again.",
            )
        })
    }

    /// Keeps a roster in place of the last. Durable on return. Blocks.
    ///
    /// # Errors
    /// As the disk says; the last one is still there.
    pub(super) fn keep(&self, roster: &Roster) -> io::Result<()> {
        self.storage.create_dir(&self.dir)?;
        storage::replace(&*self.storage, &self.dir, FILE, &[&roster.encode()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::spool::FsStorage;
    use pipeline_engine::stage::Fault;

    use super::*;

    #[test]
    fn a_roster_is_read_back_as_it_was_kept_and_a_damaged_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = RosterFile { storage: Arc::new(FsStorage), dir: dir.path().join("in") };
        assert_eq!(file.load().unwrap(), None);
        let mut roster = Roster::new("readings", 7);
        let origins = [Origin::Horizon, Origin::Time(-5), Origin::Latest(9), Origin::Skipped];
        for (number, origin) in origins.into_iter().enumerate() {
            let passed = (number % 2 == 0).then_some(Position([0, 1, 2, 3]));
            roster.shards.insert(format!("shard-{number}"), Entry { origin, passed });
        }
        file.keep(&roster).unwrap();
        assert_eq!(file.load().unwrap(), Some(roster));
        std::fs::write(file.dir.join(FILE), "{\"generation\":").unwrap();
        assert_eq!(file.load().unwrap_err().fault(), Fault::Permanent);
    }
}
