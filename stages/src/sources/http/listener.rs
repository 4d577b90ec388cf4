//! Connections within bounds: so many at once, and none that is silent for good.
//!
//! Whoever has not posted with a right token is a stranger. There is room for some of them beside all others, for a short while,
//! and when it is full the one that has been here longest makes room: so strangers who say nothing, or say it slowly, take no place
//! from those who may post, and a newcomer has as long for its first request as others take to fill the room.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::refusal::Refusal;

/// Above what a post may wait for its answer: nothing is read meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(240);
/// How long a stranger may take for a request with a right token, from the first byte on.
const STRANGER_MAX: Duration = Duration::from_secs(15);

/// How many connections there are at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// Of those who have posted.
    pub(super) known: usize,
    /// Of those who have not, besides.
    pub(super) strangers: usize,
}

impl Default for Places {
    fn default() -> Self {
        Self { known: 1024, strangers: 256 }
    }
}

/// Accepts connections within the bounds.
pub(super) struct Bounded {
    listener: TcpListener,
    lobby: Arc<Lobby>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, places: Places) -> Self {
        Self { listener, lobby: Arc::new(Lobby { places, inside: Mutex::default() }) }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, Lobby::receive(&self.lobby)), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Who is here.
struct Lobby {
    places: Places,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    next: u64,
    /// By the order in which they came, with what sends them away.
    strangers: BTreeMap<u64, CancellationToken>,
    known: usize,
}

impl Lobby {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(this: &Arc<Self>) -> Guest {
        let leave = CancellationToken::new();
        let mut inside = this.lock();
        let number = inside.next;
        inside.next += 1;
        inside.strangers.insert(number, leave.clone());
        if inside.strangers.len() > this.places.strangers
            && let Some((_, longest_here)) = inside.strangers.pop_first()
        {
            longest_here.cancel();
        }
        drop(inside);
        Guest(Arc::new(Visit {
            lobby: this.clone(),
            number,
            came_at: Instant::now(),
            leave,
            is_known: Mutex::new(false),
        }))
    }
}

/// One connection, as its requests know it.
#[derive(Clone)]
pub(super) struct Guest(Arc<Visit>);

struct Visit {
    lobby: Arc<Lobby>,
    number: u64,
    came_at: Instant,
    leave: CancellationToken,
    is_known: Mutex<bool>,
}

impl Guest {
    /// It has brought a right token, and is no stranger from now on.
    ///
    /// # Errors
    /// All places are taken.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        let mut is_known = self.is_known();
        if *is_known {
            return Ok(());
        }
        let mut inside = self.0.lobby.lock();
        if inside.known == self.0.lobby.places.known {
            return Err(Refusal::later("too many connections at once", Duration::from_secs(5)));
        }
        inside.known += 1;
        inside.strangers.remove(&self.0.number);
        *is_known = true;
        Ok(())
    }

    fn is_known(&self) -> MutexGuard<'_, bool> {
        self.0.is_known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it must have said something, if it said something last then.
    fn deadline(&self, heard_at: Instant) -> Instant {
        if *self.is_known() { heard_at + SILENCE_MAX } else { self.0.came_at + STRANGER_MAX }
    }

    /// The connection has ended.
    fn left(&self) {
        let was_known = std::mem::take(&mut *self.is_known());
        let mut inside = self.0.lobby.lock();
        inside.strangers.remove(&self.0.number);
        if was_known {
            inside.known -= 1;
        }
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Guest {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.io().guest.clone()
    }
}

/// A connection that ends when its other end says nothing for too long, or is sent away.
pub(super) struct Connection {
    stream: TcpStream,
    guest: Guest,
    heard_at: Instant,
    silence: Pin<Box<Sleep>>,
    sent_away: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(stream: TcpStream, guest: Guest) -> Self {
        let heard_at = Instant::now();
        let silence = Box::pin(tokio::time::sleep_until(guest.deadline(heard_at)));
        let sent_away = Box::pin(guest.0.leave.clone().cancelled_owned());
        Self { stream, guest, heard_at, silence, sent_away }
    }

    /// Ready once the other end has been waited for long enough.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sent_away.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let deadline = self.guest.deadline(self.heard_at);
            if self.silence.deadline() != deadline {
                self.silence.as_mut().reset(deadline);
            }
            ready!(self.silence.as_mut().poll(cx));
            // It may have become known meanwhile.
            if self.guest.deadline(self.heard_at) == deadline {
                return Poll::Ready(());
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.guest.left();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // First, so that a byte now and then does not keep a stranger here.
        if this.poll_patience(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        this.heard_at = Instant::now();
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A listener, and connections to it with their other ends.
    async fn listener(places: Places) -> Bounded {
        Bounded::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), places)
    }

    async fn connect(listener: &mut Bounded) -> (TcpStream, Connection) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.0)
    }

    async fn read(connection: &mut Connection) -> io::Result<usize> {
        connection.read(&mut [0; 16]).await
    }

    #[tokio::test]
    async fn the_stranger_who_was_here_longest_makes_room_and_nobody_who_is_known_does() {
        let mut listener = listener(Places { known: 2, strangers: 2 }).await;
        let (mut known_client, mut known) = connect(&mut listener).await;
        known.guest.admit().unwrap();
        let mut strangers = Vec::new();
        for _ in 0..4 {
            strangers.push(connect(&mut listener).await);
        }
        for (number, (client, connection)) in strangers.iter_mut().enumerate() {
            client.write_all(b"x").await.unwrap();
            let read = read(connection).await;
            assert_eq!(read.is_ok(), number >= 2, "stranger {number}: {read:?}");
        }
        known_client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut known).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn places_of_the_known_are_bounded_and_free_again_when_they_leave() {
        let mut listener = listener(Places { known: 1, strangers: 8 }).await;
        let (_first_client, first) = connect(&mut listener).await;
        let (_second_client, second) = connect(&mut listener).await;
        first.guest.admit().unwrap();
        first.guest.admit().expect("it is known already");
        let refusal = second.guest.admit().unwrap_err();
        assert!(refusal.retry_after.is_some(), "{refusal:?}");
        drop(first);
        second.guest.admit().unwrap();
        drop(second);
        let inside = listener.lobby.lock();
        assert_eq!((inside.known, inside.strangers.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_a_while_however_much_it_says_and_a_known_one_is_waited_for() {
        let mut listener = listener(Places::default()).await;
        let (mut client, mut stranger) = connect(&mut listener).await;
        let (mut known_client, mut known) = connect(&mut listener).await;
        known.guest.admit().unwrap();
        tokio::time::sleep(STRANGER_MAX / 2).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut stranger).await.unwrap(), 1);
        tokio::time::sleep(STRANGER_MAX).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut stranger).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        known_client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut known).await.unwrap(), 1);
        assert_eq!(read(&mut known).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "silent for too long");
    }
}
