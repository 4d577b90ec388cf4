//! Adds what is known of the zone that a row's position lies in.
//!
//! ```toml
//! [transforms.zoned]
//! type = "geofence"
//! inputs = ["valid"]
//! table = "zones.geojson"                                  # Polygon and MultiPolygon features
//! latitude = "lat"
//! longitude = "lon"
//! columns = { zone = "name", speed_limit = "speed_limit" } # columns to add, by the zone's properties
//! types = { speed_limit = "int32" }                        # all others are text
//! ```
//!
//! Positions and zones are longitudes and latitudes in degrees (WGS 84); edges are straight lines between them, as on a
//! map where a degree is as long everywhere. **A point on the border of a zone is inside it**, on that of a hole as well.
//! Where zones overlap, the smallest counts, or the first in the table (`overlap`).
//!
//! Nothing reaches across the antimeridian: a zone there is cut in two at 180 degrees (a `MultiPolygon`), as GeoJSON
//! asks for. Coordinates beyond 180 and 90 degrees and edges that cross are mistakes in the
//! table.
//!
//! No row is lost: a row in no zone goes on with nulls, leaves by [`Port::REJECTED`] or is dropped and counted, as `outside`
//! says. So does a row without a position that could be anywhere, which is counted apart.
//!
//! The zones are read and followed as the table of [`super::enrich`] is, with the same effect on what is replayed after a crash.

mod read;
mod run;
mod shape;
#[cfg(test)]
mod tests;
mod zones;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::schema::{ColumnType, json_field};
use pipeline_engine::secret::SecretText;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::suggest::suggest;
use pipeline_engine::units::{DurationText, SizeText};
use pipeline_engine::{columns, dead_letter};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use self::run::{Geofence, PositionColumn};
use self::zones::ZonesSpec;
use super::tables::TableFormat;
use super::tables::follow::{Followed, Reloads};
pub use super::tables::join::Missing;
use super::tables::place::{Place, TableKeys};
use super::tables::read::Layout;

/// `type = "geofence"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GeofenceConfig {
    /// The zones: a GeoJSON file of features, or a CSV or Parquet file with a shape in each row; of this machine, relative
    /// to the folder that the pipeline runs in, or in S3 as `s3://bucket/key`.
    pub table: Option<String>,
    /// What the table is, where its name does not end in `.geojson`, `.json`, `.csv` or `.parquet`.
    pub format: Option<ZoneFormat>,
    /// In the place of `table`: a statement whose rows are the zones, such as `SELECT name, ST_AsText(area) AS geometry FROM
    /// zones`. It is run at the database `url`, in a transaction that only reads.
    pub query: Option<String>,
    /// The database of `query`, as the `timescaledb` sink takes it: `postgres://user@host:5432/database`.
    #[schemars(with = "Option<SecretText>")]
    pub url: Option<SecretString>,
    /// The password for `url`, if it is not in there.
    #[schemars(with = "Option<SecretText>")]
    pub password: Option<SecretString>,
    /// The S3 API to use, if not that of AWS: `https://s3.example.com`. Overrides AWS_ENDPOINT_URL. Credentials come from
    /// AWS's own variables or the machine's role, as for the `parquet` sink.
    pub endpoint: Option<String>,
    /// The region of the bucket. Overrides AWS_REGION.
    pub region: Option<String>,
    /// Also talks to an endpoint without TLS that is not on this machine.
    #[serde(default)]
    pub allow_http: bool,
    /// How often it is looked whether the zones have changed: 1 s for a file, 30 s for an object and a query, if not
    /// given. At least 100 ms.
    pub refresh: Option<DurationText>,
    /// How long one try to read an object or a query may take, from connecting to the last row: 60 s if not given.
    pub read_timeout: Option<DurationText>,
    /// A larger table is refused: it is held in memory. At most 2 GiB.
    #[serde(default = "max_table_size")]
    pub max_table_size: SizeText,
    /// The column of a CSV or Parquet file or a query with the shapes, as WKT (`POLYGON ((...))`) or GeoJSON: `geometry` if
    /// not given.
    pub geometry: Option<String>,
    /// The column of the input with the latitude: a number, in degrees.
    #[serde(default = "latitude")]
    pub latitude: String,
    /// The column of the input with the longitude: a number, in degrees.
    #[serde(default = "longitude")]
    pub longitude: String,
    /// The columns to add, each with the property of the zone (the column of its table) that it holds: `{ zone = "name" }`.
    /// They come in the order of their names.
    pub columns: BTreeMap<String, String>,
    /// The types of the added columns, by their names. One without is text.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// Which zone counts where they overlap: `smallest`, by its area on the ground to seven digits (of zones of one size, the first), or
    /// `first`, in the order of the table.
    #[serde(default)]
    pub overlap: Overlap,
    /// What becomes of a row in no zone, counted as `outside_rows`, and of a row without a position, counted as
    /// `bad_positions`: a null, no number, or a latitude or longitude that there is none of. Rejected, their
    /// reasons are `outside` and `position`.
    #[serde(default)]
    pub outside: Missing,
    #[serde(skip)]
    environment: Option<BTreeMap<String, String>>,
}

/// What kind of file the zones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ZoneFormat {
    /// A feature collection, or one feature (RFC 7946).
    Geojson,
    /// Comma-separated values with a header.
    Csv,
    /// Apache Parquet.
    Parquet,
}

/// Which zone counts where they overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The smallest, by its area on the ground.
    #[default]
    Smallest,
    /// The first in the table.
    First,
}

fn max_table_size() -> SizeText {
    SizeText(256 << 20)
}

fn latitude() -> String {
    "latitude".to_owned()
}

fn longitude() -> String {
    "longitude".to_owned()
}

impl TransformConfig for GeofenceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "geofence",
        summary: "Adds what is known of the zone that a row's position lies in, by a table of polygons.",
        ports: &[(
            "rejected",
            "Rows in no zone (reason outside) or without a position (reason position), where `outside = \"reject\"`.",
        )],
        failure: "A database or a store that is away at the start (transient) is tried again until it answers, before \
                  anything is read from a source. Zones that are not there, may not be read, are too large or have a \
                  mistake in them (edges that cross) are permanent then: the run ends. What goes wrong when they \
                  are read again later changes nothing: it is logged, counted as `reload_failures` (what went well as \
                  `reloads`), and the old zones stay. Adds no duplicates and leaves the keys of rows alone; rows replayed \
                  after a crash are judged by the zones as they are then.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let Some(place) = self.table_keys().place(cx)? else {
            return Err(BuildError::invalid("table", "there are no zones")
                .hint("Name a file, such as table = \"zones.geojson\", or give a `query`."));
        };
        let spec = self.spec(&place)?;
        let schema = self.schema(input)?;
        let stage = Geofence {
            stage: cx.stage.clone(),
            latitude: position(input, "latitude", &self.latitude)?,
            longitude: position(input, "longitude", &self.longitude)?,
            zones: Followed::unread(place, spec, Reloads::of(cx)),
            outside: self.outside,
            outside_rows: cx.counter("outside_rows"),
            bad_positions: cx.counter("bad_positions"),
            schema: schema.clone(),
        };
        let outputs = vec![(Port::MAIN, schema), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(stage), outputs })
    }
}

impl GeofenceConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }

    fn table_keys(&self) -> TableKeys<'_> {
        TableKeys {
            table: self.table.as_deref(),
            query: self.query.as_deref(),
            url: self.url.as_ref(),
            password: self.password.as_ref(),
            endpoint: self.endpoint.as_ref(),
            region: self.region.as_ref(),
            allow_http: self.allow_http,
            refresh: self.refresh,
            read_timeout: self.read_timeout,
            max_table_size: self.max_table_size,
            environment: self.environment.as_ref(),
        }
    }

    fn spec(&self, place: &Arc<Place>) -> Result<ZonesSpec, BuildError> {
        let format = self.format(place)?;
        let is_geojson = format == Some(ZoneFormat::Geojson);
        if is_geojson && self.geometry.is_some() {
            return Err(BuildError::invalid("geometry", "a feature has its shape where GeoJSON says")
                .hint("The key is for CSV and Parquet files and queries."));
        }
        let mut columns = Vec::new();
        for (name, property) in &self.columns {
            let kind = self.types.get(name).copied().unwrap_or(ColumnType::Text);
            if kind == ColumnType::Binary && format != Some(ZoneFormat::Parquet) {
                return Err(BuildError::invalid(format!("types.{name}"), "only a Parquet file holds bytes"));
            }
            columns.push((property.clone(), kind));
        }
        if !is_geojson {
            let geometry = self.geometry.clone().unwrap_or_else(|| "geometry".to_owned());
            columns.push((geometry, ColumnType::Text));
        }
        let layout = Layout { place: place.clone(), format: format.and_then(table_format), columns };
        Ok(ZonesSpec { layout, is_geojson, overlap: self.overlap })
    }

    /// `None` for a query.
    fn format(&self, place: &Place) -> Result<Option<ZoneFormat>, BuildError> {
        match (self.format, place.ending().as_deref()) {
            (format, None) => place.format(format.and(Some(TableFormat::Csv))).map(|_| None),
            (Some(ZoneFormat::Geojson), _) | (None, Some("geojson" | "json")) => Ok(Some(ZoneFormat::Geojson)),
            (None, Some(ending)) if !["csv", "parquet"].contains(&ending) => {
                let text = format!("{place} ends neither in .geojson nor in .csv or .parquet");
                Err(BuildError::invalid("table", text).hint("Say what it is: format = \"geojson\"."))
            }
            (given, Some(_)) => place.format(given.and_then(table_format)).map(|format| match format {
                Some(TableFormat::Parquet) => Some(ZoneFormat::Parquet),
                _ => Some(ZoneFormat::Csv),
            }),
        }
    }

    /// The input's columns, then those of the zone.
    fn schema(&self, input: &Schema) -> Result<SchemaRef, BuildError> {
        if self.columns.is_empty() {
            return Err(BuildError::invalid("columns", "there is nothing to add")
                .hint("Name a column and the property of the zone that it holds: columns = { zone = \"name\" }."));
        }
        if let Some((other, _)) = self.types.iter().find(|(name, _)| !self.columns.contains_key(*name)) {
            let known = self.columns.keys().map(String::as_str);
            return Err(BuildError::invalid(format!("types.{other}"), format!("\"{other}\" is not in `columns`"))
                .hint(suggest(other, known, "Columns", "")));
        }
        let mut fields = input.fields().to_vec();
        for name in self.columns.keys() {
            if input.index_of(name).is_ok() {
                return Err(BuildError::invalid(
                    format!("columns.{name}"),
                    format!("there is a column \"{name}\" already"),
                )
                .hint("Give the new one another name."));
            }
            let kind = self.types.get(name).copied().unwrap_or(ColumnType::Text);
            let field = Field::new(name, kind.arrow(), true);
            fields.push(Arc::new(if kind == ColumnType::Json { json_field(field) } else { field }));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn table_format(format: ZoneFormat) -> Option<TableFormat> {
    match format {
        ZoneFormat::Geojson => None,
        ZoneFormat::Csv => Some(TableFormat::Csv),
        ZoneFormat::Parquet => Some(TableFormat::Parquet),
    }
}

fn position(input: &Schema, key: &str, name: &str) -> Result<PositionColumn, BuildError> {
    let index = columns::find_typed(input, key, name, "a number", |kind| {
        use DataType::{Float32, Float64, Int16, Int32, Int64};
        matches!(kind, Float32 | Float64 | Int16 | Int32 | Int64)
    })?;
    Ok(PositionColumn { index, name: name.to_owned() })
}
