//! A table in memory: its columns, and the place of each key, or of each key at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, UInt32Array, UInt32Builder};
use arrow::datatypes::{DataType, Int16Type, Int32Type, Int64Type};
use pipeline_engine::stage::StageError;

use super::history::{History, HistorySpec};
use crate::transforms::tables::fetch::Content;
use crate::transforms::tables::follow::Loaded;
use crate::transforms::tables::read::{Layout, Places};

/// What a table must hold. The columns of its layout are the key, the times of its history if it has one, and
/// those to add.
#[derive(Debug)]
pub(super) struct TableSpec {
    pub(super) layout: Layout,
    /// Keys are text; else whole numbers.
    pub(super) is_text_key: bool,
    /// Each row of a key is valid from a time on; else each key is there once.
    pub(super) history: Option<HistorySpec>,
}

/// A table that keeps its rules: keys are there, and each is there once, or once at a time.
#[derive(Debug)]
pub(super) struct Table {
    /// Those to add, in the order of the layout, each of its type.
    pub(super) columns: Vec<ArrayRef>,
    /// The row of each key; with a history, the number of the key there.
    index: Index,
    history: Option<History>,
    rows: usize,
}

type Entries<K> = HashMap<K, u32, RandomState>;

#[derive(Debug)]
enum Index {
    Text(Entries<Box<str>>),
    Integer(Entries<i64>),
}

impl TableSpec {
    /// The columns to add, with their index in the layout.
    pub(super) fn first_added(&self) -> usize {
        1 + self.history.as_ref().map_or(0, HistorySpec::columns)
    }

    /// The keys' numbers, in order of appearance, and the number of each row's key.
    fn number<K: Hash + Eq>(
        &self,
        keys: impl ExactSizeIterator<Item = Option<K>>,
        places: &Places,
    ) -> Result<(Entries<K>, Vec<u32>), StageError> {
        let mut entries = Entries::with_capacity_and_hasher(keys.len(), RandomState::new());
        let mut numbers = Vec::with_capacity(keys.len());
        for (row, key) in (0..).zip(keys) {
            let Some(key) = key else {
                return Err(self.broken(format!("{} has no \"{}\"", places.name(row), self.key())));
            };
            let next = u32::try_from(entries.len()).map_err(|_| self.broken("it has more than 2^32 keys"))?;
            match entries.entry(key) {
                Entry::Vacant(entry) => numbers.push(*entry.insert(next)),
                // Without a history, a key's number is its row: so far, each row had a key of its own.
                Entry::Occupied(entry) if self.history.is_none() => {
                    let (first, second) = (places.name(*entry.get()), places.name(row));
                    return Err(self.broken(format!("{second} has the same \"{}\" as {first}", self.key())));
                }
                Entry::Occupied(entry) => numbers.push(*entry.get()),
            }
        }
        Ok((entries, numbers))
    }

    fn key(&self) -> &str {
        &self.layout.columns[0].0
    }

    /// A table that a person has to mend.
    pub(super) fn broken(&self, what: impl AsRef<str>) -> StageError {
        self.layout.broken(what)
    }
}

impl Loaded for Table {
    type Spec = TableSpec;

    fn load(spec: &TableSpec, content: Content) -> Result<Self, StageError> {
        let cells = spec.layout.read(content)?;
        let (mut columns, places) = (cells.columns, cells.places);
        let added = columns.split_off(spec.first_added());
        let rows = columns[0].len();
        let (index, numbers) = if spec.is_text_key {
            let keys = columns[0].as_string::<i32>();
            let (entries, numbers) = spec.number(keys.iter().map(|key| key.map(Box::from)), &places)?;
            (Index::Text(entries), numbers)
        } else {
            let keys = columns[0].as_primitive::<Int64Type>();
            let (entries, numbers) = spec.number(keys.iter(), &places)?;
            (Index::Integer(entries), numbers)
        };
        let history = spec.history.as_ref();
        let history = history.map(|history| history.build(spec, &columns[1..], &numbers, &places)).transpose()?;
        Ok(Self { columns: added, index, history, rows })
    }

    fn rows(&self) -> usize {
        self.rows
    }
}

impl Table {
    /// The row of each key; null for a null and for a key without entry. With a history, the row that is valid
    /// at the reading's time, which stands in `times`.
    pub(super) fn find(&self, keys: &ArrayRef, times: Option<&ArrayRef>) -> UInt32Array {
        let found = match &self.index {
            Index::Text(entries) => find_runs(keys.as_string::<i32>().iter(), |key: &str| entries.get(key).copied()),
            Index::Integer(entries) => match keys.data_type() {
                DataType::Int16 => find_integers::<Int16Type>(keys, entries),
                DataType::Int32 => find_integers::<Int32Type>(keys, entries),
                _ => find_integers::<Int64Type>(keys, entries),
            },
        };
        match (&self.history, times) {
            (Some(history), Some(times)) => history.find(&found, times),
            _ => found,
        }
    }
}

fn find_integers<T: ArrowPrimitiveType>(keys: &ArrayRef, entries: &Entries<i64>) -> UInt32Array
where
    i64: From<T::Native>,
{
    find_runs(keys.as_primitive::<T>().iter(), |key| entries.get(&i64::from(key)).copied())
}

/// Looks up each key that differs from the one before.
fn find_runs<K: PartialEq + Copy>(
    keys: impl ExactSizeIterator<Item = Option<K>>,
    entry: impl Fn(K) -> Option<u32>,
) -> UInt32Array {
    let mut found = UInt32Builder::with_capacity(keys.len());
    let (mut last, mut last_entry) = (None, None);
    for key in keys {
        if key != last {
            (last, last_entry) = (key, key.and_then(&entry));
        }
        found.append_option(last_entry);
    }
    found.finish()
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
