//! The client at the other end of a connection: whether it is still there.
//!
//! A client that has sent its request may close its half of the connection and wait for the answer. A client that goes
//! away closes its half too, and looks the same until something is sent to it: only then its system answers with a
//! reset. So the end of a client's half is no reason to drop its request, but one to send something at once: a comment
//! in a stream, white space before the JSON of a whole answer. A client that is gone is known by the reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How often a socket is looked at whose system can't be waited for.
const LOOK: Duration = Duration::from_millis(50);

/// A connection's socket, to be watched while requests are read from it and answered.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<TcpStream>);

impl Peer {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self(Arc::new(socket))
    }

    /// Lets each token go out at once.
    pub(super) fn send_at_once(&self) {
        if let Err(error) = self.0.set_nodelay(true) {
            tracing::debug!(%error, "can't set TCP_NODELAY: tokens may arrive in bunches");
        }
    }

    /// Waits until the client has closed its half of the connection, or is gone. What it has sent before need not
    /// have been read.
    pub(super) async fn finished(&self) {
        loop {
            match self.0.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(LOOK).await, // bytes nobody has read yet
                _ => return,
            }
        }
    }

    /// Waits until the connection is of no use any more: it was reset.
    pub(super) async fn gone(&self) {
        self.finished().await;
        loop {
            match self.0.ready(Interest::WRITABLE).now_or_never() {
                Some(Ok(ready)) if ready.is_write_closed() => return,
                Some(Err(_)) => return,
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}
