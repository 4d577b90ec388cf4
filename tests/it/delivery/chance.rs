//! Seeds: every random choice of a test follows from one number, printed with any failure.
//!
//! What the machine does between two choices is its own: the same seed makes the same choices, and
//! usually, not always, the same failure.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// The choices of one test.
pub struct Chance {
    pub seed: u64,
    random: Pcg64Mcg,
}

impl Chance {
    /// A seed of `DELIVERY_SEED`, or a new one.
    pub fn new() -> Self {
        let given = std::env::var("DELIVERY_SEED").ok();
        let seed = given.map_or_else(rand::random, |text| text.parse().expect("DELIVERY_SEED is a number"));
        println!("DELIVERY_SEED={seed}");
        Self { seed, random: Pcg64Mcg::seed_from_u64(seed) }
    }

    /// From 0 to below 1.
    pub fn fraction(&mut self) -> f64 {
        self.random.random_range(0.0..1.0)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    pub fn millis(&mut self, below: u32) -> std::time::Duration {
        std::time::Duration::from_millis(self.below(below).into())
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.random_range(0..choices.len())]
    }
}

impl Drop for Chance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("these choices again: DELIVERY_SEED={}", self.seed);
        }
    }
}

/// Whether the tests that take longest are asked for, by `DELIVERY=1` or any other variable of theirs; says so
/// where they are not.
pub fn is_asked_for() -> bool {
    let asked = ["DELIVERY", "DELIVERY_ROUNDS", "DELIVERY_OUTAGE_SECONDS", "DELIVERY_SEED"];
    let is_asked_for = asked.iter().any(|variable| std::env::var_os(variable).is_some());
    if !is_asked_for {
        println!("skipped: set DELIVERY=1");
    }
    is_asked_for
}

/// How often: `DELIVERY_ROUNDS`, or the short form's number.
pub fn rounds(short: u32) -> u32 {
    number_of("DELIVERY_ROUNDS").unwrap_or(short)
}

/// A whole number in a variable.
pub fn number_of(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number, not \"{text}\"")))
}
