//! Looks for values that break a rule, whole columns at a time: the hot path of `validate`.
//!
//! Blocks of 64 numbers are judged without a branch; only a block with a breach in it (or with a null,
//! whose slot may hold anything) is looked at value by value. A null is never a breach here.

use arrow::array::{Array, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray, StringArray};
use arrow::datatypes::{DataType, Int16Type, Int32Type, Int64Type};
use pipeline_engine::stage::StageError;

pub(super) fn unexpected(found: &DataType) -> StageError {
    StageError::bug(format!("a rule met a column of type {found}, which its build does not accept"))
}

fn row(index: usize) -> u32 {
    index as u32
}

pub(super) fn find_nulls(array: &dyn Array, mut broken: impl FnMut(u32)) {
    if array.null_count() > 0 {
        (0..array.len()).filter(|index| array.is_null(*index)).for_each(|index| broken(row(index)));
    }
}

pub(super) fn scan<T: ArrowPrimitiveType>(
    array: &PrimitiveArray<T>,
    is_good: impl Fn(T::Native) -> bool,
    mut broken: impl FnMut(u32),
) {
    const BLOCK: usize = 64;
    for (block, values) in array.values().chunks(BLOCK).enumerate() {
        if values.iter().fold(true, |all, value| all & is_good(*value)) {
            continue;
        }
        for (offset, value) in values.iter().enumerate() {
            let index = block * BLOCK + offset;
            if !is_good(*value) && array.is_valid(index) {
                broken(row(index));
            }
        }
    }
}

pub(super) fn scan_integers(
    array: &dyn Array,
    is_good: impl Fn(i64) -> bool,
    broken: impl FnMut(u32),
) -> Result<(), StageError> {
    match array.data_type() {
        DataType::Int16 => scan::<Int16Type>(array.as_primitive(), |value| is_good(value.into()), broken),
        DataType::Int32 => scan::<Int32Type>(array.as_primitive(), |value| is_good(value.into()), broken),
        DataType::Int64 => scan::<Int64Type>(array.as_primitive(), is_good, broken),
        other => return Err(unexpected(other)),
    }
    Ok(())
}

pub(super) fn scan_text(array: &StringArray, is_good: impl Fn(&str) -> bool, mut broken: impl FnMut(u32)) {
    for (index, value) in array.iter().enumerate() {
        if value.is_some_and(|text| !is_good(text)) {
            broken(row(index));
        }
    }
}

pub(super) fn scan_bools(array: &BooleanArray, allowed: [bool; 2], mut broken: impl FnMut(u32)) {
    for (index, value) in array.iter().enumerate() {
        if value.is_some_and(|truth| !allowed[usize::from(truth)]) {
            broken(row(index));
        }
    }
}

pub(super) fn scan_lengths(array: &StringArray, bytes_max: usize, mut broken: impl FnMut(u32)) {
    let is_long = |ends: &[i32]| usize::try_from(ends[1] - ends[0]).is_ok_and(|bytes| bytes > bytes_max);
    for (index, ends) in array.value_offsets().windows(2).enumerate() {
        if is_long(ends) && array.is_valid(index) {
            broken(row(index));
        }
    }
}
