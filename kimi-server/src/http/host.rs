//! Whose name a request calls the server by (RFC 9112, section 3.2).

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{Method, Request, Version};

use super::error::ApiError;
use crate::system;

/// Domains that the public DNS has nothing in (RFC 6761, RFC 6762, ICANN's .internal), so that no page of the web is there.
/// `host.docker.internal` and `host.containers.internal` are what containers call the machine that they run on.
const LOCAL_DOMAINS: [&str; 3] = [".localhost", ".local", ".internal"];

/// What a server may be called that only this machine can reach, beside the names of every machine.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// This machine's own names, and others that the user allows.
    pub(super) fn new(allowed: &[String]) -> Self {
        let own = system::host_name();
        let short = own.split('.').next().unwrap_or_default().to_owned();
        Self(
            [own, short].into_iter().chain(allowed.iter().cloned()).filter(|name| !name.is_empty()).collect(),
        )
    }

    /// Whether a host, without its port, is this machine.
    fn has(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost"
            || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
            || LOCAL_DOMAINS.iter().any(|domain| host.ends_with(domain))
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(&host))
    }
}

/// Checks that a request names one host, in a proper form; and, if only this machine can reach the server, that it is one of
/// `names`. That is against DNS rebinding: a browser sends the page's own name.
///
/// # Errors
/// 400 for a target that is only a host; for no `Host` in HTTP/1.1, several, or a malformed one; 403 for a name that is another machine's.
pub(super) fn check<B>(request: &Request<B>, names: Option<&Names>) -> Result<(), ApiError> {
    let uri = request.uri();
    if uri.authority().is_some() && uri.scheme().is_none() && request.method() != Method::CONNECT {
        return Err(ApiError::bad_target(&uri.to_string()));
    }
    let mut values = request.headers().get_all(HOST).iter();
    let header = values.next();
    if values.next().is_some() {
        return Err(ApiError::bad_host("several Host headers, expected one"));
    }
    if header.is_none() && request.version() == Version::HTTP_11 {
        return Err(ApiError::bad_host("no Host header, which HTTP/1.1 requires"));
    }
    let target = uri.authority().map(Authority::as_str);
    let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()));
    // The target's own host counts; that of the header must still be good.
    for found in [target, header.as_deref()].into_iter().flatten() {
        let Some(host) = host_of(found) else {
            return Err(ApiError::bad_host(&format!("Host {found:?}, expected HOST or HOST:PORT")));
        };
        if names.is_some_and(|names| !names.has(host)) {
            return Err(ApiError::host(found));
        }
    }
    Ok(())
}

/// The host of `host[:port]`, if it is well formed.
fn host_of(text: &str) -> Option<&str> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, rest)) => {
            inside.parse::<Ipv6Addr>().ok()?;
            (&text[..inside.len() + 2], rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let good_host = host.starts_with('[') || (!host.is_empty() && host.bytes().all(is_name));
    let good_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok());
    (good_host && good_port).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        let names = Names::new(&["kimi.example.com".to_owned(), "10.1.2.3".to_owned()]);
        let own = system::host_name();
        for host in [
            "localhost",
            "LocalHost.",
            "127.0.0.1",
            "127.1.2.3",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "kimi.localhost",
            "mymac.local",
            "mymac.local.",
            "host.docker.internal",
            "host.containers.internal",
            "KIMI.example.com",
            "10.1.2.3",
            own.as_str(),
        ] {
            assert!(names.has(host), "{host}");
        }
        for host in [
            "example.com",
            "localhost.example.com",
            "local",
            "internal",
            "mymac.local.evil.com",
            "evillocal",
            "10.1.2.4",
            "[::2]",
        ] {
            assert!(!names.has(host), "{host}");
        }
    }

    #[test]
    fn hosts_are_split_or_refused() {
        let good = [
            ("localhost", "localhost"),
            ("localhost:80", "localhost"),
            ("localhost:", "localhost"),
            ("127.0.0.1:65535", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:8080", "[::1]"),
            ("my-host.example.", "my-host.example."),
        ];
        for (text, host) in good {
            assert_eq!(host_of(text), Some(host), "{text}");
        }
        let bad = [
            "",
            ":80",
            "localhost:abc",
            "localhost:65536",
            "localhost:-1",
            "localhost:80:80",
            "a b",
            "user@localhost",
            "localhost/",
            "localhost, localhost",
            "::1",
            "[::1",
            "[::1]80",
            "[x]",
            "http://localhost",
            "h\u{fc}",
        ];
        for text in bad {
            assert_eq!(host_of(text), None, "{text}");
        }
    }
}
