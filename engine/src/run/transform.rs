//! Runs a transform: one batch in, what it emits out, in order.

use std::time::Instant;

use crate::error::StageError;
use crate::queue::{Closed, Inbox, Outbox};
use crate::stage::{Emitter, Transform};
use crate::stats::StageStats;

pub(super) async fn run(
    mut transform: Box<dyn Transform>,
    mut inbox: Inbox,
    outbox: Outbox,
    stats: &StageStats,
) -> Result<(), StageError> {
    let mut emitter = Emitter::default();
    while let Some(batch) = inbox.next().await {
        stats.entered(batch.rows.num_rows());
        let started = Instant::now();
        transform.apply(batch, &mut emitter)?;
        stats.busy_for(started.elapsed());
        send_all(&mut emitter, &outbox, stats).await?;
    }
    transform.finish(&mut emitter)?;
    send_all(&mut emitter, &outbox, stats).await
}

async fn send_all(emitter: &mut Emitter, outbox: &Outbox, stats: &StageStats) -> Result<(), StageError> {
    for (port, batch) in emitter.take() {
        let rows = batch.rows.num_rows();
        outbox.send(port, batch).await.map_err(|Closed| StageError::reader_gone())?;
        stats.left(port, rows);
    }
    Ok(())
}
