use proptest::prelude::*;

use super::*;

const CALIBRATIONS: &str = "\
device_id,since,until,offset
dev-1,2026-03-01T00:00:00Z,,3
dev-2,2026-01-01T00:00:00Z,2026-01-10T00:00:00Z,7
dev-1,2026-01-01T00:00:00Z,2026-06-01T00:00:00Z,1
dev-1,2026-02-01T00:00:00Z,2026-02-10T00:00:00Z,2
";
const AS_OF: &str = "key = \"device_id\"\ncolumns = [\"offset\"]\n\
                     as_of = { time = \"timestamp\", valid_from = \"since\", valid_to = \"until\" }";

fn at(device: &str, time: &str) -> Reading {
    Reading::of(device, pipeline_engine::time::parse_us(time, 0).unwrap())
}

#[test]
fn the_row_that_was_valid_at_the_readings_time_is_added() {
    let cases = [
        ("dev-1", "2025-12-31T23:59:59.999999Z", ""),
        ("dev-1", "2026-01-01T00:00:00Z", "1"),
        ("dev-1", "2026-01-31T23:59:59.999999Z", "1"),
        ("dev-1", "2026-02-01T00:00:00Z", "2"),
        // The row that began last has ended; the one before it does not come back.
        ("dev-1", "2026-02-10T00:00:00Z", ""),
        ("dev-1", "2026-03-01T00:00:00Z", "3"),
        ("dev-1", "2031-01-01T00:00:00Z", "3"),
        ("dev-2", "2026-01-09T23:59:59Z", "7"),
        ("dev-2", "2026-01-10T00:00:00Z", ""),
        ("dev-3", "2026-01-09T23:59:59Z", ""),
    ];
    let fixture = Fixture::new(CALIBRATIONS);
    let readings: Vec<Reading> = cases.iter().map(|(device, time, _)| at(device, time)).collect();
    let found = fixture.enrich(AS_OF, &readings).texts(Port::MAIN, "offset");
    assert_eq!(found, cases.map(|(_, _, expected)| expected));
    assert_eq!(fixture.cx.counter("missing_rows").get(), 4);
}

#[test]
fn a_row_may_be_valid_for_so_long_and_no_longer() {
    let text = "key = \"device_id\"\ncolumns = [\"offset\"]\n\
                as_of = { time = \"timestamp\", valid_from = \"since\", max_age = \"1d\" }";
    let fixture = Fixture::new(CALIBRATIONS);
    let readings = [at("dev-1", "2026-03-02T00:00:00Z"), at("dev-1", "2026-03-02T00:00:00.000001Z")];
    assert_eq!(fixture.enrich(text, &readings).texts(Port::MAIN, "offset"), ["3", ""]);
}

#[test]
fn a_row_without_an_entry_that_is_valid_then_says_when_that_is() {
    let fixture = Fixture::new(CALIBRATIONS);
    let mut readings = vec![at("dev-1", "2026-02-10T00:00:00Z"), Reading::of("dev-1", 0), Reading::of("", 0)];
    (readings[1].timestamp, readings[2].device_id) = (None, None);
    let outcome = fixture.enrich(&format!("{AS_OF}\nmissing = \"reject\""), &readings);
    assert_eq!(outcome.texts(Port::REJECTED, "reason"), ["missing.device_id"; 3]);
    let place = format!("\"{}\"", fixture.path());
    assert_eq!(
        outcome.texts(Port::REJECTED, "detail"),
        [
            format!("device_id \"dev-1\" has no entry in {place} that is valid at 2026-02-10T00:00:00.000000Z"),
            "timestamp is null".to_owned(),
            "device_id is null".to_owned(),
        ]
    );
}

#[test]
fn the_times_of_a_row_can_be_added_too() {
    let text = "key = \"device_id\"\ncolumns = [\"until\", \"offset\", \"since\"]\n\
                as_of = { time = \"timestamp\", valid_from = \"since\", valid_to = \"until\" }";
    let outcome = Fixture::new(CALIBRATIONS).enrich(text, &[at("dev-1", "2026-03-02T00:00:00Z")]);
    assert_eq!(outcome.texts(Port::MAIN, "since"), ["2026-03-01T00:00:00Z"]);
    assert_eq!(outcome.texts(Port::MAIN, "until"), [""]);
}

#[test]
fn mistakes_in_a_history_name_their_line() {
    let cases = [
        (
            "dev-1,2026-01-01T00:00:00Z,,1\ndev-1,2026-01-01,,2\n",
            "line 3 has the same \"device_id\" and \"since\" as line 2",
        ),
        ("dev-1,,,1\n", "line 2 has no \"since\""),
        (",2026-01-01,,1\n", "line 2 has no \"device_id\""),
        ("dev-1,2026-01-02,2026-01-02,1\n", "line 2: its \"until\" is not after its \"since\""),
        ("dev-1,soon,,1\n", "line 2: \"soon\" in column \"since\" is no timestamp"),
    ];
    for (rows, part) in cases {
        let told = Fixture::new(&format!("device_id,since,until,offset\n{rows}")).refusal(AS_OF);
        assert!(told.contains(part), "{rows}: {told}");
    }
}

#[test]
fn mistakes_in_as_of_name_their_key() {
    let with = |as_of: &str| format!("table = \"c.csv\"\nkey = \"device_id\"\ncolumns = [\"offset\"]\nas_of = {as_of}");
    let cases = [
        (with("{ time = \"timestam\", valid_from = \"since\" }"), "as_of.time", "Did you mean \"timestamp\"?"),
        (with("{ time = \"floor\", valid_from = \"since\" }"), "as_of.time", "a timestamp"),
        (
            with("{ time = \"timestamp\", valid_from = \"since\", max_age = \"100000000y\" }"),
            "as_of.max_age",
            "longer than any two times",
        ),
        (
            "constants = { a = 1 }\nas_of = { time = \"timestamp\", valid_from = \"b\" }".to_owned(),
            "as_of",
            "without a",
        ),
    ];
    for (text, key, part) in cases {
        let (found, message) = mistake::<EnrichConfig>(&text);
        assert_eq!(found, key, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

proptest! {
    /// Whatever the order of the table: the row that a search through all of them finds.
    #[test]
    fn any_history_is_searched_like_row_by_row(
        history in prop::collection::btree_map((0..3u8, 0..20i64), 1..8i64, 0..30),
        readings in prop::collection::vec((0..4u8, -1..25i64), 1..40),
        order in prop::collection::vec(any::<u32>(), 30),
        max_age in prop::option::of(1..6i64),
    ) {
        let mut table: Vec<(u8, i64, i64)> = history.into_iter().map(|((key, from), length)| (key, from, from + length)).collect();
        let valid_at = |key: u8, time: i64| {
            let begun = table.iter().filter(|row| row.0 == key && row.1 <= time).max_by_key(|row| row.1);
            let valid = begun.filter(|row| time < row.2 && max_age.is_none_or(|age| time - row.1 <= age));
            valid.map_or(String::new(), |row| format!("{}", row.1))
        };
        let expected: Vec<String> = readings.iter().map(|(key, time)| valid_at(*key, *time)).collect();
        let mut order = order.iter().cycle();
        table.sort_by_cached_key(|_| order.next());
        let time = |seconds: i64| pipeline_engine::time::format_us(seconds * 1_000_000);
        let rows = table.iter().map(|row| format!("dev-{},{},{},{}\n", row.0, time(row.1), time(row.2), row.1));
        let fixture = Fixture::new(&format!("device_id,since,until,offset\n{}", rows.collect::<String>()));
        let age = max_age.map_or(String::new(), |age| format!(", max_age = \"{age}s\""));
        let text = AS_OF.replace(" }", &format!("{age} }}"));
        let asked: Vec<Reading> =
            readings.iter().map(|(key, time)| Reading::of(&format!("dev-{key}"), time * 1_000_000)).collect();
        prop_assert_eq!(fixture.enrich(&text, &asked).texts(Port::MAIN, "offset"), expected);
    }
}
