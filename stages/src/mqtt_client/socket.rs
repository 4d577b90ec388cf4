//! A socket that is read to its end, whatever happens to what is written to it.
//!
//! What a broker has sent before it died lies in this socket, and it may have told the devices that it has it. The
//! library drops a connection, with all messages that it has read and not handed out yet, at the first error of either
//! direction. So a write that fails is not told: reading tells the end soon enough. And the end is told no sooner than
//! at a read of its own, when all that came before has been handed out.
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
    /// How the stream ended, where the next read is to tell it.
    end: Option<io::Result<()>>,
    /// The other side takes nothing any more.
    is_unheard: bool,
}

impl Socket {
    /// `lingering` keeps the task that reads the rest.
    pub(super) fn new(stream: TcpStream, lingering: TaskTracker) -> Self {
        Self { stream: Some(stream), lingering, end: None, is_unheard: false }
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
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        let before = buffer.filled().len();
        let outcome = match self.as_mut().stream()?.poll_read(cx, buffer) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => return Poll::Pending,
        };
        if outcome.is_ok() && (buffer.filled().len() > before || buffer.remaining() == 0) {
            return Poll::Ready(outcome);
        }
        self.end = Some(outcome);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Socket {
    /// What became of a write, unless it is `otherwise` since nobody hears it.
    fn heard<T>(mut self: Pin<&mut Self>, outcome: Poll<io::Result<T>>, otherwise: T) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "the broker takes nothing any more; what it has sent is read");
                self.is_unheard = true;
                Poll::Ready(Ok(otherwise))
            }
            outcome => outcome,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_unheard {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = self.as_mut().stream()?.poll_write(cx, bytes);
        self.heard(outcome, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        if self.is_unheard {
            return Poll::Ready(Ok(all));
        }
        let outcome = self.as_mut().stream()?.poll_write_vectored(cx, slices);
        self.heard(outcome, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(TcpStream::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_unheard {
            return Poll::Ready(Ok(()));
        }
        let outcome = self.as_mut().stream()?.poll_flush(cx);
        self.heard(outcome, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
