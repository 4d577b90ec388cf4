//! The log of replays on this machine, for letters that lie where no log can be kept beside them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{LetterId, ReplayLog};
use crate::error::StageError;
use crate::stats::now_us;

/// A file with a line for each replay: the letter and the time. A line that a crash has cut short is
/// passed over.
#[derive(Debug)]
pub struct FileLog {
    path: PathBuf,
}

impl FileLog {
    /// The log in a pipeline's data directory, which need not be there.
    pub fn in_data_dir(dir: &Path) -> Self {
        Self { path: dir.join("replayed-letters") }
    }

    fn read(&self) -> io::Result<BTreeMap<LetterId, i64>> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let entry = |line: &str| {
            let (id, at_us) = line.trim_end().split_once(' ')?;
            Some((LetterId::parse(id)?, at_us.parse().ok()?))
        };
        Ok(whole.lines().filter_map(entry).collect())
    }

    fn append(&self, letters: &[LetterId]) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let is_new = !self.path.exists();
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let at_us = now_us();
        // The first newline ends what a crash may have cut short.
        let lines = letters.iter().fold("\n".to_owned(), |text, id| text + &format!("{id} {at_us}\n"));
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
        if is_new { fs::File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn failed(&self, error: io::Error) -> StageError {
        let path = self.path.display();
        StageError::permanent(format!("the log of replays in \"{path}\" can't be used")).because(error)
    }
}

#[async_trait]
impl ReplayLog for FileLog {
    async fn replayed(&mut self, letters: &[LetterId]) -> Result<BTreeMap<LetterId, i64>, StageError> {
        let mut all = self.read().map_err(|error| self.failed(error))?;
        all.retain(|id, _| letters.contains(id));
        Ok(all)
    }

    async fn note(&mut self, letters: &[LetterId]) -> Result<(), StageError> {
        self.append(letters).map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/corpus/letters/EXPECTED.toml`.
    #[derive(serde::Deserialize)]
    struct Corpus {
        log: BTreeMap<String, BTreeMap<String, i64>>,
    }

    #[test]
    fn every_log_of_the_corpus_knows_its_letters() {
        let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/letters"));
        let index = fs::read_to_string(corpus.join("EXPECTED.toml")).expect("the corpus");
        let logs = toml::from_str::<Corpus>(&index).expect("valid TOML").log;
        assert_eq!(logs.len(), fs::read_dir(corpus.join("logs")).expect("a directory").count());
        for (name, expected) in logs {
            let found = FileLog { path: corpus.join("logs").join(&name) }.read().expect("it can be read");
            let found: BTreeMap<_, _> = found.into_iter().map(|(id, at_us)| (id.to_string(), at_us)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_line_cut_short_costs_nothing_but_itself() {
        let home = tempfile::tempdir().expect("a directory");
        let mut log = FileLog::in_data_dir(&home.path().join("p"));
        let [one, two, three] = [1, 2, 3].map(|number| LetterId([number; 16]));
        assert_eq!(log.replayed(&[one]).await.unwrap(), BTreeMap::new());
        log.note(&[one, two]).await.unwrap();
        let text = fs::read_to_string(&log.path).unwrap();
        fs::write(&log.path, &text[..text.len() - 5]).unwrap();
        log.note(&[three]).await.unwrap();
        let found = log.replayed(&[one, two, three]).await.unwrap();
        assert!(found.contains_key(&one) && found.contains_key(&three), "{found:?}");
        let text = fs::read_to_string(&log.path).unwrap();
        fs::write(&log.path, &text[..text.len() - 30]).unwrap();
        assert!(!log.replayed(&[three]).await.unwrap().contains_key(&three), "its line is not whole");
    }
}
