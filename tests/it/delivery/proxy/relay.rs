//! One connection through the proxy: bytes both ways, up to where a fault strikes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;

use super::{Fault, Shared, Then, Watch, locked};

/// How long a client that nobody answers any more may talk on.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_service, to_service) = service.split();
        let up = Way { shared: &shared, connection, watch: upward, position: 0, goal: None };
        let down = Way { shared: &shared, connection, watch: downward, position: 0, goal: None };
        let up = async {
            match up.relay(from_client, to_service).await {
                // The service's last words may still be on their way: it ends when they have been said.
                Err(Broken::Unread) => std::future::pending().await,
                ended => ended,
            }
        };
        let ended = tokio::select! {
            ended = up => ended,
            ended = down.relay(from_service, to_client) => ended,
            _ = cuts.changed() => Err(Broken::Cut),
        };
        matches!(ended, Err(Broken::Cut))
    };
    locked(&shared.connections).remove(&connection);
    if cut {
        client.set_zero_linger().ok();
        service.set_zero_linger().ok();
        return;
    }
    // To close while the client still talks would reset the connection, and what it has not read yet would
    // be lost to it.
    client.shutdown().await.ok();
    tokio::time::timeout(LAST_WORDS, tokio::io::copy(&mut client, &mut tokio::io::sink())).await.ok();
}

/// Why one direction carries nothing more.
enum Broken {
    /// Nobody reads it any more.
    Unread,
    /// The test breaks the connection: with a reset, both ways.
    Cut,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Unread
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
    /// Until the sender has closed.
    async fn relay(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Broken> {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
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
        Ok(())
    }

    async fn forward(&mut self, bytes: &[u8], to: &mut WriteHalf<'_>) -> Result<(), Broken> {
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
                    Err(_) => return Err(Broken::Cut),
                }
            }
        }
        self.position = end;
        Ok(to.write_all(bytes).await?)
    }
}
