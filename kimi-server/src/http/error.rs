//! Errors as OpenAI's API shows them, and the one place where other errors become HTTP statuses.

use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use kimi_core::ChatError;
use kimi_core::chat::TemplateError;
use kimi_core::chat_model::{GrammarError, GrammarPlace};
use kimi_core::engine::{EngineError, RequestError};
use kimi_core::plan::HumanBytes;
use kimi_core::sampler::{ParamError, StopError};
use kimi_core::tokenizer::TokenizerError;
use serde_json::{Value, json};

use super::record;
use crate::cluster::Loading;

/// An error of the API: `{"error": {"message", "type", "param", "code"}}` with a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Status of the response, unless a stream has already begun.
    pub status: StatusCode,
    /// `type`: whose fault it is.
    pub kind: &'static str,
    /// `code`: what a program can test for.
    pub code: Option<&'static str>,
    /// `param`: path of the request's field, such as `messages[0].content`.
    pub param: Option<String>,
    /// What was found, what was expected, and what to do.
    pub message: String,
    /// Value of the header `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// Value of the header `Allow`.
    pub allow: Option<&'static str>,
}

/// The client's mistake.
const INVALID_REQUEST: &str = "invalid_request_error";
/// On this code Anthropic's packages send the whole conversation instead.
pub(super) const NO_THREADS: &str = "thread_unsupported_request";
/// Ours, or that of a machine we depend on.
const SERVER_ERROR: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, kind, code: Some(code), param: None, message, retry_after: None, allow: None }
    }

    /// 400: a mistake in the request's body.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, code, message)
    }

    /// 400: a mistake in one field of the request's body.
    pub fn field(path: &str, code: &'static str, message: impl AsRef<str>) -> Self {
        let error = Self::invalid(code, format!("{path}: {}", message.as_ref()));
        Self { param: Some(path.to_owned()), ..error }
    }

    /// 403: a request for another host than this machine, as a web page makes whose name was bound to our address.
    pub fn host(found: &str) -> Self {
        let message = format!(
            "the request is for host {found:?}, but this server answers to this machine's names only; use localhost, or start \
             it with --allow-host NAME"
        );
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, "host_not_allowed", message)
    }

    /// 400: a target without a slash, which only CONNECT takes.
    pub fn bad_target(found: &str) -> Self {
        let message =
            format!("the request's target is {found:?}; it must begin with a slash, as /{found} does");
        Self::invalid("invalid_target", message)
    }

    /// 400: a request that does not name one host, in a proper form.
    pub fn bad_host(found: &str) -> Self {
        Self::invalid("invalid_host", format!("found {found}; send one, such as Host: localhost:52415"))
    }

    /// 404: nothing is served at a path. `hint` says what is.
    pub fn no_route(method: &str, path: &str, hint: &str) -> Self {
        let message = format!("no such URL: {method} {path}; {hint}");
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "unknown_url", message)
    }

    /// 404: a part of OpenAI's API that this server has no model for.
    pub fn no_such_service(path: &str, what: &str) -> Self {
        let message = format!("{path} is not served: {what}");
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "unsupported_endpoint", message)
    }

    /// 405: a path does not take a method.
    pub fn method(method: &str, path: &str, allow: &'static str) -> Self {
        let message = format!("{path} does not take {method}; use {allow}");
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, "method_not_allowed", message);
        Self { allow: Some(allow), ..error }
    }

    /// 404: a model that is not served.
    pub fn no_model(found: &str, served: &[&str]) -> Self {
        let message = format!("the model {found:?} is not served here; served: {}", served.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "model_not_found", message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// 404: a response that is not stored, or not any more.
    pub fn no_response(id: &str) -> Self {
        let message = format!(
            "there is no response {id:?} here; responses are kept in memory, unless \"store\" is false, until the server ends or \
             newer ones need their room"
        );
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "response_not_found", message)
    }

    /// 400: a request that goes on with a response that is not stored.
    pub fn no_previous_response(id: &str) -> Self {
        let message = format!("{}; send the whole conversation as input", Self::no_response(id).message);
        Self::field("previous_response_id", "previous_response_not_found", message)
    }

    /// 404: a reference to an item of a response that is not stored.
    pub fn no_item(path: &str, id: &str) -> Self {
        let message = format!("there is no stored item {id:?}; send the item itself");
        let error = Self::field(path, "item_not_found", message);
        Self { status: StatusCode::NOT_FOUND, ..error }
    }

    /// 401: no key, or one that is not good.
    pub fn key(given: bool) -> Self {
        let found = if given { "the API key is not known here" } else { "the request has no API key" };
        let message = format!(
            "{found}; send one that `kimi api-key new` made, in Authorization: Bearer KEY or in x-api-key: KEY"
        );
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, "invalid_api_key", message)
    }

    /// 429: a key's limit is reached.
    pub fn rate_limit(message: impl Into<String>, seconds: u32) -> Self {
        let error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        Self { retry_after: Some(seconds), ..error }
    }

    /// 413: a body over the limit.
    pub fn too_large(limit: usize) -> Self {
        let message =
            format!("the request's body has more than {limit} bytes, the server's limit; shorten it");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, "request_too_large", message)
    }

    /// 408: a body that came too slowly, or did not come whole.
    pub fn slow_body(seconds: u64) -> Self {
        let message = format!("the request's body did not arrive within {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, "request_timeout", message)
    }

    /// 415: a body that does not say that it is JSON.
    pub fn content_type(found: Option<&str>) -> Self {
        let found = found.map_or("none".to_owned(), |found| format!("{found:?}"));
        let message =
            format!("the Content-Type is {found}; send the body with Content-Type: application/json");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, "unsupported_media_type", message)
    }

    /// 415: a body that is compressed.
    pub fn content_encoding(found: &str) -> Self {
        let message = format!(
            "the Content-Encoding is {found:?}, which is not supported; send the body as it is, without it"
        );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            "unsupported_content_encoding",
            message,
        )
    }

    /// 429: too many requests wait already.
    pub fn busy(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message);
        Self { retry_after: Some(1), ..error }
    }

    /// 503: the bodies of other requests take all memory that there is for bodies.
    pub fn crowded() -> Self {
        let message = "the bodies of other requests take all of the server's memory for bodies; try again";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, "server_busy", message);
        Self { retry_after: Some(1), ..error }
    }

    /// 503: too many chats are answered and wait.
    pub fn too_many_chats() -> Self {
        let message = "the server answers as many chats as it can, and as many wait as may; try again";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, "server_busy", message);
        Self { retry_after: Some(1), ..error }
    }

    /// 503: the server ends before the answer does.
    pub fn shutdown() -> Self {
        let message = "the server is shutting down, and the answer is not finished; ask again";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, "server_shutdown", message);
        Self { retry_after: Some(5), ..error }
    }

    /// 503: the model cannot answer until something is repaired.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, "engine_unavailable", message);
        Self { retry_after: Some(5), ..error }
    }

    /// 503: the model is being loaded.
    pub fn loading(id: &str, loading: &Loading) -> Self {
        let Loading { loaded, total, .. } = *loading;
        let remaining = loading.remaining().map(|time| time.as_secs().max(1));
        let left = remaining.map_or(String::new(), |seconds| format!(", about {seconds} s are left"));
        let message = format!(
            "{id} is being loaded ({} of {}{left}); ask again then, or watch /health",
            HumanBytes(loaded),
            HumanBytes(total)
        );
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, "model_loading", message);
        Self { retry_after: Some(remaining.map_or(5, |seconds| seconds.min(60) as u32)), ..error }
    }

    /// 500: a mistake of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, "internal_error", message)
    }

    /// The same about a prompt that was made of another field than messages.
    #[must_use]
    pub(super) fn about_prompt(mut self, field: &str) -> Self {
        if self.param.as_deref() == Some("messages") {
            self.param = Some(field.to_owned());
        }
        self
    }

    /// The same with other names for the field that says what form the answer has, and for a tool's parameters.
    #[must_use]
    pub(super) fn renamed(mut self, format: &str, parameters: &str) -> Self {
        self.param = self.param.map(|param| match param.strip_suffix("function.parameters") {
            Some(tool) => format!("{tool}{parameters}"),
            None if param == "response_format" => format.to_owned(),
            None => param,
        });
        self
    }

    /// The JSON body: of a response, or of the last event of a stream.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The same in the shape of Anthropic's API.
    pub fn anthropic_body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        let mut error = json!({"type": kind, "message": self.message});
        if self.code == Some(NO_THREADS) {
            error["details"] = json!({"error_code": NO_THREADS});
        }
        json!({"type": "error", "error": error, "request_id": record::id()})
    }

    /// The response.
    pub(super) fn response(&self) -> Response<super::Body> {
        let body = Full::from(self.body().to_string());
        let mut response = Response::new(super::Body::new(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kimi\""));
        }
        if let Some(methods) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        response
    }
}

/// The response to a request for `path`, in the shape of the API that the path belongs to.
pub(super) fn response_at(path: &str, error: &ApiError) -> Response<super::Body> {
    let mut response = error.response();
    if path.starts_with("/v1/messages") {
        *response.body_mut() = super::Body::new(Full::from(error.anthropic_body().to_string()));
    }
    response
}

impl From<ParamError> for ApiError {
    fn from(error: ParamError) -> Self {
        let message = format!("expected {}, found {}", error.expected, error.found);
        Self::field(error.field, "invalid_value", message)
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        Self::field("stop", "invalid_value", format!("expected {}, found {}", error.expected, error.found))
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let (code, param) = match &error {
            RequestError::Context { .. } | RequestError::LongPrompt { .. } | RequestError::Cache { .. } => {
                ("context_length_exceeded", "messages")
            }
            RequestError::EmptyPrompt | RequestError::Token { .. } => ("invalid_value", "messages"),
            RequestError::MaxTokens => ("integer_below_min_value", "max_tokens"),
            RequestError::MinTokens { .. } => ("integer_above_max_value", "min_tokens"),
            RequestError::NoSuchToken { field, .. } => ("invalid_value", *field),
        };
        Self { param: Some(param.to_owned()), ..Self::invalid(code, error.to_string()) }
    }
}

/// Why a model can't answer, and what to do.
pub(crate) fn down_text(error: &EngineError) -> String {
    format!("{error}; restart `kimi serve`")
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Busy { .. } => Self::busy(message),
            EngineError::Down { .. } => Self::unavailable(down_text(&error)),
            EngineError::StageLost { .. } => Self::unavailable(message),
            EngineError::Sequence(_)
            | EngineError::Config { .. }
            | EngineError::Thread { .. }
            | EngineError::PageStore(_)
            | EngineError::Pipeline(_) => Self::internal(message),
        }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::Request(error) => error.into(),
            ChatError::Engine(error) => error.into(),
            ChatError::Stop(error) => error.into(),
            ChatError::Grammar(error) => error.into(),
            ChatError::Template(error) => error.into(),
            ChatError::Tokenizer(
                error @ (TokenizerError::TooLarge { .. } | TokenizerError::LongText { .. }),
            ) => {
                let error = Self::invalid("context_length_exceeded", error.to_string());
                Self { param: Some("messages".to_owned()), ..error }
            }
            ChatError::Tokenizer(error) => Self::internal(error.to_string()),
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        let param = match error.place {
            GrammarPlace::Output => "response_format".to_owned(),
            GrammarPlace::Tool { index } => format!("tools[{index}].function.parameters"),
            GrammarPlace::ToolChoice => "tool_choice".to_owned(),
        };
        Self { param: Some(param), ..Self::invalid("invalid_value", error.fault.to_string()) }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let param = match &error {
            TemplateError::TooLong { .. } => {
                let error = Self::invalid("context_length_exceeded", error.to_string());
                return Self { param: Some("messages".to_owned()), ..error };
            }
            TemplateError::Render(_) | TemplateError::TooDeep { .. } | TemplateError::NoMark => "messages",
            TemplateError::Reserved { .. } => "chat_template_kwargs",
            _ => return Self::internal(error.to_string()),
        };
        Self { param: Some(param.to_owned()), ..Self::invalid("invalid_value", error.to_string()) }
    }
}
