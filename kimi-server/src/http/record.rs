//! What is known of one request when it ends: its line in the log, and the tokens that its key is charged.
//!
//! A record belongs to the task that answers the request, so that what counts tokens need not hand it through.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use kimi_core::ChatEvent;
use kimi_core::engine::Usage;

use super::auth::Admitted;

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// Most characters of a path in the log.
const MAX_PATH: usize = 256;

/// The id of the request that is being answered.
pub(super) fn id() -> Option<String> {
    CURRENT.try_with(|record| record.id.to_str().ok().map(str::to_owned)).ok().flatten()
}

/// One request.
#[derive(Debug)]
pub(super) struct Record {
    id: HeaderValue,
    method: Method,
    path: String,
    started: Instant,
    /// Whether what is asked and answered is logged too.
    with_content: bool,
    seen: Mutex<Seen>,
}

/// What was seen of it so far.
#[derive(Debug, Default)]
struct Seen {
    status: Option<StatusCode>,
    admitted: Option<Admitted>,
    model: Option<String>,
    /// How its answer ended, as `/metrics` counts it.
    outcome: Option<String>,
    prompt_tokens: u64,
    answer_tokens: u64,
    /// Parts of answers of which no token count has come yet.
    parts: u64,
    first_token: Option<Duration>,
    /// Whether its whole response was made.
    complete: bool,
    prompt: String,
    answer: String,
    reasoning: String,
}

impl Record {
    pub(super) fn new(id: HeaderValue, method: Method, path: &str, with_content: bool) -> Arc<Self> {
        let path = path.chars().take(MAX_PATH).collect();
        Arc::new(Self { id, method, path, started: Instant::now(), with_content, seen: Mutex::default() })
    }

    /// Does something for this request.
    pub(super) async fn during<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        CURRENT.scope(self.clone(), work).await
    }

    /// The same at once.
    pub(super) fn at<R>(self: &Arc<Self>, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self.clone(), work)
    }

    fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn status(&self, status: StatusCode) {
        self.note(|seen| seen.status = Some(status));
    }

    /// Its response was sent to its end.
    pub(super) fn complete(&self) {
        self.note(|seen| seen.complete = true);
    }

    /// Requests that come every few seconds from monitors and from the page, and say nothing.
    fn is_routine(&self, status: Option<StatusCode>) -> bool {
        let watched =
            ["/health", "/metrics", "/"].contains(&self.path.as_str()) || self.path.starts_with("/page/");
        watched && status.is_some_and(|status| status.is_success() || status.is_redirection())
    }

    /// Logs it, and charges its key.
    pub(super) fn end(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::take(&mut *seen);
        let answer_tokens = seen.answer_tokens + seen.parts;
        if let Some(admitted) = &seen.admitted {
            admitted.spend(seen.prompt_tokens + answer_tokens, Instant::now());
        }
        let id = self.id.to_str().unwrap_or_default();
        // Of an answer that was cut short nobody has counted the prompt.
        let tokens = |n: u64| (n > 0).then_some(n);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method.as_str(),
                    path = self.path,
                    status = seen.status.map(|status| status.as_u16()),
                    model = seen.model.as_deref(),
                    outcome = seen.outcome.as_deref(),
                    prompt_tokens = tokens(seen.prompt_tokens),
                    answer_tokens = tokens(answer_tokens),
                    first_token_ms = seen.first_token.map(millis),
                    total_ms = millis(self.started.elapsed()),
                    key = seen.admitted.as_ref().map(Admitted::name),
                    request_id = id,
                    "{}",
                    if seen.complete { "answered" } else { "the client left" }
                )
            };
        }
        match self.is_routine(seen.status) {
            true => line!(debug),
            false => line!(info),
        }
        if self.with_content && !seen.prompt.is_empty() {
            tracing::info!(
                request_id = id,
                prompt = seen.prompt,
                reasoning = (!seen.reasoning.is_empty()).then_some(seen.reasoning.as_str()),
                answer = seen.answer,
                "content"
            );
        }
    }
}

/// Milliseconds with one digit after the point.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn note(what: impl FnOnce(&Record, &mut Seen)) {
    // Outside of a request there is nothing to note.
    let _ = CURRENT.try_with(|record| record.note(|seen| what(record, seen)));
}

/// Whose request this is.
pub(super) fn admitted(admitted: Admitted) {
    note(|_, seen| seen.admitted = Some(admitted));
}

/// What this request asks, as it was sent.
pub(super) fn prompt(body: &[u8]) {
    note(|record, seen| {
        if record.with_content {
            seen.prompt = String::from_utf8_lossy(body).into_owned();
        }
    });
}

/// A part of this request's answer.
pub(super) fn part(part: &ChatEvent) {
    note(|record, seen| {
        seen.first_token.get_or_insert_with(|| record.started.elapsed());
        let (place, text) = match part {
            ChatEvent::Content(text) => (&mut seen.answer, text),
            ChatEvent::Reasoning(text) => (&mut seen.reasoning, text),
            ChatEvent::ToolCallBegin { name, .. } => (&mut seen.answer, name),
            ChatEvent::ToolCallArguments { fragment, .. } => (&mut seen.answer, fragment),
            ChatEvent::ToolCallEnd { .. }
            | ChatEvent::StopString(_)
            | ChatEvent::Logprob(_)
            | ChatEvent::Finished { .. }
            | ChatEvent::Failed(_) => return,
        };
        seen.parts += 1;
        if record.with_content {
            place.push_str(text);
        }
    });
}

/// An answer of this request has ended, with `usage` where its tokens were counted.
pub(super) fn ended(model: &str, outcome: &str, usage: Option<&Usage>) {
    note(|_, seen| {
        seen.model = Some(model.to_owned());
        seen.outcome = Some(outcome.to_owned());
        if let Some(usage) = usage {
            // Several choices answer one prompt.
            seen.prompt_tokens = seen.prompt_tokens.max(usage.prompt_tokens as u64);
            seen.answer_tokens += u64::from(usage.completion_tokens);
            seen.parts = 0;
        }
    });
}
