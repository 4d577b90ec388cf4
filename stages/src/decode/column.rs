//! One column of the batch that is being decoded: takes values strictly by its type.
//!
//! Values go where they stay, without a copy in between; a refused message is taken back by
//! [`Column::truncate`], which is why these are no Arrow builders.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, NullBufferBuilder, PrimitiveArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pipeline_engine::schema::{ColumnType, TimestampFormat};

use super::fault::{Fault, Verdict, reason};
use super::timestamp::{self, Mistake};
use super::{TEXT_BYTES_MAX, VALUE_BYTES_MAX};

/// The largest float that only one whole number becomes: 2^53 may have been 2^53 + 1.
const FLOAT_EXACT_MAX: f64 = 9_007_199_254_740_991.0;

/// The values of one column since the last take.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: ColumnType,
    pub(super) required: bool,
    format: TimestampFormat,
    values: Values,
    valid: NullBufferBuilder,
}

#[derive(Debug)]
enum Values {
    Bool(BooleanBufferBuilder),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Timestamp(Vec<i64>),
    /// Text, JSON and binary: `ends` holds where each value ends in `bytes`, behind a zero.
    Bytes {
        bytes: Vec<u8>,
        ends: Vec<i32>,
    },
}

impl Column {
    pub(super) fn new(name: &str, kind: ColumnType, format: TimestampFormat, required: bool) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            required,
            format,
            values: Values::with_capacity(kind, 0, 0),
            valid: NullBufferBuilder::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.valid.len()
    }

    pub(super) fn put_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.append(false),
            Values::Int16(values) => values.push(0),
            Values::Int32(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp(values) => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Bytes { ends, .. } => ends.extend(ends.last().copied()),
        }
        self.valid.append_null();
    }

    pub(super) fn put_bool(&mut self, value: bool) -> Verdict {
        let Values::Bool(values) = &mut self.values else { return Err(self.wrong_type(value)) };
        values.append(value);
        self.valid.append_non_null();
        Ok(())
    }

    pub(super) fn put_int(&mut self, value: i64) -> Verdict {
        let fits = match &mut self.values {
            Values::Int64(values) => {
                values.push(value);
                true
            }
            Values::Float64(values) => {
                values.push(value as f64);
                true
            }
            Values::Float32(values) => {
                values.push(value as f32);
                true
            }
            Values::Int32(values) => i32::try_from(value).map(|value| values.push(value)).is_ok(),
            Values::Int16(values) => i16::try_from(value).map(|value| values.push(value)).is_ok(),
            Values::Timestamp(_) if self.format == TimestampFormat::Rfc3339 => return Err(self.wrong_type(value)),
            Values::Timestamp(_) => return self.put_time(timestamp::from_int(value, self.format), value),
            Values::Bool(_) | Values::Bytes { .. } => return Err(self.wrong_type(value)),
        };
        if !fits {
            return Err(self.out_of_range(value));
        }
        self.valid.append_non_null();
        Ok(())
    }

    /// A whole number beyond 64 bits with a sign.
    pub(super) fn put_large_int(&mut self, value: i128) -> Verdict {
        match self.values {
            Values::Float32(_) | Values::Float64(_) => self.put_float(value as f64),
            Values::Bool(_) | Values::Bytes { .. } => Err(self.wrong_type(value)),
            Values::Timestamp(_) if self.format == TimestampFormat::Rfc3339 => Err(self.wrong_type(value)),
            _ => Err(self.out_of_range(value)),
        }
    }

    /// A float without a fraction is a whole number: JSON makes no difference between 5 and 5.0,
    /// and many devices write the second.
    pub(super) fn put_float(&mut self, value: f64) -> Verdict {
        if !value.is_finite() && !matches!(self.values, Values::Bool(_) | Values::Bytes { .. }) {
            return Err(self.not_finite(value));
        }
        match &mut self.values {
            Values::Float64(values) => values.push(value),
            Values::Float32(values) => {
                let narrow = value as f32;
                if narrow.is_infinite() {
                    return Err(self.out_of_range(value));
                }
                values.push(narrow);
            }
            Values::Int16(_) | Values::Int32(_) | Values::Int64(_) => {
                return match value {
                    _ if value.fract() != 0.0 => Err(self.wrong_type(value)),
                    _ if value.abs() > FLOAT_EXACT_MAX => Err(self.out_of_range(value)),
                    _ => self.put_int(value as i64),
                };
            }
            Values::Timestamp(_) if self.format == TimestampFormat::Rfc3339 => return Err(self.wrong_type(value)),
            Values::Timestamp(_) => return self.put_time(timestamp::from_float(value, self.format), value),
            Values::Bool(_) | Values::Bytes { .. } => return Err(self.wrong_type(value)),
        }
        self.valid.append_non_null();
        Ok(())
    }

    /// Text, for a column of text or time, or base64 for a binary one where the payload has no
    /// bytes of its own.
    pub(super) fn put_text(&mut self, text: &str, base64: bool) -> Verdict {
        match self.kind {
            ColumnType::Text if text.as_bytes().contains(&0) => Err(self.nul()),
            ColumnType::Text => self.put_bytes_unchecked(text.as_bytes(), TEXT_BYTES_MAX),
            ColumnType::Timestamp if matches!(self.format, TimestampFormat::Auto | TimestampFormat::Rfc3339) => {
                self.put_time(timestamp::parse(text.as_bytes()), Quoted(text))
            }
            ColumnType::Binary if base64 => self.put_base64(text),
            _ => Err(self.wrong_type(Quoted(text))),
        }
    }

    /// A byte string.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) -> Verdict {
        match self.kind {
            ColumnType::Binary => self.put_bytes_unchecked(bytes, VALUE_BYTES_MAX),
            _ => Err(self.wrong_type(format_args!("{} bytes", bytes.len()))),
        }
    }

    /// The checked text of a JSON value. Null is the absence of a value, as for every other type.
    pub(super) fn put_json(&mut self, text: &[u8]) -> Verdict {
        if text == b"null" { Ok(()) } else { self.put_bytes_unchecked(text, VALUE_BYTES_MAX) }
    }

    /// Microseconds since 1970.
    pub(super) fn put_micros(&mut self, micros: i64) -> Verdict {
        let Values::Timestamp(values) = &mut self.values else { return Err(self.wrong_type("a timestamp")) };
        values.push(micros);
        self.valid.append_non_null();
        Ok(())
    }

    pub(super) fn put_time(&mut self, time: Result<i64, Mistake>, given: impl std::fmt::Display) -> Verdict {
        match time {
            Ok(micros) => self.put_micros(micros),
            Err(Mistake::OutOfRange) => Err(self.out_of_range(given)),
            Err(Mistake::NotFinite) => Err(self.not_finite(given)),
            Err(Mistake::NotATime) => Err(Fault::new(
                reason::BAD_TIMESTAMP,
                format!("column \"{}\" must be a time like 2026-01-31T12:00:00Z, found {given}", self.name),
            )),
        }
    }

    fn put_bytes_unchecked(&mut self, value: &[u8], bytes_max: usize) -> Verdict {
        if value.len() > bytes_max {
            return Err(self.too_long(value.len(), bytes_max));
        }
        let Values::Bytes { bytes, ends } = &mut self.values else { return Err(self.wrong_type("bytes")) };
        // A source takes its rows long before 2 GiB, so this is no limit that anybody meets.
        let Ok(end) = i32::try_from(bytes.len() + value.len()) else { return Err(self.too_long(value.len(), 0)) };
        bytes.extend_from_slice(value);
        ends.push(end);
        self.valid.append_non_null();
        Ok(())
    }

    fn put_base64(&mut self, text: &str) -> Verdict {
        const LENIENT: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
        const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
        let url_safe = text.bytes().any(|byte| matches!(byte, b'-' | b'_'));
        let decoded = if url_safe { URL_SAFE.decode(text) } else { STANDARD.decode(text) };
        match decoded {
            Ok(bytes) => self.put_bytes(&bytes),
            Err(error) => {
                let detail = format!("column \"{}\" must be base64: {}", self.name, error.to_string().to_lowercase());
                Err(Fault::new(reason::BAD_BASE64, detail))
            }
        }
    }

    /// Takes back all rows from `rows` on.
    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Bool(values) => values.truncate(rows),
            Values::Int16(values) => values.truncate(rows),
            Values::Int32(values) => values.truncate(rows),
            Values::Int64(values) | Values::Timestamp(values) => values.truncate(rows),
            Values::Float32(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Bytes { bytes, ends } => {
                ends.truncate(rows + 1);
                bytes.truncate(ends.last().map_or(0, |end| end.unsigned_abs() as usize));
            }
        }
        self.valid.truncate(rows);
    }

    /// The column as an array. The next batch is expected to be about as large.
    pub(super) fn take(&mut self) -> ArrayRef {
        let rows = self.len();
        let nulls = self.valid.finish();
        let next = Values::with_capacity(self.kind, rows, self.values.bytes());
        self.valid = NullBufferBuilder::new(rows);
        match std::mem::replace(&mut self.values, next) {
            Values::Bool(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int16(values) => primitive::<Int16Type>(values, nulls),
            Values::Int32(values) => primitive::<Int32Type>(values, nulls),
            Values::Int64(values) => primitive::<Int64Type>(values, nulls),
            Values::Float32(values) => primitive::<Float32Type>(values, nulls),
            Values::Float64(values) => primitive::<Float64Type>(values, nulls),
            Values::Timestamp(values) => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Values::Bytes { bytes, ends } => {
                let (ends, bytes) = (OffsetBuffer::new(ScalarBuffer::from(ends)), Buffer::from_vec(bytes));
                if self.kind == ColumnType::Binary {
                    Arc::new(BinaryArray::new(ends, bytes, nulls))
                } else {
                    Arc::new(StringArray::new(ends, bytes, nulls))
                }
            }
        }
    }

    /// The time in the last row; `None` for a null, or a column that holds no times.
    pub(super) fn last_micros(&self) -> Option<i64> {
        let Values::Timestamp(values) = &self.values else { return None };
        values.last().copied().filter(|_| self.valid.is_valid(self.len() - 1))
    }

    #[cold]
    pub(super) fn wrong_type(&self, found: impl std::fmt::Display) -> Box<Fault> {
        Fault::new(reason::WRONG_TYPE, format!("column \"{}\" must be {}, found {found}", self.name, self.kind))
    }

    #[cold]
    pub(super) fn missing(&self) -> Box<Fault> {
        Fault::new(
            reason::MISSING,
            format!("column \"{}\" is required, and the message has no value for it", self.name),
        )
    }

    #[cold]
    pub(super) fn not_finite(&self, found: impl std::fmt::Display) -> Box<Fault> {
        Fault::new(reason::NOT_FINITE, format!("column \"{}\" must be a finite number, found {found}", self.name))
    }

    #[cold]
    fn out_of_range(&self, found: impl std::fmt::Display) -> Box<Fault> {
        Fault::new(reason::OUT_OF_RANGE, format!("column \"{}\" is {} and can't hold {found}", self.name, self.kind))
    }

    #[cold]
    pub(super) fn nul(&self) -> Box<Fault> {
        Fault::new(reason::NUL, format!("column \"{}\" has the character U+0000 in its text", self.name))
    }

    #[cold]
    fn too_long(&self, found: usize, bytes_max: usize) -> Box<Fault> {
        let name = &self.name;
        Fault::new(reason::TOO_LONG, format!("column \"{name}\" may hold {bytes_max} bytes, found {found}"))
    }
}

impl Values {
    fn with_capacity(kind: ColumnType, rows: usize, bytes: usize) -> Self {
        match kind {
            ColumnType::Bool => Self::Bool(BooleanBufferBuilder::new(rows)),
            ColumnType::Int16 => Self::Int16(Vec::with_capacity(rows)),
            ColumnType::Int32 => Self::Int32(Vec::with_capacity(rows)),
            ColumnType::Int64 => Self::Int64(Vec::with_capacity(rows)),
            ColumnType::Float32 => Self::Float32(Vec::with_capacity(rows)),
            ColumnType::Float64 => Self::Float64(Vec::with_capacity(rows)),
            ColumnType::Timestamp => Self::Timestamp(Vec::with_capacity(rows)),
            ColumnType::Text | ColumnType::Json | ColumnType::Binary => {
                let mut ends = Vec::with_capacity(rows + 1);
                ends.push(0);
                Self::Bytes { bytes: Vec::with_capacity(bytes), ends }
            }
        }
    }

    fn bytes(&self) -> usize {
        if let Self::Bytes { bytes, .. } = self { bytes.len() } else { 0 }
    }
}

fn primitive<T: ArrowPrimitiveType>(values: Vec<T::Native>, nulls: Option<NullBuffer>) -> ArrayRef
where
    ScalarBuffer<T::Native>: From<Vec<T::Native>>,
{
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls))
}

/// Text in quotes, and only its beginning if it is long: a detail is a sentence, not a dump.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const CHARS_MAX: usize = 60;
        match self.0.char_indices().nth(CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?} and {} bytes more", &self.0[..end], self.0.len() - end),
        }
    }
}
