//! Units of measurement by their names, and exact conversions between them.
//!
//! Looked at instead of a table of our own: `uom` knows units while a program is compiled, and not what a file names;
//! `ucum` (0.1.0, of 2020) is a part of UCUM and has seen no release since; `ucum-units` (0.1.0) is all of UCUM, in its
//! first release, and without the names that people write (`psi`, `gpm`, `degC`).

mod ratio;
mod table;

use std::ops::Range;

use pipeline_engine::suggest::nearest;

use self::ratio::{Ratio, TooLarge};
use self::table::{ATOMS, Atom, BINARY, DIMENSIONS, Dimension, METRIC, Prefixes};

/// No measurement has more, and fractions stay small.
const EXPONENT_MAX: i8 = 9;

/// A unit: a name, or names with prefixes and exponents, multiplied and divided: `kWh`, `m3/h`, `kg.m-3`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unit {
    /// In base units.
    factor: Ratio,
    /// Added before the factor; zero but for scales of temperature.
    offset: Ratio,
    dimension: Dimension,
}

/// Why a text is no unit: where, what, and a way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoUnit {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// From one unit to another: `(x * numerator + addend) / denominator`, so that whole numbers stay whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Conversion {
    numerator: f64,
    addend: f64,
    denominator: f64,
}

impl Unit {
    /// # Errors
    /// It names a unit that is not known, has none, or makes one of a scale with a zero of its own.
    pub(super) fn parse(text: &str) -> Result<Self, NoUnit> {
        let too_large = |_: TooLarge| NoUnit {
            at: 0..text.len(),
            message: format!("\"{text}\" is too far from the units it is made of"),
            hint: None,
        };
        let mut unit = Self { factor: Ratio::ONE, offset: Ratio::ZERO, dimension: [0; 9] };
        let (mut start, mut divides, mut is_alone) = (0, false, true);
        loop {
            let length = text[start..].find(['/', '.', '*', '·', '⋅']).unwrap_or(text.len() - start);
            let at = start..start + length;
            is_alone &= start == 0 && at.end == text.len();
            let (factor, exponent) = Factor::parse(text, at.clone())?;
            if factor.atom.offset != "0" {
                if !is_alone || exponent != 1 {
                    return Err(NoUnit {
                        message: format!("{} has a zero of its own and is no part of another unit", &text[at.clone()]),
                        hint: Some("Differences of temperature are in K, those of Fahrenheit in degR.".to_owned()),
                        at,
                    });
                }
                unit.offset = Ratio::parse(factor.atom.offset).map_err(too_large)?;
            }
            let exponent = if divides { -exponent } else { exponent };
            let power = factor.size().and_then(|size| size.power(exponent));
            unit.factor = power.and_then(|power| unit.factor.times(power)).map_err(too_large)?;
            for (sum, of_atom) in unit.dimension.iter_mut().zip(factor.atom.dimension) {
                *sum = sum.saturating_add(of_atom.saturating_mul(exponent));
            }
            let Some(operator) = text[at.end..].chars().next() else { return Ok(unit) };
            divides = operator == '/';
            start = at.end + operator.len_utf8();
        }
    }

    /// What it measures, in words.
    pub(super) fn measures(&self) -> String {
        if let Some((name, _)) = DIMENSIONS.iter().find(|(_, dimension)| *dimension == self.dimension) {
            return (*name).to_owned();
        }
        let bases = ["m", "kg", "s", "A", "K", "mol", "cd", "rev", "bit"];
        let factors = bases.iter().zip(self.dimension).filter(|(_, exponent)| *exponent != 0);
        let shown = factors
            .map(|(base, exponent)| if exponent == 1 { (*base).to_owned() } else { format!("{base}{exponent}") });
        shown.collect::<Vec<_>>().join(".")
    }

    /// The usual names of units that measure the same, as far as single words go.
    pub(super) fn relatives(&self) -> Vec<&'static str> {
        ATOMS.iter().filter(|atom| atom.dimension == self.dimension).map(|atom| atom.names[0]).collect()
    }

    /// How numbers of this unit become numbers of another one; `None` where they measure different things.
    pub(super) fn to(&self, other: &Self) -> Option<Conversion> {
        if self.dimension != other.dimension {
            return None;
        }
        let factor = self.factor.divided(other.factor).ok()?;
        let addend = self.offset.times(factor).and_then(|offset| offset.minus(other.offset)).ok()?;
        let (numerator, addend, denominator) = factor.over_one_denominator(addend).ok()?;
        Some(Conversion { numerator, addend, denominator })
    }
}

impl Conversion {
    /// Not finite where the result is too large for a float.
    pub(super) fn of(self, number: f64) -> f64 {
        let product = number * self.numerator;
        if product.is_finite() {
            return (product + self.addend) / self.denominator;
        }
        number / self.denominator * self.numerator + self.addend / self.denominator
    }
}

/// All names, each with the usual one of its unit.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    ATOMS.iter().flat_map(|atom| atom.names.iter().map(|name| (*name, atom.names[0])))
}

/// A name with its prefix.
struct Factor {
    atom: &'static Atom,
    ten: i8,
    two: u32,
}

impl Factor {
    /// One part of a unit, with its exponent.
    fn parse(text: &str, at: Range<usize>) -> Result<(Self, i8), NoUnit> {
        let word = text[at.clone()].trim();
        let refused = |message: String, hint: Option<String>| NoUnit { at: at.clone(), message, hint };
        if word.is_empty() {
            return Err(refused(
                "there is no unit".to_owned(),
                Some("Such as \"degC\", \"kPa\" or \"m3/h\".".to_owned()),
            ));
        }
        if let Some(factor) = Self::named(word) {
            return Ok((factor, 1));
        }
        let name = word.trim_end_matches(|end: char| end.is_ascii_digit() || matches!(end, '-' | '^' | '²' | '³'));
        let exponent = match word[name.len()..].trim_start_matches('^') {
            "²" => Some(2),
            "³" => Some(3),
            digits => digits.parse().ok().filter(|exponent| *exponent != i8::MIN),
        };
        let exponent = exponent.filter(|exponent: &i8| *exponent != 0 && exponent.abs() <= EXPONENT_MAX);
        match (Self::named(name), exponent) {
            (Some(factor), Some(exponent)) => Ok((factor, exponent)),
            (Some(_), _) => Err(refused(
                format!("the exponent of \"{word}\" is none"),
                Some(format!("It is a whole number up to {EXPONENT_MAX}, as in \"m3\" and \"s-1\".")),
            )),
            (None, _) => Err(refused(format!("there is no unit \"{word}\""), Some(nearest_unit(word)))),
        }
    }

    fn named(name: &str) -> Option<Self> {
        let find = |name: &str| ATOMS.iter().find(|atom| atom.names.contains(&name));
        if let Some(atom) = find(name) {
            return Some(Self { atom, ten: 0, two: 0 });
        }
        let with = |prefix: &str, allowed: &[Prefixes]| {
            let atom = find(name.strip_prefix(prefix)?)?;
            allowed.contains(&atom.prefixes).then_some(atom)
        };
        let binary = BINARY
            .iter()
            .find_map(|(prefix, two)| with(prefix, &[Prefixes::Binary]).map(|atom| Self { atom, ten: 0, two: *two }));
        binary.or_else(|| {
            METRIC.iter().find_map(|(prefix, ten)| {
                let allowed = if *ten >= 3 { &[Prefixes::Metric, Prefixes::Binary][..] } else { &[Prefixes::Metric] };
                with(prefix, allowed).map(|atom| Self { atom, ten: *ten, two: 0 })
            })
        })
    }

    fn size(&self) -> Result<Ratio, TooLarge> {
        let prefix = Ratio::power_of_ten(self.ten)?.times(Ratio::power_of_two(self.two))?;
        Ratio::parse(self.atom.factor)?.times(prefix)
    }
}

/// The name that is nearest to what was written; letters of another case count as near.
fn nearest_unit(word: &str) -> String {
    // A letter alone is near to many.
    let celsius = ["c", "f"].iter().zip(["degC", "degF"]).find(|(letter, _)| letter.eq_ignore_ascii_case(word));
    let names = || ATOMS.iter().flat_map(|atom| atom.names.iter().copied());
    let prefixed = METRIC.iter().flat_map(|(prefix, _)| {
        let atoms = ATOMS.iter().filter(|atom| atom.prefixes == Prefixes::Metric);
        atoms.map(move |atom| format!("{prefix}{}", atom.names[0]))
    });
    let prefixed: Vec<String> = prefixed.collect();
    let known: Vec<&str> = names().chain(prefixed.iter().map(String::as_str)).collect();
    let of_other_case = known.iter().find(|name| name.eq_ignore_ascii_case(word)).copied();
    let near = celsius.map(|(_, name)| name).or(of_other_case).or_else(|| nearest(word, &known));
    match near {
        Some(near) => format!("Did you mean \"{near}\"? docs/compute.md lists all units."),
        None => "docs/compute.md lists all units.".to_owned(),
    }
}

#[cfg(test)]
mod tests;
