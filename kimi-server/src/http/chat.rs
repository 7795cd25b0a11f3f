//! `POST /v1/chat/completions`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use kimi_core::{CancelFlag, ChatEvent};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::body::WholeBody;
use super::budget::Budget;
use super::error::ApiError;
use super::events::{self, Event, Events};
use super::peer::Peer;
use super::request::CompletionRequest;
use super::response::{Answer, Call, Head};
use super::routes::{App, json_response};
use super::{Body, json, metrics, stream as sse};
use crate::system;

/// How long a request whose client has closed its half of the connection may still wait for its answer to begin.
const LEFT: Duration = Duration::from_secs(1);

/// An answer that has been started, and how its client wants it.
struct Started {
    events: Events,
    head: Head,
    stream: bool,
    include_usage: bool,
    logprobs: bool,
}

/// Answers a chat. If the client goes away, the future or the response's body is dropped, and the answer with it.
pub(super) async fn complete(app: Arc<App>, peer: Peer, body: WholeBody) -> Result<Response<Body>, ApiError> {
    let started = tokio::select! {
        started = app.until_end(begin(app.clone(), body)) => started?,
        () = left(&peer) => return Err(ApiError::too_many_chats()),
    };
    if started.stream {
        return Ok(sse::response(started.events, started.head, started.include_usage, app, peer));
    }
    let answering = app.clone();
    let mut answer: Whole = Box::pin(async move { answering.until_end(collect(started)).await });
    tokio::select! {
        biased;
        answer = &mut answer => Ok(json_response(StatusCode::OK, &answer?)),
        () = peer.finished() => Ok(early_response(answer, app.config.keepalive)),
    }
}

/// A whole answer that is on its way.
type Whole = Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send>>;

/// Waits until a client has probably left: one that only closed its half of the connection waits a while longer.
async fn left(peer: &Peer) {
    peer.finished().await;
    tokio::time::sleep(LEFT).await;
}

/// The response to a client that may be gone: white space, which JSON may begin with, at once and now and then. It
/// makes the system of a client that is gone say so. An error comes with status 200 then.
fn early_response(answer: Whole, pause: Duration) -> Response<Body> {
    const SPACE: Bytes = Bytes::from_static(b"\n");
    let body = stream::unfold((Some(answer), Duration::ZERO), move |(answer, wait)| async move {
        let mut answer = answer?;
        let (bytes, answer) = tokio::select! {
            done = &mut answer => {
                let value = done.unwrap_or_else(|error| error.body());
                (Bytes::from(value.to_string()), None)
            }
            () = tokio::time::sleep(wait) => (SPACE, Some(answer)),
        };
        Some((Ok::<_, Infallible>(Frame::data(bytes)), (answer, pause)))
    });
    let mut response = Response::new(Body::new(StreamBody::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Reads a request and begins its answer.
async fn begin(app: Arc<App>, body: WholeBody) -> Result<Started, ApiError> {
    let slot = app.slot().await?;
    let limit = app.budget.max_reading();
    // Reading a long request takes too long for a thread that serves others.
    let (body, weight) =
        blocking(move || json::weigh(&body.bytes, limit).map(|weight| (body, weight))).await?;
    let memory = app.budget.read(weight).await?;
    let wanted = Wanted::default();
    let cancel = wanted.0.clone();
    blocking(move || {
        let started = start(&app, body, slot, cancel);
        if Budget::is_large(weight) {
            system::return_freed_memory();
        }
        drop(memory);
        started
    })
    .await
}

/// Sets its flag when it is dropped, as it is when the client goes away.
#[derive(Default)]
struct Wanted(CancelFlag);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Does something that takes long.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(format!("a request ended early: {error}")))?
}

fn start(
    app: &App,
    body: WholeBody,
    slot: OwnedSemaphorePermit,
    cancel: CancelFlag,
) -> Result<Started, ApiError> {
    let mut fields = json::parse(&body.bytes)?;
    drop(body);
    let request = CompletionRequest::new(&mut fields, cancel)?;
    drop(fields);
    let model = app.model(request.model.as_deref())?;
    if let Some(loading) = model.engine().loading() {
        return Err(ApiError::loading(model.id(), &loading));
    }
    let (sender, events) = events::channel();
    let logprobs = request.chat.logprobs;
    let sink = Box::new(move |event: ChatEvent| sender.send(event));
    let running = model.engine().chat(request.chat, sink)?;
    let counted = metrics::Request::new(app.metrics.clone(), model.id());
    Ok(Started {
        events: events.of(running, slot, request.parallel_tool_calls, counted),
        head: Head::new(model),
        stream: request.stream,
        include_usage: request.include_usage,
        logprobs,
    })
}

/// Waits for the whole answer.
async fn collect(mut started: Started) -> Result<Value, ApiError> {
    let mut answer = Answer { logprobs: started.logprobs.then(Vec::new), ..Answer::default() };
    loop {
        match started.events.next().await? {
            Event::Part(part) => add(&mut answer, part),
            Event::Finished(finish, usage) => {
                return Ok(started.head.completion(answer, finish, &usage));
            }
        }
    }
}

fn add(answer: &mut Answer, part: ChatEvent) {
    match part {
        ChatEvent::Content(text) => answer.content.push_str(&text),
        ChatEvent::Reasoning(text) => answer.reasoning.push_str(&text),
        ChatEvent::ToolCallBegin { id, name, .. } => {
            answer.calls.push(Call { id, name, arguments: String::new() });
        }
        ChatEvent::ToolCallArguments { index, fragment } => {
            if let Some(call) = answer.calls.get_mut(index) {
                call.arguments.push_str(&fragment);
            }
        }
        ChatEvent::Logprob(logprob) => answer.logprobs.get_or_insert_default().push(logprob),
        ChatEvent::ToolCallEnd { .. } | ChatEvent::Finished { .. } | ChatEvent::Failed(_) => {}
    }
}
