//! In which folder each row belongs: by its time, by values of its columns, or by why it has no place among the others.

mod escape;
mod template;

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Schema, TimestampMicrosecondType};
use arrow::error::ArrowError;
use aws_lc_rs::digest::{SHA256, digest};
use pipeline_engine::stage::BuildError;
use pipeline_engine::{dead_letter, now_us};

pub(super) use self::escape::push_value;
use self::template::{RANDOM, Role, Template, Values};
use crate::time_pattern::Zone;

/// Hive's layout, which readers know.
const BY_DAY: &str = "year=!{timestamp:yyyy}/month=!{timestamp:MM}/day=!{timestamp:dd}/";
/// Where rows go that have no place under a prefix with columns, if the file does not say.
const ERRORS: &str = "errors/";

/// 0001-01-01 up to 10000-01-01: the years that calendars of readers can hold.
const NAMEABLE_US: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;
/// What file systems take of a name, and some stores of a part of a key.
const NAME_BYTES_MAX: usize = 255;
/// What Firehose takes of a prefix; S3 takes 1,024 bytes of a whole key.
const FOLDER_BYTES_MAX: usize = 512;
/// Letters and digits of `!{firehose:random-string}`.
const RANDOM_CHARS: usize = 11;

/// A value makes a key that no store takes.
const KEY_TOO_LONG: &str = "key-too-long";
/// The rows have more folders than one group may fill.
const PARTITIONS_EXCEEDED: &str = "partitions-exceeded";

/// What decides the time of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// When the pipeline received it.
    Receipt,
    /// The column of this number.
    Column(usize),
}

/// What the pipeline file says of folders.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayoutText<'a> {
    pub(super) prefix: Option<&'a str>,
    pub(super) error_prefix: Option<&'a str>,
    pub(super) time_zone: Option<&'a str>,
    pub(super) partitions_max: usize,
}

/// Where the rows of a sink lie.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    clock: Clock,
    folders: Template,
    errors: Template,
    /// How many folders one group may fill; only where columns name them.
    folders_max: usize,
}

/// A folder of objects, with a mark for what only the object itself decides. Ends with a slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(String);

impl Place {
    /// The folder of the object with this digest.
    pub(super) fn folder(&self, of_object: &[u8]) -> String {
        let mut folder = String::with_capacity(self.0.len());
        for (place, c) in self.0.char_indices() {
            if c == RANDOM { folder.push_str(&random_string(of_object, place)) } else { folder.push(c) }
        }
        folder
    }
}

/// As good as drawn: a digest of the object and of the place in its key. So a group that is written again, after an answer
/// that was lost, makes the same keys.
fn random_string(of_object: &[u8], place: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let drawn = digest(&SHA256, &[of_object, &place.to_le_bytes()].concat());
    drawn.as_ref().iter().take(RANDOM_CHARS).map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()])).collect()
}

impl Layout {
    /// # Errors
    /// What is wrong with a prefix, and where.
    pub(super) fn new(text: LayoutText<'_>, clock: Clock, input: &Schema) -> Result<Self, BuildError> {
        let zone = match text.time_zone {
            None => Zone::UTC,
            Some(name) => Zone::read(name).ok_or_else(|| {
                BuildError::invalid("custom_time_zone", format!("no time zone is named \"{name}\""))
                    .hint("Names are those of the IANA database, such as \"Asia/Tokyo\".")
            })?,
        };
        let errors = |text: &str, reason| Template::parse(text, Role::Errors(reason), input, zone.clone());
        let folders = match (text.prefix, text.error_prefix) {
            (Some(_), Some(_)) if *input == *dead_letter::schema() => {
                return Err(BuildError::invalid(
                    "prefix",
                    "all rows of this sink are dead letters, which go to error_output_prefix",
                )
                .hint("Remove one of the two keys."));
            }
            (None, Some(text)) if *input == *dead_letter::schema() => errors(text, input.index_of("reason").ok())?,
            (prefix, _) => Template::parse(prefix.unwrap_or(BY_DAY), Role::Prefix, input, zone.clone())?,
        };
        let has_columns = !folders.columns().is_empty();
        if text.error_prefix.is_some() && !has_columns {
            return Err(BuildError::invalid(
                "error_output_prefix",
                "every row has a place under the prefix of this sink",
            )
            .hint(
                "What is refused on the way are dead letters: let a sink read them \
                     (inputs = [\"STAGE.rejected\"]), and set error_output_prefix there.",
            ));
        }
        let errors = errors(text.error_prefix.unwrap_or(ERRORS), None)?;
        let folders_max = if has_columns { text.partitions_max } else { usize::MAX };
        Ok(Self { clock, folders, errors, folders_max })
    }

    /// The column of the rows' own time, if that decides.
    pub(super) fn time_column(&self) -> Option<usize> {
        match self.clock {
            Clock::Receipt => None,
            Clock::Column(column) => Some(column),
        }
    }

    /// The rows of each folder, in order of arrival. Each row is in exactly one of the batches. Batches come with when they
    /// were received (microseconds since 1970).
    ///
    /// # Errors
    /// None that occur: the columns are those that the layout was made for.
    pub(super) fn split(
        &self,
        batches: Vec<(RecordBatch, Option<i64>)>,
    ) -> Result<BTreeMap<Place, Vec<RecordBatch>>, ArrowError> {
        let mut sorter = Sorter::new(self);
        for (rows, received_at_us) in batches {
            // Only tests make rows that were never received.
            sorter.sort(&rows, received_at_us.unwrap_or_else(now_us))?;
        }
        Ok(sorter.folders.into_iter().map(|(folder, rows)| (Place(folder), rows)).collect())
    }
}

/// Rows of one group on their way to their folders.
struct Sorter<'l> {
    layout: &'l Layout,
    columns: Vec<usize>,
    step_us: Option<i64>,
    /// Numbers of folders, by what the rows of one have in common.
    numbers: HashMap<Vec<u8>, usize, RandomState>,
    by_name: HashMap<String, usize, RandomState>,
    folders: Vec<(String, Vec<RecordBatch>)>,
    /// How many of the folders are not for errors.
    ordinary: usize,
}

impl<'l> Sorter<'l> {
    fn new(layout: &'l Layout) -> Self {
        let columns = layout.folders.columns();
        let errors_step_us = if columns.is_empty() { None } else { layout.errors.step_us() };
        Self {
            layout,
            columns,
            step_us: layout.folders.step_us().into_iter().chain(errors_step_us).min(),
            numbers: HashMap::default(),
            by_name: HashMap::default(),
            folders: Vec::new(),
            ordinary: 0,
        }
    }

    fn sort(&mut self, rows: &RecordBatch, received_at_us: i64) -> Result<(), ArrowError> {
        let times = match self.layout.clock {
            Clock::Receipt => None,
            Clock::Column(column) => Some(rows.column(column).as_primitive::<TimestampMicrosecondType>()),
        };
        let texts = self.columns.iter().map(|column| Ok((*column, cast(rows.column(*column), &DataType::Utf8)?)));
        let texts = texts.collect::<Result<Vec<_>, ArrowError>>()?;
        let texts: Vec<(usize, &StringArray)> =
            texts.iter().map(|(column, texts)| (*column, texts.as_string())).collect();

        let mut rows_of = BTreeMap::<usize, Vec<u64>>::new();
        let (mut key, mut last_key, mut last) = (Vec::new(), Vec::new(), 0);
        for row in 0..rows.num_rows() {
            let time_us = times.map_or(Some(received_at_us), |times| times.is_valid(row).then(|| times.value(row)));
            let time_us = time_us.filter(|time_us| NAMEABLE_US.contains(time_us));
            let step = self.step_us.and_then(|step_us| Some(time_us?.div_euclid(step_us)));
            put_key(&mut key, step, texts.iter().map(|(_, texts)| value_of(texts, row)));
            // Rows of one folder often follow on each other.
            if key != last_key || row == 0 {
                last = match self.numbers.get(&key) {
                    Some(number) => *number,
                    None => {
                        let texts_of = |column| texts.iter().find(|(found, _)| *found == column);
                        let column = |column: usize| value_of(texts_of(column)?.1, row);
                        let folder = self.folder(&Values { time_us, column: &column, error_type: "" });
                        let number = self.number(folder);
                        self.numbers.insert(key.clone(), number);
                        number
                    }
                };
                std::mem::swap(&mut key, &mut last_key);
            }
            rows_of.entry(last).or_default().push(row as u64);
        }
        let is_whole = rows_of.len() == 1;
        for (number, indices) in rows_of {
            let part = if is_whole { rows.clone() } else { take_record_batch(rows, &UInt64Array::from(indices))? };
            self.folders[number].1.push(part);
        }
        Ok(())
    }

    /// Where rows with these values lie: under the error prefix, if they can't under the other.
    fn folder(&mut self, values: &Values<'_>) -> String {
        let folder = self.layout.folders.fill(values);
        let error_type = if is_too_long(&folder) {
            KEY_TOO_LONG
        } else if self.by_name.contains_key(&folder) {
            return folder;
        } else if self.ordinary == self.layout.folders_max {
            PARTITIONS_EXCEEDED
        } else {
            self.ordinary += 1;
            return folder;
        };
        self.layout.errors.fill(&Values { error_type, ..*values })
    }

    fn number(&mut self, folder: String) -> usize {
        *self.by_name.entry(folder).or_insert_with_key(|folder| {
            self.folders.push((folder.clone(), Vec::new()));
            self.folders.len() - 1
        })
    }
}

fn value_of(texts: &StringArray, row: usize) -> Option<&str> {
    texts.is_valid(row).then(|| texts.value(row))
}

/// What rows of one folder have in common: the time as far as it is told apart, and the values.
fn put_key<'a>(key: &mut Vec<u8>, step: Option<i64>, values: impl Iterator<Item = Option<&'a str>>) {
    key.clear();
    key.push(u8::from(step.is_some()));
    key.extend(step.unwrap_or(0).to_le_bytes());
    for value in values {
        // The length first, so that no two rows run together to the same key.
        key.extend(value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
        key.extend(value.unwrap_or_default().as_bytes());
    }
}

fn is_too_long(folder: &str) -> bool {
    let bytes = |text: &str| text.len() + text.matches(RANDOM).count() * (RANDOM_CHARS - 1);
    bytes(folder) > FOLDER_BYTES_MAX || folder.split('/').any(|name| bytes(name) > NAME_BYTES_MAX)
}

#[cfg(test)]
mod tests;
