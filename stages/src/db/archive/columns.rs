//! Every column of a table, whoever fills it, as one of an object.
//!
//! A type that Parquet has no like of is archived as the text that PostgreSQL shows of it; the footer says what it was.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use pipeline_engine::schema::json_field;
use pipeline_engine::stage::StageError;
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, Row};

use crate::db::catch_up::arrow_type;
use crate::db::{SinkTable, catalog};
use crate::sinks::timescaledb::SqlType;

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchiveColumn {
    pub name: String,
    /// How it lies in the object.
    pub kind: SqlType,
    /// The type in the table.
    pub type_text: String,
    /// It is never null in the table.
    pub required: bool,
}

/// The columns of a table, in its order.
pub(super) async fn of(table: &SinkTable, client: &Client) -> Result<Vec<ArchiveColumn>, StageError> {
    let sql = "SELECT a.attname::text, coalesce(base.typname, t.typname)::text, format_type(a.atttypid, a.atttypmod), \
               a.attnotnull FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
               LEFT JOIN pg_type base ON base.oid = nullif(t.typbasetype, 0) \
               WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let rows = client.query(sql, &[&table.table.sql_name()]).await.map_err(catalog)?;
    let column = |row: &Row| ArchiveColumn {
        name: row.get(0),
        kind: kind_of(row.get(1)),
        type_text: row.get(2),
        required: row.get(3),
    };
    Ok(rows.iter().map(column).collect())
}

fn kind_of(type_name: &str) -> SqlType {
    match type_name {
        "jsonb" => SqlType::Jsonb,
        "bool" => SqlType::Bool,
        "int2" => SqlType::Int2,
        "int4" => SqlType::Int4,
        "int8" => SqlType::Int8,
        "float4" => SqlType::Float4,
        "float8" => SqlType::Float8,
        "timestamptz" => SqlType::Timestamptz,
        "bytea" => SqlType::Bytea,
        "date" => SqlType::Date,
        _ => SqlType::Text,
    }
}

impl ArchiveColumn {
    fn ident(&self) -> String {
        format!("\"{}\"", self.name.replace('"', "\"\""))
    }

    /// What is selected of the table so that [`rows`] can read it.
    pub fn exported(&self) -> String {
        let name = self.ident();
        match self.kind {
            SqlType::Text | SqlType::Jsonb => format!("{name}::text"),
            SqlType::Timestamptz => format!("(extract(epoch FROM {name}) * 1000000)::int8"),
            SqlType::Date => format!("({name} - DATE '1970-01-01')"),
            _ => name,
        }
    }

    /// What is compared with what was read back.
    pub fn compared(&self) -> String {
        let name = self.ident();
        if self.kind == SqlType::Text { format!("{name}::text") } else { name }
    }

    /// The column of the temporary table that holds what was read back.
    pub fn temporary(&self) -> String {
        format!("{} {}", self.ident(), self.kind.name())
    }

    fn field(&self) -> Field {
        match self.kind {
            SqlType::Jsonb => json_field(Field::new(&self.name, arrow_type(SqlType::Jsonb), !self.required)),
            kind => Field::new(&self.name, arrow_type(kind), !self.required),
        }
    }
}

/// The schema of the objects.
pub(super) fn schema(columns: &[ArchiveColumn]) -> Schema {
    Schema::new(columns.iter().map(ArchiveColumn::field).collect::<Vec<_>>())
}

/// Rows that were selected as [`ArchiveColumn::exported`], as columns.
pub(super) fn arrays(rows: &[Row], columns: &[ArchiveColumn]) -> Vec<ArrayRef> {
    columns.iter().enumerate().map(|(place, column)| array(rows, place, column.kind)).collect()
}

fn values<'r, T: FromSql<'r>>(rows: &'r [Row], place: usize) -> impl Iterator<Item = Option<T>> {
    rows.iter().map(move |row| row.get(place))
}

fn array(rows: &[Row], place: usize, kind: SqlType) -> ArrayRef {
    match kind {
        SqlType::Text | SqlType::Jsonb => Arc::new(values::<&str>(rows, place).collect::<StringArray>()),
        SqlType::Bool => Arc::new(values::<bool>(rows, place).collect::<BooleanArray>()),
        SqlType::Int2 => Arc::new(values::<i16>(rows, place).collect::<Int16Array>()),
        SqlType::Int4 => Arc::new(values::<i32>(rows, place).collect::<Int32Array>()),
        SqlType::Int8 => Arc::new(values::<i64>(rows, place).collect::<Int64Array>()),
        SqlType::Float4 => Arc::new(values::<f32>(rows, place).collect::<Float32Array>()),
        SqlType::Float8 => Arc::new(values::<f64>(rows, place).collect::<Float64Array>()),
        SqlType::Timestamptz => {
            Arc::new(values::<i64>(rows, place).collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
        }
        SqlType::Bytea => Arc::new(values::<&[u8]>(rows, place).collect::<BinaryArray>()),
        SqlType::Date => Arc::new(values::<i32>(rows, place).collect::<Date32Array>()),
    }
}
