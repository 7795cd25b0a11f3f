//! The name of one request, in the response's `x-request-id` and in the log.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::header::{HeaderMap, HeaderValue};

/// The header. Both SDKs of OpenAI show its value in their errors.
pub(super) const HEADER: &str = "x-request-id";
/// The same for Anthropic's SDKs.
pub(super) const ANTHROPIC_HEADER: &str = "request-id";
/// Most characters of a client's own id.
const MAX_LENGTH: usize = 128;

/// The client's own id if it is fit for a header and a line of a log, else a new one.
pub(super) fn of(headers: &HeaderMap) -> HeaderValue {
    headers.get(HEADER).filter(|id| is_sane(id.as_bytes())).cloned().unwrap_or_else(new)
}

fn is_sane(id: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    !id.is_empty() && id.len() <= MAX_LENGTH && id.iter().all(good)
}

/// Another one each time, also after a restart.
fn new() -> HeaderValue {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("request"));
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let text = format!("req_{:016x}{count:08x}", *PROCESS);
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("req"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept() {
        let of_text = |text: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_bytes(text).unwrap());
            of(&headers)
        };
        assert_eq!(of_text(b"0190-ab:c/d=+_."), "0190-ab:c/d=+_.");
        for bad in [b"".as_slice(), b"a b", b"\"x\"", "\u{fc}".as_bytes(), &[b'a'; 129]] {
            let id = of_text(bad);
            assert!(id.to_str().unwrap().starts_with("req_"), "{id:?}");
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
