//! Rows that wait for a decision, whatever batch they came by.
//!
//! They stay columns: a row is a place in a batch, and a batch goes when none of its rows is left. Where too few are
//! left of too many, they are gathered into one. So a row costs what its columns do, 24 bytes, and 8 for each column
//! that is thinned; it is moved less than twice on average, and no more rows are stored than twice those that wait and [`SPARE_ROWS`].

use arrow::array::{Array, AsArray, Float64Array};
use arrow::compute::{cast, interleave_record_batch};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::StageError;

/// A row that is held, until it is let go or kept.
pub(super) type Slot = u32;

/// Rows that may be stored for nothing: gathering few rows again and again would cost more.
const SPARE_ROWS: usize = 1024;

/// What `Place::batch` is of a slot without a row.
const NOWHERE: u32 = u32::MAX;

/// All rows that wait, and those that were decided to stay and have not left yet.
#[derive(Clone)]
pub(super) struct HeldRows {
    schema: SchemaRef,
    /// The columns that are thinned.
    columns: Vec<usize>,
    places: Vec<Place>,
    /// The values of each slot, one for each of `columns`; what is no finite number is NaN.
    values: Vec<f64>,
    free: Vec<Slot>,
    batches: Vec<Stored>,
    free_batches: Vec<u32>,
    /// The batch at hand.
    current: u32,
    rows_stored: usize,
    rows_held: usize,
    kept: Vec<Slot>,
    /// How many rows were left out.
    left_out: u64,
}

#[derive(Clone, Copy)]
struct Place {
    batch: u32,
    row: u32,
    time_us: i64,
}

#[derive(Clone)]
struct Stored {
    rows: RecordBatch,
    rows_held: usize,
}

/// The columns that are thinned, of one batch, as floats.
pub(super) struct Numbers(Vec<Float64Array>);

impl Numbers {
    fn of(rows: &RecordBatch, columns: &[usize]) -> Result<Self, StageError> {
        let floats = columns
            .iter()
            .map(|column| Ok(cast(rows.column(*column), &DataType::Float64)?.as_primitive::<Float64Type>().clone()));
        floats.collect::<Result<_, StageError>>().map(Self)
    }

    fn row(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(move |column| {
            let value = if column.is_valid(row) { column.value(row) } else { f64::NAN };
            if value.is_finite() { value } else { f64::NAN }
        })
    }
}

impl HeldRows {
    pub(super) fn new(schema: SchemaRef, columns: Vec<usize>) -> Self {
        Self {
            schema,
            columns,
            places: Vec::new(),
            values: Vec::new(),
            free: Vec::new(),
            batches: Vec::new(),
            free_batches: Vec::new(),
            current: NOWHERE,
            rows_stored: 0,
            rows_held: 0,
            kept: Vec::new(),
            left_out: 0,
        }
    }

    /// The same columns, and nothing held.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.schema.clone(), self.columns.clone())
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// How many rows wait for a decision.
    pub(super) fn waiting(&self) -> usize {
        self.rows_held - self.kept.len()
    }

    /// The next rows that are held are of this batch.
    pub(super) fn begin(&mut self, rows: &RecordBatch) -> Result<Numbers, StageError> {
        let stored = Stored { rows: rows.clone(), rows_held: 0 };
        self.rows_stored += rows.num_rows();
        self.current = match self.free_batches.pop() {
            Some(free) => {
                self.batches[free as usize] = stored;
                free
            }
            None => {
                self.batches.push(stored);
                self.batches.len() as u32 - 1
            }
        };
        Numbers::of(rows, &self.columns)
    }

    /// Holds a row of the batch at hand.
    pub(super) fn hold(&mut self, row: usize, time_us: i64, numbers: &Numbers) -> Slot {
        let place = Place { batch: self.current, row: row as u32, time_us };
        self.rows_held += 1;
        self.batches[self.current as usize].rows_held += 1;
        if let Some(slot) = self.free.pop() {
            self.places[slot as usize] = place;
            let from = slot as usize * self.columns.len();
            self.values[from..from + self.columns.len()].iter_mut().zip(numbers.row(row)).for_each(|(to, of)| *to = of);
            return slot;
        }
        self.places.push(place);
        self.values.extend(numbers.row(row));
        self.places.len() as u32 - 1
    }

    pub(super) fn time_us(&self, slot: Slot) -> i64 {
        self.places[slot as usize].time_us
    }

    /// One value for each column that is thinned; NaN is none.
    pub(super) fn values(&self, slot: Slot) -> &[f64] {
        let from = slot as usize * self.columns.len();
        &self.values[from..from + self.columns.len()]
    }

    /// The row stays: it leaves with the batch at hand, behind those that were kept before.
    pub(super) fn keep(&mut self, slot: Slot) {
        self.kept.push(slot);
    }

    /// The row is left out.
    pub(super) fn leave_out(&mut self, slot: Slot) {
        self.left_out += 1;
        self.let_go(slot);
    }

    /// The number of rows left out since the last call.
    pub(super) fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// How many rows were kept since they were taken.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Takes back the rows that were kept last, from the `from`th on: to put them in another order.
    pub(super) fn kept_since(&mut self, from: usize) -> Vec<Slot> {
        self.kept.split_off(from)
    }

    /// The rows that were kept, which are no longer held.
    pub(super) fn take_kept(&mut self) -> Result<RecordBatch, StageError> {
        let kept = std::mem::take(&mut self.kept);
        let rows = self.rows(&kept)?;
        kept.into_iter().for_each(|slot| self.let_go(slot));
        Ok(rows)
    }

    /// These rows, in this order.
    pub(super) fn rows(&self, slots: &[Slot]) -> Result<RecordBatch, StageError> {
        if slots.is_empty() {
            return Ok(RecordBatch::new_empty(self.schema.clone()));
        }
        let mut numbers = vec![usize::MAX; self.batches.len()];
        let mut used = Vec::new();
        let mut places = Vec::with_capacity(slots.len());
        for slot in slots {
            let Place { batch, row, .. } = self.places[*slot as usize];
            let number = &mut numbers[batch as usize];
            if *number == usize::MAX {
                *number = used.len();
                used.push(&self.batches[batch as usize].rows);
            }
            places.push((*number, row as usize));
        }
        Ok(interleave_record_batch(&used, &places)?)
    }

    /// Called after each batch: gives back what is stored of rows that are not held.
    pub(super) fn settle(&mut self) -> Result<(), StageError> {
        let current = std::mem::replace(&mut self.current, NOWHERE);
        if current != NOWHERE && self.batches[current as usize].rows_held == 0 {
            self.drop_batch(current);
        }
        if self.rows_stored <= 2 * self.rows_held + SPARE_ROWS {
            return Ok(());
        }
        let is_held = |slot: &Slot| self.places[*slot as usize].batch != NOWHERE;
        let slots: Vec<Slot> = (0..self.places.len() as u32).filter(is_held).collect();
        let rows = self.rows(&slots)?;
        for (slot, row) in slots.iter().zip(0..) {
            let place = &mut self.places[*slot as usize];
            (place.batch, place.row) = (0, row);
        }
        (self.rows_stored, self.rows_held) = (slots.len(), slots.len());
        self.batches = vec![Stored { rows, rows_held: slots.len() }];
        self.free_batches.clear();
        Ok(())
    }

    /// Whether these can be rows of the input.
    pub(super) fn fits(&self, rows: &RecordBatch) -> bool {
        rows.schema().fields() == self.schema.fields()
    }

    /// The slot of the next row that is held, where none was let go of yet.
    pub(super) fn next_slot(&self) -> Slot {
        self.places.len() as Slot
    }

    /// Holds all rows of a batch, in the slots from [`HeldRows::next_slot`] on; for one that has let go of nothing yet.
    pub(super) fn hold_all(&mut self, rows: &RecordBatch, time: usize) -> Result<(), StageError> {
        let numbers = self.begin(rows)?;
        let times = rows.column(time).as_primitive::<TimestampMicrosecondType>();
        for row in 0..rows.num_rows() {
            self.hold(row, times.value(row), &numbers);
        }
        self.settle()
    }

    fn let_go(&mut self, slot: Slot) {
        let batch = std::mem::replace(&mut self.places[slot as usize].batch, NOWHERE);
        self.free.push(slot);
        self.rows_held -= 1;
        let stored = &mut self.batches[batch as usize];
        stored.rows_held -= 1;
        if stored.rows_held == 0 && batch != self.current {
            self.drop_batch(batch);
        }
    }

    fn drop_batch(&mut self, batch: u32) {
        let stored = &mut self.batches[batch as usize];
        self.rows_stored -= stored.rows.num_rows();
        stored.rows = RecordBatch::new_empty(self.schema.clone());
        self.free_batches.push(batch);
    }
}
