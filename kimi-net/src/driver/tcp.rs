//! Links over TCP, with the socket options.

use std::{io, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs, lookup_host},
    time::timeout,
};

use super::{Coordinator, Observer, Worker};
use crate::{
    error::LinkError,
    protocol::Config,
    secure::Trust,
    tune::{Tuned, Tuning},
};

/// Connections that may wait to be accepted: where the system drops one, its peer tries again only after a second.
const BACKLOG: u32 = 1024;

/// Connects to a worker and introduces this coordinator. A name is tried at each of its addresses.
/// Connecting and the handshake have `config.handshake_timeout` each.
pub async fn connect(
    target: impl ToSocketAddrs,
    trust: &Trust,
    tuning: &Tuning,
    config: Config,
) -> Result<Coordinator, LinkError> {
    let addresses = lookup_host(target)
        .await
        .map_err(|error| LinkError::io("cannot look up the worker's address", &error))?;
    let mut last = LinkError::Io {
        context: "cannot look up the worker's address".into(),
        kind: io::ErrorKind::NotFound,
        detail: "the name has no address".into(),
    };
    for addr in addresses {
        match connect_stream(addr, tuning, config.handshake_timeout).await {
            Ok((stream, tuned)) => return Coordinator::start(stream, trust, config, Some(tuned)).await,
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to a worker at one address, to look at it; see [`connect`].
pub async fn observe(
    addr: SocketAddr,
    trust: &Trust,
    tuning: &Tuning,
    config: Config,
) -> Result<Observer, LinkError> {
    let (stream, tuned) = connect_stream(addr, tuning, config.handshake_timeout).await?;
    Observer::start(stream, trust, config, Some(tuned)).await
}

async fn connect_stream(
    addr: SocketAddr,
    tuning: &Tuning,
    limit: Duration,
) -> Result<(TcpStream, Tuned), LinkError> {
    let failed = |error: io::Error| LinkError::io(format!("cannot connect to {addr}"), &error);
    let socket = new_socket(addr).map_err(failed)?;
    let automatic = tuning.before_connect(SockRef::from(&socket));
    let stream = timeout(limit, socket.connect(addr))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}"))))
        .map_err(failed)?;
    let tuned = tuning.after_connect(SockRef::from(&stream), automatic);
    Ok((stream, tuned))
}

fn new_socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// A worker's listening socket.
pub struct Listener {
    inner: TcpListener,
    trust: Trust,
    tuning: Tuning,
    automatic_buffers: bool,
}

impl Listener {
    /// Listens on `addr` for those that `trust` lets in. Port 0 takes a free one. Call it within a tokio runtime.
    pub async fn bind(addr: SocketAddr, trust: Trust, tuning: Tuning) -> Result<Listener, LinkError> {
        let failed = |error: io::Error| LinkError::io(format!("cannot listen on {addr}"), &error);
        let socket = new_socket(addr).map_err(failed)?;
        // A worker that is started again must not wait for the old one's connections to time out.
        #[cfg(unix)]
        socket.set_reuseaddr(true).map_err(failed)?;
        let automatic_buffers = tuning.before_connect(SockRef::from(&socket));
        socket.bind(addr).map_err(failed)?;
        let inner = socket.listen(BACKLOG).map_err(failed)?;
        Ok(Listener { inner, trust, tuning, automatic_buffers })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, LinkError> {
        self.inner.local_addr().map_err(|error| LinkError::io("cannot read the listener's address", &error))
    }

    /// The next connection. Do its handshake in a task of its own, so that a peer that says nothing keeps
    /// nobody else waiting. An error does not end the listener. Safe to drop and call again.
    pub async fn accept(&self) -> Result<Incoming, LinkError> {
        let (stream, peer) =
            self.inner.accept().await.map_err(|error| LinkError::io("cannot accept a connection", &error))?;
        let tuned = self.tuning.after_connect(SockRef::from(&stream), self.automatic_buffers);
        Ok(Incoming { stream, trust: self.trust.clone(), peer, tuned })
    }
}

/// A connection whose peer has not introduced itself.
pub struct Incoming {
    stream: TcpStream,
    trust: Trust,
    peer: SocketAddr,
    tuned: Tuned,
}

impl Incoming {
    /// Where it comes from.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Waits for the coordinator's proof of the key and its hello, at most `config.handshake_timeout`.
    pub async fn handshake(self, config: Config) -> Result<Worker, LinkError> {
        Worker::start(self.stream, &self.trust, config, Some(self.tuned)).await
    }
}
