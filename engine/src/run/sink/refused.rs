//! Rows that a sink refuses: found, made dead letters, and kept apart from the rest of their group.
//!
//! A sink that keeps positions takes what lies at or before one for stored. So all refused rows of a batch
//! leave by one batch of dead letters, once they are all known: of a second one with the same position the
//! sink behind `rejected` would believe that it has it.

use arrow::array::BooleanArray;
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::record_batch::RecordBatch;
use futures::future::join_all;

use super::SinkTask;
use crate::ack::{Ack, Partition};
use crate::batch::Batch;
use crate::dead_letter;
use crate::error::{Fault, Refused, StageError};
use crate::queue::Closed;
use crate::stage::{Advance, Group, Port};
use crate::stats::now_us;

/// Refused rows on their way to becoming dead letters.
#[derive(Default)]
struct Letters {
    /// One entry a promise, in order of arrival.
    by_promise: Vec<(RecordBatch, Ack)>,
}

impl SinkTask {
    /// Commits a group of which some rows are refused: these become dead letters first, since with the
    /// group's positions on record they could not come again.
    pub(super) async fn store_without_refused(&mut self, group: Group, error: StageError) -> Result<(), StageError> {
        let (mut rest, mut advances) = group.into_parts();
        let mut error = error;
        let mut first_time = true;
        loop {
            let mut letters = Letters::default();
            rest = if error.refused_rows().is_empty() {
                self.sift(rest, error, &mut letters).await?;
                Vec::new()
            } else {
                self.check_rejected_is_read(&error).await?;
                self.take_out(rest, error.refused_rows(), &mut letters)?
            };
            let taken_over = self.send_letters(letters, first_time).await?;
            // With its letters somewhere else, the rest of such a batch must not count as stored here.
            let group = self.without(Group::advancing(rest, advances), &taken_over);
            let (group, outcome) = self.write_ours(group).await;
            error = match outcome {
                Ok(()) => {
                    self.keep_promises(group);
                    return Ok(());
                }
                Err(error) if error.fault() == Fault::Data => error,
                Err(error) => return Err(error),
            };
            (rest, advances) = group.into_parts();
            first_time = false;
        }
    }

    /// Halves batches, of which the sink has said that it can't store them, until each row is stored or
    /// known to be refused. What is stored by this has no position yet: a crash makes it come again, and
    /// be known by its key.
    async fn sift(&mut self, batches: Vec<Batch>, error: StageError, letters: &mut Letters) -> Result<(), StageError> {
        let mut parts = vec![(batches, Some(error))];
        while let Some((part, known)) = parts.pop() {
            let (group, outcome) = match known {
                Some(error) => (Group::new(part), Err(error)),
                None => self.write_ours(Group::new(part)).await,
            };
            let error = match outcome {
                Ok(()) => {
                    self.keep_promises(group);
                    continue;
                }
                Err(error) if error.fault() == Fault::Data => error,
                Err(error) => return Err(error),
            };
            self.check_rejected_is_read(&error).await?;
            let (part, _): (_, Vec<Advance>) = group.into_parts();
            if !error.refused_rows().is_empty() {
                parts.push((self.take_out(part, error.refused_rows(), letters)?, None));
                continue;
            }
            match halve(part) {
                Ok((left, right)) => parts.extend([(right, None), (left, None)]),
                Err(row) => {
                    let reason = error.outside_code().unwrap_or("refused").to_owned();
                    let refused = Refused { batch: 0, row: 0, reason, detail: error.chain() };
                    self.take_out(vec![row], &[refused], letters)?;
                }
            }
        }
        Ok(())
    }

    /// Makes these rows dead letters and gives the others.
    fn take_out(
        &self,
        batches: Vec<Batch>,
        refused: &[Refused],
        letters: &mut Letters,
    ) -> Result<Vec<Batch>, StageError> {
        let mut rest = Vec::new();
        for (index, batch) in batches.into_iter().enumerate() {
            let of_batch: Vec<&Refused> = refused.iter().filter(|refused| refused.batch == index).collect();
            if of_batch.is_empty() {
                rest.push(batch);
                continue;
            }
            letters.push(self.letters_of(&batch, &of_batch)?, batch.ack.share())?;
            let mut keep = vec![true; batch.rows.num_rows()];
            of_batch.iter().for_each(|refused| keep[refused.row] = false);
            let rows = filter_record_batch(&batch.rows, &BooleanArray::from(keep))?;
            // Without rows it has no more to wait for than its letters, which have a share.
            if rows.num_rows() > 0 {
                rest.push(batch.with_rows(rows));
            } else {
                batch.ack.deliver();
            }
        }
        Ok(rest)
    }

    fn letters_of(&self, batch: &Batch, refused: &[&Refused]) -> Result<RecordBatch, StageError> {
        let position = batch.ack.span().map(|(partition, span)| format!("{partition}:{span}"));
        let received = batch.ack.received_at_us().unwrap_or_else(now_us);
        let named: Vec<_> = refused
            .iter()
            .map(|refused| {
                let row = u32::try_from(refused.row).expect("rows of a batch are counted in 32 bits");
                (row, refused.reason.clone(), Some(refused.detail.clone()))
            })
            .collect();
        Ok(dead_letter::of_rows(&batch.rows, &named, &self.stats.name, received, position.as_deref())?)
    }

    /// Sends dead letters on and waits until they are stored.
    ///
    /// With the positions of their rows the first time, so that a restart doesn't store them twice. If a
    /// sink then refuses more of the same group, which a sink that names all refused rows doesn't, without:
    /// rather twice than never.
    ///
    /// Gives the partitions whose letters were given up, since another worker has these by now.
    async fn send_letters(&mut self, letters: Letters, with_positions: bool) -> Result<Vec<String>, StageError> {
        let (mut verdicts, mut partitions) = (Vec::new(), Vec::new());
        let _waits_for_others = self.stats.blocked.start();
        for (rows, ack) in letters.by_promise {
            let count = rows.num_rows();
            let partition = ack.partition().cloned();
            let (followed, verdict) = ack.followed(with_positions);
            let batch = Batch::new(rows, followed);
            self.stats.shows(Port::REJECTED, &batch);
            let sent = self.outbox.send(Port::REJECTED, batch).await;
            sent.map_err(|Closed| StageError::reader_gone())?;
            self.stats.left(Port::REJECTED, count);
            self.stats.out_of_hand(count);
            verdicts.push(verdict);
            partitions.push(partition);
        }
        let mut taken_over = Vec::new();
        for (verdict, partition) in join_all(verdicts).await.into_iter().zip(partitions) {
            match partition.filter(Partition::is_revoked) {
                _ if verdict == Ok(true) => {}
                Some(partition) => taken_over.push(partition.name().to_owned()),
                None => return Err(StageError::reader_gone()),
            }
        }
        Ok(taken_over)
    }
}

impl Letters {
    /// Adds letters, `ack` being a share of the promise for their rows.
    fn push(&mut self, letters: RecordBatch, ack: Ack) -> Result<(), StageError> {
        match self.by_promise.iter_mut().find(|(_, of)| of.is_of_same_promise(&ack)) {
            Some((before, _)) => {
                *before = concat_batches(&letters.schema(), [&*before, &letters])?;
                // Owed by the share that they have joined.
                ack.deliver();
            }
            None => self.by_promise.push((letters, ack)),
        }
        Ok(())
    }
}

/// Two halves, by batches while there are several and then by rows; or the only row.
fn halve(mut batches: Vec<Batch>) -> Result<(Vec<Batch>, Vec<Batch>), Batch> {
    if batches.len() > 1 {
        let right = batches.split_off(batches.len() / 2);
        return Ok((batches, right));
    }
    let batch = batches.pop().expect("a group that was refused holds at least one batch");
    let rows = batch.rows.num_rows();
    if rows < 2 {
        return Err(batch);
    }
    let (left, right) = (batch.rows.slice(0, rows / 2), batch.rows.slice(rows / 2, rows - rows / 2));
    let (left, right) = batch.split(left, right);
    Ok((vec![left], vec![right]))
}
