//! The rows of a sink against the newest object that it has made.

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use pipeline_engine::schema::is_json;
use pipeline_engine::stage::{ColumnDifference, SchemaComparison, StageError};

/// Compares what the next object will have with what the newest one of `count` has.
///
/// # Errors
/// The object can't be read.
pub(super) async fn compare(
    rows: &Schema,
    key: &str,
    content: Bytes,
    count: usize,
) -> Result<SchemaComparison, StageError> {
    // On a damaged object the library may panic.
    let read = tokio::task::spawn_blocking(move || ArrowReaderMetadata::load(&content, Default::default())).await;
    let unreadable = || StageError::permanent(format!("\"{key}\" can't be read"));
    let metadata = read.map_err(|panic| unreadable().because(panic))?.map_err(|error| unreadable().because(error))?;
    let objects = if count == 1 { "object" } else { "objects" };
    Ok(SchemaComparison {
        against: format!("the newest of {count} {objects}, {key}"),
        differences: differences(rows, metadata.schema()),
    })
}

fn differences(rows: &Schema, object: &Schema) -> Vec<ColumnDifference> {
    let mut differences = Vec::new();
    for field in rows.fields() {
        let ours = type_of(field);
        let theirs = object.field_with_name(field.name()).ok().map(type_of);
        let consequence = match &theirs {
            Some(theirs) if *theirs == ours => continue,
            Some(_) => "has another type in older objects: who reads both must cast it",
            None => "is new: in older objects it reads as null",
        };
        let consequence = consequence.to_owned();
        differences.push(ColumnDifference {
            column: field.name().clone(),
            ours: Some(ours),
            theirs,
            consequence,
            mend: None,
        });
    }
    for field in object.fields().iter().filter(|field| rows.field_with_name(field.name()).is_err()) {
        differences.push(ColumnDifference {
            column: field.name().clone(),
            ours: None,
            theirs: Some(type_of(field)),
            consequence: "is written no more: in newer objects it reads as null".to_owned(),
            mend: None,
        });
    }
    differences
}

/// The type by the words of a pipeline file, where these have one.
fn type_of(field: &Field) -> String {
    let word = match field.data_type() {
        DataType::Utf8 if is_json(field) => "json",
        DataType::Utf8 => "text",
        DataType::Boolean => "bool",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        DataType::Binary => "binary",
        kind if *kind == pipeline_engine::schema::timestamp_type() => "timestamp",
        other => return other.to_string(),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use pipeline_engine::schema::{json_field, timestamp_type};

    use super::*;

    #[test]
    fn every_column_that_is_not_the_same_on_both_sides_is_named_with_both_types() {
        let same = Field::new("at", timestamp_type(), false);
        let ours = Schema::new(vec![
            same.clone(),
            Field::new("temp", DataType::Float64, true),
            json_field(Field::new("rest", DataType::Utf8, true)),
            Field::new("new", DataType::Int16, true),
        ]);
        // Whether it can be null is no difference to a reader.
        let theirs = Schema::new(vec![
            same.with_nullable(true),
            Field::new("temp", DataType::Float32, true),
            Field::new("rest", DataType::Utf8, true),
            Field::new("old", DataType::Date32, true),
        ]);
        let found: Vec<_> = differences(&ours, &theirs)
            .into_iter()
            .map(|difference| (difference.column, difference.ours, difference.theirs))
            .collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                ("temp".to_owned(), text("float64"), text("float32")),
                ("rest".to_owned(), text("json"), text("text")),
                ("new".to_owned(), text("int16"), None),
                ("old".to_owned(), None, text("Date32")),
            ]
        );
        assert_eq!(differences(&ours, &ours), []);
    }
}
