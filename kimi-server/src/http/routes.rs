//! Which path and method lead where.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use kimi_core::CancelFlag;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::auth::Keys;
use super::budget::Budget;
use super::config::HttpConfig;
use super::connections::{Connections, Phase, Place};
use super::engine::ServedModel;
use super::error::{self, ApiError};
use super::host::Names;
use super::json::Body as JsonBody;
use super::metrics::Metrics;
use super::peer::Peer;
use super::{Body, answer, anthropic, body, chat, completions, responses, tokens, unknown};
use crate::monitor::{ModelStatus, ProcessState, Slow, Snapshot};

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    pub(super) models: Vec<ServedModel>,
    pub(super) config: HttpConfig,
    pub(super) budget: Budget,
    /// Answers that are given at a time.
    pub(super) chats: Arc<Semaphore>,
    /// Chats that wait for one of them.
    pub(super) waiting: Arc<Semaphore>,
    pub(super) connections: Arc<Connections>,
    pub(super) metrics: Arc<Metrics>,
    /// Responses that later requests may go on with.
    pub(super) responses: Arc<responses::Store>,
    /// What was found last to make the server slow.
    pub(super) slow: Mutex<Option<Slow>>,
    pub(super) began: Instant,
    pub(super) keys: Keys,
    /// Whether only this machine can reach the server.
    pub(super) loopback: bool,
    /// What it may be called then.
    pub(super) names: Names,
    /// Becomes true when answers under way are cut short.
    pub(super) ending: watch::Receiver<bool>,
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) peer: Peer,
    pub(super) place: Place,
}

impl App {
    /// The model with an id or alias. Without one, the only model there is; an empty one is none.
    pub(super) fn model(&self, id: Option<&str>) -> Result<&ServedModel, ApiError> {
        match (id.filter(|id| !id.is_empty()), self.models.as_slice()) {
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

    /// [`Self::model`], once it is loaded.
    pub(super) fn loaded(&self, id: Option<&str>) -> Result<&ServedModel, ApiError> {
        let model = self.model(id)?;
        model.check_loaded()?;
        Ok(model)
    }

    /// A place among the answers, once there is one.
    ///
    /// # Errors
    /// 503 if too many wait already.
    pub(super) async fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(slot) = self.chats.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| ApiError::too_many_chats())?;
        self.chats.clone().acquire_owned().await.map_err(|error| ApiError::internal(error.to_string()))
    }

    /// Waits until answers under way are cut short.
    pub(super) async fn ending(&self) {
        // An error means that the server is gone.
        let _ = self.ending.clone().wait_for(|ending| *ending).await;
    }

    /// Does something for an answer, unless it is cut short.
    pub(super) async fn until_end<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            done = work => done,
            () = self.ending() => Err(ApiError::shutdown()),
        }
    }

    /// The state of the moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let models: Vec<_> = self.models.iter().map(ServedModel::state).collect();
        let ok = models.iter().all(|model| model.status == ModelStatus::Ok);
        Snapshot {
            status: if ok { "ok" } else { "unavailable" }.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slow: self.slow().as_ref().map(|slow| slow.text.clone()),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            models,
            process: ProcessState::now(),
        }
    }

    pub(super) fn slow(&self) -> MutexGuard<'_, Option<Slow>> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ids(&self) -> Vec<&str> {
        self.models.iter().map(ServedModel::id).collect()
    }
}

/// Answers one request that [`front`](super::front) has let through.
pub(super) async fn handle(
    app: Arc<App>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(route(&app, client, request).await.unwrap_or_else(|error| error::response_at(&path, &error)))
}

async fn route(
    app: &Arc<App>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path().to_owned();
    if let Some(door) = Door::at(&path) {
        check_method(&request, &[Method::POST], "POST")?;
        let body = app.until_end(body::read(request, &app.config, &app.budget)).await?;
        client.place.set(Phase::Answering);
        return match door {
            Door::Model(prepare) => answer::respond(app.clone(), client.peer, body, prepare).await,
            Door::Tokens(work) => app.until_end(answer::compute(app.clone(), body, work)).await,
        };
    }
    if let Some(rest) = path.strip_prefix("/v1/responses/").filter(|rest| !rest.is_empty()) {
        return responses::handle(app, request.method(), rest, request.uri().query());
    }
    match path.as_str() {
        "/v1/models" => {
            check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            let models: Vec<_> = app.models.iter().map(ServedModel::describe).collect();
            Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": models})))
        }
        "/health" => {
            check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Ok(health(&app.snapshot()))
        }
        "/metrics" => {
            check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            app.metrics.page(app.snapshot(), app.connections.count())
        }
        path => match path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()) {
            Some(id) => {
                check_method(&request, &[Method::GET, Method::HEAD], "GET, HEAD")?;
                let id = percent_decode_str(id).decode_utf8_lossy();
                Ok(json_response(StatusCode::OK, &app.model(Some(&id))?.describe()))
            }
            None => Err(unknown::error(request.method().as_str(), path)),
        },
    }
}

/// A path that takes a body.
enum Door {
    /// A model answers.
    Model(answer::Prepare),
    /// Its tokenizer does.
    Tokens(fn(&App, JsonBody, CancelFlag) -> Result<Value, ApiError>),
}

impl Door {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Model(chat::prepare),
            "/v1/completions" => Self::Model(completions::prepare),
            "/v1/responses" => Self::Model(responses::prepare),
            "/v1/responses/input_tokens" => Self::Tokens(responses::count),
            "/v1/messages" => Self::Model(anthropic::prepare),
            "/v1/messages/count_tokens" => Self::Tokens(anthropic::count),
            "/v1/tokenize" => Self::Tokens(tokens::tokenize),
            "/v1/tokenizers/estimate-token-count" => Self::Tokens(tokens::count),
            "/v1/detokenize" => Self::Tokens(tokens::detokenize),
            _ => return None,
        })
    }
}

fn check_method<B>(request: &Request<B>, methods: &[Method], allow: &'static str) -> Result<(), ApiError> {
    match methods.contains(request.method()) {
        true => Ok(()),
        false => Err(ApiError::method(request.method().as_str(), request.uri().path(), allow)),
    }
}

/// State of every model; 503 if one of them cannot answer now.
fn health(now: &Snapshot) -> Response<Body> {
    let ok = now.models.iter().all(|model| model.status == ModelStatus::Ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!(now))
}

/// A JSON response.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
