//! How a reading is measured: what every method answers, and one file for each of them.
//!
//! A method remembers something of each device and metric: a `State`, and as many numbers beside it as
//! [`Method::places`] says (windows lie side by side in one allocation). It measures a reading by what
//! came *before* it, and learns it afterwards. When a reading is flagged, kept out of what is learned
//! or reported is not the method's business: see `series`.

pub(super) mod auto;
pub(super) mod ewma;
pub(super) mod flatline;
pub(super) mod rate;
pub(super) mod robust;
pub(super) mod seasonal;
pub(super) mod window;
pub(super) mod zscore;

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Fingerprint, Reader, Writer};

/// Keeps a score finite where the past is flat at zero and no floor is given: the unit of the last
/// place that a sensor could mean.
const SPREAD_MIN: f64 = 1e-9;

/// One value of one device and metric: finite, and no absurd number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) value: f64,
    pub(super) time_us: Option<i64>,
    /// Whether it is newer than all that was learned. What is late or repeated is measured only.
    pub(super) is_in_order: bool,
}

/// What the configuration says of one metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Limits {
    /// The least spread that a reading is measured by, in the metric's unit.
    pub(super) spread_min: f64,
    /// The least spread as a part of the expected value.
    pub(super) spread_min_relative: f64,
    /// The fastest change that is normal, in the metric's unit a second.
    pub(super) rate_max: Option<f64>,
    /// How far readings of a flat line may lie apart.
    pub(super) flat_tolerance: f64,
}

impl Limits {
    /// The spread, or the floor where that is larger.
    pub(super) fn at_least(&self, spread: f64, expected: f64) -> f64 {
        spread.max(self.spread_min).max(self.spread_min_relative * expected.abs()).max(SPREAD_MIN)
    }
}

/// Where a reading stands against what came before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    /// What was to be expected, in the metric's unit.
    pub(super) expected: f64,
    /// How far readings usually are from that, in the metric's unit; above zero but for a flat line.
    pub(super) spread: f64,
    /// How far off the reading is, in spreads; finite.
    pub(super) score: f64,
    /// How many readings that rests on.
    pub(super) readings: u32,
    /// What measured it, in a word.
    pub(super) method: &'static str,
}

/// Measures readings and learns from them.
pub(super) trait Method: Send {
    /// The word in the pipeline file.
    const WORD: &'static str;

    /// Whether flagged readings are kept out of what is learned, until they outweigh the others.
    const KEEPS_OUT: bool = true;

    /// What is remembered of one device and metric.
    type State: Clone + Send;

    /// What is remembered of a device and metric that was never seen.
    fn empty(&self) -> Self::State;

    /// How many numbers are remembered beside the state. What they are while the state is empty means nothing.
    fn places(&self) -> usize;

    /// Where the reading stands; `None` while there is too little to go by.
    fn measure(
        &self,
        state: &mut Self::State,
        places: &mut [f64],
        reading: Reading,
        limits: &Limits,
    ) -> Option<Standing>;

    /// Takes in a reading that is in order.
    fn learn(&self, state: &mut Self::State, places: &mut [f64], reading: Reading, limits: &Limits);

    /// Takes note of a reading that is in order and is not to be learned.
    fn pass_over(&self, _state: &mut Self::State, _reading: Reading) {}

    /// The level is a new one: forgets what contradicts the reading, and learns it.
    fn start_over(&self, state: &mut Self::State, places: &mut [f64], reading: Reading, limits: &Limits) {
        *state = self.empty();
        self.learn(state, places, reading, limits);
    }

    /// What a state depends on; with other settings it means something else.
    fn mark(&self, fingerprint: &mut Fingerprint);

    fn write(&self, state: &Self::State, places: &[f64], out: &mut Writer);

    /// What was written, its places put into `places`.
    ///
    /// # Errors
    /// There can't be such a state.
    fn read(&self, places: &mut [f64], from: &mut Reader<'_>) -> Result<Self::State, StageError>;
}
