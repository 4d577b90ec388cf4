//! Durations of a configuration in the unit of timestamps.

use pipeline_engine::stage::BuildError;
use pipeline_engine::units::DurationText;

/// In microseconds, such that sums of a few stay within a timestamp.
///
/// # Errors
/// It is longer than any two times are apart.
pub(super) fn micros(key: &str, duration: DurationText) -> Result<i64, BuildError> {
    i64::try_from(duration.0.as_micros())
        .ok()
        .filter(|micros| *micros < i64::MAX / 4)
        .ok_or_else(|| BuildError::invalid(key, "the duration is longer than any two times are apart"))
}
