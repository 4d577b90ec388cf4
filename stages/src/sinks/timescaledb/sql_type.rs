//! Which PostgreSQL type each Arrow type is stored as.
//!
//! Exactly one each: binary COPY converts nothing, so a column of another width is refused when the
//! sink opens and never cut or widened on the way.

use arrow::datatypes::{DataType, Field, TimeUnit};
use pipeline_engine::schema;

/// The types that the sink can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlType {
    /// `text`, and whatever reads the same bytes, such as `varchar`.
    Text,
    /// JSON text as `jsonb`.
    Jsonb,
    /// `boolean`.
    Bool,
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `timestamp with time zone`.
    Timestamptz,
    /// `bytea`.
    Bytea,
    /// `date`.
    Date,
}

/// The Arrow types that [`SqlType::of`] knows, for hints.
pub(super) const STORABLE: &str = "text, JSON, bool, int16, int32, int64, float32, float64, \
     timestamps to the microsecond in UTC, binary and dates can be stored";

impl SqlType {
    /// The type that a column is stored as; `None` if the sink can't store it.
    pub fn of(field: &Field) -> Option<Self> {
        Some(match field.data_type() {
            DataType::Utf8 if schema::is_json(field) => Self::Jsonb,
            DataType::Utf8 => Self::Text,
            DataType::Boolean => Self::Bool,
            DataType::Int16 => Self::Int2,
            DataType::Int32 => Self::Int4,
            DataType::Int64 => Self::Int8,
            DataType::Float32 => Self::Float4,
            DataType::Float64 => Self::Float8,
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Self::Timestamptz,
            DataType::Binary => Self::Bytea,
            DataType::Date32 => Self::Date,
            _ => return None,
        })
    }

    /// Its name in DDL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Jsonb => "jsonb",
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Timestamptz => "timestamp with time zone",
            Self::Bytea => "bytea",
            Self::Date => "date",
        }
    }

    /// Whether a column of this type in the catalog (`pg_type.typname`) reads the bytes we write.
    pub(super) fn reads_as(self, catalog_name: &str) -> bool {
        match self {
            Self::Text => ["text", "varchar", "bpchar", "citext"].contains(&catalog_name),
            Self::Jsonb => catalog_name == "jsonb",
            Self::Bool => catalog_name == "bool",
            Self::Int2 => catalog_name == "int2",
            Self::Int4 => catalog_name == "int4",
            Self::Int8 => catalog_name == "int8",
            Self::Float4 => catalog_name == "float4",
            Self::Float8 => catalog_name == "float8",
            Self::Timestamptz => catalog_name == "timestamptz",
            Self::Bytea => catalog_name == "bytea",
            Self::Date => catalog_name == "date",
        }
    }
}
