//! Chances as distances of the bell curve.

/// Wichura's rational approximations of the normal quantile (algorithm AS 241, "PPND16": 1 part in 10^16), for
/// tails below 0.075: near ones, then far ones. Highest power last.
const NEAR: ([f64; 8], [f64; 8]) = (
    [
        1.423_437_110_749_683_6,
        4.630_337_846_156_546,
        5.769_497_221_460_691,
        3.647_848_324_763_204_5,
        1.270_458_252_452_368_4,
        2.417_807_251_774_506e-1,
        2.272_384_498_926_918_4e-2,
        7.745_450_142_783_414e-4,
    ],
    [
        1.0,
        2.053_191_626_637_759,
        1.676_384_830_183_803_8,
        6.897_673_349_851e-1,
        1.481_039_764_274_800_8e-1,
        1.519_866_656_361_645_7e-2,
        5.475_938_084_995_345e-4,
        1.050_750_071_644_416_9e-9,
    ],
);
const FAR: ([f64; 8], [f64; 8]) = (
    [
        6.657_904_643_501_103,
        5.463_784_911_164_114,
        1.784_826_539_917_291_3,
        2.965_605_718_285_048_7e-1,
        2.653_218_952_657_612_4e-2,
        1.242_660_947_388_078_4e-3,
        2.711_555_568_743_487_6e-5,
        2.010_334_399_292_288_1e-7,
    ],
    [
        1.0,
        5.998_322_065_558_88e-1,
        1.369_298_809_227_358e-1,
        1.487_536_129_085_061_5e-2,
        7.868_691_311_456_133e-4,
        1.846_318_317_510_054_8e-5,
        1.421_511_758_316_446e-7,
        2.044_263_103_389_939_8e-15,
    ],
);
/// Where the approximations end, and with them the chances that a float can hold.
const SURPRISE_MAX: f64 = 700.0;

/// How many standard deviations from the mean a bell curve's value is that is as rare, on both sides
/// together, as a chance of `exp(-surprise)`; for chances up to 0.15.
pub(super) fn distance_as_rare(surprise: f64) -> f64 {
    let root = (surprise.min(SURPRISE_MAX) + std::f64::consts::LN_2).sqrt();
    let ((over, under), from) = if root <= 5.0 { (&NEAR, 1.6) } else { (&FAR, 5.0) };
    let polynomial = |factors: &[f64; 8]| factors.iter().rev().fold(0.0, |sum, factor| sum * (root - from) + factor);
    polynomial(over) / polynomial(under)
}

#[cfg(test)]
mod tests {
    use super::distance_as_rare;

    /// `scipy.stats.norm.isf(exp(-surprise) / 2)`
    #[test]
    fn distances_are_those_of_scipy() {
        let cases = [
            (3.0, 1.961_788_884_214_524),
            (3.912, 2.326_339_242_291_237),
            (5.9, 2.995_556_570_943_598),
            (15.0, 5.119_773_816_328_177),
            (24.0, 6.612_644_833_955_644),
            (25.0, 6.759_070_886_879_881),
            (300.0, 24.354_868_016_865_947),
            (690.0, 37.044_874_174_039_59),
        ];
        for (surprise, distance) in cases {
            let found = distance_as_rare(surprise);
            assert!((found / distance - 1.0).abs() < 1e-12, "{surprise}: {found} {distance}");
        }
        assert_eq!(distance_as_rare(f64::MAX), distance_as_rare(700.0), "finite");
    }
}
