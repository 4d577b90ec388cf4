//! Deleting dead letters that are no longer wanted.

use futures::TryStreamExt;

use super::{CHUNK, Letter, LetterFilter, LetterStore, ReplayLog};
use crate::error::StageError;

/// Letters held at once while those to delete are looked for.
const HELD_MAX: usize = 40 * CHUNK;

/// Deletes the letters that the filter lets through; of these only the replayed ones, if a log is given.
/// Gives the number of rows.
///
/// # Errors
/// The store keeps what it has, or can't be read or written. What was deleted by then stays so.
pub async fn purge(
    store: &mut dyn LetterStore,
    filter: &LetterFilter,
    mut replayed_in: Option<&mut dyn ReplayLog>,
) -> Result<u64, StageError> {
    if filter.ids.is_empty() && replayed_in.is_none() {
        return store.delete(filter).await;
    }
    let mut deleted = 0;
    loop {
        let mut meant = Vec::new();
        let mut letters = store.read(filter).await?.try_chunks(CHUNK);
        while meant.len() < HELD_MAX
            && let Some(chunk) = letters.try_next().await.map_err(|error| error.1)?
        {
            meant.extend(match replayed_in.as_deref_mut() {
                Some(log) => replayed(log, chunk).await?,
                None => chunk,
            });
        }
        let all = meant.len() < HELD_MAX;
        drop(letters);
        if !meant.is_empty() {
            deleted += store.delete_these(&meant).await?;
        }
        if all {
            return Ok(deleted);
        }
    }
}

async fn replayed(log: &mut dyn ReplayLog, mut letters: Vec<Letter>) -> Result<Vec<Letter>, StageError> {
    let ids: Vec<_> = letters.iter().map(|letter| letter.id).collect();
    let found = log.replayed(&ids).await?;
    letters.retain(|letter| found.contains_key(&letter.id));
    Ok(letters)
}
