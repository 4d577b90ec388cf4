use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use pipeline_engine::stage::{Batch, BuildContext, BuiltTransform, Fault, Port, StageError};
use pipeline_engine::{Partition, Span, testing};
use proptest::prelude::*;

use super::EnrichConfig;
use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows, schema};

mod as_of;

const DEVICES: &str = "\
device_id, site , latitude,model,active,since,notes
dev-1,north,52.5,th-200,true,2024-05-01T12:00:00Z,\"{\"\"a\"\": 1}\"
dev-2,\"south, hall 2\",-33.25,,false,2024-05-01 12:00:00+02:00,
dev-3,\"two
lines\",,th-100,,,
";
const TYPES: &str =
    "types = { latitude = \"float64\", active = \"bool\", since = \"timestamp\", notes = \"json\", site = \"text\" }";

struct Fixture {
    folder: tempfile::TempDir,
    cx: BuildContext,
}

impl Fixture {
    fn new(devices: &str) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap(), cx: context() };
        fs::write(fixture.folder.path().join("devices.csv"), devices).unwrap();
        fixture
    }

    fn path(&self) -> String {
        self.folder.path().join("devices.csv").display().to_string()
    }

    fn stage(&self, text: &str) -> BuiltTransform {
        let table = if text.contains("table =") { String::new() } else { format!("table = \"{}\"\n", self.path()) };
        built::<EnrichConfig>(&(table + text), &self.cx).unwrap()
    }

    fn enrich(&self, text: &str, readings: &[Reading]) -> Outcome {
        let mut stage = self.stage(text);
        stage.transform.open().unwrap();
        let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(readings)));
        assert!(outcome.keeps(&stage.outputs));
        outcome
    }

    /// Why the table can't be read at the start.
    fn refusal(&self, text: &str) -> String {
        let error: StageError = self.stage(text).transform.open().unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        error.chain().replace(&self.path(), "devices.csv")
    }
}

fn readings(devices: &[Option<&str>]) -> Vec<Reading> {
    let reading = |device: &Option<&str>| Reading { device_id: device.map(str::to_owned), ..Reading::of("", 0) };
    devices.iter().map(reading).collect()
}

#[test]
fn a_row_gets_what_the_table_knows_about_its_key() {
    let fixture = Fixture::new(DEVICES);
    let readings = readings(&[Some("dev-2"), Some("dev-1"), Some("dev-1"), Some("dev-3")]);
    let outcome = fixture.enrich(&format!("key = \"device_id\"\n{TYPES}"), &readings);
    let text = |column| outcome.texts(Port::MAIN, column);
    assert_eq!(text("site"), ["south, hall 2", "north", "north", "two\nlines"]);
    assert_eq!(text("latitude"), ["-33.25", "52.5", "52.5", ""]);
    assert_eq!(text("active"), ["false", "true", "true", ""]);
    assert_eq!(text("since"), ["2024-05-01T10:00:00Z", "2024-05-01T12:00:00Z", "2024-05-01T12:00:00Z", ""]);
    assert_eq!(text("notes"), ["", "{\"a\": 1}", "{\"a\": 1}", ""]);
    assert_eq!(text("device_id"), ["dev-2", "dev-1", "dev-1", "dev-3"]);
}

#[test]
fn columns_come_in_the_order_they_are_named_in_and_constants_last() {
    let fixture = Fixture::new(DEVICES);
    let text = "key = \"device_id\"\ncolumns = [\"site\", \"model\"]\n\
                constants = { region = \"eu-1\", level = 3, weight = 0.5, indoor = true }";
    let outcome = fixture.enrich(text, &readings(&[Some("dev-1")]));
    let schema = outcome.port(Port::MAIN).unwrap().schema();
    let names: Vec<&str> = schema.fields().iter().skip(7).map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["site", "model", "indoor", "level", "region", "weight"]);
    let values: Vec<String> = names.iter().map(|name| outcome.texts(Port::MAIN, name).remove(0)).collect();
    assert_eq!(values, ["north", "th-200", "true", "3", "eu-1", "0.5"]);
}

#[test]
fn constants_need_no_table() {
    let mut stage = built::<EnrichConfig>("constants = { region = \"eu-1\" }", &context()).unwrap();
    stage.transform.open().unwrap();
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(&readings(&[None, None]))));
    assert_eq!(outcome.texts(Port::MAIN, "region"), ["eu-1"; 2]);
}

#[test]
fn whole_numbers_can_be_keys() {
    let fixture = Fixture::new("floor,name\n-1,cellar\n3,attic\n");
    let mut readings = readings(&[None, None, None]);
    (readings[0].floor, readings[1].floor, readings[2].floor) = (Some(3), None, Some(-1));
    let outcome = fixture.enrich("key = \"floor\"\ncolumns = [\"name\"]", &readings);
    assert_eq!(outcome.texts(Port::MAIN, "name"), ["attic", "", "cellar"]);
}

#[test]
fn the_key_may_have_another_name_in_the_table() {
    let fixture = Fixture::new("\u{feff}id,site\ndev-1,north\n");
    let text = "key = \"device_id\"\ntable_key = \"id\"\ncolumns = [\"site\"]";
    assert_eq!(fixture.enrich(text, &readings(&[Some("dev-1")])).texts(Port::MAIN, "site"), ["north"]);
}

#[test]
fn a_row_without_entry_goes_on_with_nulls() {
    let fixture = Fixture::new(DEVICES);
    let text = "key = \"device_id\"\ncolumns = [\"site\"]";
    let outcome = fixture.enrich(text, &readings(&[None, Some("dev-9"), Some("dev-1")]));
    let site = outcome.port(Port::MAIN).unwrap().column_by_name("site").unwrap().as_string::<i32>().clone();
    assert_eq!(site.iter().collect::<Vec<_>>(), [None, None, Some("north")]);
    assert_eq!(fixture.cx.counter("missing_rows").get(), 2);
}

#[test]
fn a_row_without_entry_is_rejected_where_that_is_asked_for() {
    let fixture = Fixture::new(DEVICES);
    let text = "key = \"device_id\"\ncolumns = [\"site\"]\nmissing = \"reject\"";
    let outcome = fixture.enrich(text, &readings(&[Some("dev-1"), None, Some("dev-9"), Some("dev-2")]));
    assert_eq!(outcome.texts(Port::MAIN, "site"), ["north", "south, hall 2"]);
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["missing.device_id"; 2]);
    let details = outcome.texts(Port::REJECTED, "detail");
    assert_eq!(details[0], "device_id is null");
    assert_eq!(details[1], format!("device_id \"dev-9\" is not in \"{}\"", fixture.path()));
    assert_eq!(outcome.payloads()[1]["device_id"], "dev-9");
}

#[test]
fn dropped_rows_are_counted_and_their_promise_goes_on() {
    let fixture = Fixture::new(DEVICES);
    let mut stage = fixture.stage("key = \"device_id\"\ncolumns = [\"site\"]\nmissing = \"drop\"");
    let partition = Partition::new("p");
    let mut send = |devices: &[Option<&str>], position: u64| {
        let ack = partition.open(Span::new(position, position), 0);
        let outcome = apply(stage.transform.as_mut(), Batch::new(rows(&readings(devices)), ack));
        let kept = outcome.count(Port::MAIN);
        outcome.0.into_iter().for_each(|(_, batch)| testing::deliver(batch));
        kept
    };
    assert_eq!(send(&[Some("dev-9"), Some("dev-1")], 1), 1);
    assert_eq!(send(&[Some("dev-9"), None], 2), 0);
    assert_eq!(fixture.cx.counter("missing_rows").get(), 3);
    let progress = *partition.progress().borrow();
    assert!(progress.is_complete() && !progress.failed);
}

#[test]
fn a_table_is_read_when_the_first_batch_comes_if_nobody_has_opened_it() {
    let fixture = Fixture::new(DEVICES);
    let mut stage = fixture.stage("key = \"device_id\"\ncolumns = [\"site\"]");
    let outcome = apply(stage.transform.as_mut(), Batch::detached(rows(&readings(&[Some("dev-1")]))));
    assert_eq!(outcome.texts(Port::MAIN, "site"), ["north"]);
}

#[test]
fn mistakes_in_the_table_name_their_line() {
    let site = "key = \"device_id\"\ncolumns = [\"site\"]";
    let latitude = "key = \"device_id\"\ntypes = { latitude = \"float64\" }";
    let cases = [
        (site, "device_id,site\na,x\n\"b\",\"y\nz\"\nc,x\na,y\n", "line 6 has the same \"device_id\" as line 2"),
        (site, "device_id,site\na,x\n,y\n", "line 3 has no \"device_id\""),
        (site, "device_id,place\na,x\n", "it has no column \"site\". Its columns: \"device_id\", \"place\"."),
        (site, "device_id,site\na\n", "it is not valid CSV"),
        (site, "", "it has no column \"device_id\""),
        (latitude, "device_id,latitude\na,1\nb,north\n", "line 3: \"north\" in column \"latitude\" is no float64"),
        (
            "key = \"device_id\"\ntypes = { notes = \"json\" }",
            "device_id,notes\na,{\n",
            "line 2: \"{\" in column \"notes\" is no json",
        ),
        (
            "key = \"floor\"\ncolumns = [\"site\"]",
            "floor,site\n1,x\none,y\n",
            "line 3: \"one\" in column \"floor\" is no int64",
        ),
        (
            "key = \"device_id\"\ncolumns = [\"site\"]\nmax_table_size = \"16B\"",
            "device_id,site\na,x\nb,y\n",
            "it has 23 bytes, more than `max_table_size`, 16",
        ),
    ];
    for (text, table, part) in cases {
        let told = Fixture::new(table).refusal(text);
        assert!(told.starts_with("table \"devices.csv\": ") && told.contains(part), "{table}: {told}");
    }
}

#[test]
fn the_example_in_the_header_is_valid() {
    let text = example(include_str!("../mod.rs"));
    assert!(text.lines().count() > 2, "{text}");
    built::<EnrichConfig>(&text, &context()).unwrap();
}

#[test]
fn mistakes_in_the_configuration_name_their_key_and_a_way_out() {
    let with = |rest: &str| format!("table = \"devices.csv\"\nkey = \"device_id\"\n{rest}");
    let cases = [
        (String::new(), "", "there is nothing to add"),
        ("key = \"device_id\"\nconstants = { a = 1 }".to_owned(), "key", "nothing without a `table`"),
        ("refresh = \"1s\"\nconstants = { a = 1 }".to_owned(), "refresh", "nothing without a `table` or a `query`"),
        (with("columns = [\"site\"]\nquery = \"SELECT 1\""), "query", "a table is given already"),
        (with("columns = [\"site\"]\nrefresh = \"10ms\""), "refresh", "ten times a second"),
        (with("columns = [\"site\"]\nread_timeout = \"0s\""), "read_timeout", "in no time"),
        (with("columns = [\"site\"]\nmax_table_size = \"3GiB\""), "max_table_size", "at most 2 GiB"),
        (with("columns = [\"site\"]\nregion = \"eu\""), "region", "a file of this machine has no such setting"),
        (with("columns = [\"site\"]\npassword = \"x\""), "password", "only a `query` goes to a database"),
        ("table = \"gs://b/a.csv\"\nkey = \"device_id\"".to_owned(), "table", "\"gs\" is no place of tables"),
        ("table = \"\"\nkey = \"device_id\"".to_owned(), "table", "no file without a name"),
        ("table = \"s3://b\"\nkey = \"device_id\"".to_owned(), "table", "no object of the bucket \"b\""),
        ("table = \"s3://B/a.csv\"\nkey = \"device_id\"".to_owned(), "table", "no name of a bucket"),
        ("table = \"s3://b/a//c.csv\"\nkey = \"device_id\"".to_owned(), "table", "no key of an object"),
        (
            "table = \"s3://b/a.csv\"\nendpoint = \"http://s3.example.com\"\nkey = \"device_id\"".to_owned(),
            "endpoint",
            "is not encrypted",
        ),
        ("query = \"SELECT 1\"\nkey = \"device_id\"".to_owned(), "url", "a query needs the key \"url\""),
        ("query = \" \"\nurl = \"postgres://h/d\"".to_owned(), "query", "there is no statement"),
        ("query = \"SELECT 1\"\nurl = \"mysql://h/d\"".to_owned(), "url", "not a url of a database"),
        (
            "query = \"SELECT 1\"\nurl = \"postgres://h/d\"\nallow_http = true".to_owned(),
            "allow_http",
            "a query has no such setting",
        ),
        (
            "query = \"SELECT 1\"\nurl = \"postgres://h/d\"\nkey = \"device_id\"\nformat = \"csv\"".to_owned(),
            "format",
            "the rows of a query have no format",
        ),
        (
            "query = \"SELECT 1\"\nurl = \"postgres://h/d\"\nkey = \"device_id\"\ntypes = { a = \"binary\" }"
                .to_owned(),
            "types.a",
            "a query gives no bytes",
        ),
        ("table = \"devices.csv\"\ncolumns = [\"site\"]".to_owned(), "key", "Name the column"),
        ("table = \"a.csv\"\nkey = \"devic_id\"\ncolumns = [\"b\"]".to_owned(), "key", "Did you mean \"device_id\"?"),
        ("table = \"a.csv\"\nkey = \"humidity\"\ncolumns = [\"b\"]".to_owned(), "key", "not text or a whole number"),
        ("table = \"a.txt\"\nkey = \"device_id\"\ncolumns = [\"b\"]".to_owned(), "table", "neither in .csv nor"),
        ("table = \"a.parquet\"\nkey = \"device_id\"\ncolumns = [\"b\"]".to_owned(), "types", "\"b\" has no type"),
        (with(""), "columns", "Name the table's columns to add"),
        (with("columns = [\"device_id\"]"), "columns", "the key of the table"),
        (with("columns = [\"status\"]"), "columns", "there is a column \"status\" already"),
        (with("columns = [\"site\", \"site\"]"), "columns", "there is a column \"site\" already"),
        (
            with("columns = [\"latitude\"]\ntypes = { latitud = \"float64\" }"),
            "types.latitud",
            "Did you mean \"latitude\"?",
        ),
        (with("types = { image = \"binary\" }"), "types.image", "holds no bytes"),
        (
            with("columns = [\"site\"]\nconstants = { site = \"x\" }"),
            "constants.site",
            "there is a column \"site\" already",
        ),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<EnrichConfig>(&text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[cfg(feature = "parquet")]
mod of_parquet {
    use arrow::array::{ArrayRef, DictionaryArray, Float32Array, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn write(path: &Path, rows: &RecordBatch) {
        let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), rows.schema(), None).unwrap();
        writer.write(rows).unwrap();
        writer.close().unwrap();
    }

    fn table(keys: Vec<&str>) -> RecordBatch {
        let count = keys.len();
        let sites: DictionaryArray<Int32Type> = (0..count).map(|row| ["north", "south"][row % 2]).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("unused", Arc::new(Int64Array::from(vec![1; count]))),
            ("latitude", Arc::new(Float32Array::from_iter_values((0..count).map(|row| row as f32)))),
            ("site", Arc::new(sites)),
            ("device_id", Arc::new(StringArray::from(keys))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    const TYPES: &str = "key = \"device_id\"\ntypes = { site = \"text\", latitude = \"float64\" }";

    fn fixture(keys: Vec<&str>) -> (Fixture, String) {
        let fixture = Fixture::new("");
        let path = fixture.folder.path().join("devices.parquet");
        write(&path, &table(keys));
        let text = format!("table = \"{}\"\n", path.display());
        (fixture, text)
    }

    #[test]
    fn a_parquet_table_is_read_by_name() {
        let (fixture, text) = fixture(vec!["dev-1", "dev-2"]);
        let outcome = fixture.enrich(&(text + TYPES), &readings(&[Some("dev-2"), Some("dev-1"), None]));
        assert_eq!(outcome.texts(Port::MAIN, "site"), ["south", "north", ""]);
        assert_eq!(outcome.texts(Port::MAIN, "latitude"), ["1.0", "0.0", ""]);
    }

    #[test]
    fn a_parquet_table_is_held_to_the_types_of_the_configuration() {
        let (fixture, text) = fixture(vec!["dev-1"]);
        let wrong = text + "key = \"device_id\"\ntypes = { latitude = \"int64\" }";
        assert!(fixture.refusal(&wrong).contains("column \"latitude\" is Float32, not int64"));
    }

    #[test]
    fn a_key_twice_names_its_rows() {
        let (fixture, text) = fixture(vec!["dev-1", "dev-2", "dev-1"]);
        assert!(fixture.refusal(&(text + TYPES)).contains("row 3 has the same \"device_id\" as row 1"));
    }

    #[test]
    fn what_is_no_parquet_is_refused() {
        let fixture = Fixture::new("device_id,site\n");
        let text = format!("table = \"{}\"\nformat = \"parquet\"\n{TYPES}", fixture.path());
        assert!(fixture.refusal(&text).contains("it is not valid Parquet"));
    }
}

proptest! {
    /// Whatever the policy, each row keeps its columns and its order, and leaves once.
    #[test]
    fn each_row_leaves_by_exactly_one_port_or_is_counted(
        devices in prop::collection::vec(prop::option::weighted(0.9, 0..6u8), 0..60),
        policy in prop::sample::select(vec!["null", "reject", "drop"]),
    ) {
        let fixture = Fixture::new("device_id,site\ndev-1,a\ndev-2,b\ndev-3,\n");
        let names: Vec<Option<String>> = devices.iter().map(|device| device.map(|id| format!("dev-{id}"))).collect();
        let all = readings(&names.iter().map(Option::as_deref).collect::<Vec<_>>());
        let text = format!("key = \"device_id\"\ncolumns = [\"site\"]\nmissing = \"{policy}\"");
        let outcome = fixture.enrich(&text, &all);
        let known = |device: &Option<u8>| matches!(device, Some(1..=3));
        let kept: Vec<Reading> =
            all.iter().zip(&devices).filter(|(_, device)| policy == "null" || known(device)).map(|(r, _)| r.clone()).collect();
        let missing = devices.iter().filter(|device| !known(device)).count();
        prop_assert_eq!(fixture.cx.counter("missing_rows").get(), missing as u64);
        prop_assert_eq!(outcome.count(Port::REJECTED), if policy == "reject" { missing } else { 0 });
        let empty = RecordBatch::new_empty(schema());
        let main = outcome.port(Port::MAIN).map(|rows| rows.project(&[0, 1, 2, 3, 4, 5, 6]).unwrap()).unwrap_or(empty);
        prop_assert_eq!(concat_batches(&schema(), [&main]).unwrap(), rows(&kept));
        let sites = outcome.texts(Port::MAIN, "site");
        for (reading, site) in kept.iter().zip(sites) {
            let expected = match reading.device_id.as_deref() { Some("dev-1") => "a", Some("dev-2") => "b", _ => "" };
            prop_assert_eq!(site, expected);
        }
    }
}
