//! Until links are encrypted they stay on the machine, unless a person says otherwise.

use std::net::SocketAddr;

use crate::error::LinkError;

/// Refuses an address to listen on or to connect to that is not loopback (127.0.0.0/8, ::1 or the former written
/// as IPv6), unless `insecure` is set: frames are neither encrypted nor authenticated.
pub fn listen_guard(addr: SocketAddr, insecure: bool) -> Result<(), LinkError> {
    if insecure || addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(LinkError::Exposed { addr }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_without_the_flag() {
        for addr in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(listen_guard(addr.parse().unwrap(), false), Ok(()), "{addr}");
        }
        for addr in ["0.0.0.0:1", "[::]:1", "192.168.1.4:1", "169.254.7.7:1", "[::ffff:10.0.0.1]:1"] {
            let addr = addr.parse().unwrap();
            let error = listen_guard(addr, false).unwrap_err();
            assert!(error.to_string().contains("--insecure"), "{error}");
            assert!(error.to_string().contains(&addr.to_string()), "{error}");
            assert_eq!(listen_guard(addr, true), Ok(()));
        }
    }
}
