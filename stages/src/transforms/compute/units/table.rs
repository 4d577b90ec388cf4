//! The units that have names.
//!
//! Factors are those of the definitions: the SI brochure (9th edition), NIST SP 811 for units outside of it. All are
//! exact but that of the radian to the revolution, which has 21 digits. Names are those that are written in the trade;
//! where UCUM has another one, it is there too.

/// Exponents of metre, kilogram, second, ampere, kelvin, mole, candela, revolution and bit.
///
/// Angle and information count as dimensions, so that a speed of rotation is no frequency and a rate of data neither.
pub(super) type Dimension = [i8; 9];

/// What a unit is by itself.
pub(super) struct Atom {
    /// The first one is the usual name.
    pub(super) names: &'static [&'static str],
    /// In base units; see [`super::ratio::Ratio::parse`].
    pub(super) factor: &'static str,
    /// What is added to a number of these units before it is multiplied by the factor: where their zero lies.
    pub(super) offset: &'static str,
    pub(super) dimension: Dimension,
    pub(super) prefixes: Prefixes,
}

/// Which prefixes a unit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefixes {
    None,
    /// From pico to tera.
    Metric,
    /// Kilo to tera, and kibi to tebi.
    Binary,
}

/// A prefix: its name, its power of ten.
pub(super) const METRIC: [(&str, i8); 13] = [
    ("p", -12),
    ("n", -9),
    ("u", -6),
    // The micro sign and the Greek letter look the same.
    ("\u{b5}", -6),
    ("\u{3bc}", -6),
    ("m", -3),
    ("c", -2),
    ("d", -1),
    ("h", 2),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
];

/// A prefix: its name, its power of two.
pub(super) const BINARY: [(&str, u32); 4] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];

const NONE: Dimension = [0; 9];
const LENGTH: Dimension = [1, 0, 0, 0, 0, 0, 0, 0, 0];
const MASS: Dimension = [0, 1, 0, 0, 0, 0, 0, 0, 0];
const TIME: Dimension = [0, 0, 1, 0, 0, 0, 0, 0, 0];
const CURRENT: Dimension = [0, 0, 0, 1, 0, 0, 0, 0, 0];
const TEMPERATURE: Dimension = [0, 0, 0, 0, 1, 0, 0, 0, 0];
const AMOUNT: Dimension = [0, 0, 0, 0, 0, 1, 0, 0, 0];
const LUMINOUS: Dimension = [0, 0, 0, 0, 0, 0, 1, 0, 0];
const ANGLE: Dimension = [0, 0, 0, 0, 0, 0, 0, 1, 0];
const INFORMATION: Dimension = [0, 0, 0, 0, 0, 0, 0, 0, 1];
const VOLUME: Dimension = [3, 0, 0, 0, 0, 0, 0, 0, 0];
const VOLUME_FLOW: Dimension = [3, 0, -1, 0, 0, 0, 0, 0, 0];
const SPEED: Dimension = [1, 0, -1, 0, 0, 0, 0, 0, 0];
const ACCELERATION: Dimension = [1, 0, -2, 0, 0, 0, 0, 0, 0];
const FREQUENCY: Dimension = [0, 0, -1, 0, 0, 0, 0, 0, 0];
const ROTATION: Dimension = [0, 0, -1, 0, 0, 0, 0, 1, 0];
const FORCE: Dimension = [1, 1, -2, 0, 0, 0, 0, 0, 0];
const PRESSURE: Dimension = [-1, 1, -2, 0, 0, 0, 0, 0, 0];
const ENERGY: Dimension = [2, 1, -2, 0, 0, 0, 0, 0, 0];
const POWER: Dimension = [2, 1, -3, 0, 0, 0, 0, 0, 0];
const VOLTAGE: Dimension = [2, 1, -3, -1, 0, 0, 0, 0, 0];
const RESISTANCE: Dimension = [2, 1, -3, -2, 0, 0, 0, 0, 0];
const CONDUCTANCE: Dimension = [-2, -1, 3, 2, 0, 0, 0, 0, 0];
const CHARGE: Dimension = [0, 0, 1, 1, 0, 0, 0, 0, 0];
const FLUX_DENSITY: Dimension = [0, 1, -2, -1, 0, 0, 0, 0, 0];
const ILLUMINANCE: Dimension = [-2, 0, 0, 0, 0, 0, 1, 0, 0];

/// What dimensions are called.
pub(super) const DIMENSIONS: &[(&str, Dimension)] = &[
    ("a plain number", NONE),
    ("a length", LENGTH),
    ("an area", [2, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("a volume", VOLUME),
    ("a mass", MASS),
    ("a time", TIME),
    ("a current", CURRENT),
    ("a temperature", TEMPERATURE),
    ("an amount of substance", AMOUNT),
    ("a luminous intensity", LUMINOUS),
    ("an angle", ANGLE),
    ("an amount of data", INFORMATION),
    ("a rate of data", [0, 0, -1, 0, 0, 0, 0, 0, 1]),
    ("a volume flow", VOLUME_FLOW),
    ("a mass flow", [0, 1, -1, 0, 0, 0, 0, 0, 0]),
    ("a density", [-3, 1, 0, 0, 0, 0, 0, 0, 0]),
    ("a speed", SPEED),
    ("an acceleration", ACCELERATION),
    ("a frequency", FREQUENCY),
    ("a speed of rotation", ROTATION),
    ("a force", FORCE),
    ("a pressure", PRESSURE),
    ("an energy or a torque", ENERGY),
    ("a power", POWER),
    ("a power by area", [0, 1, -3, 0, 0, 0, 0, 0, 0]),
    ("a voltage", VOLTAGE),
    ("a resistance", RESISTANCE),
    ("a conductance", CONDUCTANCE),
    ("a conductivity", [-3, -1, 3, 2, 0, 0, 0, 0, 0]),
    ("a charge", CHARGE),
    ("a magnetic flux density", FLUX_DENSITY),
    ("an illuminance", ILLUMINANCE),
];

const fn atom(names: &'static [&'static str], factor: &'static str, dimension: Dimension) -> Atom {
    Atom { names, factor, offset: "0", dimension, prefixes: Prefixes::None }
}

const fn metric(names: &'static [&'static str], factor: &'static str, dimension: Dimension) -> Atom {
    Atom { names, factor, offset: "0", dimension, prefixes: Prefixes::Metric }
}

const fn binary(names: &'static [&'static str], factor: &'static str) -> Atom {
    Atom { names, factor, offset: "0", dimension: INFORMATION, prefixes: Prefixes::Binary }
}

/// A scale of temperature with a zero of its own.
const fn scale(names: &'static [&'static str], factor: &'static str, offset: &'static str) -> Atom {
    Atom { names, factor, offset, dimension: TEMPERATURE, prefixes: Prefixes::None }
}

/// All units with names.
pub(super) const ATOMS: &[Atom] = &[
    atom(&["1"], "1", NONE),
    atom(&["%", "percent"], "1/100", NONE),
    atom(&["ppm", "[ppm]"], "1/1000000", NONE),
    atom(&["ppb", "[ppb]"], "1/1000000000", NONE),
    metric(&["m", "meter", "metre"], "1", LENGTH),
    atom(&["in", "inch", "[in_i]"], "0.0254", LENGTH),
    atom(&["ft", "foot", "feet", "[ft_i]"], "0.3048", LENGTH),
    atom(&["yd", "yard", "[yd_i]"], "0.9144", LENGTH),
    atom(&["mi", "mile", "[mi_i]"], "1609.344", LENGTH),
    atom(&["nmi", "[nmi_i]"], "1852", LENGTH),
    metric(&["g", "gram"], "1/1000", MASS),
    metric(&["t", "tonne"], "1000", MASS),
    atom(&["lb", "pound", "[lb_av]"], "0.45359237", MASS),
    atom(&["oz", "ounce", "[oz_av]"], "0.45359237/16", MASS),
    atom(&["short_ton", "[ston_av]"], "0.45359237*2000", MASS),
    metric(&["s", "sec", "second"], "1", TIME),
    atom(&["min", "minute"], "60", TIME),
    atom(&["h", "hr", "hour"], "3600", TIME),
    atom(&["d", "day"], "86400", TIME),
    atom(&["wk", "week"], "604800", TIME),
    metric(&["A", "ampere"], "1", CURRENT),
    metric(&["K", "kelvin"], "1", TEMPERATURE),
    scale(&["degC", "Cel", "°C", "celsius"], "1", "273.15"),
    scale(&["degF", "[degF]", "°F", "fahrenheit"], "5/9", "459.67"),
    atom(&["degR", "[degR]", "°R", "rankine"], "5/9", TEMPERATURE),
    metric(&["mol", "mole"], "1", AMOUNT),
    metric(&["cd", "candela"], "1", LUMINOUS),
    metric(&["lm", "lumen"], "1", LUMINOUS),
    metric(&["lx", "lux"], "1", ILLUMINANCE),
    atom(&["fc", "footcandle"], "1/0.3048/0.3048", ILLUMINANCE),
    atom(&["rev", "turn", "revolution", "circ"], "1", ANGLE),
    atom(&["deg", "°", "degree"], "1/360", ANGLE),
    // One half by pi, to 21 digits.
    metric(&["rad", "radian"], "0.159154943091895335769", ANGLE),
    binary(&["bit"], "1"),
    binary(&["B", "By", "byte"], "8"),
    metric(&["L", "l", "liter", "litre"], "1/1000", VOLUME),
    atom(&["gal", "gallon", "[gal_us]"], "3.785411784/1000", VOLUME),
    atom(&["gal_uk", "[gal_br]"], "4.54609/1000", VOLUME),
    atom(&["bbl", "barrel", "[bbl_us]"], "3.785411784/1000*42", VOLUME),
    atom(&["gpm"], "3.785411784/1000/60", VOLUME_FLOW),
    atom(&["lpm", "slpm"], "1/1000/60", VOLUME_FLOW),
    atom(&["cfm"], "0.3048*0.3048*0.3048/60", VOLUME_FLOW),
    atom(&["kn", "knot", "[kn_i]"], "1852/3600", SPEED),
    atom(&["mph"], "1609.344/3600", SPEED),
    atom(&["kph", "kmh"], "1000/3600", SPEED),
    atom(&["gn", "g0", "[g]"], "9.80665", ACCELERATION),
    metric(&["Hz", "hertz"], "1", FREQUENCY),
    atom(&["rpm"], "1/60", ROTATION),
    metric(&["N", "newton"], "1", FORCE),
    atom(&["lbf", "[lbf_av]"], "0.45359237*9.80665", FORCE),
    atom(&["kgf"], "9.80665", FORCE),
    metric(&["Pa", "pascal"], "1", PRESSURE),
    metric(&["bar"], "100000", PRESSURE),
    atom(&["atm"], "101325", PRESSURE),
    atom(&["psi", "[psi]"], "0.45359237*9.80665/0.0254/0.0254", PRESSURE),
    atom(&["Torr", "torr"], "101325/760", PRESSURE),
    atom(&["mmHg", "mm[Hg]"], "133.322387415", PRESSURE),
    atom(&["inHg", "[in_i'Hg]"], "133.322387415*25.4", PRESSURE),
    atom(&["mmH2O", "mm[H2O]"], "9.80665", PRESSURE),
    atom(&["inH2O", "[in_i'H2O]"], "9.80665*25.4", PRESSURE),
    metric(&["J", "joule"], "1", ENERGY),
    metric(&["Wh"], "3600", ENERGY),
    metric(&["cal", "cal_th"], "4.184", ENERGY),
    atom(&["BTU", "Btu", "[Btu_IT]"], "1055.05585262", ENERGY),
    metric(&["W", "watt"], "1", POWER),
    metric(&["VA"], "1", POWER),
    metric(&["var"], "1", POWER),
    atom(&["hp", "[HP]"], "550*0.3048*0.45359237*9.80665", POWER),
    atom(&["PS"], "75*9.80665", POWER),
    metric(&["V", "volt"], "1", VOLTAGE),
    metric(&["Ohm", "ohm", "\u{3a9}", "\u{2126}"], "1", RESISTANCE),
    metric(&["S", "siemens"], "1", CONDUCTANCE),
    metric(&["Ah"], "3600", CHARGE),
    metric(&["T", "tesla"], "1", FLUX_DENSITY),
    atom(&["gauss"], "1/10000", FLUX_DENSITY),
];
