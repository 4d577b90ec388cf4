//! What the sink remembers on this machine's disk, so that each row ends in exactly one object.
//!
//! A group is staged as a whole, with its finished objects and with how far they take the sink,
//! before the first of its objects is created. So it never has to be made again: after a crash the
//! same objects are created, or found, and only then does the sink's position move. Where groups
//! begin and end is decided once, by whatever clock; a restart can't decide it otherwise.
//!
//! | a crash comes | what is there | what the next start does |
//! |---|---|---|
//! | before the group is staged | no object | nothing: the rows come again |
//! | before all objects are created | some of them | creates the rest |
//! | before the position is recorded | all of them | finds them, records it |
//! | before the staged group is removed | all, recorded | removes it |
//!
//! **Danger.** The folder is the only place that says what is stored. Where it is lost and the source
//! still holds the rows, they are stored a second time.

mod files;
pub(super) mod format;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pipeline_engine::Position;
use pipeline_engine::spool::Storage;
use pipeline_engine::stage::{Advance, Committed, StageError};

use self::files::{Files, Place};
use super::disk::off_the_runtime;
use super::store::Object;

/// The sink's memory. Nothing is written to disk before the first group is staged.
pub(super) struct Journal {
    place: Place,
    /// `None` before the journal is opened, and while there is none.
    opened: Option<Opened>,
}

struct Opened {
    files: Files,
    /// As on disk.
    positions: Positions,
    /// Durable, and not yet settled.
    staged: Option<Staged>,
    /// The group that was settled last: it may be asked for again.
    settled: Vec<Advance>,
}

/// A group that is durable here, on its way to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staged {
    /// How far it takes the sink.
    pub(super) advances: Vec<Advance>,
    /// All its rows, as they will be in the store.
    pub(super) objects: Vec<Object>,
}

impl Journal {
    pub(super) fn new(storage: Arc<dyn Storage>, dir: PathBuf) -> Self {
        Self { place: Place { storage, dir }, opened: None }
    }

    /// Reads what there is. Leaves a machine alone that has no journal.
    pub(super) async fn open(&mut self) -> Result<(), StageError> {
        if self.opened.is_none() {
            let place = self.place.clone();
            let load = move || if place.is_taken_up()? { load(&place).map(Some) } else { Ok(None) };
            self.opened = off_the_runtime(load).await?;
        }
        Ok(())
    }

    /// Everything at or before these is in the store.
    pub(super) fn committed(&self) -> Vec<Committed> {
        self.opened.as_ref().map(|opened| opened.positions.committed()).unwrap_or_default()
    }

    /// The group that is to be brought to the store before any other.
    pub(super) fn staged(&self) -> Option<&Staged> {
        self.opened.as_ref()?.staged.as_ref()
    }

    /// Whether a group has still to be stored: not if it is the one that was settled last.
    ///
    /// # Errors
    /// It does not go on from where the sink is.
    pub(super) fn is_due(&self, advances: &[Advance]) -> Result<bool, StageError> {
        match &self.opened {
            Some(opened) => opened.positions.is_due(&opened.settled, advances),
            None => Positions::default().is_due(&[], advances),
        }
    }

    /// The group is durable here on return. None may be staged, and it must be due.
    pub(super) async fn stage(&mut self, staged: Staged) -> Result<(), StageError> {
        let opened = match &mut self.opened {
            Some(opened) => opened,
            None => {
                let place = self.place.clone();
                let create = move || {
                    place.take_up()?;
                    load(&place)
                };
                self.opened.insert(off_the_runtime(create).await?)
            }
        };
        // Of a journal that was there after all.
        if opened.staged.is_some() || !matches!(opened.positions.standing(&staged.advances), Standing::Next) {
            return Err(StageError::transient(format!("\"{}\" was used by another run", self.place.dir.display())));
        }
        let (files, group) = (opened.files.clone(), staged.clone());
        off_the_runtime(move || files.stage(&group)).await?;
        opened.staged = Some(staged);
        Ok(())
    }

    /// All objects of the staged group are in the store: the sink has come that far.
    pub(super) async fn settle(&mut self) -> Result<(), StageError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let Some(staged) = &opened.staged else { return Ok(()) };
        let positions = opened.positions.after(&staged.advances);
        let (files, recorded) = (opened.files.clone(), positions.clone());
        off_the_runtime(move || files.record(&recorded)).await?;
        opened.positions = positions;
        opened.settled = opened.staged.take().map(|staged| staged.advances).unwrap_or_default();
        Ok(())
    }
}

fn load(place: &Place) -> Result<Opened, StageError> {
    let files = place.seize()?;
    let (positions, staged) = files.load()?;
    Ok(Opened { files, positions, staged, settled: Vec::new() })
}

/// How far the sink has come: for each input and partition the last position that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Positions(pub(super) BTreeMap<(String, String), Position>);

/// A group, as seen from where the sink is.
pub(super) enum Standing {
    /// It goes on from here.
    Next,
    /// The sink has come as far, or farther.
    Reached,
    /// Neither: what is wrong.
    Elsewhere(String),
}

impl Positions {
    /// Whether a group has still to be stored: not if it is the one that was `settled` last.
    ///
    /// # Errors
    /// It does not go on from here.
    pub(super) fn is_due(&self, settled: &[Advance], advances: &[Advance]) -> Result<bool, StageError> {
        if settled == advances {
            return Ok(false);
        }
        match self.standing(advances) {
            Standing::Next => Ok(true),
            Standing::Reached => Err(StageError::bug("a group came that is stored already")),
            Standing::Elsewhere(what) => {
                Err(StageError::bug(format!("a group came that does not go on from what is stored: {what}")))
            }
        }
    }

    pub(super) fn standing(&self, advances: &[Advance]) -> Standing {
        let here = |advance: &Advance| self.0.get(&(advance.input.clone(), advance.partition.clone())).copied();
        if advances.iter().all(|advance| here(advance) >= Some(advance.to)) {
            return Standing::Reached;
        }
        let Some(other) = advances.iter().find(|advance| here(advance) != advance.from) else { return Standing::Next };
        let text =
            |position: Option<Position>| position.map_or("the start".to_owned(), |position| position.to_string());
        Standing::Elsewhere(format!(
            "partition \"{}\" of input \"{}\" from {} on, stored up to {}",
            other.partition,
            other.input,
            text(other.from),
            text(here(other)),
        ))
    }

    pub(super) fn after(&self, advances: &[Advance]) -> Self {
        let mut after = self.clone();
        for advance in advances {
            after.0.insert((advance.input.clone(), advance.partition.clone()), advance.to);
        }
        after
    }

    pub(super) fn committed(&self) -> Vec<Committed> {
        let entry = |((input, partition), position): (&(String, String), &Position)| Committed {
            input: input.clone(),
            partition: partition.clone(),
            position: *position,
        };
        self.0.iter().map(entry).collect()
    }
}
