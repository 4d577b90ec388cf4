//! The rows that a rule looks at: typed columns, whole messages, and what is known of them.

use std::borrow::Cow;
use std::cell::OnceCell;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Schema, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use pipeline_engine::schema::is_json;
use std::sync::Arc;

use super::column::Column;
use super::dice::Dice;
use super::functions::base64;
use super::json;
use super::topic_filter;
use super::value::Value;

/// Where what is not in the message stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// The column with the topic.
    pub topic: Option<usize>,
    /// The column with the time of receipt; else that of the batch.
    pub received_at: Option<usize>,
    /// The column with the payload, where rows are messages that have not been decoded.
    pub payload: Option<usize>,
}

/// The rows of a batch, or those of it that are left.
pub struct Input {
    pub rows: RecordBatch,
    places: Places,
    received_at_ms: i64,
    dice: Dice,
    /// JSON columns as values, each read when it is first asked for.
    json: Vec<OnceCell<Vec<Value>>>,
    /// Payloads as values, or rows as objects.
    documents: OnceCell<Vec<Value>>,
    slots: Vec<Column>,
}

impl Input {
    pub fn new(rows: RecordBatch, places: Places, received_at_us: i64, dice: Dice) -> Self {
        let json = (0..rows.num_columns()).map(|_| OnceCell::new()).collect();
        let received_at_ms = received_at_us.div_euclid(1_000);
        Self { rows, places, received_at_ms, dice, json, documents: OnceCell::new(), slots: Vec::new() }
    }

    /// No rows at all, for expressions that read none.
    pub fn nothing() -> Self {
        Self::new(RecordBatch::new_empty(Arc::new(Schema::empty())), Places::default(), 0, Dice::default())
    }

    /// The same with payloads that have been read, one a row.
    pub fn with_documents(mut self, documents: Vec<Value>) -> Self {
        self.documents = OnceCell::from(documents);
        self
    }

    pub fn push_slot(&mut self, values: Column) {
        self.slots.push(values);
    }

    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// The rows for which `keep` is true, with all that has been found out about them.
    pub fn filtered(self, keep: &BooleanArray) -> Result<Self, ArrowError> {
        let kept: Vec<u32> = keep.values().set_indices().map(|row| row as u32).collect();
        let pick = |values: Vec<Value>| -> Vec<Value> {
            values.into_iter().zip(keep.values().iter()).filter(|(_, keep)| *keep).map(|(value, _)| value).collect()
        };
        let pick_cell = |cell: OnceCell<Vec<Value>>| cell.into_inner().map_or_else(OnceCell::new, |v| pick(v).into());
        let slots = self.slots.into_iter().map(|slot| slot.filtered(keep));
        Ok(Self {
            rows: filter_record_batch(&self.rows, keep)?,
            places: self.places,
            received_at_ms: self.received_at_ms,
            dice: self.dice.filtered(&kept),
            json: self.json.into_iter().map(pick_cell).collect(),
            documents: pick_cell(self.documents),
            slots: slots.collect::<Result<_, _>>()?,
        })
    }

    /// A column's value; a null is Undefined.
    pub fn value(&self, column: usize, row: usize) -> Cow<'_, Value> {
        let array = self.rows.column(column);
        if is_json(self.rows.schema_ref().field(column)) {
            return Cow::Borrowed(&self.json[column].get_or_init(|| read_json(array))[row]);
        }
        Cow::Owned(cell(array, row))
    }

    /// The whole message, or the whole row as an object.
    pub fn document(&self, row: usize) -> Cow<'_, Value> {
        Cow::Borrowed(&self.documents.get_or_init(|| (0..self.len()).map(|row| self.row_as_object(row)).collect())[row])
    }

    fn row_as_object(&self, row: usize) -> Value {
        let fields = self.rows.schema_ref().fields().iter().enumerate();
        let members = fields.map(|(column, field)| (field.name().clone(), self.value(column, row).into_owned()));
        Value::Object(members.filter(|(_, value)| !value.is_undefined()).collect())
    }

    pub fn slot(&self, slot: usize, row: usize) -> Cow<'_, Value> {
        self.slots[slot].value(row)
    }

    pub fn slot_column(&self, slot: usize) -> &Column {
        &self.slots[slot]
    }

    pub fn payload(&self, row: usize) -> Option<&[u8]> {
        Some(self.rows.column(self.places.payload?).as_binary::<i32>().value(row))
    }

    pub fn topics(&self) -> Option<&ArrayRef> {
        self.places.topic.map(|column| self.rows.column(column))
    }

    /// The topic as it was published to.
    pub fn full_topic(&self, row: usize) -> Option<&str> {
        let topics = self.topics()?.as_string::<i32>();
        topics.is_valid(row).then(|| topics.value(row))
    }

    /// What `topic()` says.
    pub fn topic(&self, row: usize) -> Option<&str> {
        self.full_topic(row).map(topic_filter::visible)
    }

    pub fn segment(&self, row: usize, number: i64) -> Option<&str> {
        topic_filter::segment(self.full_topic(row)?, number)
    }

    pub fn received_at_ms(&self, row: usize) -> i64 {
        match self.places.received_at {
            Some(column) => {
                let times = self.rows.column(column).as_primitive::<TimestampMicrosecondType>();
                if times.is_valid(row) { times.value(row).div_euclid(1_000) } else { self.received_at_ms }
            }
            None => self.received_at_ms,
        }
    }

    pub fn dice(&self) -> &Dice {
        &self.dice
    }
}

/// The values of a JSON column. What is no JSON is text, as `decode` has it.
fn read_json(array: &ArrayRef) -> Vec<Value> {
    let read = |text: Option<&str>| match text {
        None => Value::Undefined,
        Some(text) => json::read(text.as_bytes()).unwrap_or_else(|_| Value::of_text(text)),
    };
    array.as_string::<i32>().iter().map(read).collect()
}

fn cell(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Undefined;
    }
    match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int16 => Value::Int(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => Value::of_decimal(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Value::of_decimal(array.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(..) => {
            Value::Int(array.as_primitive::<TimestampMicrosecondType>().value(row).div_euclid(1_000))
        }
        DataType::Utf8 => Value::of_text(array.as_string::<i32>().value(row)),
        DataType::Binary => Value::Text(base64(array.as_binary::<i32>().value(row))),
        // Refused when the plan is built.
        _ => Value::Undefined,
    }
}
