//! Which PostgreSQL type a column becomes.

use arrow::datatypes::{DataType, Field, TimeUnit};
use pipeline_engine::schema::is_json;

/// The PostgreSQL types that a sink can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PgType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Text,
    Jsonb,
    Timestamptz,
    Bytea,
    Date,
}

impl PgType {
    /// `None` for an Arrow type that has no counterpart here.
    pub(super) fn of(field: &Field) -> Option<Self> {
        Some(match field.data_type() {
            DataType::Boolean => Self::Bool,
            DataType::Int16 => Self::Int2,
            DataType::Int32 => Self::Int4,
            DataType::Int64 => Self::Int8,
            DataType::Float32 => Self::Float4,
            DataType::Float64 => Self::Float8,
            DataType::Utf8 if is_json(field) => Self::Jsonb,
            DataType::Utf8 => Self::Text,
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Self::Timestamptz,
            DataType::Binary => Self::Bytea,
            DataType::Date32 => Self::Date,
            _ => return None,
        })
    }

    /// As `CREATE TABLE` writes it.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Text => "text",
            Self::Jsonb => "jsonb",
            Self::Timestamptz => "timestamptz",
            Self::Bytea => "bytea",
            Self::Date => "date",
        }
    }

    /// Whether a column of the type that `format_type` names takes our binary form of it.
    pub(super) fn fits(self, format_type: &str) -> bool {
        match self {
            Self::Timestamptz => format_type == "timestamp with time zone",
            Self::Text => format_type == "text" || format_type.starts_with("character varying"),
            other => format_type == other.sql(),
        }
    }
}
