//! Gets a table from where it lies, and tells whether it is another one than the last time.

mod file;
#[cfg(feature = "parquet")]
mod object;
#[cfg(feature = "timescaledb")]
mod query;

use std::sync::Arc;

use arrow::array::StringArray;
use bytes::Bytes;
use pipeline_engine::stage::StageError;
use pipeline_engine::units::DurationText;

use self::file::FileFetcher;
#[cfg(feature = "parquet")]
use self::object::ObjectFetcher;
#[cfg(feature = "timescaledb")]
use self::query::QueryFetcher;
use super::place::{Place, PlaceKind};

/// A table as it came.
pub(in crate::transforms) enum Content {
    /// A whole file, of whatever format.
    Bytes(Bytes),
    /// Rows by column, each cell in the text form of the database.
    Rows { names: Vec<String>, columns: Vec<StringArray> },
}

/// Asks one place again and again.
pub(super) struct Fetcher {
    place: Arc<Place>,
    kind: FetcherKind,
}

enum FetcherKind {
    File(FileFetcher),
    #[cfg(feature = "parquet")]
    Object(ObjectFetcher),
    #[cfg(feature = "timescaledb")]
    Query(QueryFetcher),
}

impl Fetcher {
    pub(super) fn new(place: Arc<Place>) -> Self {
        let kind = match &place.kind {
            PlaceKind::File(_) => FetcherKind::File(FileFetcher::default()),
            #[cfg(feature = "parquet")]
            PlaceKind::Object { .. } => FetcherKind::Object(ObjectFetcher::default()),
            #[cfg(feature = "timescaledb")]
            PlaceKind::Query { .. } => FetcherKind::Query(QueryFetcher::default()),
        };
        Self { place, kind }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The table as it is there now; `None` if it is the one that the last call gave or complained of.
    ///
    /// # Errors
    /// Transient: what holds the table is away or did not answer within the time that it has. Permanent: there is
    /// no such table, it may not be read, or it is too large.
    pub(super) async fn fetch(&mut self) -> Result<Option<Content>, StageError> {
        let place = self.place.clone();
        let limit = place.read_timeout;
        tokio::time::timeout(limit, self.fetch_patiently()).await.unwrap_or_else(|_| {
            let limit = DurationText(limit);
            Err(StageError::transient(format!("{place} was not read within {limit}, the `read_timeout`")))
        })
    }

    async fn fetch_patiently(&mut self) -> Result<Option<Content>, StageError> {
        match (&mut self.kind, &self.place.kind) {
            (FetcherKind::File(fetcher), PlaceKind::File(path)) => fetcher.fetch(&self.place, path),
            #[cfg(feature = "parquet")]
            (FetcherKind::Object(fetcher), PlaceKind::Object { settings, key }) => {
                fetcher.fetch(&self.place, settings, key).await
            }
            #[cfg(feature = "timescaledb")]
            (FetcherKind::Query(fetcher), PlaceKind::Query { database, sql }) => {
                fetcher.fetch(&self.place, database, sql).await
            }
            #[cfg(any(feature = "parquet", feature = "timescaledb"))]
            _ => Err(StageError::bug("a table is fetched from another place than its own")),
        }
    }
}

fn too_large(place: &Place, bytes: u64) -> StageError {
    let text = format!("it has {bytes} bytes, more than `max_table_size`, {}", place.bytes_max);
    place.broken(text).hint("It is held in memory: raise the limit if that much may be used.")
}
