//! `geofence` against shapely.

use std::f64::consts::TAU;
use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, TransformConfig};
use pipeline_stages::transforms::geofence::GeofenceConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{agrees, lines};

/// Longitude and latitude.
type Corner = [f64; 2];

/// A ring around a middle whose corners lie at any distance from half of `radius` on: never crosses itself.
fn ring(rng: &mut StdRng, middle: Corner, radius: f64, corners: usize) -> Vec<Corner> {
    let is_clockwise = rng.random_bool(0.5);
    let corner = |number: usize| {
        let angle = TAU * number as f64 / corners as f64 * if is_clockwise { -1.0 } else { 1.0 };
        let far = radius * rng.random_range(0.5..1.0);
        [middle[0] + far * angle.cos(), middle[1] + far * angle.sin()]
    };
    let mut ring: Vec<Corner> = (0..corners).map(corner).collect();
    ring.push(ring[0]);
    ring
}

/// A polygon, half of them with a hole, of a few to some hundred corners.
fn polygon(rng: &mut StdRng, middle: Corner, radius: f64) -> Vec<Vec<Corner>> {
    let corners = if rng.random_bool(0.2) { rng.random_range(100..400) } else { rng.random_range(5..20) };
    let mut rings = vec![ring(rng, middle, radius, corners)];
    if rng.random_bool(0.5) {
        // Within the circle that no edge of the outer ring comes into.
        rings.push(ring(rng, middle, radius * 0.25, 7));
    }
    rings
}

/// Zones strewn over a few degrees around the equator, many of them on top of each other, and squares on a grid, side by
/// side, whose borders are exact.
fn zones(rng: &mut StdRng, count: usize) -> Vec<Value> {
    let mut shapes = Vec::new();
    for _ in 0..count {
        let middle = [rng.random_range(-3.0..3.0), rng.random_range(-1.0..1.0)];
        let radius = rng.random_range(0.01..0.4);
        let first = polygon(rng, middle, radius);
        shapes.push(if rng.random_bool(0.3) {
            let second = polygon(rng, [middle[0] + 1.0, middle[1]], radius);
            json!({ "type": "MultiPolygon", "coordinates": [first, second] })
        } else {
            json!({ "type": "Polygon", "coordinates": first })
        });
    }
    for (column, row) in (0..8).flat_map(|column| (0..4).map(move |row| (column, row))) {
        let (west, south, size) = (f64::from(column) * 0.5 - 2.0, f64::from(row) * 0.5 - 1.0, 0.5);
        let square =
            [[0.0, 0.0], [size, 0.0], [size, size], [0.0, size], [0.0, 0.0]].map(|[x, y]| [west + x, south + y]);
        shapes.push(json!({ "type": "Polygon", "coordinates": [square] }));
    }
    let feature = |(number, geometry): (usize, Value)| json!({ "type": "Feature", "properties": { "name": format!("zone-{number}") }, "geometry": geometry });
    shapes.into_iter().enumerate().map(feature).collect()
}

/// Anywhere, and on corners and borders of the squares.
fn positions(rng: &mut StdRng) -> Vec<Corner> {
    let position = |_| match rng.random_range(0..3) {
        0 => [f64::from(rng.random_range(-9..9)) * 0.25, f64::from(rng.random_range(-5..5)) * 0.25],
        1 => [f64::from(rng.random_range(-5..5)) * 0.5, rng.random_range(-1.2..1.2)],
        _ => [rng.random_range(-3.5..4.5), rng.random_range(-1.5..1.5)],
    };
    (0..2_000).map(position).collect()
}

fn judged(config: &str, positions: &[Corner]) -> String {
    let column = |index: usize| {
        Arc::new(Float64Array::from_iter_values(positions.iter().map(|position| position[index]))) as ArrayRef
    };
    let rows = RecordBatch::try_from_iter([("longitude", column(0)), ("latitude", column(1))]).unwrap();
    let config: GeofenceConfig = toml::from_str(config).unwrap();
    let built = config.build(&rows.schema(), &BuildContext::detached("zoned", Default::default())).unwrap();
    let (mut transform, mut out) = (built.transform, Emitter::default());
    transform.open().unwrap();
    transform.apply(Batch::detached(rows), &mut out).unwrap();
    let (_, batch) = out.take().remove(0);
    let zone = batch.rows.schema().index_of("zone").unwrap();
    let named = json_lines(&batch.rows.project(&[zone]).unwrap()).unwrap();
    // A null is left out.
    String::from_utf8(named).unwrap().replace("{}", "{\"zone\":null}")
}

#[test]
fn zones_of_positions_are_those_of_shapely() {
    for (seed, (overlap, count)) in [("smallest", 60), ("first", 60), ("smallest", 400)].into_iter().enumerate() {
        let mut rng = StdRng::seed_from_u64(seed as u64);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let zones = json!({ "type": "FeatureCollection", "features": zones(&mut rng, count) });
        fs::write(path("zones.geojson"), zones.to_string()).unwrap();
        let positions = positions(&mut rng);
        let config = format!(
            "table = \"{}\"\ncolumns = {{ zone = \"name\" }}\noverlap = \"{overlap}\"",
            path("zones.geojson").display()
        );
        fs::write(path("ours.jsonl"), judged(&config, &positions)).unwrap();
        let asked =
            positions.iter().map(|[longitude, latitude]| json!({ "longitude": longitude, "latitude": latitude }));
        fs::write(path("positions.jsonl"), lines(asked)).unwrap();
        fs::write(path("config.json"), json!({ "overlap": overlap }).to_string()).unwrap();
        let files = ["zones.geojson", "positions.jsonl", "ours.jsonl", "config.json"];
        agrees("geofence.py", &files, folder.path(), &format!("{overlap}, {count} zones"));
    }
}
