//! A table in memory: its columns, and the place of each key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::path::PathBuf;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, UInt32Array, UInt32Builder};
use arrow::datatypes::{DataType, Int16Type, Int32Type, Int64Type};
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::StageError;
use schemars::JsonSchema;
use serde::Deserialize;

use super::read;

/// What kind of file a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableFormat {
    /// Comma-separated values with a header. Blanks around a cell are cut; an empty cell is null.
    Csv,
    /// Apache Parquet.
    Parquet,
}

/// Where a table lies and what it must hold.
#[derive(Debug)]
pub(super) struct TableSpec {
    pub(super) path: PathBuf,
    pub(super) format: TableFormat,
    /// The column with the keys.
    pub(super) key: String,
    /// Keys are text; else whole numbers.
    pub(super) is_text_key: bool,
    /// The other columns that are wanted.
    pub(super) columns: Vec<(String, ColumnType)>,
    pub(super) bytes_max: u64,
}

/// A table that keeps its rules: keys are there, and each is there once.
#[derive(Debug)]
pub(super) struct Table {
    /// In the order of [`TableSpec::columns`], each of its type.
    pub(super) columns: Vec<ArrayRef>,
    index: Index,
}

type Places<K> = HashMap<K, u32, RandomState>;

#[derive(Debug)]
enum Index {
    Text(Places<Box<str>>),
    Integer(Places<i64>),
}

impl TableSpec {
    /// Reads and indexes the table.
    ///
    /// # Errors
    /// Permanent: it is not there, too large, not of its format, or breaks a rule of [`Table`].
    pub(super) fn load(&self) -> Result<Table, StageError> {
        let cells = match self.format {
            TableFormat::Csv => read::csv(self)?,
            TableFormat::Parquet => read::parquet(self)?,
        };
        let index = if self.is_text_key {
            let keys = cells.key.as_string::<i32>();
            Index::Text(self.index(keys.iter().map(|key| key.map(Box::from)), &cells.places)?)
        } else {
            Index::Integer(self.index(cells.key.as_primitive::<Int64Type>().iter(), &cells.places)?)
        };
        Ok(Table { columns: cells.columns, index })
    }

    fn index<K: Hash + Eq>(
        &self,
        keys: impl ExactSizeIterator<Item = Option<K>>,
        cells: &read::Places,
    ) -> Result<Places<K>, StageError> {
        let mut places = Places::with_capacity_and_hasher(keys.len(), RandomState::new());
        for (row, key) in (0..).zip(keys) {
            let Some(key) = key else {
                return Err(self.broken(format!("{} has no \"{}\"", cells.name(row), self.key)));
            };
            match places.entry(key) {
                Entry::Vacant(entry) => _ = entry.insert(row),
                Entry::Occupied(entry) => {
                    let (first, second) = (cells.name(*entry.get()), cells.name(row));
                    return Err(self.broken(format!("{second} has the same \"{}\" as {first}", self.key)));
                }
            }
        }
        Ok(places)
    }

    /// A table that a person has to mend.
    pub(super) fn broken(&self, what: impl AsRef<str>) -> StageError {
        StageError::permanent(format!("table \"{}\": {}", self.path.display(), what.as_ref()))
    }
}

impl Table {
    /// How many entries it has.
    pub(super) fn rows(&self) -> usize {
        match &self.index {
            Index::Text(places) => places.len(),
            Index::Integer(places) => places.len(),
        }
    }

    /// The place of each key; null for a null and for a key without entry.
    pub(super) fn find(&self, keys: &ArrayRef) -> UInt32Array {
        match &self.index {
            Index::Text(places) => find_runs(keys.as_string::<i32>().iter(), |key: &str| places.get(key).copied()),
            Index::Integer(places) => match keys.data_type() {
                DataType::Int16 => find_integers::<Int16Type>(keys, places),
                DataType::Int32 => find_integers::<Int32Type>(keys, places),
                _ => find_integers::<Int64Type>(keys, places),
            },
        }
    }
}

fn find_integers<T: ArrowPrimitiveType>(keys: &ArrayRef, places: &Places<i64>) -> UInt32Array
where
    i64: From<T::Native>,
{
    find_runs(keys.as_primitive::<T>().iter(), |key| places.get(&i64::from(key)).copied())
}

/// Looks up each key that differs from the one before.
fn find_runs<K: PartialEq + Copy>(
    keys: impl ExactSizeIterator<Item = Option<K>>,
    place: impl Fn(K) -> Option<u32>,
) -> UInt32Array {
    let mut places = UInt32Builder::with_capacity(keys.len());
    let (mut last, mut last_place) = (None, None);
    for key in keys {
        if key != last {
            (last, last_place) = (key, key.and_then(&place));
        }
        places.append_option(last_place);
    }
    places.finish()
}

/// A key for a person; `None` for a null.
pub(super) fn shown_key(keys: &ArrayRef, row: usize) -> Option<String> {
    if keys.is_null(row) {
        return None;
    }
    Some(match keys.data_type() {
        DataType::Utf8 => format!("{:?}", keys.as_string::<i32>().value(row)),
        DataType::Int16 => keys.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => keys.as_primitive::<Int32Type>().value(row).to_string(),
        _ => keys.as_primitive::<Int64Type>().value(row).to_string(),
    })
}
