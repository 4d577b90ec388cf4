use super::*;

fn converted(number: f64, from: &str, to: &str) -> f64 {
    let unit = |text: &str| Unit::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    unit(from).to(&unit(to)).unwrap_or_else(|| panic!("{from} to {to}")).of(number)
}

/// What a person would say is the same is the same, to the last bit.
#[test]
fn scales_of_temperature_meet_exactly() {
    for (number, from, to, expected) in [
        (212.0, "degF", "degC", 100.0),
        (32.0, "degF", "degC", 0.0),
        (-40.0, "degF", "degC", -40.0),
        (98.6, "degF", "degC", 37.0),
        (100.0, "degC", "degF", 212.0),
        (37.0, "Cel", "[degF]", 98.6),
        (0.0, "degC", "K", 273.15),
        (273.15, "K", "°C", 0.0),
        (0.0, "K", "degC", -273.15),
        (-459.67, "°F", "K", 0.0),
        (491.67, "degR", "degF", 32.0),
        (20.0, "degC", "degC", 20.0),
    ] {
        assert_eq!(converted(number, from, to), expected, "{number} {from} in {to}");
    }
}

/// The factors of NIST SP 811, appendix B.8, to all the digits printed there.
#[test]
fn factors_are_those_of_the_published_table() {
    for (from, to, expected, digits) in [
        ("ft", "m", "3.048E-01", 3),
        ("mi", "m", "1.609344E+03", 6),
        ("nmi", "m", "1.852E+03", 3),
        ("lb", "kg", "4.5359237E-01", 7),
        ("oz", "g", "2.834952E+01", 6),
        ("short_ton", "kg", "9.071847E+02", 6),
        ("psi", "Pa", "6.894757E+03", 6),
        ("atm", "Pa", "1.01325E+05", 5),
        ("Torr", "Pa", "1.333224E+02", 6),
        ("mmHg", "Pa", "1.333224E+02", 6),
        ("inHg", "kPa", "3.386389E+00", 6),
        ("inH2O", "Pa", "2.490889E+02", 6),
        ("mmH2O", "Pa", "9.80665E+00", 5),
        ("bar", "kPa", "1.0E+02", 1),
        ("lbf", "N", "4.448222E+00", 6),
        ("kgf", "N", "9.80665E+00", 5),
        ("BTU", "J", "1.05505585262E+03", 11),
        ("cal", "J", "4.184E+00", 3),
        ("kWh", "MJ", "3.6E+00", 1),
        ("hp", "W", "7.456999E+02", 6),
        ("PS", "W", "7.35499E+02", 5),
        ("gal", "L", "3.785412E+00", 6),
        ("gal_uk", "L", "4.54609E+00", 5),
        ("bbl", "m3", "1.589873E-01", 6),
        ("ft3", "m3", "2.831685E-02", 6),
        ("gpm", "L/min", "3.785412E+00", 6),
        ("cfm", "m3/s", "4.719474E-04", 6),
        ("cfm", "ft3/min", "1E+00", 0),
        ("mph", "m/s", "4.4704E-01", 4),
        ("mph", "mi/h", "1E+00", 0),
        ("kn", "m/s", "5.144444E-01", 6),
        ("km/h", "m/s", "2.777778E-01", 6),
        ("rpm", "rad/s", "1.047198E-01", 6),
        ("deg", "rad", "1.745329E-02", 6),
        ("ft/min", "m/s", "5.08E-03", 2),
        ("lb/ft3", "kg/m3", "1.601846E+01", 6),
        ("BTU/h", "W", "2.930711E-01", 6),
        ("lbf.ft", "N.m", "1.355818E+00", 6),
        ("fc", "lx", "1.076391E+01", 6),
        ("gauss", "T", "1.0E-04", 1),
    ] {
        assert_eq!(format!("{:.*E}", digits, converted(1.0, from, to)), plain(expected), "{from} to {to}");
    }
}

/// As Rust writes it: `1.5E3`.
fn plain(published: &str) -> String {
    let (digits, exponent) = published.split_once('E').unwrap();
    format!("{digits}E{}", exponent.parse::<i32>().unwrap())
}

#[test]
fn units_are_made_of_units() {
    for (number, from, to, expected) in [
        (1.0, "m3/h", "L/min", 1000.0 / 60.0),
        (1.0, "m³/h", "m^3.h-1", 1.0),
        (1.0, "kg.m-3", "g/L", 1.0),
        (1.0, "mg/L", "kg/m3", 0.001),
        (1.0, "N*m", "N·m", 1.0),
        (1.0, "J/s", "W", 1.0),
        (1.0, "N/m2", "Pa", 1.0),
        (1.0, "V.A", "VA", 1.0),
        (1.0, "Ah", "mAh", 1000.0),
        (1.0, "KiB", "B", 1024.0),
        (1.0, "MB/s", "kbit/s", 8000.0),
        (1.0, "1/min", "Hz", 1.0 / 60.0),
        (50.0, "%", "1", 0.5),
        (1.0, "µS/cm", "mS/m", 0.1),
        (1.0, "um", "nm", 1000.0),
        (1.0, "m2", "cm2", 10_000.0),
        (1.0, "hPa", "mbar", 1.0),
        (90.0, "deg/s", "rpm", 15.0),
        (1.0, "K", "degR", 1.8),
        (1.0, "W/m2", "mW/cm2", 0.1),
    ] {
        assert_eq!(converted(number, from, to), expected, "{number} {from} in {to}");
    }
}

#[test]
fn there_and_back_is_the_same() {
    for atom in ATOMS {
        let base = ATOMS.iter().find(|other| other.dimension == atom.dimension).unwrap();
        for number in [0.0, 1.0, -17.25, 1e-9, 6.02e23] {
            let there = converted(number, atom.names[0], base.names[0]);
            let back = converted(there, base.names[0], atom.names[0]);
            // A zero of its own takes away digits of small numbers.
            let scale = if atom.offset == "0" && base.offset == "0" { number.abs() } else { number.abs() + 500.0 };
            assert!((back - number).abs() <= 1e-15 * scale, "{number} {}: {back}", atom.names[0]);
        }
    }
}

/// No name means two units, with prefixes or without.
#[test]
fn each_name_is_of_one_unit() {
    let names: Vec<&str> = ATOMS.iter().flat_map(|atom| atom.names.iter().copied()).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "{name}");
        assert!(Unit::parse(name).is_ok(), "{name}");
    }
    let prefixed = METRIC.iter().flat_map(|(prefix, _)| {
        let atoms = ATOMS.iter().filter(|atom| atom.prefixes == Prefixes::Metric);
        atoms.flat_map(move |atom| atom.names.iter().map(move |name| format!("{prefix}{name}")))
    });
    let taken: Vec<String> = prefixed.filter(|name| names.contains(&name.as_str())).collect();
    assert_eq!(taken, [""; 0]);
}

#[test]
fn what_measures_something_else_does_not_convert() {
    let unit = |text: &str| Unit::parse(text).unwrap();
    for (from, to) in [("degC", "kPa"), ("rpm", "Hz"), ("m3", "m2"), ("bit/s", "Hz"), ("kg", "N"), ("%", "m")] {
        assert_eq!(unit(from).to(&unit(to)), None, "{from} to {to}");
    }
    assert_eq!(unit("kPa").measures(), "a pressure");
    assert_eq!(unit("kg.m2").measures(), "m2.kg");
    assert!(unit("bar").relatives().contains(&"psi"));
}

#[test]
fn what_is_no_unit_is_placed_and_the_nearest_is_named() {
    for (text, at, message, hint) in [
        ("degc", 0..4, "there is no unit \"degc\"", "\"degC\""),
        ("C", 0..1, "there is no unit \"C\"", "\"degC\""),
        ("kpa", 0..3, "there is no unit \"kpa\"", "\"kPa\""),
        ("m3/hrs", 3..6, "there is no unit \"hrs\"", "\"hr\""),
        ("", 0..0, "there is no unit", "such as"),
        ("m3/", 3..3, "there is no unit", "such as"),
        ("W/degC", 2..6, "has a zero of its own", "in K"),
        ("degC2", 0..5, "has a zero of its own", "in K"),
        ("m0", 0..2, "the exponent", "whole number"),
        ("m33", 0..3, "the exponent", "up to 9"),
        ("kmin", 0..4, "there is no unit", "docs/compute.md"),
        ("mgal", 0..4, "there is no unit", "docs/compute.md"),
    ] {
        let error = Unit::parse(text).unwrap_err();
        let says = error.hint.clone().unwrap_or_default().to_lowercase();
        assert!(error.message.contains(message) && says.contains(&hint.to_lowercase()), "{text}: {error:?}");
        assert_eq!(error.at, at, "{text}: {error:?}");
    }
}

#[test]
fn numbers_at_the_ends_of_floats_convert_as_far_as_they_can() {
    assert_eq!(converted(1e300, "mi", "km"), 1.609344e300);
    assert!(converted(f64::MAX, "km", "mm").is_infinite());
    assert!(converted(1e308, "kn", "m/s").is_finite(), "the product alone is too large");
    assert!(converted(f64::NAN, "degC", "K").is_nan());
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_unit_or_is_refused_at_a_place_within_it(
        parts in proptest::collection::vec(proptest::prop_oneof![
            proptest::sample::select(names().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()),
            "[pnuµmcdhkMGT]?[a-zA-ZΩ°²³]{0,3}",
            "[./*·^0-9 -]{1,3}",
            "\\PC{0,2}",
        ], 0..7),
    ) {
        let text = parts.concat();
        match Unit::parse(&text) {
            Ok(unit) => {
                let same = unit.to(&unit);
                proptest::prop_assert!(same.is_none_or(|same| same.of(12.5) == 12.5), "{}", text);
            }
            Err(error) => proptest::prop_assert!(text.get(error.at.clone()).is_some(), "{}: {:?}", text, error),
        }
    }
}
