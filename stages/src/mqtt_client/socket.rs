//! A socket that is read to its end after use.
//!
//! Closing a socket that still holds unread bytes resets the connection, and a reset makes the broker
//! throw away what it has not read yet: our last acknowledgements and our goodbye. A broker that goes on
//! sending while we leave, as it does on every busy topic, would so send everything again next time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

/// How long the broker may take to hang up after we have.
const LINGER: Duration = Duration::from_secs(2);

/// A socket whose drop hands it to a task that waits for the broker's end.
pub(super) struct Socket {
    /// Taken by drop alone.
    stream: Option<TcpStream>,
    lingering: TaskTracker,
}

impl Socket {
    /// `lingering` keeps the task that reads the rest.
    pub(super) fn new(stream: TcpStream, lingering: TaskTracker) -> Self {
        Self { stream: Some(stream), lingering }
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Without a runtime there is no time left either.
        if let (Some(stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current()) {
            self.lingering.spawn_on(linger(stream), &runtime);
        }
    }
}

async fn linger(mut stream: TcpStream) {
    let to_the_end = async {
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
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(TcpStream::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
