//! A streamed answer: server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use kimi_core::ChatEvent;
use kimi_core::chat_model::{FinishReason, TokenLogprob};
use kimi_core::engine::Usage;
use serde_json::{Value, json};

use super::Body;
use super::error::ApiError;
use super::events::{Event, Events};
use super::peer::Peer;
use super::response::Head;
use super::routes::App;

/// What a stream carries when nothing has happened for a while. Clients skip it.
const COMMENT: &[u8] = b": still working\n\n";
/// The last event.
const DONE: &str = "data: [DONE]\n\n";

/// A response whose body follows the answer.
pub(super) fn response(
    events: Events,
    head: Head,
    include_usage: bool,
    app: Arc<App>,
    peer: Peer,
) -> Response<Body> {
    let writer = Writer { head, include_usage, logprobs: Vec::new() };
    let sse = Sse { events, writer, app, peer, finished: false };
    let first = sse.writer.first();
    let body = stream::unfold(State::First(first, Box::new(sse)), |state| async {
        let (bytes, next) = match state {
            State::First(bytes, sse) => (bytes, State::Running(sse)),
            State::Running(mut sse) => match sse.next().await {
                Step::More(bytes) => (bytes, State::Running(sse)),
                Step::Last(bytes) => (bytes, State::Ended),
            },
            State::Ended => return None,
        };
        Some((Ok::<_, Infallible>(Frame::data(bytes)), next))
    });
    let mut response = Response::new(Body::new(StreamBody::new(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks reverse proxies not to hold the events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

enum State {
    First(Bytes, Box<Sse>),
    Running(Box<Sse>),
    Ended,
}

enum Step {
    More(Bytes),
    Last(Bytes),
}

/// A stream under way.
struct Sse {
    events: Events,
    writer: Writer,
    app: Arc<App>,
    peer: Peer,
    /// Whether the client has closed its half of the connection.
    finished: bool,
}

impl Sse {
    async fn next(&mut self) -> Step {
        loop {
            let event = tokio::select! {
                biased;
                () = self.app.ending() => return Step::Last(cut_short(&ApiError::shutdown())),
                event = self.events.next() => event,
                () = self.peer.finished(), if !self.finished => {
                    self.finished = true;
                    return Step::More(Bytes::from_static(COMMENT));
                }
                () = tokio::time::sleep(self.app.config.keepalive) => {
                    return Step::More(Bytes::from_static(COMMENT));
                }
            };
            match event {
                Ok(Event::Part(part)) => {
                    if let Some(bytes) = self.writer.part(part) {
                        return Step::More(bytes);
                    }
                }
                Ok(Event::Finished(finish, usage)) => return Step::Last(self.writer.end(finish, &usage)),
                // The status has been sent: the client learns of the error from the last event.
                Err(error) => return Step::Last(failure(&error)),
            }
        }
    }
}

/// The end of a stream that the server does not finish.
fn cut_short(error: &ApiError) -> Bytes {
    format!("{}{DONE}", event(&error.body())).into()
}

fn failure(error: &ApiError) -> Bytes {
    tracing::warn!(%error, "a streamed answer failed");
    event(&error.body()).into()
}

/// Turns parts of an answer into events.
struct Writer {
    head: Head,
    include_usage: bool,
    /// Those of the tokens that have come since the last event.
    logprobs: Vec<TokenLogprob>,
}

impl Writer {
    fn first(&self) -> Bytes {
        event(&self.head.chunk(json!({"role": "assistant", "content": ""}), &[], None, self.no_usage()))
            .into()
    }

    fn part(&mut self, part: ChatEvent) -> Option<Bytes> {
        let delta = match part {
            ChatEvent::Content(text) => json!({"content": text}),
            ChatEvent::Reasoning(text) => json!({"reasoning_content": text}),
            ChatEvent::ToolCallBegin { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            }
            ChatEvent::ToolCallArguments { index, fragment } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": fragment}}]})
            }
            ChatEvent::Logprob(logprob) => {
                self.logprobs.push(logprob);
                return None;
            }
            ChatEvent::ToolCallEnd { .. } | ChatEvent::Finished { .. } | ChatEvent::Failed(_) => return None,
        };
        let logprobs = std::mem::take(&mut self.logprobs);
        Some(event(&self.head.chunk(delta, &logprobs, None, self.no_usage())).into())
    }

    fn end(&mut self, finish: FinishReason, usage: &Usage) -> Bytes {
        let mut text = String::new();
        // Tokens that made no text, such as the markers of a tool call.
        if !self.logprobs.is_empty() {
            let chunk = self.head.chunk(json!({"content": ""}), &self.logprobs, None, self.no_usage());
            text.push_str(&event(&chunk));
        }
        text.push_str(&event(&self.head.chunk(json!({}), &[], Some(finish), self.no_usage())));
        if self.include_usage {
            text.push_str(&event(&self.head.usage_chunk(usage)));
        }
        text.push_str(DONE);
        text.into()
    }

    /// `usage` of all chunks but the one that has it.
    fn no_usage(&self) -> Option<Value> {
        self.include_usage.then_some(Value::Null)
    }
}

/// One event. JSON text has no line ends, so it is one line.
fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
