//! `[sources.NAME.spool]`: where received messages wait until every sink has them.

use std::time::Duration;

use pipeline_engine::spool::SpoolOptions;
use pipeline_engine::stage::{BuildContext, BuildError};
use pipeline_engine::units::{DurationText, SizeText};
use schemars::JsonSchema;
use serde::Deserialize;

/// Bounds of the spool, which lies in the pipeline's `data_dir`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// The most that the spool holds. When it is full, nothing more is acknowledged until sinks have
    /// caught up.
    max: SizeText,
    /// What must stay free on its filesystem. Below it nothing more is acknowledged until there is room
    /// again.
    min_free: SizeText,
    /// How long messages are kept after every sink has stored them, for a database that is restored from
    /// a dump. Given up when the spool is full.
    retain: DurationText,
    /// How long a message may wait for others before all are synced to disk together. It is
    /// acknowledged after that. Default: 5 ms of what is posted; of a broker 10 ms, 20 where 128 or more have come by then, and less
    /// where the broker waits for us.
    linger: Option<DurationText>,
    /// The size of one file of the spool. Only whole files are deleted.
    segment: SizeText,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        let options = SpoolOptions::new("", "");
        Self {
            max: SizeText(options.bytes_max),
            min_free: SizeText(options.free_space_min),
            retain: DurationText(options.retain),
            linger: None,
            segment: SizeText(options.segment_bytes),
        }
    }
}

/// Small enough to be checked in memory.
const SEGMENT_MAX: SizeText = SizeText(1 << 30);
/// Below it the files are more work than what is in them.
const SEGMENT_MIN: SizeText = SizeText(64 << 10);

impl SpoolConfig {
    /// The options of the spool of a stage. `linger`: where the file names none.
    ///
    /// # Errors
    /// The key that is wrong.
    pub(crate) fn options(&self, cx: &BuildContext, linger: Duration) -> Result<SpoolOptions, BuildError> {
        if !(SEGMENT_MIN.0..=SEGMENT_MAX.0).contains(&self.segment.0) {
            return Err(BuildError::invalid(
                "spool.segment",
                format!("{} is not between {SEGMENT_MIN} and {SEGMENT_MAX}", self.segment),
            ));
        }
        if self.max.0 < self.segment.0.saturating_mul(2) {
            return Err(BuildError::invalid("spool.max", format!("{} leaves no room for two files", self.max))
                .hint(format!("A file has up to {} (`segment`), and only whole ones are deleted.", self.segment)));
        }
        Ok(SpoolOptions {
            segment_bytes: self.segment.0,
            bytes_max: self.max.0,
            free_space_min: self.min_free.0,
            retain: self.retain.0,
            group_linger: self.linger.map_or(linger, |linger| linger.0),
            ..SpoolOptions::new(&cx.pipeline, &cx.stage)
        })
    }
}
