//! A socket that is read to its end, whatever happens to what is written to it, and that reads and writes in bursts.
//!
//! The library flushes after each acknowledgement: a system call, a packet and a wake-up of the broker for four bytes. So
//! what a receiver writes is held until the library has nothing more to write, which is when it reads again. What a
//! publisher flushes goes at once: a message of QoS 0 counts as sent then.
//!
//! A broker sends each message by itself, and each wakes us: at 40,000 a second that costs several times what is then done
//! with the message, and takes from the broker the core that it needs. So a socket that much comes by rests a millisecond
//! each time it is empty (after a read, too, that has got less than it had room for), where the runtime does not watch it, and
//! finds the next burst whole. One that little comes by never rests: latency at low rates is a round trip.
//!
//! What a broker has sent before it died lies in this socket, and it may have told the devices that it has it. The
//! library drops a connection, with all messages that it has read and not handed out yet, at the first error of either
//! direction. So a write that fails is not told: reading tells the end soon enough. And the end is told no sooner than
//! at a read of its own, when all that came before has been handed out.
//!
//! Closing a socket that still holds unread bytes resets the connection, and a reset makes the broker
//! throw away what it has not read yet: our last acknowledgements and our goodbye. A broker that goes on
//! sending while we leave, as it does on every busy topic, would so send everything again next time.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;

use super::acks::DirectAcks;
use super::settings::Direction;

/// How long the broker may take to hang up after we have.
const LINGER: Duration = Duration::from_secs(2);

/// So much is held at most before it is written.
const HELD_BYTES_MAX: usize = 16 << 10;

/// So long a busy socket is left alone when it is empty: the clock of the runtime has no shorter time.
const REST: Duration = Duration::from_millis(1);
/// A socket is busy that more than this comes by in [`LOOK`]: a MiB a second, some 8,000 messages.
const BUSY_BYTES: usize = 2 << 10;
/// So long is watched at least before a socket is called busy or quiet.
const LOOK: Duration = Duration::from_millis(2);

/// How busy a socket is.
struct Pace {
    bytes: usize,
    since: Instant,
    is_busy: bool,
}

impl Pace {
    /// At a time when there is nothing to read: whether to rest.
    fn drained(&mut self, now: Instant) -> bool {
        let watched = now.duration_since(self.since);
        if watched >= LOOK {
            self.is_busy = self.bytes as u128 * LOOK.as_nanos() > BUSY_BYTES as u128 * watched.as_nanos();
            self.bytes = 0;
            self.since = now;
        }
        self.is_busy
    }
}

/// A socket that the runtime does not watch, and when it will again.
struct Resting {
    stream: std::net::TcpStream,
    until: Pin<Box<Sleep>>,
}

/// Makes the sockets of one client, a connection after the other.
#[derive(Clone)]
pub(super) struct Sockets {
    /// Keeps the tasks that read the rest.
    pub(super) lingering: TaskTracker,
    pub(super) direction: Direction,
    /// Where the library's bytes are the broker's.
    pub(super) acks: Option<DirectAcks>,
}

impl Sockets {
    pub(super) fn next(&self, stream: TcpStream) -> Socket {
        if let Some(acks) = &self.acks {
            acks.forget();
        }
        Socket {
            stream: Some(stream),
            resting: None,
            pace: Pace { bytes: 0, since: Instant::now(), is_busy: false },
            is_emptied: false,
            lingering: self.lingering.clone(),
            acks: self.acks.clone(),
            held: BytesMut::new(),
            holds: matches!(self.direction, Direction::Receive { .. }),
            end: None,
            is_unheard: false,
        }
    }
}

/// A socket whose drop hands it to a task that waits for the broker's end.
pub(super) struct Socket {
    /// Away while it rests; taken for good by drop.
    stream: Option<TcpStream>,
    resting: Option<Resting>,
    pace: Pace,
    /// The last read has got all that there was.
    is_emptied: bool,
    lingering: TaskTracker,
    acks: Option<DirectAcks>,
    /// What the next read writes first, or the next flush: whole packets, where nothing is between the library and us.
    held: BytesMut,
    /// A flush may wait for the next read.
    holds: bool,
    /// How the stream ended, where the next read is to tell it.
    end: Option<io::Result<()>>,
    /// The other side takes nothing any more.
    is_unheard: bool,
}

impl Socket {
    /// Takes the socket out of the runtime's sight for a while.
    fn rest(&mut self) -> io::Result<()> {
        if let Some(stream) = self.stream.take() {
            let until = Box::pin(tokio::time::sleep(REST));
            self.resting = Some(Resting { stream: stream.into_std()?, until });
        }
        Ok(())
    }

    /// Gives the socket back to the runtime, whether it has rested long enough or not.
    fn wake(&mut self) -> io::Result<()> {
        if let Some(resting) = self.resting.take() {
            self.stream = Some(TcpStream::from_std(resting.stream)?);
        }
        Ok(())
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.wake()?;
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn hold_acks(&mut self) {
        if let Some(acks) = &self.acks {
            acks.append_to(&mut self.held);
        }
        if self.is_unheard {
            self.held.clear();
        }
    }

    /// Writes what is held, as far as the other side takes it now.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.hold_acks();
        while !self.held.is_empty() {
            let outcome = match (&self.resting, &mut self.stream) {
                (Some(resting), _) => Poll::Ready((&resting.stream).write(&self.held)),
                (None, Some(stream)) => Pin::new(stream).poll_write(cx, &self.held),
                (None, None) => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            };
            match outcome {
                Poll::Ready(Ok(written)) if written > 0 => self.held.advance(written),
                // Somebody has to watch for room.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.wake()?,
                Poll::Ready(outcome) => {
                    tracing::debug!(?outcome, "the broker takes nothing any more; what it has sent is read");
                    self.is_unheard = true;
                    self.held.clear();
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what came while the socket rested; `None` when it is empty and not busy any more.
    fn poll_rested(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
        let resting = self.resting.as_mut()?;
        if std::mem::take(&mut self.is_emptied) {
            if !self.pace.drained(Instant::now()) {
                return None;
            }
            resting.until.as_mut().reset(Instant::now() + REST);
        }
        loop {
            if resting.until.as_mut().poll(cx).is_pending() {
                return Some(Poll::Pending);
            }
            match (&resting.stream).read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Some(Poll::Ready(Ok(())));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.pace.drained(Instant::now()) {
                        return None;
                    }
                    resting.until.as_mut().reset(Instant::now() + REST);
                }
                Err(error) => return Some(Poll::Ready(Err(error))),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Without a runtime there is no time left either.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.wake().is_ok()
            && let Some(stream) = self.stream.take()
        {
            self.lingering.spawn_on(linger(stream, std::mem::take(&mut self.held)), &runtime);
        }
    }
}

async fn linger(mut stream: TcpStream, held: BytesMut) {
    let to_the_end = async {
        stream.write_all(&held).await?;
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever comes of it, the socket closes now.
    match tokio::time::timeout(LINGER, to_the_end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the broker hung up in its own way"),
        Err(_) => tracing::debug!("the broker did not hang up in time"),
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        // Whether all of it goes or not: the rest goes when the socket takes it, which wakes this task too.
        if let Poll::Ready(Err(error)) = self.poll_release(cx) {
            return Poll::Ready(Err(error));
        }
        if self.is_emptied && self.resting.is_none() {
            self.is_emptied = false;
            // What could not be written waits for somebody who watches.
            if self.held.is_empty() && self.pace.drained(Instant::now()) {
                self.rest()?;
            }
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let outcome = match self.poll_rested(cx, buffer) {
            Some(outcome) => outcome,
            None => self.stream()?.poll_read(cx, buffer),
        };
        let Poll::Ready(outcome) = outcome else {
            // Pending is said too when the runtime wants another task to have its turn; and what could not be written
            // waits for somebody who watches.
            let is_empty = self.resting.is_none() && has_budget_remaining() && self.held.is_empty();
            if is_empty && self.pace.drained(Instant::now()) {
                self.rest()?;
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        };
        let read = buffer.filled().len() - before;
        if outcome.is_ok() && (read > 0 || buffer.remaining() == 0) {
            self.pace.bytes += read;
            self.is_emptied = read < room;
            return Poll::Ready(outcome);
        }
        self.end = Some(outcome);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_BYTES_MAX {
            ready!(self.poll_release(cx))?;
        }
        // A goodbye comes after what was acknowledged before it.
        self.hold_acks();
        if !self.is_unheard {
            self.held.extend_from_slice(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds { Poll::Ready(Ok(())) } else { self.poll_release(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    use super::*;

    const RECEIVE: Direction = Direction::Receive { window: 100 };

    async fn pair() -> (Socket, TcpStream, TaskTracker) {
        pair_for(RECEIVE).await
    }

    async fn pair_for(direction: Direction) -> (Socket, TcpStream, TaskTracker) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let sockets = Sockets { lingering: TaskTracker::new(), direction, acks: Some(DirectAcks::default()) };
        (sockets.next(stream), listener.accept().await.unwrap().0, sockets.lingering)
    }

    /// One poll of a read, as the library does when it has nothing more to write.
    async fn look(socket: &mut Socket) -> bool {
        let mut byte = [0];
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *socket).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending())).await
    }

    #[tokio::test]
    async fn a_burst_of_acknowledgements_leaves_at_the_next_read_as_one() {
        let (mut socket, mut broker, _) = pair().await;
        for id in 0..100_u8 {
            socket.write_all(&[0x40, 2, 0, id]).await.unwrap();
            socket.flush().await.unwrap();
        }
        assert_eq!(socket.held.len(), 400, "nothing is written yet");
        assert!(look(&mut socket).await, "there is nothing to read");
        assert!(socket.held.is_empty());
        let mut seen = [0; 400];
        broker.read_exact(&mut seen).await.unwrap();
        assert!(seen.chunks(4).zip(0..).all(|(packet, id)| packet == [0x40, 2, 0, id]), "in their order");
    }

    #[tokio::test]
    async fn acknowledgements_leave_in_their_order_before_a_goodbye_and_none_on_the_next_connection() {
        let (mut socket, mut broker, _) = pair().await;
        let acks = socket.acks.clone().unwrap();
        socket.write_all(&[0xc0, 0]).await.unwrap();
        for id in 1..=3 {
            acks.push(id);
        }
        socket.write_all(&[0xe0, 0]).await.unwrap();
        acks.push(0x1234);
        assert!(look(&mut socket).await, "there is nothing to read");
        let mut seen = [0; 20];
        broker.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, *b"\xc0\0\x40\x02\0\x01\x40\x02\0\x02\x40\x02\0\x03\xe0\0\x40\x02\x12\x34");

        acks.push(9);
        let (mut next, mut broker, _) = pair().await;
        let sockets = Sockets { lingering: TaskTracker::new(), direction: RECEIVE, acks: Some(acks.clone()) };
        next = sockets.next(next.stream.take().unwrap());
        acks.push(10);
        assert!(look(&mut next).await, "there is nothing to read");
        let mut seen = [0; 4];
        broker.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, [0x40, 2, 0, 10]);
    }

    #[tokio::test]
    async fn what_a_publisher_flushes_has_left_the_process() {
        let (mut socket, mut broker, _) = pair_for(Direction::Send { in_flight_max: 20 }).await;
        socket.write_all(b"a message").await.unwrap();
        socket.flush().await.unwrap();
        assert!(socket.held.is_empty());
        let mut seen = [0; 9];
        broker.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"a message");
    }

    #[test]
    fn a_socket_is_busy_by_what_came_since_it_was_last_looked_at() {
        let start = Instant::now();
        let mut pace = Pace { bytes: BUSY_BYTES * 10, since: start, is_busy: false };
        assert!(!pace.drained(start + LOOK / 2), "too early to say");
        assert!(pace.drained(start + LOOK * 2));
        pace.bytes = BUSY_BYTES / 2;
        assert!(pace.drained(start + LOOK * 2 + LOOK / 2), "until the next look");
        assert!(!pace.drained(start + LOOK * 4), "half of what a busy one has, in twice the time");
        pace.bytes = BUSY_BYTES * 10;
        assert!(!pace.drained(start + Duration::from_secs(60)), "one burst in a minute");
    }

    #[tokio::test]
    async fn a_busy_socket_rests_when_it_is_empty_and_loses_nothing() {
        let (mut socket, mut broker, _) = pair().await;
        // For the whole test: no look before that.
        let watched_from = Instant::now() + Duration::from_secs(3600);
        socket.pace = Pace { bytes: 0, since: watched_from, is_busy: true };
        broker.write_all(&[7; 100]).await.unwrap();
        let mut more_than_there_is = [0; 200];
        assert_eq!(socket.read(&mut more_than_there_is).await.unwrap(), 100);
        assert!(look(&mut socket).await, "it is empty, and is not asked");
        assert!(socket.resting.is_some());
        for burst in 0..20_u8 {
            assert!(look(&mut socket).await, "nothing has come yet");
            assert!(socket.resting.is_some());
            broker.write_all(&[burst; 500]).await.unwrap();
            socket.write_all(&[0x40, 2, 0, burst]).await.unwrap();
            let mut seen = [0; 500];
            socket.read_exact(&mut seen).await.unwrap();
            assert_eq!(seen, [burst; 500]);
            let mut acknowledgement = [0; 4];
            broker.read_exact(&mut acknowledgement).await.unwrap();
            assert_eq!(acknowledgement, [0x40, 2, 0, burst], "what was written meanwhile went out when it woke");
        }
        assert!(look(&mut socket).await && socket.resting.is_some());
        drop(broker);
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0, "an end that came while it rested");
    }

    #[tokio::test]
    async fn a_broker_that_takes_nothing_bounds_what_is_held() {
        let (mut socket, mut broker, _) = pair().await;
        let (mut accepted, chunk) = (0_usize, [7; 1024]);
        while let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(Pin::new(&mut socket).poll_write(cx, &chunk))).await {
            accepted += written.unwrap();
            assert!(accepted < 1 << 30, "the other side reads nothing");
        }
        assert!(socket.held.len() <= HELD_BYTES_MAX + chunk.len());
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            broker.read_to_end(&mut all).await.map(|_| all.len())
        });
        socket.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), accepted, "and none of it is lost");
    }

    #[tokio::test]
    async fn a_goodbye_that_is_still_held_is_written_when_the_connection_is_dropped() {
        let (mut socket, mut broker, lingering) = pair().await;
        socket.write_all(&[0xe0, 0]).await.unwrap();
        drop(socket);
        let mut seen = Vec::new();
        broker.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, [0xe0, 0]);
        drop(broker);
        lingering.close();
        lingering.wait().await;
    }
}
