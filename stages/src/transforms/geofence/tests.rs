use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Fault, Port, StageError, TransformConfig,
};

use proptest::prelude::*;

use super::GeofenceConfig;
use crate::transforms::testing::{Outcome, apply, context, example};

/// A yard with a hole (a pond) and a hall in it, and an island of two parts, cut at the antimeridian.
const ZONES: &str = r#"{ "type": "FeatureCollection", "features": [
  { "type": "Feature", "properties": { "name": "yard", "limit": 30, "open": true, "tags": ["a"] }, "geometry": {
    "type": "Polygon", "coordinates": [
      [[10, 50], [14, 50], [14, 54], [10, 54], [10, 50]],
      [[12, 52], [13, 52], [13, 53], [12, 53], [12, 52]] ] } },
  { "type": "Feature", "properties": { "name": "hall", "limit": 5.5, "open": null }, "geometry": {
    "type": "Polygon", "coordinates": [[[10, 50], [11, 50], [11, 51], [10, 51], [10, 50]]] } },
  { "type": "Feature", "properties": { "name": "island", "limit": null, "tags": "t" }, "geometry": {
    "type": "MultiPolygon", "coordinates": [
      [[[179, -10], [180, -10], [180, -9], [179, -9], [179, -10]]],
      [[[-180, -10], [-179, -10], [-179, -9], [-180, -9], [-180, -10]]] ] } }
] }"#;
const COLUMNS: &str = "columns = { zone = \"name\" }";

fn rows(positions: &[(Option<f64>, Option<f64>)]) -> RecordBatch {
    let column = |values: Float64Array| Arc::new(values) as ArrayRef;
    RecordBatch::try_from_iter_with_nullable([
        ("latitude", column(positions.iter().map(|position| position.0).collect()), true),
        ("longitude", column(positions.iter().map(|position| position.1).collect()), true),
    ])
    .unwrap()
}

fn schema() -> SchemaRef {
    rows(&[]).schema()
}

struct Fixture {
    folder: tempfile::TempDir,
    cx: BuildContext,
    file: &'static str,
}

impl Fixture {
    fn new(file: &'static str, zones: &str) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap(), cx: context(), file };
        fs::write(fixture.path(), zones).unwrap();
        fixture
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.file)
    }

    fn stage(&self, text: &str) -> BuiltTransform {
        let text = format!("table = \"{}\"\n{text}", self.path().display());
        toml::from_str::<GeofenceConfig>(&text).unwrap().build(&schema(), &self.cx).unwrap()
    }

    fn judge(&self, text: &str, positions: &[(f64, f64)]) -> Outcome {
        self.judge_any(text, &positions.iter().map(|(lat, lon)| (Some(*lat), Some(*lon))).collect::<Vec<_>>())
    }

    fn judge_any(&self, text: &str, positions: &[(Option<f64>, Option<f64>)]) -> Outcome {
        let mut stage = self.stage(text);
        stage.transform.open().unwrap();
        let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(positions)));
        assert!(outcome.keeps(&stage.outputs));
        outcome
    }

    fn zones(&self, text: &str, positions: &[(f64, f64)]) -> Vec<String> {
        self.judge(text, positions).texts(Port::MAIN, "zone")
    }

    fn counts(&self) -> (u64, u64) {
        (self.cx.counter("outside_rows").get(), self.cx.counter("bad_positions").get())
    }

    fn refusal(&self, text: &str) -> String {
        let error: StageError = self.stage(text).transform.open().unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        error.chain().replace(&self.path().display().to_string(), self.file)
    }
}

#[test]
fn a_position_gets_the_zone_that_it_lies_in() {
    let fixture = Fixture::new("zones.geojson", ZONES);
    let positions = [(53.5, 13.5), (52.5, 12.5), (50.5, 10.5), (-9.5, 179.5), (-9.5, -179.5), (-9.5, 0.0), (0.0, 0.0)];
    let zones = fixture.zones(COLUMNS, &positions);
    assert_eq!(zones, ["yard", "", "hall", "island", "island", "", ""], "a hole is outside, the smallest zone counts");
    assert_eq!(fixture.counts(), (3, 0));
}

#[test]
fn a_border_belongs_to_its_zone_and_that_of_a_hole_too() {
    let fixture = Fixture::new("zones.geojson", ZONES);
    let borders = [(54.0, 12.0), (54.0, 14.0), (52.0, 12.5), (53.0, 13.0), (51.0, 10.5), (50.0, 10.0), (-9.5, 180.0)];
    assert_eq!(fixture.zones(COLUMNS, &borders), ["yard", "yard", "yard", "yard", "hall", "hall", "island"]);
}

#[test]
fn where_zones_overlap_the_rule_decides() {
    let fixture = Fixture::new("zones.geojson", ZONES);
    assert_eq!(fixture.zones(&format!("{COLUMNS}\noverlap = \"smallest\""), &[(50.5, 10.5)]), ["hall"]);
    assert_eq!(fixture.zones(&format!("{COLUMNS}\noverlap = \"first\""), &[(50.5, 10.5)]), ["yard"]);
}

#[test]
fn properties_come_in_the_types_that_the_file_gives_them() {
    let fixture = Fixture::new("zones.json", ZONES);
    let text = "columns = { zone = \"name\", limit = \"limit\", open = \"open\", tags = \"tags\", plain = \"limit\" }\n\
                types = { limit = \"float64\", open = \"bool\", tags = \"json\" }";
    let outcome = fixture.judge(text, &[(53.5, 13.5), (50.5, 10.5), (-9.5, 179.5)]);
    let texts = |column| outcome.texts(Port::MAIN, column);
    assert_eq!(texts("limit"), ["30.0", "5.5", ""]);
    assert_eq!(texts("plain"), ["30", "5.5", ""]);
    assert_eq!(texts("open"), ["true", "", ""]);
    assert_eq!(texts("tags"), ["[\"a\"]", "", "\"t\""]);
    let schema = outcome.port(Port::MAIN).unwrap().schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["latitude", "longitude", "limit", "open", "plain", "tags", "zone"]);
}

#[test]
fn rows_that_are_nowhere_are_told_from_rows_outside() {
    let positions = [
        (Some(53.5), Some(13.5)),
        (None, Some(13.5)),
        (Some(53.5), Some(f64::NAN)),
        (Some(90.5), Some(13.5)),
        (Some(53.5), Some(-180.5)),
        (Some(f64::INFINITY), None),
        (Some(1.0), Some(2.0)),
    ];
    let fixture = Fixture::new("zones.geojson", ZONES);
    assert_eq!(fixture.judge_any(COLUMNS, &positions).texts(Port::MAIN, "zone"), ["yard", "", "", "", "", "", ""]);
    assert_eq!(fixture.counts(), (1, 5));
    let rejected = fixture.judge_any(&format!("{COLUMNS}\noutside = \"reject\""), &positions);
    assert_eq!(rejected.texts(Port::MAIN, "zone"), ["yard"]);
    let reasons = rejected.texts(Port::REJECTED, "reason");
    assert_eq!(reasons, ["position", "position", "position", "position", "position", "outside"]);
    let details = rejected.texts(Port::REJECTED, "detail");
    assert_eq!(
        details[..5],
        [
            "latitude is null",
            "longitude NaN is not within 180 degrees",
            "latitude 90.5 is not within 90 degrees",
            "longitude -180.5 is not within 180 degrees",
            "latitude inf is not within 90 degrees",
        ]
    );
    assert_eq!(details[5], format!("latitude 1, longitude 2 is in no zone of \"{}\"", fixture.path().display()));
    let dropped = fixture.judge_any(&format!("{COLUMNS}\noutside = \"drop\""), &positions);
    assert_eq!((dropped.count(Port::MAIN), dropped.count(Port::REJECTED)), (1, 0));
    assert_eq!(fixture.counts(), (3, 15));
}

#[test]
fn shapes_are_read_from_text_in_tables_too() {
    let csv = "name,geometry\n\
               high,\"POLYGON Z ((40 0 7, 41 0 7, 41 1 7, 40 0 7))\"\n\
               wkt,\"POLYGON ((0 0, 4 0, 4 4, 0 4, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1))\"\n\
               multi,\"MULTIPOLYGON (((10 0, 11 0, 11 1, 10 0)), ((20 0, 21 0, 21 1, 20 0)))\"\n\
               json,\"{\"\"type\"\":\"\"Polygon\"\",\"\"coordinates\"\":[[[30,0],[31,0],[31,1],[30,0]]]}\"\n";
    let fixture = Fixture::new("zones.csv", csv);
    let positions = [(3.0, 3.0), (1.5, 1.5), (0.1, 10.9), (0.1, 20.9), (0.1, 30.9), (0.1, 40.9)];
    assert_eq!(fixture.zones(COLUMNS, &positions), ["wkt", "", "multi", "multi", "json", "high"]);
    let named = Fixture::new("zones.csv", &csv.replace("geometry", "area"));
    assert_eq!(named.zones(&format!("{COLUMNS}\ngeometry = \"area\""), &positions[..1]), ["wkt"]);
}

#[test]
fn one_feature_is_a_zone_and_no_feature_is_none() {
    let feature = r#"{"type":"Feature","properties":{"name":"a"},"geometry":{"type":"Polygon","coordinates":[[[0,0],[2,0],[2,2],[0,0]]]}}"#;
    assert_eq!(Fixture::new("z.geojson", feature).zones(COLUMNS, &[(0.5, 1.0)]), ["a"]);
    let nothing = r#"{"type":"FeatureCollection","features":[]}"#;
    assert_eq!(Fixture::new("z.geojson", nothing).zones(COLUMNS, &[(0.5, 1.0)]), [""]);
}

#[test]
fn mistakes_in_the_zones_name_the_feature_or_the_line() {
    let feature = |geometry: &str| {
        let good = r#"{"type":"Polygon","coordinates":[[[0,0],[2,0],[2,2],[0,0]]]}"#;
        let of = |shape: &str| format!(r#"{{"type":"Feature","properties":{{"name":"a"}},"geometry":{shape}}}"#);
        format!(r#"{{"type":"FeatureCollection","features":[{},{}]}}"#, of(good), of(geometry))
    };
    let polygon = |ring: &str| feature(&format!(r#"{{"type":"Polygon","coordinates":[{ring}]}}"#));
    let cases = [
        ("z.geojson", "{".to_owned(), "it is not valid GeoJSON"),
        ("z.geojson", "[1]".to_owned(), "it is not valid GeoJSON"),
        ("z.geojson", r#"{"type":"Polygon","coordinates":[]}"#.to_owned(), "a shape alone"),
        ("z.geojson", feature("null"), "feature 2: it has no shape"),
        ("z.geojson", feature(r#"{"type":"Point","coordinates":[1,2]}"#), "feature 2: its shape is no Polygon"),
        ("z.geojson", feature(r#"{"type":"MultiPolygon","coordinates":[]}"#), "feature 2: its shape is empty"),
        (
            "z.geojson",
            polygon("[[0,0],[2,2],[2,0],[0,2],[0,0]]"),
            "feature 2: its edges cross at longitude 1, latitude 1",
        ),
        ("z.geojson", polygon("[[0,0],[2,2]]"), "feature 2: a ring of it has fewer than three corners"),
        ("z.geojson", polygon("[[170,0],[190,0],[190,2],[170,0]]"), "feature 2: longitude 190, latitude 0 is nowhere"),
        ("z.geojson", polygon("[[52,100],[53,100],[53,101],[52,100]]"), "the longitude and then the latitude"),
        ("z.geojson", polygon("[[1],[2],[3],[1]]"), "feature 2: its shape can't be read: a position has no latitude"),
        ("z.csv", "name,geometry\na,\n".to_owned(), "line 2: it has no shape"),
        ("z.csv", "name,geometry\na,0103000020E6\n".to_owned(), "line 2: its shape can't be read"),
        ("z.csv", "name,geometry\na,POINT (1 2)\n".to_owned(), "line 2: its shape is no Polygon"),
        ("z.csv", "name\na\n".to_owned(), "it has no column \"geometry\""),
    ];
    for (file, zones, part) in cases {
        let told = Fixture::new(file, &zones).refusal(COLUMNS);
        assert!(told.starts_with(&format!("table \"{file}\": ")) && told.contains(part), "{zones}: {told}");
    }
    let typed = Fixture::new("z.geojson", ZONES).refusal("columns = { zone = \"name\" }\ntypes = { zone = \"int32\" }");
    assert!(typed.contains("feature 1: \"yard\" in column \"name\" is no int32"), "{typed}");
    let unknown = Fixture::new("z.geojson", ZONES).refusal("columns = { zone = \"nam\" }");
    assert!(unknown.contains("no feature has the property \"nam\""), "{unknown}");
}

fn mistake(text: &str) -> (String, String) {
    let built: Result<_, BuildError> = toml::from_str::<GeofenceConfig>(text).unwrap().build(&schema(), &context());
    let Err(error) = built else { panic!("must be refused: {text}") };
    (error.key, format!("{}. {}", error.message, error.hint.unwrap_or_default()))
}

#[test]
fn mistakes_in_the_configuration_name_their_key_and_a_way_out() {
    let table = "table = \"z.geojson\"\n";
    let cases = [
        (COLUMNS.to_owned(), "table", "there are no zones"),
        (format!("{table}columns = {{}}"), "columns", "there is nothing to add"),
        (format!("table = \"z.txt\"\n{COLUMNS}"), "table", "Say what it is"),
        (format!("{table}{COLUMNS}\ngeometry = \"area\""), "geometry", "where GeoJSON says"),
        (format!("{table}columns = {{ latitude = \"name\" }}"), "columns.latitude", "a column \"latitude\" already"),
        (format!("{table}{COLUMNS}\ntypes = {{ zon = \"int32\" }}"), "types.zon", "Did you mean \"zone\"?"),
        (format!("{table}{COLUMNS}\ntypes = {{ zone = \"binary\" }}"), "types.zone", "holds bytes"),
        (format!("{table}{COLUMNS}\nlatitude = \"latitud\""), "latitude", "Did you mean \"latitude\"?"),
        (format!("{table}{COLUMNS}\nurl = \"postgres://h/d\""), "url", "only a `query`"),
        (format!("query = \"SELECT 1\"\n{COLUMNS}"), "url", "a query needs"),
        (
            format!("query = \"SELECT 1\"\nurl = \"postgres://h/d\"\nformat = \"csv\"\n{COLUMNS}"),
            "format",
            "rows of a query",
        ),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake(&text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = example(include_str!("mod.rs"));
    assert!(text.lines().count() > 2, "{text}");
    let columns = ["lat", "lon"].map(|name| (name, Arc::new(Float64Array::from(vec![0.0])) as ArrayRef));
    let input = RecordBatch::try_from_iter(columns).unwrap().schema();
    toml::from_str::<GeofenceConfig>(&text).unwrap().build(&input, &context()).unwrap();
}

proptest! {
    /// Whatever the file holds: its zones are read, or it is refused.
    #[test]
    fn no_file_of_zones_is_too_broken_to_be_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"[]{},\"0-9e()PZ ".to_vec())), 0..6),
        is_geojson: bool,
    ) {
        let (file, text) = match is_geojson {
            true => ("zones.geojson", ZONES.to_owned()),
            false => ("zones.csv", "name,geometry\na,\"POLYGON ((0 0, 4 0, 4 4, 0 4, 0 0), (1 1, 2 1, 2 2, 1 1))\"\n".to_owned()),
        };
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            let index = at.index(bytes.len());
            bytes[index] = byte;
        }
        let fixture = Fixture::new(file, std::str::from_utf8(&bytes).unwrap());
        if let Err(error) = fixture.stage(COLUMNS).transform.open() {
            prop_assert_eq!(error.fault(), Fault::Permanent);
            prop_assert!(!error.chain().contains("panicked"), "{}", error.chain());
        }
    }
}
