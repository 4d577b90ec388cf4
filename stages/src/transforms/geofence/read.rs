//! Reads shapes and what is known of them: features of GeoJSON, or rows with a shape as text.

use std::str::FromStr;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use bytes::Bytes;
use geo::{Geometry, MultiPolygon};
use geojson::{Feature, GeoJson, GeometryValue};
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::StageError;
use serde_json::Value;

use super::shape;
use super::zones::ZonesSpec;
use crate::transforms::tables::fetch::Content;
use crate::transforms::tables::read::{Cells, Places};

const FORMS: &str =
    "Give WKT such as \"POLYGON ((13.1 52.3, ...))\", which ST_AsText of PostGIS writes, or a GeoJSON geometry.";

/// The columns to add and the shapes, a row each.
///
/// # Errors
/// Permanent: it is not of its format, or a zone has no valid shape.
pub(super) fn zones(spec: &ZonesSpec, content: Content) -> Result<(Vec<ArrayRef>, Vec<MultiPolygon<f64>>), StageError> {
    match content {
        Content::Bytes(bytes) if spec.is_geojson => features(spec, &bytes),
        content => rows(spec, content),
    }
}

fn rows(spec: &ZonesSpec, content: Content) -> Result<(Vec<ArrayRef>, Vec<MultiPolygon<f64>>), StageError> {
    let Cells { mut columns, places } = spec.layout.read(content)?;
    let texts = columns.pop().ok_or_else(|| StageError::bug("zones were read without their shapes"))?;
    let mut shapes = Vec::with_capacity(texts.len());
    for (row, text) in (0..).zip(texts.as_string::<i32>()) {
        let shape = text.ok_or(("it has no shape".to_owned(), FORMS)).and_then(of_text);
        shapes.push(checked(spec, &places, row, shape)?);
    }
    Ok((columns, shapes))
}

fn features(spec: &ZonesSpec, bytes: &Bytes) -> Result<(Vec<ArrayRef>, Vec<MultiPolygon<f64>>), StageError> {
    let invalid = || spec.layout.broken("it is not valid GeoJSON");
    let features = match GeoJson::from_reader(bytes.as_ref()).map_err(|error| invalid().because(error))? {
        GeoJson::FeatureCollection(collection) => collection.features,
        GeoJson::Feature(feature) => vec![feature],
        GeoJson::Geometry(_) => {
            let hint = "Write a FeatureCollection: a zone is a feature with its properties.";
            return Err(spec.layout.broken("it is a shape alone, of which nothing is known").hint(hint));
        }
    };
    let mut shapes = Vec::with_capacity(features.len());
    for (row, feature) in (0..).zip(&features) {
        let geometry = feature.geometry.as_ref().ok_or(("it has no shape".to_owned(), "Leave the feature out."));
        shapes.push(checked(spec, &Places::Features, row, geometry.and_then(of_geojson))?);
    }
    let texts = spec.layout.columns.iter().map(|(property, kind)| {
        features.iter().map(|feature| property_text(feature, property, *kind)).collect::<StringArray>()
    });
    for (property, _) in &spec.layout.columns {
        if !features.is_empty() && !features.iter().any(|feature| feature.contains_property(property)) {
            return Err(spec.layout.broken(format!("no feature has the property \"{property}\"")));
        }
    }
    Ok((spec.layout.read_texts(texts, Places::Features)?.columns, shapes))
}

/// A property as text, from which its column's type is read; null where the feature lacks it.
fn property_text(feature: &Feature, property: &str, kind: ColumnType) -> Option<String> {
    match feature.property(property)? {
        Value::Null => None,
        Value::String(text) if kind != ColumnType::Json => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

type Shape = Result<MultiPolygon<f64>, (String, &'static str)>;

/// A shape that is valid, or the zone that has none.
fn checked(spec: &ZonesSpec, places: &Places, row: u32, shape: Shape) -> Result<MultiPolygon<f64>, StageError> {
    let valid = shape.and_then(|shape| shape::check(&shape).map(|()| shape));
    valid.map_err(|(text, hint)| spec.layout.broken(format!("{}: {text}", places.name(row))).hint(hint))
}

fn of_text(text: &str) -> Shape {
    if text.trim_start().starts_with('{') {
        return match geojson::Geometry::from_str(text) {
            Ok(geometry) => of_geojson(&geometry),
            Err(error) => polygons(Err(error.to_string())),
        };
    }
    let geometry = wkt::Wkt::from_str(text).map_err(str::to_owned);
    polygons(geometry.and_then(|wkt| Geometry::try_from(wkt).map_err(|error| error.to_string())))
}

fn of_geojson(geometry: &geojson::Geometry) -> Shape {
    let is_short = |ring: &Vec<geojson::Position>| ring.iter().any(|position| position.as_slice().len() < 2);
    let lacks_latitude = match &geometry.value {
        GeometryValue::Polygon { coordinates } => coordinates.iter().any(is_short),
        GeometryValue::MultiPolygon { coordinates } => coordinates.iter().flatten().any(is_short),
        _ => return Err(no_area()),
    };
    // The converter takes it for granted, and panics.
    if lacks_latitude {
        return polygons(Err("a position has no latitude".to_owned()));
    }
    polygons(Geometry::try_from(geometry).map_err(|error| error.to_string()))
}

fn no_area() -> (String, &'static str) {
    ("its shape is no Polygon and no MultiPolygon".to_owned(), "Only areas have an inside.")
}

fn polygons(geometry: Result<Geometry<f64>, String>) -> Shape {
    match geometry {
        Ok(Geometry::Polygon(polygon)) => Ok(polygon.into()),
        Ok(Geometry::MultiPolygon(polygons)) => Ok(polygons),
        Ok(_) => Err(no_area()),
        Err(error) => Err((format!("its shape can't be read: {error}"), FORMS)),
    }
}
