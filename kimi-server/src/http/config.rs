//! Limits and options of the server.

use std::path::PathBuf;
use std::time::Duration;

use super::cors::Origin;
use crate::api_keys::ApiKey;

/// Limits and options of the server. The defaults suit one user or a small team on a local network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Most bytes of a request's body; beyond it the status is 413.
    pub max_body_bytes: usize,
    /// Most bytes of memory for the bodies of all requests, half of it for those that arrive (beyond it the status is
    /// 503), half for those that are being read (which wait for it, and may not take more alone). Small ones do not
    /// count.
    pub max_bodies_memory: usize,
    /// Most connections at a time. When all are taken, a new one gets the place of the one that has been idle for
    /// longest.
    pub max_connections: usize,
    /// Most connections of one address, where `None` is nearly all of [`Self::max_connections`]. When all are taken, a
    /// new one gets the place of an idle one of this address.
    pub max_connections_per_address: Option<usize>,
    /// Most chats that are answered at a time. Further ones wait, as long as enough connections are left for other
    /// requests such as `/health`; beyond that the status is 503.
    pub max_chats: usize,
    /// How long a new connection may take to send its first request's head.
    pub first_request_timeout: Duration,
    /// How long a connection may idle between requests, with the time that it takes to send the next one's head.
    pub header_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may take no byte of a response before it is given up.
    pub write_timeout: Duration,
    /// How often a stream without news carries a comment, so that nobody on the way takes it for dead.
    pub keepalive: Duration,
    /// How long a shutdown waits for responses under way.
    pub shutdown_grace: Duration,
    /// Which web pages may use the API; none where it is empty.
    pub cors: Vec<Origin>,
    /// Names that the server may be called by, beside this machine's, where only this machine can reach it.
    pub allow_hosts: Vec<String>,
    /// Keys of those who may use the API. Without these and without a file of them, everybody may.
    pub api_keys: Vec<ApiKey>,
    /// A file with more of them, which is read again when it changes.
    pub api_key_file: Option<PathBuf>,
    /// Whether `/metrics` needs no key.
    pub open_metrics: bool,
    /// Whether the log (`tracing`, level INFO) has what is asked and answered, beside one line a request.
    pub log_prompts: bool,
}

/// Most connections that chats leave for other requests.
const OTHER_REQUESTS: usize = 64;

impl HttpConfig {
    /// Connections that chats leave for other requests.
    fn reserved(&self) -> usize {
        OTHER_REQUESTS.min(self.max_connections / 2)
    }

    /// Chats that are answered at a time, and chats that may wait.
    pub(super) fn chats(&self) -> (usize, usize) {
        let places = self.max_connections - self.reserved();
        let chats = self.max_chats.min(places).max(1);
        (chats, places.saturating_sub(chats))
    }

    /// Connections that one address may have. Who has all chats and all of its connections still leaves some to ask how
    /// the server is.
    pub(super) fn per_address(&self) -> usize {
        let nearly_all = self.max_connections - self.reserved() / 2;
        self.max_connections_per_address.unwrap_or(nearly_all)
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_bodies_memory: 192 << 20,
            max_connections: 704,
            max_connections_per_address: None,
            max_chats: 512,
            first_request_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
            cors: Vec::new(),
            allow_hosts: Vec::new(),
            api_keys: Vec::new(),
            api_key_file: None,
            open_metrics: false,
            log_prompts: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_out() {
        let of = |max_connections, max_chats| {
            let config = HttpConfig { max_connections, max_chats, ..HttpConfig::default() };
            (config.chats(), config.per_address())
        };
        assert_eq!(of(704, 512), ((512, 128), 672));
        assert_eq!(of(100, 512), ((50, 0), 75));
        assert_eq!(of(1, 1), ((1, 0), 1));
        let own = HttpConfig { max_connections_per_address: Some(9), ..HttpConfig::default() };
        assert_eq!(own.per_address(), 9);
    }
}
