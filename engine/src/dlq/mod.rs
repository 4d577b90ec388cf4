//! Dead letters after they were stored: how a person finds, reads, replays and deletes them.
//!
//! [`crate::dead_letter`] is the shape that they have on an edge; here they are one by one. A sink that
//! keeps them gives a [`LetterStore`], a source that can be sent a message again gives a [`Resender`],
//! and [`replay`] brings the two together.
//!
//! **Danger.** A replay first publishes and then notes that it did. Whatever ends it in between, a letter
//! of the last [`CHUNK`] may be published once more by the next replay; the keys of the sinks make it
//! one row all the same. A sink without a key stores it twice.

mod filter;
mod log;
mod purge;
mod replay;
mod show;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;

pub use filter::{LetterFilter, topic_matches};
pub use log::FileLog;
pub use purge::purge;
pub use replay::{ReplayOptions, ReplayReport, Unsent, replay};
pub use show::LetterText;

use crate::error::StageError;

/// Letters that are sent, or looked up in a log, together.
pub const CHUNK: usize = 256;

/// Tells a letter from all others: 128 bits of a hash over its content and position. Letters that are
/// alike in all of it are one letter, however often it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId(pub [u8; 16]);

/// In 32 hexadecimal digits.
impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl LetterId {
    /// From its 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|number| Self(number.to_be_bytes()))
    }
}

/// One dead letter. See [`crate::dead_letter::schema`] for its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// What it is known by.
    pub id: LetterId,
    /// When the message was received, microseconds since 1970.
    pub received_at_us: i64,
    /// The stage that refused it.
    pub stage: String,
    /// A word to group by.
    pub reason: String,
    /// A sentence for a person.
    pub detail: Option<String>,
    /// The topic it came by, if known.
    pub topic: Option<String>,
    /// The source's position, if known.
    pub position: Option<String>,
    /// The message as received, or the row as JSON.
    pub payload: Bytes,
}

/// Letters with the same stage and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterGroup {
    /// The stage that refused them.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// How many there are.
    pub letters: u64,
    /// When the first was received, microseconds since 1970.
    pub first_us: i64,
    /// When the last was received.
    pub last_us: i64,
}

/// Letters as they are read.
pub type LetterStream<'s> = BoxStream<'s, Result<Letter, StageError>>;

/// Dead letters in the place where a sink has put them. Connects when it is first asked something.
#[async_trait]
pub trait LetterStore: Send {
    /// The place, for a person.
    fn place(&self) -> String;

    /// The letters that the filter lets through and that are there now, the oldest first as far as the
    /// place has an order.
    ///
    /// # Errors
    /// The place can't be read.
    async fn read<'s>(&'s mut self, filter: &'s LetterFilter) -> Result<LetterStream<'s>, StageError>;

    /// How many letters of which kind there are, the largest group first.
    ///
    /// # Errors
    /// As for [`LetterStore::read`].
    async fn groups(&mut self, filter: &LetterFilter) -> Result<Vec<LetterGroup>, StageError> {
        groups_of(self.read(filter).await?).await
    }

    /// The newest letters, the newest first.
    ///
    /// # Errors
    /// As for [`LetterStore::read`].
    async fn newest(&mut self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StageError> {
        newest_of(self.read(filter).await?, limit).await
    }

    /// Whether letters can be deleted there at all.
    ///
    /// # Errors
    /// Why not.
    fn deletes(&self) -> Result<(), StageError> {
        Ok(())
    }

    /// Deletes the letters that the filter lets through; gives their number.
    ///
    /// # Errors
    /// The place keeps what it has, or can't be written.
    async fn delete(&mut self, filter: &LetterFilter) -> Result<u64, StageError>;

    /// Deletes these letters, each as often as it is there; gives the number of rows.
    ///
    /// # Errors
    /// As for [`LetterStore::delete`].
    async fn delete_these(&mut self, letters: &[Letter]) -> Result<u64, StageError>;

    /// A log of replays beside the letters; `None` if the place can hold none.
    fn replay_log(&self) -> Option<Box<dyn ReplayLog>>;
}

/// Which letters were replayed, and when.
#[async_trait]
pub trait ReplayLog: Send {
    /// Those of the letters that were replayed, with the time of the last replay, microseconds since
    /// 1970.
    ///
    /// # Errors
    /// The log can't be read.
    async fn replayed(&mut self, letters: &[LetterId]) -> Result<BTreeMap<LetterId, i64>, StageError>;

    /// Notes that these letters were replayed now; durable on return.
    ///
    /// # Errors
    /// The log can't be written.
    async fn note(&mut self, letters: &[LetterId]) -> Result<(), StageError>;
}

/// What the payload of a letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterForm {
    /// The message as the source received it.
    Message,
    /// A row as JSON, with the columns of the source and perhaps others.
    Row,
}

/// A message on its way back to where a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resent {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: Bytes,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    /// For what it is: it never will be.
    Refused(String),
    /// The connection went, or the other side had no room.
    Later(String),
}

/// Sends messages to where a source reads them. Connects with the first of them.
#[async_trait]
pub trait Resender: Send {
    /// The message that brings a letter back. `topic`: where to, if the letter does not know.
    ///
    /// # Errors
    /// Why there is none, as the rest of a sentence that begins with the letter.
    fn message(&self, letter: &Letter, form: LetterForm, topic: Option<&str>) -> Result<Resent, String>;

    /// A topic that the source reads, with this name in the place of what the source leaves open; `None` if there is none.
    fn topic_of(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }

    /// Sends the messages; on return each is durable on the other side or it is said why not, in the same
    /// order.
    ///
    /// # Errors
    /// Nothing could be sent.
    async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, StageError>;

    /// Called once, after the last message.
    async fn close(&mut self);
}

/// Counts letters as they come, for a store that can't count them itself.
///
/// # Errors
/// The first of the stream.
pub async fn groups_of(mut letters: LetterStream<'_>) -> Result<Vec<LetterGroup>, StageError> {
    let mut groups = BTreeMap::<(String, String), (u64, i64, i64)>::new();
    while let Some(letter) = letters.try_next().await? {
        let at = letter.received_at_us;
        let group = groups.entry((letter.stage, letter.reason)).or_insert((0, at, at));
        *group = (group.0 + 1, group.1.min(at), group.2.max(at));
    }
    let mut groups: Vec<_> = groups
        .into_iter()
        .map(|((stage, reason), (letters, first_us, last_us))| LetterGroup {
            stage,
            reason,
            letters,
            first_us,
            last_us,
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.letters));
    Ok(groups)
}

async fn newest_of(mut letters: LetterStream<'_>, limit: usize) -> Result<Vec<Letter>, StageError> {
    let newest_first = |letters: &mut Vec<Letter>| {
        letters.sort_by_key(|letter| (std::cmp::Reverse(letter.received_at_us), letter.id));
        letters.truncate(limit);
    };
    let mut newest = Vec::new();
    while let Some(letter) = letters.try_next().await? {
        newest.push(letter);
        // Sorted now and then, so that no more than twice as many are held.
        if newest.len() >= limit.saturating_mul(2).max(CHUNK) {
            newest_first(&mut newest);
        }
    }
    newest_first(&mut newest);
    Ok(newest)
}

#[cfg(test)]
mod tests;
