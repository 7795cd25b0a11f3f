//! `POST /v1/chat/completions`.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use kimi_core::ChatEvent;

use super::error::ApiError;
use super::events::{self, Event, Events};
use super::request::CompletionRequest;
use super::response::{Answer, Call, Head};
use super::routes::{App, json_response};
use super::{Body, stream};

/// An answer that has been started, and how its client wants it.
struct Started {
    events: Events,
    head: Head,
    stream: bool,
    include_usage: bool,
    logprobs: bool,
}

/// Answers a chat. If the client goes away, the future or the response's body is dropped, and the answer with it.
pub(super) async fn complete(app: Arc<App>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let keepalive = app.config.keepalive;
    // Parsing, rendering and tokenizing a long prompt takes too long for a thread that serves others.
    let started = tokio::task::spawn_blocking(move || start(&app, &body)).await;
    let started =
        started.map_err(|error| ApiError::internal(format!("a request ended early: {error}")))??;
    if started.stream {
        return Ok(stream::response(started.events, started.head, started.include_usage, keepalive));
    }
    collect(started).await
}

fn start(app: &App, body: &[u8]) -> Result<Started, ApiError> {
    let request = CompletionRequest::parse(body)?;
    let model = app.model(request.model.as_deref())?;
    let (sender, events) = events::channel();
    let logprobs = request.chat.logprobs;
    let sink = Box::new(move |event: ChatEvent| sender.send(event));
    let running = model.engine().chat(request.chat, sink)?;
    Ok(Started {
        events: events.of(running, request.parallel_tool_calls),
        head: Head::new(model),
        stream: request.stream,
        include_usage: request.include_usage,
        logprobs,
    })
}

/// Waits for the whole answer.
async fn collect(mut started: Started) -> Result<Response<Body>, ApiError> {
    let mut answer = Answer { logprobs: started.logprobs.then(Vec::new), ..Answer::default() };
    loop {
        match started.events.next().await? {
            Event::Part(part) => add(&mut answer, part),
            Event::Finished(finish, usage) => {
                let body = started.head.completion(answer, finish, &usage);
                return Ok(json_response(StatusCode::OK, &body));
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
