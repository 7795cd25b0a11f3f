//! Which web pages may use the API from a browser.

use std::str::FromStr;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{Method, Uri};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::request_id;

/// How long a browser may rely on an answer to its question.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Pages that may read the API's answers.
///
/// Whatever is chosen, the API takes a body only as `application/json`, so a page of another origin cannot start work here
/// without asking first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// All.
    Any,
    /// Those of this machine: `localhost`, `127.0.0.1` or `[::1]`, on any port.
    Loopback,
    /// Those of one origin, such as `https://chat.example.com`.
    Only(HeaderValue),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => return Ok(Self::Any),
            "localhost" => return Ok(Self::Loopback),
            _ => {}
        }
        let expected =
            "expected *, localhost, or an origin such as https://chat.example.com or http://10.0.0.2:3000";
        let text = text.strip_suffix('/').unwrap_or(text);
        // Browsers send schemes and hosts in lower case, and compare nothing.
        let text = text.to_ascii_lowercase();
        let rest = text.split_once("://").map(|(_, rest)| rest).ok_or(expected)?;
        let uri: Uri = text.parse().map_err(|_| expected)?;
        match uri.host().is_some_and(|host| !host.is_empty()) && !rest.contains(['/', '?', '#', '@', '*']) {
            true => HeaderValue::from_str(&text).map(Self::Only).map_err(|_| expected.to_owned()),
            false => Err(expected.to_owned()),
        }
    }
}

impl Origin {
    fn is(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Loopback => is_loopback(origin),
            Self::Only(only) => only == origin,
        }
    }
}

/// Answers the questions of browsers for pages of these origins; `None` if there are none.
pub(super) fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origins = origins.to_vec();
    let allowed = move |origin: &HeaderValue, _: &Parts| origins.iter().any(|allowed| allowed.is(origin));
    let exposed = [HeaderName::from_static(request_id::HEADER), RETRY_AFTER, WWW_AUTHENTICATE];
    Some(
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(allowed))
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            // Whatever is asked for: the SDKs send x-stainless-*, anthropic-* and more with each release, and a `*` would not
            // cover Authorization.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list(exposed))
            .allow_private_network(true)
            .max_age(MAX_AGE),
    )
}

fn is_loopback(origin: &HeaderValue) -> bool {
    let uri = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
    uri.is_some_and(|uri| matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_origins() {
        let is = |origin| is_loopback(&HeaderValue::from_static(origin));
        assert!(is("http://localhost:3000") && is("https://127.0.0.1") && is("http://[::1]:8080"));
        assert!(!is("http://localhost.example.com") && !is("http://192.168.0.1") && !is("null"));
    }

    #[test]
    fn origins_are_read_or_refused() {
        let only = |text: &str| Origin::Only(HeaderValue::from_str(text).unwrap());
        for (text, origin) in [
            ("*", Origin::Any),
            ("localhost", Origin::Loopback),
            ("https://Chat.example.com/", only("https://chat.example.com")),
            ("http://10.0.0.2:3000", only("http://10.0.0.2:3000")),
            ("app://obsidian.md", only("app://obsidian.md")),
            ("http://[::1]:80", only("http://[::1]:80")),
        ] {
            assert_eq!(text.parse(), Ok(origin), "{text}");
        }
        for text in [
            "",
            "chat.example.com",
            "https://",
            "https://a/b",
            "https://*.example.com",
            "https://a?b",
            "http://u@h",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
