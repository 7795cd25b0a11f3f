//! Which path and method lead where.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::config::HttpConfig;
use super::engine::ServedModel;
use super::error::ApiError;
use super::{Body, chat};

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    pub(super) models: Vec<ServedModel>,
    pub(super) config: HttpConfig,
    /// Whether only this machine can reach the server.
    pub(super) loopback: bool,
}

impl App {
    /// The model with an id or alias. Without one, the only model there is.
    pub(super) fn model(&self, id: Option<&str>) -> Result<&ServedModel, ApiError> {
        match (id, self.models.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => {
                let message = format!("is missing; served: {}", self.ids().join(", "));
                Err(ApiError::field("model", "missing_required_parameter", message))
            }
            (Some(id), models) => {
                models.iter().find(|m| m.answers_to(id)).ok_or_else(|| ApiError::no_model(id, &self.ids()))
            }
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.models.iter().map(ServedModel::id).collect()
    }
}

/// Answers one request.
pub(super) async fn handle(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = route(&app, request).await.unwrap_or_else(|error| error.response());
    if app.config.log_requests {
        let (status, time) = (response.status().as_u16(), started.elapsed());
        tracing::info!(%method, path, status, ?time, "request");
    }
    Ok(response)
}

async fn route(app: &Arc<App>, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    if app.loopback {
        check_host(&request)?;
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/v1/chat/completions" => {
            check_method(&request, &[Method::POST], "POST")?;
            chat::complete(app.clone(), json_body(request, &app.config).await?).await
        }
        "/v1/models" => {
            check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            let models: Vec<_> = app.models.iter().map(ServedModel::describe).collect();
            Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": models})))
        }
        "/health" => {
            check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Ok(health(app))
        }
        path => match path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
            Some(id) => {
                check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
                let id = percent_decode_str(id).decode_utf8_lossy();
                Ok(json_response(StatusCode::OK, &app.model(Some(&id))?.describe()))
            }
            None => Err(ApiError::no_route(request.method().as_str(), path)),
        },
    }
}

/// Refuses names that are not this machine's, against DNS rebinding: a browser sends the page's own name. A request
/// without a host comes from no browser.
fn check_host<B>(request: &Request<B>) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(HOST) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let is_here = text.parse::<Authority>().is_ok_and(|authority| {
        let host = authority.host();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
    });
    if is_here { Ok(()) } else { Err(ApiError::host(&text)) }
}

fn check_method<B>(request: &Request<B>, methods: &[Method], allow: &'static str) -> Result<(), ApiError> {
    match methods.contains(request.method()) {
        true => Ok(()),
        false => Err(ApiError::method(request.method().as_str(), request.uri().path(), allow)),
    }
}

/// State of every model; 503 if one of them cannot answer now.
fn health(app: &App) -> Response<Body> {
    let models: Vec<_> = app.models.iter().map(ServedModel::health).collect();
    let ok = models.iter().all(|model| model["status"] == "ok");
    let (status, word) =
        if ok { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    json_response(status, &json!({"status": word, "version": env!("CARGO_PKG_VERSION"), "models": models}))
}

/// A request's whole body, within the server's limits.
async fn json_body(request: Request<Incoming>, config: &HttpConfig) -> Result<Bytes, ApiError> {
    check_content_type(request.headers())?;
    let (limit, body) = (config.max_body_bytes, request.into_body());
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    match tokio::time::timeout(config.body_timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Ok(Err(error)) => {
            Err(ApiError::invalid("incomplete_body", format!("the request's body is not whole: {error}")))
        }
        Err(_) => Err(ApiError::slow_body(config.body_timeout.as_secs())),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let found = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("not text"));
    let kind = found.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::content_type(found)),
    }
}

/// A JSON response.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
