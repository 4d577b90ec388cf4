//! A replay at the pace at which rows were recorded: each row leaves when its timestamp is due,
//! counted from the first of its file.
//!
//! Values stay as they are; the time of receipt is when a row leaves. Batches hold what is due
//! together, so their bounds differ from run to run.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::TimestampMicrosecondArray;
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::{SourceContext, StageError};
use pipeline_engine::{Partition, Span, dead_letter, now_us};
use tokio::time::Instant;

use super::reader::{Chunk, Mark};
use crate::decode::Decoded;

/// Beyond so long no replay is watched; keeps sums of times in range.
const WAIT_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What to replay by.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// The column of timestamps.
    pub(super) column: usize,
    /// Recorded seconds for each second that passes.
    pub(super) speed: f64,
    /// Columns that hold the time of receipt.
    pub(super) received_at: Vec<usize>,
}

impl Pace {
    /// How long after a row recorded at `first_us` one recorded at `recorded_at_us` leaves. Not before
    /// it, even if the recorder's clock went back.
    fn wait(&self, first_us: i64, recorded_at_us: i64) -> Duration {
        let micros = recorded_at_us.saturating_sub(first_us).max(0);
        Duration::try_from_secs_f64(micros as f64 / 1e6 / self.speed).unwrap_or(WAIT_MAX).min(WAIT_MAX)
    }
}

/// The running replay: when the first row of each file was recorded, and when it left.
pub(super) struct Paced {
    pace: Pace,
    starts: Vec<Option<(i64, Instant)>>,
}

impl Paced {
    pub(super) fn new(pace: Pace, files: usize) -> Self {
        Self { pace, starts: vec![None; files] }
    }

    /// Sends the records of a chunk, each when it is due. Returns early when the source should stop.
    pub(super) async fn send(
        &mut self,
        chunk: Chunk,
        cx: &SourceContext,
        partition: &Partition,
    ) -> Result<(), StageError> {
        let mut next = 0;
        while let Some(mark) = chunk.marks.get(next) {
            let due = self.due(chunk.file, mark.recorded_at_us);
            tokio::select! {
                biased;
                () = cx.stop_requested() => return Ok(()),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)) => {}
            }
            let now = Instant::now();
            let more = chunk.marks[next + 1..].iter();
            let is_due = |mark: &&Mark| self.due(chunk.file, mark.recorded_at_us).is_none_or(|due| due <= now);
            let end = next + 1 + more.take_while(is_due).count();
            self.slice(&chunk, next, end)?.send(cx, partition).await?;
            next = end;
        }
        Ok(())
    }

    /// When a record leaves; without a time of its own it leaves with the one before it.
    fn due(&mut self, file: usize, recorded_at_us: Option<i64>) -> Option<Instant> {
        let recorded_at_us = recorded_at_us?;
        let (first_us, start) = *self.starts[file].get_or_insert_with(|| (recorded_at_us, Instant::now()));
        Some(start + self.pace.wait(first_us, recorded_at_us))
    }

    /// The records from `start` to before `end`, received now.
    fn slice(&self, chunk: &Chunk, start: usize, end: usize) -> Result<Chunk, StageError> {
        let received_at_us = now_us();
        let (rows_start, letters_start) = match start.checked_sub(1).map(|before| &chunk.marks[before]) {
            Some(before) => (before.rows_end, before.letters_end),
            None => (0, 0),
        };
        let last = &chunk.marks[end - 1];
        let rows = chunk.decoded.rows.slice(rows_start, last.rows_end - rows_start);
        let rejected = chunk.decoded.rejected.slice(letters_start, last.letters_end - letters_start);
        let stamped = dead_letter::schema().index_of("received_at")?;
        Ok(Chunk {
            file: chunk.file,
            span: Span::new(chunk.marks[start].line, last.line),
            received_at_us,
            decoded: Decoded {
                rows: stamp(&rows, &self.pace.received_at, received_at_us)?,
                rejected: stamp(&rejected, &[stamped], received_at_us)?,
            },
            marks: Vec::new(),
        })
    }
}

/// The same rows, received at another time.
fn stamp(rows: &RecordBatch, columns: &[usize], received_at_us: i64) -> Result<RecordBatch, StageError> {
    if columns.is_empty() {
        return Ok(rows.clone());
    }
    let times = TimestampMicrosecondArray::from_value(received_at_us, rows.num_rows()).with_timezone("UTC");
    let times = Arc::new(times);
    let mut all = rows.columns().to_vec();
    for &column in columns {
        all[column] = times.clone();
    }
    Ok(RecordBatch::try_new(rows.schema(), all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_for_its_time_divided_by_the_speed() {
        let pace = |speed| Pace { column: 0, speed, received_at: Vec::new() };
        assert_eq!(pace(1.0).wait(5_000_000, 8_000_000), Duration::from_secs(3));
        assert_eq!(pace(60.0).wait(0, 300_000_000), Duration::from_secs(5));
        assert_eq!(pace(0.5).wait(0, 1_000_000), Duration::from_secs(2));
        assert_eq!(pace(1.0).wait(8_000_000, 5_000_000), Duration::ZERO, "a clock that went back");
        assert_eq!(pace(1e-300).wait(i64::MIN, i64::MAX), WAIT_MAX);
    }
}
