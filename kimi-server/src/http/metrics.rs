//! `GET /metrics`: numbers for Prometheus, in its text format.
//!
//! What the models and the process count comes from the [`Snapshot`] that `/health` shows; this module counts only what
//! passes through the API.

mod families;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use kimi_core::chat_model::FinishReason;
use kimi_core::engine::Usage;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::ApiError;
use super::{Body, record};
use crate::monitor::Snapshot;

/// Seconds to a first token: from a short prompt on a fast machine to a long one of which the weights are paged in.
const FIRST_TOKEN: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds per further token: from a thousand tokens a second to one in ten seconds.
const PER_TOKEN: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// What the API counts.
#[derive(Debug)]
pub(super) struct Metrics {
    http: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    first_token: Histograms,
    per_token: Histograms,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            http: Family::default(),
            requests: Family::default(),
            first_token: Family::new_with_constructor(|| Histogram::new(FIRST_TOKEN)),
            per_token: Family::new_with_constructor(|| Histogram::new(PER_TOKEN)),
        }
    }
}

impl Metrics {
    /// Counts a response.
    pub(super) fn response(&self, path: &str, status: StatusCode) {
        let labels = vec![("route", route(path).to_owned()), ("status", status.as_u16().to_string())];
        self.http.get_or_create_owned(&labels).inc();
    }

    /// The response to `/metrics`.
    ///
    /// # Errors
    /// None that can happen: text is written to memory.
    pub(super) fn page(&self, now: Snapshot, connections: [usize; 3]) -> Result<Response<Body>, ApiError> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(families::Collected { now, connections }));
        let http = "HTTP responses by route and status";
        registry.register("kimi_http_requests", http, self.http.clone());
        let requests = "Chat requests that a model took, by how they ended; cancelled: the client left";
        registry.register("kimi_requests", requests, self.requests.clone());
        let first = "From the model taking a request to its first token";
        registry.register("kimi_time_to_first_token_seconds", first, self.first_token.clone());
        let next = "Mean time of each further token of a request";
        registry.register("kimi_time_per_token_seconds", next, self.per_token.clone());
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).map_err(|e| ApiError::internal(e.to_string()))?;
        let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
        let kind = HeaderValue::from_static(prometheus_text::CONTENT_TYPE);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// The route that a path belongs to: paths are the clients', so that they must not become series.
fn route(path: &str) -> &'static str {
    match path {
        "/v1/chat/completions" => "/v1/chat/completions",
        "/v1/completions" => "/v1/completions",
        "/v1/tokenize" => "/v1/tokenize",
        "/v1/detokenize" => "/v1/detokenize",
        "/v1/tokenizers/estimate-token-count" => "/v1/tokenizers/estimate-token-count",
        "/v1/responses" => "/v1/responses",
        path if path.starts_with("/v1/responses/") => "/v1/responses/{id}",
        "/v1/messages" => "/v1/messages",
        "/v1/messages/count_tokens" => "/v1/messages/count_tokens",
        "/v1/models" => "/v1/models",
        "/" => "/",
        path if path.starts_with("/page/") => "/page/{file}",
        "/health" => "/health",
        "/metrics" => "/metrics",
        path if path.starts_with("/v1/models/") => "/v1/models/{id}",
        _ => "other",
    }
}

/// A request that a model took; counts it when it ends. Dropped before, it was cancelled.
#[derive(Debug)]
pub(super) struct Request {
    metrics: Arc<Metrics>,
    model: String,
    ended: bool,
}

impl Request {
    pub(super) fn new(metrics: Arc<Metrics>, model: &str) -> Self {
        Self { metrics, model: model.to_owned(), ended: false }
    }

    /// It has its whole answer.
    pub(super) fn finished(&mut self, reason: FinishReason, usage: &Usage) {
        let outcome = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Cancelled => "cancelled",
        };
        self.end(outcome, Some(usage));
        let labels = vec![("model", self.model.clone())];
        if let Some(time) = usage.time_to_first_token {
            self.metrics.first_token.get_or_create_owned(&labels).observe(time.as_secs_f64());
        }
        if usage.completion_tokens > 1 {
            let time: Duration = usage.decode / (usage.completion_tokens - 1);
            self.metrics.per_token.get_or_create_owned(&labels).observe(time.as_secs_f64());
        }
    }

    /// The model failed.
    pub(super) fn failed(&mut self) {
        self.end("failed", None);
    }

    fn end(&mut self, outcome: &str, usage: Option<&Usage>) {
        if !std::mem::replace(&mut self.ended, true) {
            record::ended(&self.model, outcome, usage);
            let labels = vec![("model", self.model.clone()), ("outcome", outcome.to_owned())];
            self.metrics.requests.get_or_create_owned(&labels).inc();
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.end("cancelled", None);
    }
}
