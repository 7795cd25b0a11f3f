//! From a request's body to its answer, the same for every front door.
//!
//! A front door is a function that reads a body into a [`Prepared`] and a [`Writer`] that turns what the model says into
//! its own JSON and events. All else is here and in [`super::stream`]: the memory and the places of requests, models that
//! are still loading, clients that go away, and the end of the server.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use kimi_core::chat_model::{FinishReason, TokenLogprob};
use kimi_core::engine::Usage;
use kimi_core::{CancelFlag, ChatEvent, ChatRequest};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::body::WholeBody;
use super::budget::Budget;
use super::engine::{EventSink, ServedModel};
use super::error::ApiError;
use super::events::{self, Event, Events};
use super::json::{self, Body as JsonBody};
use super::peer::Peer;
use super::routes::{App, json_response};
use super::{Body, metrics, stream as sse};
use crate::system;

/// How long a request whose client has closed its half of the connection may still wait for its answer to begin.
const LEFT: Duration = Duration::from_secs(1);

/// Bytes of a body whose weight is found at once: it takes less time than handing it to another thread.
const WEIGHED_AT_ONCE: usize = 16 << 10;

/// What a front door has made of a body.
pub(super) struct Prepared {
    /// Who answers.
    pub(super) model: ServedModel,
    /// What is asked; choices are counted through.
    pub(super) questions: Vec<Question>,
    /// The request's field that the prompts are made of, for errors about them.
    pub(super) prompt_field: &'static str,
    /// Whether an answer may have several tool calls.
    pub(super) parallel_calls: bool,
    /// Whether the answer comes as a stream of events.
    pub(super) stream: bool,
    /// Gives the answer its form.
    pub(super) writer: Box<dyn Writer>,
}

/// Reads a body. The flag ends the making of prompts. Called on a thread that may take its time.
pub(super) type Prepare = fn(&App, JsonBody, CancelFlag) -> Result<Prepared, ApiError>;

/// A question and how many answers to it are wanted.
pub(super) struct Question {
    pub(super) request: ChatRequest,
    /// At least 1.
    pub(super) choices: usize,
}

/// Gives an answer the form of a front door: as a whole, or as events, which are appended to `out` as they are sent.
pub(super) trait Writer: Send + 'static {
    /// A choice of an answer that is not streamed goes on. For writers that need more than [`Answer`] holds.
    fn hear(&mut self, _choice: usize, _part: &ChatEvent) {}

    /// The whole answer, of all choices.
    fn whole(&mut self, answers: Vec<Answer>) -> Value;

    /// Begins a stream. `prompt_tokens` is the length of the first prompt.
    fn begin(&mut self, prompt_tokens: usize, out: &mut String);

    /// Nothing has happened for a while, as before the first token of a long prompt. A comment, which clients skip; but some give
    /// up on a stream that brings no event for minutes, and where the API has a harmless one, that is sent.
    fn idle(&mut self, out: &mut String) {
        out.push_str(sse::COMMENT);
    }

    /// A choice goes on. Never [`ChatEvent::Finished`] or [`ChatEvent::Failed`].
    fn part(&mut self, choice: usize, part: ChatEvent, out: &mut String);

    /// A choice ends. Nothing is to be done where there is one choice.
    fn finish(&mut self, _choice: usize, _end: &End, _out: &mut String) {}

    /// All choices have ended, the last of them like this.
    fn end(&mut self, last: End, out: &mut String);

    /// The stream ends early: `error` says why. `cut_short` if the server ends it and nothing failed.
    fn fail(&mut self, error: &ApiError, cut_short: bool, out: &mut String);

    /// An error of the model about the request, whose fields have chat completions' names, with this front door's names.
    fn rename(&self, error: ApiError) -> ApiError {
        error
    }

    /// An error in place of the whole answer, when it is too late for a status.
    fn error(&self, error: &ApiError) -> Value {
        error.body()
    }
}

/// One choice as a whole, put together from its parts.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Call>,
    /// Those of all tokens, if the request asked for them.
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) end: End,
}

/// How a choice ended, and what it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    pub(super) usage: Usage,
}

impl Default for End {
    fn default() -> Self {
        Self { reason: FinishReason::Stop, usage: Usage::default() }
    }
}

/// A tool call of an answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

impl Answer {
    fn new() -> Self {
        Self {
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            end: End::default(),
        }
    }

    fn add(&mut self, part: ChatEvent) {
        match part {
            ChatEvent::Content(text) => self.content.push_str(&text),
            ChatEvent::Reasoning(text) => self.reasoning.push_str(&text),
            ChatEvent::ToolCallBegin { id, name, .. } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            ChatEvent::ToolCallArguments { index, fragment } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&fragment);
                }
            }
            ChatEvent::Logprob(logprob) => self.logprobs.push(logprob),
            ChatEvent::ToolCallEnd { .. }
            | ChatEvent::StopString(_)
            | ChatEvent::Finished { .. }
            | ChatEvent::Failed(_) => {}
        }
    }
}

/// An answer that has been started, and how its client wants it.
struct Started {
    choices: Choices,
    stream: bool,
    writer: Box<dyn Writer>,
}

/// Answers a request. If the client goes away, the future or the response's body is dropped, and the answer with it.
pub(super) async fn respond(
    app: Arc<App>,
    peer: Peer,
    body: WholeBody,
    prepare: Prepare,
) -> Result<Response<Body>, ApiError> {
    let started = tokio::select! {
        started = app.until_end(begin(app.clone(), body, prepare)) => started?,
        () = left(&peer) => return Err(ApiError::too_many_chats()),
    };
    let Started { choices, stream, mut writer } = started;
    if stream {
        return Ok(sse::response(choices, writer, app, peer));
    }
    let answering = app.clone();
    let mut answer: Whole = Box::pin(async move {
        match answering.until_end(choices.collect(&mut *writer)).await {
            Ok(answers) => Ok(writer.whole(answers)),
            Err(error) => Err((writer.error(&error), error)),
        }
    });
    tokio::select! {
        biased;
        answer = &mut answer => Ok(json_response(StatusCode::OK, &answer.map_err(|(_, error)| error)?)),
        () = peer.finished() => Ok(early_response(answer, app.config.keepalive)),
    }
}

/// A whole answer that is on its way; or an error, also in the front door's form.
type Whole = Pin<Box<dyn Future<Output = Result<Value, (Value, ApiError)>> + Send>>;

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
                let value = done.unwrap_or_else(|(body, _)| body);
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
async fn begin(app: Arc<App>, body: WholeBody, prepare: Prepare) -> Result<Started, ApiError> {
    let slot = app.slot().await?;
    let reading = app.clone();
    read(&app, body, move |body, cancel| start(&reading, prepare(&reading, body, cancel)?, slot)).await
}

/// Answers a request that needs no model's answer: with what `work` makes of its body.
///
/// # Errors
/// Those of [`read`], 503 if too many wait already.
pub(super) async fn compute(
    app: Arc<App>,
    body: WholeBody,
    work: fn(&App, JsonBody, CancelFlag) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let _slot = app.slot().await?;
    let reading = app.clone();
    let value = read(&app, body, move |body, cancel| work(&reading, body, cancel)).await?;
    Ok(json_response(StatusCode::OK, &value))
}

/// Has a body read on a thread that may take its time, within the memory for bodies. The flag is set when the client
/// goes away.
///
/// # Errors
/// 400 if the body is too large or not JSON, and those of `work`.
pub(super) async fn read<T: Send + 'static>(
    app: &App,
    body: WholeBody,
    work: impl FnOnce(JsonBody, CancelFlag) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let limit = app.budget.max_reading();
    let (body, weight) = match body.bytes.len() <= WEIGHED_AT_ONCE {
        true => json::weigh(&body.bytes, limit).map(|weight| (body, weight))?,
        false => blocking(move || json::weigh(&body.bytes, limit).map(|weight| (body, weight))).await?,
    };
    let memory = app.budget.read(weight).await?;
    let wanted = Wanted::default();
    let cancel = wanted.0.clone();
    blocking(move || {
        let parsed = JsonBody::parse(&body.bytes);
        drop(body);
        let done = parsed.and_then(|body| work(body, cancel));
        if Budget::is_large(weight) {
            system::return_freed_memory();
        }
        drop(memory);
        done
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

fn start(app: &App, prepared: Prepared, slot: OwnedSemaphorePermit) -> Result<Started, ApiError> {
    let Prepared { model, questions, prompt_field, parallel_calls, stream, writer } = prepared;
    model.check_loaded()?;
    let mut running = Vec::new();
    for Question { request, choices } in questions {
        let (sinks, events): (Vec<EventSink>, Vec<_>) = (0..choices)
            .map(|_| {
                let (sender, events) = events::channel();
                (Box::new(move |event: ChatEvent| sender.send(event)) as EventSink, events)
            })
            .unzip();
        let begun = model.engine().choices(request, sinks);
        let begun = begun.map_err(|error| writer.rename(ApiError::from(error).about_prompt(prompt_field)))?;
        running.extend(begun.into_iter().zip(events).map(|(running, events)| {
            let counted = metrics::Request::new(app.metrics.clone(), model.id());
            Some(events.of(running, parallel_calls, counted))
        }));
    }
    Ok(Started { choices: Choices { running, first: 0, _slot: slot }, stream, writer })
}

/// The choices of an answer that are under way. Dropping them cancels them.
pub(super) struct Choices {
    /// `None` once a choice has ended.
    running: Vec<Option<Events>>,
    /// The one that is looked at first, so that none waits for another that has always something to say.
    first: usize,
    /// The answer's place among those that the server gives at a time.
    _slot: OwnedSemaphorePermit,
}

impl Choices {
    /// How many tokens the first choice's prompt has, as far as that is known.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.running.iter().flatten().next().map_or(0, Events::prompt_tokens)
    }

    /// The next event and the choice that it is of; `None` when all have ended. May be dropped while it waits; nothing
    /// is lost.
    ///
    /// # Errors
    /// If the model failed or was stopped.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Event), ApiError>>> {
        let count = self.running.len();
        let mut ended = true;
        for choice in (self.first..count).chain(0..self.first) {
            let Some(events) = &mut self.running[choice] else { continue };
            ended = false;
            if let Poll::Ready(event) = events.poll_next(cx) {
                self.first = (choice + 1) % count;
                if !matches!(event, Ok(Event::Part(_))) {
                    self.running[choice] = None;
                }
                return Poll::Ready(Some(event.map(|event| (choice, event))));
            }
        }
        if ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Waits for all whole answers.
    ///
    /// # Errors
    /// If the model failed or was stopped.
    async fn collect(mut self, writer: &mut dyn Writer) -> Result<Vec<Answer>, ApiError> {
        let mut answers: Vec<Answer> = self.running.iter().map(|_| Answer::new()).collect();
        while let Some(event) = self.next().await {
            let (choice, event) = event?;
            match event {
                Event::Part(part) => {
                    writer.hear(choice, &part);
                    answers[choice].add(part);
                }
                Event::Finished(end) => answers[choice].end = end,
            }
        }
        Ok(answers)
    }
}
