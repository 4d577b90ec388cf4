//! The running stage: batches to the program and back, whatever becomes of the program.

use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use pipeline_engine::Counter;
use pipeline_engine::stage::{Batch, Emitter, Examination, StageError, Transform};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::program::{Program, Running};
use crate::transforms::refusal::{self, Refused};

/// So many rows in a row that fail, and none that does not, are the program's fault.
const FAILED_MAX: u32 = 8;

/// A program and what runs of it.
pub(super) struct Exec {
    pub(super) stage: String,
    pub(super) program: Program,
    pub(super) running: Option<Running>,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
    /// Rows that were refused since it has last answered.
    pub(super) failed_in_a_row: u32,
    pub(super) restarts: Counter,
}

impl Transform for Exec {
    fn open(&mut self) -> Result<(), StageError> {
        self.running = Some(self.program.start()?);
        Ok(())
    }

    fn examine(&mut self, report: &Examination) {
        report.begin("program");
        match self.program.start() {
            // Ended when it is dropped: it has been given nothing.
            Ok(_) => report.pass("program", format!("`{}` starts", self.program.shown())),
            Err(error) => report.fail("program", &error),
        }
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let (mut answers, mut refused) = (Vec::new(), Vec::new());
        if batch.rows.num_rows() > 0 {
            let rows = batch.rows.clone();
            blocking(|| self.hand_over(&rows, 0, self.attempts, &mut answers, &mut refused))?;
        }
        let answer = concat_batches(&self.program.output, &answers)?;
        let letters = refusal::letters(&batch, &refused, &self.stage)?;
        refusal::emit(batch, answer, letters, out);
        Ok(())
    }

    fn finish(&mut self, _: &mut Emitter) -> Result<(), StageError> {
        let Some(running) = self.running.take() else { return Ok(()) };
        if let Some(wrong) = blocking(|| running.finish(self.timeout)) {
            tracing::warn!(stage = self.stage, "`{}`: {wrong}", self.program.shown());
        }
        Ok(())
    }
}

impl Exec {
    /// Gathers the answers for rows, and those that it can't be given. `first` is the place of the first one in its
    /// batch.
    fn hand_over(
        &mut self,
        rows: &RecordBatch,
        first: u32,
        attempts: u32,
        answers: &mut Vec<RecordBatch>,
        refused: &mut Vec<Refused>,
    ) -> Result<(), StageError> {
        let failure = match self.attempt(rows, attempts)? {
            Ok(answer) => {
                self.failed_in_a_row = 0;
                answers.push(answer);
                return Ok(());
            }
            Err(failure) => failure,
        };
        let count = rows.num_rows();
        if count == 1 {
            self.failed_in_a_row += 1;
            if self.failed_in_a_row >= FAILED_MAX {
                let text = format!("`{}` fails on all that it is given: {failure}", self.program.shown());
                return Err(StageError::permanent(text).hint("Mend the program and start again: nothing is lost."));
            }
            refused.push((first, "exec_failed".to_owned(), Some(failure)));
            return Ok(());
        }
        let half = count / 2;
        for (offset, length) in [(0, half), (half, count - half)] {
            // A whole batch has proved that it fails; a row is refused no sooner than that.
            let attempts = if length == 1 { self.attempts } else { 1 };
            self.hand_over(&rows.slice(offset, length), first + offset as u32, attempts, answers, refused)?;
        }
        Ok(())
    }

    /// Inside: the answer, or what has happened at the last attempt.
    fn attempt(&mut self, rows: &RecordBatch, attempts: u32) -> Result<Result<RecordBatch, String>, StageError> {
        let mut failure = String::new();
        for _ in 0..attempts {
            let mut running = match self.running.take() {
                Some(running) => running,
                None => {
                    self.restarts.increment();
                    self.program.start()?
                }
            };
            match running.exchange(rows.clone(), self.timeout) {
                Ok(answer) => {
                    self.running = Some(running);
                    return Ok(Ok(answer));
                }
                Err(what) => {
                    let words = running.last_words();
                    failure = if words.is_empty() { what } else { format!("{what}; it said: {words}") };
                    let (program, rows) = (self.program.shown(), rows.num_rows());
                    tracing::warn!(stage = self.stage, rows, "`{program}` is started again: {failure}");
                }
            }
        }
        Ok(Err(failure))
    }
}

/// Lets other stages run on meanwhile, where there is a thread for them.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
