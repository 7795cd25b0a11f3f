//! Socket options for a link on which each token waits for small messages, and prefill sends large ones.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// What to ask of the operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of each of the send and receive buffers; `None` leaves them to the system.
    pub buffer_bytes: Option<usize>,
    /// Silence after which the system probes the peer.
    pub keepalive_after: Duration,
    /// Time between two probes.
    pub keepalive_interval: Duration,
    /// Unanswered probes after which the peer is lost.
    pub keepalive_probes: u32,
    /// Time after which unacknowledged data ends the connection (Linux).
    pub user_timeout: Duration,
}

impl Default for Tuning {
    /// 4 MiB buffers; a silent peer is seen as lost after 4 + 3 x 2 = 10 s.
    fn default() -> Tuning {
        Tuning {
            buffer_bytes: Some(4 << 20),
            keepalive_after: Duration::from_secs(4),
            keepalive_interval: Duration::from_secs(2),
            keepalive_probes: 3,
            user_timeout: Duration::from_secs(10),
        }
    }
}

/// What the operating system gave. Options that it refused are logged; a link works without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuned {
    /// Whether small frames are sent at once (TCP_NODELAY).
    pub nodelay: bool,
    /// Bytes of the send buffer. Linux counts its own bookkeeping in and reports twice what was asked.
    pub send_buffer: usize,
    /// Bytes of the receive buffer, counted likewise.
    pub recv_buffer: usize,
    /// Whether the buffers were left to the system because it would have given less than was asked.
    pub automatic_buffers: bool,
    /// Whether the system probes a silent peer.
    pub keepalive: bool,
}

impl Tuning {
    /// Sets the buffers; before `connect` or `listen`, since the TCP window's scale is fixed then. Returns whether
    /// they were left to the system.
    ///
    /// Linux sizes buffers by itself up to several MiB, and stops doing so once they are set. Where `net.core`'s
    /// maxima are below what we want (the usual 208 KiB), asking would make a link slower, so nothing is asked.
    pub fn before_connect(&self, socket: SockRef<'_>) -> bool {
        let Some(bytes) = self.buffer_bytes else { return true };
        if buffer_limit().is_some_and(|limit| limit < bytes) {
            return true;
        }
        note("SO_SNDBUF", socket.set_send_buffer_size(bytes));
        note("SO_RCVBUF", socket.set_recv_buffer_size(bytes));
        false
    }

    /// Sets everything else on a connected socket, and reports what holds now.
    pub fn after_connect(&self, socket: SockRef<'_>, automatic_buffers: bool) -> Tuned {
        note("TCP_NODELAY", socket.set_tcp_nodelay(true));
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive_after)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_probes);
        note("keepalive", socket.set_tcp_keepalive(&keepalive));
        #[cfg(target_os = "linux")]
        {
            note("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(self.user_timeout)));
            // The kernel may leave this mode later; it spares the first exchanges a delayed acknowledgement.
            note("TCP_QUICKACK", socket.set_tcp_quickack(true));
        }
        Tuned {
            nodelay: socket.tcp_nodelay().unwrap_or(false),
            send_buffer: socket.send_buffer_size().unwrap_or(0),
            recv_buffer: socket.recv_buffer_size().unwrap_or(0),
            automatic_buffers,
            keepalive: socket.keepalive().unwrap_or(false),
        }
    }
}

/// The smaller of the system's limits on buffers that a program asks for, where they can be read.
fn buffer_limit() -> Option<usize> {
    let read = |name| std::fs::read_to_string(name).ok()?.trim().parse::<usize>().ok();
    if !cfg!(target_os = "linux") {
        return None;
    }
    Some(read("/proc/sys/net/core/rmem_max")?.min(read("/proc/sys/net/core/wmem_max")?))
}

fn note(option: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(option, %error, "socket option refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_what_holds() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = SockRef::from(&stream);
        assert!(!socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
        let tuning = Tuning { buffer_bytes: Some(64 << 10), ..Tuning::default() };
        let automatic = tuning.before_connect(SockRef::from(&stream));
        let tuned = tuning.after_connect(SockRef::from(&stream), automatic);
        assert!(tuned.nodelay && tuned.keepalive);
        assert!(tuned.send_buffer >= 64 << 10 && tuned.recv_buffer >= 64 << 10, "{tuned:?}");
        if cfg!(target_os = "linux") {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(4));
        }
    }
}
