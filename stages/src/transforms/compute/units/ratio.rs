//! Exact fractions: a factor between units is no float until all of it is known.

use std::fmt;

/// A fraction in lowest terms, its denominator above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratio {
    numerator: i128,
    denominator: i128,
}

/// The digits of a fraction are more than can be reckoned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Ratio {
    pub(super) const ZERO: Self = Self { numerator: 0, denominator: 1 };
    pub(super) const ONE: Self = Self { numerator: 1, denominator: 1 };

    fn new(numerator: i128, denominator: i128) -> Self {
        let divisor = common_divisor(numerator.unsigned_abs(), denominator.unsigned_abs()).max(1) as i128;
        let sign = denominator.signum();
        Self { numerator: sign * numerator / divisor, denominator: sign * denominator / divisor }
    }

    /// `"0.3048"`, `"5/9"`, `"0.45359237*9.80665"`: decimals, multiplied and divided from the left on.
    ///
    /// # Errors
    /// It is no such text. Those of the table of units are, which a test shows.
    pub(super) fn parse(text: &str) -> Result<Self, TooLarge> {
        let mut product = Self::ONE;
        let mut rest = text;
        let mut divides = false;
        loop {
            let end = rest.find(['*', '/']).unwrap_or(rest.len());
            let factor = Self::decimal(&rest[..end])?;
            product = if divides { product.divided(factor)? } else { product.times(factor)? };
            match rest.as_bytes().get(end) {
                None => return Ok(product),
                Some(operator) => divides = *operator == b'/',
            }
            rest = &rest[end + 1..];
        }
    }

    fn decimal(text: &str) -> Result<Self, TooLarge> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let numerator = format!("{whole}{part}").parse().map_err(|_| TooLarge)?;
        Ok(Self::new(numerator, power_of_ten(part.len() as u32)?))
    }

    pub(super) fn times(self, other: Self) -> Result<Self, TooLarge> {
        // Crosswise first, so that the products stay small.
        let (left, right) =
            (Self::new(self.numerator, other.denominator), Self::new(other.numerator, self.denominator));
        let numerator = left.numerator.checked_mul(right.numerator).ok_or(TooLarge)?;
        let denominator = left.denominator.checked_mul(right.denominator).ok_or(TooLarge)?;
        Ok(Self::new(numerator, denominator))
    }

    /// By what is not zero.
    pub(super) fn divided(self, other: Self) -> Result<Self, TooLarge> {
        self.times(Self::new(other.denominator, other.numerator))
    }

    pub(super) fn minus(self, other: Self) -> Result<Self, TooLarge> {
        let left = self.numerator.checked_mul(other.denominator).ok_or(TooLarge)?;
        let right = other.numerator.checked_mul(self.denominator).ok_or(TooLarge)?;
        let denominator = self.denominator.checked_mul(other.denominator).ok_or(TooLarge)?;
        Ok(Self::new(left.checked_sub(right).ok_or(TooLarge)?, denominator))
    }

    pub(super) fn power(self, exponent: i8) -> Result<Self, TooLarge> {
        let mut power = Self::ONE;
        for _ in 0..exponent.unsigned_abs() {
            power = if exponent > 0 { power.times(self)? } else { power.divided(self)? };
        }
        Ok(power)
    }

    pub(super) fn power_of_ten(exponent: i8) -> Result<Self, TooLarge> {
        let power = Self::new(power_of_ten(exponent.unsigned_abs().into())?, 1);
        if exponent < 0 { Self::ONE.divided(power) } else { Ok(power) }
    }

    pub(super) fn power_of_two(exponent: u32) -> Self {
        Self::new(1 << exponent, 1)
    }

    /// This and another one over one denominator: numerator, other numerator, denominator, each as the nearest float.
    pub(super) fn over_one_denominator(self, other: Self) -> Result<(f64, f64, f64), TooLarge> {
        let shared = common_divisor(self.denominator.unsigned_abs(), other.denominator.unsigned_abs()).max(1) as i128;
        let (of_self, of_other) = (other.denominator / shared, self.denominator / shared);
        let numerator = self.numerator.checked_mul(of_self).ok_or(TooLarge)?;
        let other = other.numerator.checked_mul(of_other).ok_or(TooLarge)?;
        let denominator = self.denominator.checked_mul(of_self).ok_or(TooLarge)?;
        Ok((numerator as f64, other as f64, denominator as f64))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

fn power_of_ten(exponent: u32) -> Result<i128, TooLarge> {
    10_i128.checked_pow(exponent).ok_or(TooLarge)
}

fn common_divisor(left: u128, right: u128) -> u128 {
    if right == 0 { left } else { common_divisor(right, left % right) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact_and_in_lowest_terms() {
        let text = |text: &str| Ratio::parse(text).unwrap().to_string();
        assert_eq!(text("0.3048"), "381/1250");
        assert_eq!(text("5/9"), "5/9");
        assert_eq!(text("1852/3600"), "463/900");
        assert_eq!(text("0.5*4/2*3"), "3/1");
        let third = Ratio::parse("1/3").unwrap();
        assert_eq!(third.minus(Ratio::parse("1/2").unwrap()).unwrap().to_string(), "-1/6");
        assert_eq!(third.power(-3).unwrap().to_string(), "27/1");
        assert_eq!(Ratio::power_of_ten(-6).unwrap().to_string(), "1/1000000");
        assert_eq!(third.over_one_denominator(Ratio::parse("1/2").unwrap()), Ok((2.0, 3.0, 6.0)));
        assert_eq!(
            Ratio::parse("170141183460469231731687303715884105727").unwrap().times(third.power(-1).unwrap()),
            Err(TooLarge)
        );
    }
}
