//! The page at `/`: a chat for browsers, and the cluster at a glance. Its files are part of the program and fetch nothing from
//! elsewhere.

use std::sync::LazyLock;

use http_body_util::Full;
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::Body;
use super::routes::{App, json_response};

/// One file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($path:literal, $name:literal, $kind:literal) => {
        File { path: $path, kind: $kind, text: include_str!(concat!("../../assets/page/", $name)) }
    };
}

const FILES: [File; 11] = [
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/page/style.css", "style.css", "text/css; charset=utf-8"),
    file!("/page/icon.svg", "icon.svg", "image/svg+xml"),
    file!("/page/main.js", "main.js", "text/javascript; charset=utf-8"),
    file!("/page/api.js", "api.js", "text/javascript; charset=utf-8"),
    file!("/page/chat.js", "chat.js", "text/javascript; charset=utf-8"),
    file!("/page/cluster.js", "cluster.js", "text/javascript; charset=utf-8"),
    file!("/page/dom.js", "dom.js", "text/javascript; charset=utf-8"),
    file!("/page/markdown.js", "markdown.js", "text/javascript; charset=utf-8"),
    file!("/page/messages.js", "messages.js", "text/javascript; charset=utf-8"),
    file!("/page/store.js", "store.js", "text/javascript; charset=utf-8"),
];

/// Scripts, styles and data come from here only; nothing runs that stands in the page or in an answer, and no other page may
/// show this one in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Names of the files' content, so that a browser asks only whether it has the newest.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |file: &File| format!("\"{}\"", &blake3::hash(file.text.as_bytes()).to_hex()[..32]);
    FILES.iter().map(tag).collect()
});

/// Whether a path is one of the page's.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The response to a request for the page; `None` for all other requests.
pub(super) fn response<B>(request: &Request<B>, app: &App) -> Option<Response<Body>> {
    let index = FILES.iter().position(|file| file.path == request.uri().path())?;
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return None;
    }
    let headers = request.headers();
    let mut response = match FILES[index].path == "/" && !accepts_html(headers) {
        true => about(app),
        false => send(&FILES[index], &TAGS[index], headers),
    };
    if FILES[index].path == "/" {
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    }
    Some(response)
}

/// Whether a client asks for pages as browsers do: `*/*`, which most programs send, is no wish for HTML.
fn accepts_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// What is served where.
fn about(app: &App) -> Response<Body> {
    let body = json!({
        "name": "kimi",
        "version": env!("CARGO_PKG_VERSION"),
        "models": app.ids(),
        "api": "/v1",
        "health": "/health",
        "metrics": "/metrics",
        "page": "/ (for browsers)",
    });
    json_response(StatusCode::OK, &body)
}

fn send(file: &File, tag: &str, request: &HeaderMap) -> Response<Body> {
    let known = request.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let is_known =
        known.flat_map(|value| value.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    let text = if is_known { "" } else { file.text };
    let mut response = Response::new(Body::new(Full::from(text)));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    response
}
