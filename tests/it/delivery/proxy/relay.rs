//! One connection through the proxy: bytes both ways, up to where a fault strikes.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;

use super::{Fault, Shared, Then, Watch, locked};

/// Relays until one side has closed, or the connection is broken.
pub(super) async fn serve(shared: Arc<Shared>, mut client: TcpStream) {
    let target = locked(&shared.target).clone();
    let Ok(mut service) = TcpStream::connect(&target).await else {
        // As if nobody listened: which is so.
        client.set_zero_linger().ok();
        return;
    };
    client.set_nodelay(true).ok();
    service.set_nodelay(true).ok();
    let connection = shared.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    locked(&shared.connections).insert(connection, None);
    let mut cuts = shared.cuts.subscribe();
    let (upward, downward) = shared.watchers();
    let end = {
        let (from_client, to_client) = client.split();
        let (from_service, to_service) = service.split();
        let up = Way { shared: &shared, connection, watch: upward, position: 0, goal: None };
        let down = Way { shared: &shared, connection, watch: downward, position: 0, goal: None };
        tokio::select! {
            ended = async { tokio::try_join!(up.relay(from_client, to_service), down.relay(from_service, to_client)) } => {
                ended.map_or_else(|end| end, |_| End::Closed)
            }
            _ = cuts.changed() => End::Cut,
        }
    };
    locked(&shared.connections).remove(&connection);
    if let End::Cut = end {
        client.set_zero_linger().ok();
        service.set_zero_linger().ok();
    }
}

/// How a connection ends.
enum End {
    /// By one of its two sides; the other one hears of it in the same way.
    Closed,
    /// By the proxy: with a reset, both ways.
    Cut,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// One direction of a connection.
struct Way<'a> {
    shared: &'a Shared,
    connection: u64,
    watch: Box<dyn Watch>,
    /// How much was forwarded, in bytes.
    position: u64,
    /// Where a fault strikes.
    goal: Option<(u64, Fault)>,
}

impl Way<'_> {
    /// Until the sender has nothing more to say (`Ok`), or nobody has (`Err`).
    async fn relay(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let mut stalled = self.shared.stalled.subscribe();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(to.shutdown().await?);
            }
            // What was read while the link died is not forwarded either.
            if stalled.wait_for(|stalled| !stalled).await.is_err() {
                return Err(End::Closed);
            }
            let bytes = &buffer[..read];
            for seen in self.watch.read(bytes) {
                if let Some(fault) = self.shared.note(self.connection, seen.moment)
                    && self.goal.is_none()
                {
                    let inside = (seen.bytes as f64 * fault.point.inside) as u64;
                    self.goal = Some((seen.at + inside, fault));
                }
            }
            self.forward(bytes, &mut to).await?;
        }
    }

    async fn forward(&mut self, bytes: &[u8], to: &mut WriteHalf<'_>) -> Result<(), End> {
        let end = self.position + bytes.len() as u64;
        let mut bytes = bytes;
        if let Some((goal, fault)) = self.goal.take_if(|(goal, _)| *goal <= end) {
            let (before, after) = bytes.split_at((goal.saturating_sub(self.position)) as usize);
            to.write_all(before).await?;
            bytes = after;
            let (then, decided) = oneshot::channel();
            // Nobody waits any more where the patience has ended just now.
            if fault.reached.send(then).is_ok() {
                match decided.await {
                    Ok(Then::Pass) => {}
                    Err(_) => return Err(End::Cut),
                }
            }
        }
        to.write_all(bytes).await?;
        self.position = end;
        Ok(())
    }
}
