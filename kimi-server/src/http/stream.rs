//! A streamed answer: server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::Value;

use super::Body;
use super::answer::{Choices, End, Writer};
use super::error::ApiError;
use super::events::Event;
use super::peer::Peer;
use super::routes::App;

/// What a stream carries when nothing has happened for a while, where the API has no event for that. Clients skip it.
pub(super) const COMMENT: &str = ": still working\n\n";

/// A response whose body follows the answer.
pub(super) fn response(
    choices: Choices,
    mut writer: Box<dyn Writer>,
    app: Arc<App>,
    peer: Peer,
) -> Response<Body> {
    let mut first = String::new();
    writer.begin(choices.prompt_tokens(), &mut first);
    let sse = Sse { choices, writer, app, peer, finished: false, last: End::default() };
    let body = stream::unfold(State::First(first.into(), Box::new(sse)), |state| async {
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
    choices: Choices,
    writer: Box<dyn Writer>,
    app: Arc<App>,
    peer: Peer,
    /// Whether the client has closed its half of the connection.
    finished: bool,
    /// How the choice ended that ended last.
    last: End,
}

impl Sse {
    async fn next(&mut self) -> Step {
        let mut out = String::new();
        loop {
            let event = tokio::select! {
                biased;
                () = self.app.ending() => {
                    self.writer.fail(&ApiError::shutdown(), true, &mut out);
                    return Step::Last(out.into());
                }
                event = self.choices.next() => event,
                () = self.peer.finished(), if !self.finished => {
                    self.finished = true;
                    return Step::More(Bytes::from_static(COMMENT.as_bytes()));
                }
                () = tokio::time::sleep(self.app.config.keepalive) => {
                    self.writer.idle(&mut out);
                    return Step::More(out.into());
                }
            };
            match event {
                Some(Ok((choice, Event::Part(part)))) => self.writer.part(choice, part, &mut out),
                Some(Ok((choice, Event::Finished(end)))) => {
                    self.writer.finish(choice, &end, &mut out);
                    self.last = end;
                }
                None => {
                    self.writer.end(self.last, &mut out);
                    return Step::Last(out.into());
                }
                // The status has been sent: the client learns of the error from the last event.
                Some(Err(error)) => {
                    tracing::warn!(%error, "a streamed answer failed");
                    self.writer.fail(&error, false, &mut out);
                    return Step::Last(out.into());
                }
            }
            if !out.is_empty() {
                return Step::More(out.into());
            }
        }
    }
}

/// Appends an event that has a name.
pub(super) fn push_event(out: &mut String, name: &str, data: &Value) {
    out.push_str("event: ");
    out.push_str(name);
    out.push('\n');
    push_data(out, data);
}

/// Appends an event that has only data. JSON text has no line ends, so it is one line.
pub(super) fn push_data(out: &mut String, data: &impl Serialize) {
    match serde_json::to_string(data) {
        Ok(text) => out.extend(["data: ", &text, "\n\n"]),
        Err(error) => tracing::error!(%error, "can't write an event"), // none of our values does that
    }
}
